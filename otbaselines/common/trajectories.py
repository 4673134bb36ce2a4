"""Recorded episodes: what a demonstrator saw and did, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from otbaselines.common.settings import Setting, check_settings

_SETTINGS = {"terminated": Setting("flag"), "success": Setting("flag", optional=True)}


@dataclass(frozen=True)
class Trajectory:
    """
    One episode.

    :param observations: what was seen before each action, and at the end, shape ``(n_steps + 1, ...)``
    :param actions: what was done, shape ``(n_steps, ...)``
    :param terminated: whether the episode ended by itself; False where it was cut off
    :param success: whether it reached its goal, where it has one
    :raises TypeError: if ``terminated`` or ``success`` is no truth value
    :raises ValueError: if there is no step, the lengths disagree, or an entry is NaN or infinite
    """

    observations: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    terminated: bool
    success: bool | None = None

    def __post_init__(self) -> None:
        for name in ("observations", "actions"):
            try:
                array = np.asarray(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"`{name}` must be an array of numbers, all steps of one shape: {error}") from None
            if array.dtype.kind not in "iufb":
                raise ValueError(f"`{name}` must be an array of numbers, got the dtype {array.dtype}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"`{name}` holds NaN or infinite entries; leave out the damaged episode")
            object.__setattr__(self, name, array)
        check_settings(_SETTINGS, vars(self))
        if self.actions.ndim == 0 or self.observations.ndim == 0 or len(self.actions) == 0:
            raise ValueError("`actions` must have at least one step, got an empty trajectory; leave out empty episodes")
        if len(self.observations) != len(self.actions) + 1:
            raise ValueError(
                f"`observations` must have one entry more than `actions`, {len(self.actions) + 1}, got "
                f"{len(self.observations)}; append the observation at the end of the episode"
            )

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.actions)
