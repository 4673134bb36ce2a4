"""Returns between which others are expressed in per cent: those of random actions and of an expert."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_D4RL = "Fu et al. 2020 (D4RL), for version 2 of the task"


@dataclass(frozen=True)
class Reference:
    """
    What zero and a hundred per cent are on a task.

    :param random: mean return of random actions
    :param expert: mean return of an expert
    :param source: where the two are from
    """

    random: float
    expert: float
    source: str

    def normalized(self, returns: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """
        :param returns: undiscounted returns, any shape
        :return: the same in per cent, D4RL's normalised score
        """
        scores: npt.NDArray[np.float64] = 100 * (np.asarray(returns, np.float64) - self.random) / (self.expert - self.random)
        return scores


#: By the name of the task without its version: the versions differ by little, and the scale is a convention.
REFERENCES = {
    "Hopper": Reference(-20.272305, 3234.3, _D4RL),
    "HalfCheetah": Reference(-280.178953, 12135.0, _D4RL),
    "Walker2d": Reference(1.629008, 4592.3, _D4RL),
    # D4RL does not have it. The means have standard errors of about 9 and 8.
    "Pendulum": Reference(-1230.65, -136.33, "own runs: random actions, 1,000 episodes; SAC after 5,500 steps, 100 episodes"),
}


def reference(env_id: str) -> Reference | None:
    """
    :param env_id: such as ``Hopper-v5``
    :return: its scale, where there is one
    """
    return REFERENCES.get(env_id.rsplit("-v", 1)[0])
