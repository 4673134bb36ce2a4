from otbaselines.wmatrpo.policies import JointCriticPolicy as MlpPolicy
from otbaselines.wmatrpo.wmatrpo import WMATRPO

__all__ = ["WMATRPO", "MlpPolicy"]
