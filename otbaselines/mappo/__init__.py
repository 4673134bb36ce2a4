from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy as MlpPolicy
from otbaselines.mappo.mappo import MAPPO

__all__ = ["MAPPO", "MlpPolicy"]
