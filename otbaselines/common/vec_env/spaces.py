"""Which spaces the team policies can handle, and the one space that a team's slots share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

Array = np.ndarray[Any, Any]
Space = spaces.Space[Any]

_PAD_REMEDY = "use `pad=True`, or supersuit's `pad_observations_v0` and `pad_action_space_v0`"
_FLATTEN = "gymnasium.wrappers.FlattenObservation"
_KNOWN = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """
    Refuse what no policy could be built for, before anything is built.

    :param observation_space: the team's common observation space
    :param action_space: the team's common action space
    :raises ValueError: if a space is not supported; says what to do instead
    """
    for role, space in (("observation", observation_space), ("action", action_space)):
        remedy = _remedy(role, space) or _policy_remedy(role, space)
        if remedy is not None:
            raise ValueError(f"the {role} space {space} is not supported; {remedy}")


def _remedy(role: str, space: Any) -> str | None:
    """What to do about a space that no vector environment can carry; ``None`` where nothing needs to be done."""
    parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) and role == "observation" else [space]
    if not parts or not all(isinstance(part, _KNOWN) for part in parts):
        known = "use Box, Discrete, MultiDiscrete or MultiBinary"
        return known if role == "action" else f"{known}, or an un-nested Dict of them ({_FLATTEN} makes one Box of anything)"
    if role == "observation" and any(isinstance(part, spaces.MultiDiscrete) and len(part.shape) != 1 for part in parts):
        return "flatten it to one dimension"
    if role == "observation" and any(isinstance(part, spaces.Box) and part.shape == () for part in parts):
        return "give its Box the shape (1,) instead of ()"
    if role == "action" and 0 in (space.shape or ()):
        return "an agent needs something to choose: give it at least one dimension, or leave the agent out"
    return None


def _policy_remedy(role: str, space: Space) -> str | None:
    """What to do about a space that no policy can be built for."""
    if role == "action":
        return _action_remedy(space)
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else [space]:
        if isinstance(part, spaces.Discrete | spaces.MultiDiscrete) and np.any(part.start != 0):
            return "count its values from zero (gymnasium.wrappers.TransformObservation subtracts the start)"
        if 0 in (part.shape or ()):
            return "an observation needs at least one number; a constant will do"
    return None


def _action_remedy(space: spaces.Space[Any]) -> str | None:
    """What to do about an action space; ``None`` where nothing needs to be done."""
    if isinstance(space, spaces.Box) and not np.isfinite(np.stack([space.low, space.high])).all():
        return "give it finite bounds, to which actions are clipped (gymnasium.wrappers.RescaleAction or ClipAction)"
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary) and len(space.shape) != 1:
        return "flatten it to one dimension"
    if isinstance(space, spaces.MultiDiscrete) and (space.start != 0).any():
        return "count its choices from zero, and add the start in a wrapper"
    return None


@dataclass(frozen=True)
class TeamSpaces:
    """
    The native spaces of a team's agents and the padded spaces that all slots share.

    :param agent_observation_spaces: native observation space of every agent, in slot order
    :param agent_action_spaces: native action space of every agent, in slot order
    :param observation_space: the space that every native observation fits into after zero-padding
    :param action_space: the space that covers every native action space
    :param state_space: the environment's state as one float32 vector; ``None`` where it offers none
    """

    agent_observation_spaces: dict[str, Space]
    agent_action_spaces: dict[str, Space]
    observation_space: Space
    action_space: Space
    state_space: spaces.Box | None = None

    @property
    def agents(self) -> tuple[str, ...]:
        """Names of the agents in slot order."""
        return tuple(self.agent_observation_spaces)


def team_spaces(
    observation_spaces: Mapping[str, Space],
    action_spaces: Mapping[str, Space],
    *,
    pad: bool = True,
    state_space: Space | None = None,
) -> TeamSpaces:
    """
    Find the spaces that a team's slots can share.

    One-dimensional boxes are padded to the longest, ``Discrete`` spaces to the largest number of choices. Boxes of equal
    shape but different bounds get the union of the bounds. Everything else has to be equal for all agents.

    :param observation_spaces: native observation space of every agent
    :param action_spaces: native action space of every agent
    :param pad: whether spaces may differ between agents at all
    :param state_space: the environment's own, of which Boxes are flattened; other kinds count as none
    :return: the native and the shared spaces
    :raises ValueError: if the team is empty, or the spaces differ in kind, or differ although ``pad=False``
    """
    if not observation_spaces:
        raise ValueError("the environment has no agents: `possible_agents` is empty; a team needs at least one agent")
    return TeamSpaces(
        agent_observation_spaces=dict(observation_spaces),
        agent_action_spaces=dict(action_spaces),
        observation_space=_shared_space("observation", observation_spaces, pad=pad),
        action_space=_shared_space("action", action_spaces, pad=pad),
        state_space=_flat_box(state_space),
    )


def _flat_box(space: Space | None) -> spaces.Box | None:
    if not isinstance(space, spaces.Box) or not space.low.size:
        return None
    # Bounds of float64 that float32 cannot hold become infinite, which is what they mean.
    with np.errstate(over="ignore"):
        low, high = (bound.astype(np.float32).reshape(-1) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=np.float32)


def _shared_space(role: str, native: Mapping[str, Space], *, pad: bool) -> Space:
    first, *others = native.values()
    _check_supported(role, native)
    if all(space == first for space in others):
        return _from_zero(first)
    if not pad:
        raise ValueError(f"the agents' {role} spaces differ ({_listing(native)}) but `pad=False`; {_PAD_REMEDY}")
    if all(isinstance(space, spaces.Discrete) for space in native.values()):
        return spaces.Discrete(max(int(space.n) for space in native.values() if isinstance(space, spaces.Discrete)))
    boxes = [space for space in native.values() if isinstance(space, spaces.Box)]
    if len(boxes) == len(native) and (len({box.shape for box in boxes}) == 1 or all(len(box.shape) == 1 for box in boxes)):
        return _covering_box(boxes)
    raise ValueError(
        f"the agents' {role} spaces cannot be padded to a common one: {_listing(native)}; give all agents Discrete spaces, or "
        "all one-dimensional Boxes, for instance with supersuit's `flatten_v0` or `resize_v1`, or train each kind on its own"
    )


def _from_zero(space: Space) -> Space:
    """
    Policies number choices and values from zero; where a space starts elsewhere, rows are shifted on their way in and out.
    """
    if isinstance(space, spaces.Discrete) and space.start != 0:
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and (space.start != 0).any():
        return spaces.MultiDiscrete(space.nvec)
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _from_zero(part) for key, part in space.spaces.items()})
    return space


def _check_supported(role: str, native: Mapping[str, Space]) -> None:
    for agent, space in native.items():
        remedy = _remedy(role, space)
        if remedy is not None:
            raise ValueError(f"the {role} space of agent {agent!r} is {space}, which is not supported; {remedy}")


def _covering_box(boxes: Sequence[spaces.Box]) -> spaces.Box:
    shape = max((box.shape for box in boxes), key=lambda dims: dims[0] if dims else 0)
    # A coordinate that an agent lacks is filled with zeros, so the bounds have to admit zero there.
    low, high = np.full((len(boxes), *shape), 0.0), np.full((len(boxes), *shape), 0.0)
    for row, box in enumerate(boxes):
        where: Any = (row, *(slice(0, size) for size in box.shape))
        low[where], high[where] = box.low, box.high
    dtype = np.result_type(*(box.dtype for box in boxes))
    bounds = (np.asarray(low.min(axis=0), dtype), np.asarray(high.max(axis=0), dtype))
    return spaces.Box(*bounds, shape=shape, dtype=dtype.type)


def _listing(native: Mapping[str, Space]) -> str:
    return ", ".join(f"{agent}: {space}" for agent, space in native.items())
