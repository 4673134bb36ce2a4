"""Dicts of agents, as PettingZoo gives and takes them, turned into a team's padded rows and back."""

from typing import Any

import numpy as np
from gymnasium import spaces

from otbaselines.common.observations import as_array, not_finite
from otbaselines.common.vec_env.layout import TeamLayout


def named_agents(observation: dict[Any, Any], layout: TeamLayout) -> dict[str, Any]:
    """
    Name the agents of an environment's own dict, whose keys may be numbers or tuples.

    :param observation: by agent, as the environment spells them
    :param layout: the team, whose names are texts
    :return: the same by name
    :raises ValueError: if agents are unknown or missing altogether, or two keys have one name
    """
    named = {str(agent): value for agent, value in observation.items()}
    if not named or len(named) != len(observation) or not named.keys() <= set(layout.possible_agents):
        raise ValueError(f"`observation` names the agents {list(observation)}, but the team is {list(layout.possible_agents)}")
    return named


def rows_of_agents(
    observation: dict[str, Any], layout: TeamLayout, observation_space: spaces.Space[Any]
) -> tuple[Any, int | None]:
    """
    Team rows, zero where an agent is missing or its observation is shorter than the team's.

    :param observation: each agent's own observation, or a batch of them along a first axis. Observations that wrappers have
        already padded, stacked or transposed to the team's shape are taken as well
    :param layout: the team
    :param observation_space: the team's common observation space
    :return: rows ``(batch * n_agents, ...)`` (a dict of them for a ``Dict`` space), and the batch size where a batch was given
    :raises ValueError: if an observation does not fit its agent
    """
    natives = layout.agent_observation_spaces
    if not isinstance(observation_space, spaces.Dict):
        return _padded_rows(observation, natives, layout, observation_space)
    rows, batch = {}, None
    for key, part in observation_space.items():
        values = {agent: _entry(agent, value, key) for agent, value in observation.items()}
        own = {agent: space[key] for agent, space in natives.items() if isinstance(space, spaces.Dict)}
        rows[key], batch = _padded_rows(values, own, layout, part)
    return rows, batch


def native_actions(actions: np.ndarray, space: spaces.Space[Any], *, is_batch: bool) -> Any:
    """
    One agent's actions in its own space.

    :param actions: what the policy chose, counted from zero or unclipped, shape ``(batch, ...)``
    :param space: the agent's own action space
    :param is_batch: keep the first axis
    :return: the actions: clipped and cut to the agent's box, or counted from its space's start
    """
    if isinstance(space, spaces.Box):
        actions = actions.reshape(len(actions), -1)[:, : int(np.prod(space.shape))].reshape(-1, *space.shape)
        actions = np.clip(actions, space.low, space.high)
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        actions = actions + space.start
    actions = actions.astype(space.dtype)
    return actions if is_batch else actions[0]


def check_numbers(name: str, value: np.ndarray) -> None:
    """
    :param name: what an error calls the observation
    :param value: the observation
    :raises TypeError: if it does not hold numbers
    :raises ValueError: if one of them is NaN or infinite, or will be in single precision
    """
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers, got an array of {value.dtype}")
    if not_finite(value).any():
        raise ValueError(f"{name} holds NaN or infinity, for which no action is meant; give finite numbers")


def _entry(agent: str, value: Any, key: str) -> Any:
    if not isinstance(value, dict) or key not in value:
        raise ValueError(f"`observation[{agent!r}]` must be a dict with the entry {key!r}, got {value!r}")
    return value[key]


def _padded_rows(
    values: dict[str, Any], natives: dict[str, spaces.Space[Any]], layout: TeamLayout, space: spaces.Space[Any]
) -> tuple[np.ndarray, int | None]:
    shape = space.shape or ()
    arrays = {agent: as_array(f"`observation[{agent!r}]`", value) for agent, value in values.items()}
    fitted = {agent: _fit(agent, value, natives[agent], shape) for agent, value in arrays.items()}
    sizes = {agent: batch for agent, (_, batch) in fitted.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"`observation` holds batches of different sizes, {sizes}; give every agent the same number")
    batch = next(iter(sizes.values()))
    padded = np.zeros((batch or 1, layout.n_agents, *shape), dtype=space.dtype)
    for index, agent in enumerate(layout.possible_agents):
        if agent in fitted:
            value = fitted[agent][0]
            target: Any = (slice(None), index, *(slice(0, size) for size in value.shape[1:]))
            padded[target] = value
    return padded.reshape(-1, *shape), batch


def _fit(agent: str, value: np.ndarray, native: spaces.Space[Any], shape: tuple[int, ...]) -> tuple[np.ndarray, int | None]:
    """The observation with a first batch axis and in the team's order of axes, and the batch size if one was given."""
    check_numbers(f"`observation[{agent!r}]`", value)
    own = native.shape or ()
    # SB3 moves the channels of images to the front; an environment's own images still have them last.
    channels_last = (*shape[1:], shape[0]) if len(shape) == 3 else shape
    for known in dict.fromkeys((own, shape, channels_last)):
        if value.shape == known or value.shape[1:] == known:
            batch = None if value.shape == known else len(value)
            rows = value.reshape(-1, *known)
            if isinstance(native, spaces.Discrete | spaces.MultiDiscrete):
                rows = rows - native.start
            return (np.moveaxis(rows, -1, 1) if known == channels_last != shape else rows), batch
    raise ValueError(
        f"`observation[{agent!r}]` has shape {value.shape}, but the agent's observation space is {native}; give one "
        "observation, or a batch of them along a first axis"
    )
