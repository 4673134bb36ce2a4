"""Which spaces the team policies can handle."""

from typing import Any

import numpy as np
from gymnasium import spaces

_KNOWN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """
    Refuse what no policy could be built for, before anything is built.

    :param observation_space: the team's common observation space
    :param action_space: the team's common action space
    :raises ValueError: if a space is not supported; says what to do instead
    """
    parts = list(observation_space.spaces.values()) if isinstance(observation_space, spaces.Dict) else [observation_space]
    if not parts or not all(isinstance(part, _KNOWN) for part in parts):
        raise ValueError(
            f"the observation space {observation_space} is not supported; use Box, Discrete, MultiDiscrete or MultiBinary, or "
            "an un-nested Dict of them (gymnasium.wrappers.FlattenObservation makes one Box of anything)"
        )
    remedy = _action_remedy(action_space)
    if remedy is not None:
        raise ValueError(f"the action space {action_space} is not supported; {remedy}")


def _action_remedy(space: spaces.Space[Any]) -> str | None:
    """What to do about an action space; ``None`` where nothing needs to be done."""
    if not isinstance(space, _KNOWN):
        return "use Box, Discrete, MultiDiscrete or MultiBinary"
    if isinstance(space, spaces.Box) and not np.isfinite(np.stack([space.low, space.high])).all():
        return "give it finite bounds, to which actions are clipped (gymnasium.wrappers.RescaleAction or ClipAction)"
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary) and len(space.shape) != 1:
        return "flatten it to one dimension"
    if isinstance(space, spaces.MultiDiscrete) and (space.start != 0).any():
        return "count its choices from zero, and add the start in a wrapper"
    return None
