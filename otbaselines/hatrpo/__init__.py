from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy as MlpPolicy
from otbaselines.hatrpo.hatrpo import HATRPO

__all__ = ["HATRPO", "MlpPolicy"]
