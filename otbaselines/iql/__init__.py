from otbaselines.common.offline.policies import ImplicitQPolicy as MlpPolicy
from otbaselines.iql.iql import IQL

__all__ = ["IQL", "MlpPolicy"]
