from otbaselines.wfpg.policies import FlowPolicy as MlpPolicy
from otbaselines.wfpg.wfpg import WassersteinFlowPG

__all__ = ["MlpPolicy", "WassersteinFlowPG"]
