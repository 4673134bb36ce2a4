from otbaselines.fedirl.clients import Client, demonstrate, from_minari
from otbaselines.fedirl.fedirl import FedIRL
from otbaselines.fedirl.policies import TabularPolicy as MlpPolicy

__all__ = ["Client", "FedIRL", "MlpPolicy", "demonstrate", "from_minari"]
