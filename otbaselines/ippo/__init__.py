from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy as MlpPolicy
from otbaselines.ippo.ippo import IPPO

__all__ = ["IPPO", "MlpPolicy"]
