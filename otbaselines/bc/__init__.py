from otbaselines.bc.bc import BC
from otbaselines.common.offline.policies import OfflineActorPolicy as MlpPolicy

__all__ = ["BC", "MlpPolicy"]
