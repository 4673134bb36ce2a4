from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy as MlpPolicy
from otbaselines.wbc.wbc import WBC

__all__ = ["WBC", "MlpPolicy"]
