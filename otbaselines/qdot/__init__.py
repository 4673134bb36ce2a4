from otbaselines.qdot.policies import TransportPolicy as MlpPolicy
from otbaselines.qdot.qdot import QDOT

__all__ = ["QDOT", "MlpPolicy"]
