"""The algorithms that the command line knows, by the name of their folder."""

import rl_zoo3
from stable_baselines3.common.base_class import BaseAlgorithm

from otbaselines.ippo import IPPO
from otbaselines.wbc import WBC

#: Name on the command line, name of the hyperparameter file, name of the output folder.
ALGOS: dict[str, type[BaseAlgorithm]] = {"ippo": IPPO, "wbc": WBC}

# rl_zoo3 looks algorithms up in a dictionary of its own, which third parties fill in place.
rl_zoo3.ALGOS.update(ALGOS)
