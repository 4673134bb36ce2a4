"""Rows of a vector environment: zero-padded observations in, and each agent's own actions out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from otbaselines.common.vec_env.spaces import Array, Space, TeamSpaces


class ObservationWriter:
    """
    Allocates the observation arrays of a vector environment and writes native observations into their rows.

    :param team: the spaces of the team
    """

    def __init__(self, team: TeamSpaces) -> None:
        self._space = team.observation_space
        self._agents = team.agents
        natives = list(team.agent_observation_spaces.values())
        self._columns = {
            key: _Column(team.agents, [space[key] if isinstance(space, spaces.Dict) else space for space in natives], part)
            for key, part in _parts(self._space).items()
        }
        self._only = None if isinstance(self._space, spaces.Dict) else self._columns[None]
        #: :meth:`_write_entries`, or for a single array its shortcut.
        self.write: Callable[[Any, int, Any], None] = self._write_entries if self._only is None else self._only.write
        self._state_space = team.state_space

    def empty(self, n_rows: int) -> Any:
        """Return zeros for ``n_rows`` slots: an array, or a dict of arrays for a ``Dict`` space."""
        arrays = {key: np.zeros((n_rows, *(part.shape or ())), dtype=part.dtype) for key, part in _parts(self._space).items()}
        return arrays if self._only is None else arrays[None]

    def rows(self, buffer: Any, start: int, stop: int) -> Any:
        """Return a view of the rows ``start`` to ``stop`` of what :meth:`empty` made."""
        if isinstance(buffer, dict):
            return {key: part[start:stop] for key, part in buffer.items()}
        return buffer[start:stop]

    def row(self, buffer: Any, index: int) -> Any:
        """Return a copy of one row."""
        if isinstance(buffer, dict):
            return {key: part[index].copy() for key, part in buffer.items()}
        return buffer[index].copy()

    def _write_entries(self, buffer: Any, index: int, observation: Any) -> None:
        """
        Write the observation of agent ``index`` into the row of that agent, leaving the padding at zero.

        :param buffer: the rows of one copy of the environment
        :param index: number of the agent within its team
        :param observation: what the environment returned for the agent
        :raises ValueError: if keys, shape, dtype or range contradict the agent's own space
        """
        if not isinstance(observation, Mapping) or observation.keys() != self._columns.keys():
            raise ValueError(
                f"agent {self._agents[index]!r} observed {observation!r}, but its observation space is {self._space}"
            )
        for key, column in self._columns.items():
            column.write(buffer[key], index, observation[key])

    def assign(self, buffer: Any, start: int, stop: int, rows: Any) -> None:
        """Write whole rows that another process has made into the rows ``start`` to ``stop``."""
        for key, part in _parts(buffer).items():
            part[start:stop] = _parts(rows)[key]

    def copy_row(self, source: Any, target: Any, index: int) -> None:
        """Copy one row from one buffer to another."""
        for key, part in _parts(target).items():
            part[index] = _parts(source)[key][index]

    def clear(self, buffer: Any, index: int) -> None:
        """Set one row to zero."""
        for part in _parts(buffer).values():
            part[index] = 0

    def state(self, state: Any) -> Array:
        """
        Flatten what an environment's ``state()`` returned.

        :param state: an array of real numbers
        :return: a float32 vector of its own memory
        :raises ValueError: if its size contradicts ``state_space``, or it is not made of finite numbers
        """
        assert self._state_space is not None
        array = as_array("`state()` returned", state)
        if array.dtype.kind not in "fiub" or array.size != self._state_space.shape[0]:
            raise ValueError(
                f"`state()` returned an array of shape {array.shape} and dtype {array.dtype}, but `state_space` holds "
                f"{self._state_space.shape[0]} numbers; make the two agree"
            )
        row: Array = array.astype(np.float32).reshape(-1)
        if not np.isfinite(row).all():
            raise ValueError("`state()` returned NaN or infinity; check the environment")
        return row


def _parts(value: Any) -> Mapping[Any, Any]:
    """The entries of a ``Dict`` space, or of a dict of arrays; anything else is the only entry, and has no name."""
    if isinstance(value, spaces.Dict):
        return value.spaces
    return value if isinstance(value, dict) else {None: value}


def as_array(who: str, value: Any) -> Array:
    """Make an array of ``value``, or raise a ``ValueError`` that begins with ``who``."""
    try:
        return np.asarray(value)
    except Exception as error:
        raise ValueError(f"{who} {value!r}, of which no array can be made: {error}") from None


class _Column:
    """
    One array of observations, the only one or an entry of a ``Dict``, of which every agent has a row.

    :param agents: names of the agents
    :param natives: each agent's own space
    :param shared: the space of the rows
    """

    def __init__(self, agents: Sequence[str], natives: Sequence[Any], shared: Space) -> None:
        self._agents = agents
        self._natives = natives
        self._shapes = [space.shape for space in natives]
        self._padded = [space.shape != shared.shape for space in natives]
        # The dtype that each agent was last seen with and that fits its space: what comes again is not checked again.
        self._accepted: list[Any] = [self] * len(natives)

    def write(self, rows: Array, index: int, value: Any) -> None:
        if getattr(value, "dtype", None) is not self._accepted[index] or value.shape != self._shapes[index]:
            value = self._checked(index, value)
        if self._padded[index]:
            rows[index, : self._shapes[index][0]] = value
        else:
            rows[index] = value

    def _checked(self, index: int, value: Any) -> Array:
        space, agent = self._natives[index], self._agents[index]
        array = as_array(f"agent {agent!r} observed", value)
        if array.shape != space.shape or not np.can_cast(array.dtype, np.dtype(space.dtype), casting="same_kind"):
            raise ValueError(
                f"agent {agent!r} observed an array of shape {array.shape} and dtype {array.dtype}, but its observation space "
                f"is {space} ({space.dtype}); make `observation_space` and what `reset` and `step` return agree"
            )
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            # These are encoded one-hot, which fails on a value that does not exist: every one is checked.
            from_zero: Array = array - space.start
            if np.any((from_zero < 0) | (from_zero >= (space.n if isinstance(space, spaces.Discrete) else space.nvec))):
                raise ValueError(f"agent {agent!r} observed {value!r}, which is not in its observation space {space}")
            return from_zero
        self._accepted[index] = array.dtype
        return array


class ActionReader:
    """
    Turns one batch of padded actions into each agent's native actions.

    :param team: the spaces of the team
    :param n_copies: number of copies of the team
    """

    def __init__(self, team: TeamSpaces, n_copies: int) -> None:
        self._team = team
        self._native = list(team.agent_action_spaces.values())
        self._shape = (n_copies * len(self._native), *(team.action_space.shape or ()))
        self._read: Callable[[Array, Array], list[Any]]
        space = team.action_space
        if isinstance(space, spaces.Discrete):
            self._n = np.tile(_discrete(self._native, "n"), n_copies)
            self._start = np.tile(_discrete(self._native, "start"), n_copies)
            self._read = self._read_discrete
        elif isinstance(space, spaces.Box):
            self._prepare_boxes(n_copies)
            self._read = self._read_boxes
        else:
            self._n = np.asarray(space.nvec if isinstance(space, spaces.MultiDiscrete) else 2)
            first = self._native[0]
            self._start = np.asarray(first.start if isinstance(first, spaces.MultiDiscrete) else 0)
            self._read = self._read_integers

    def read(self, actions: Array, active: Array) -> list[Any]:
        """
        Check a batch of actions and cut each to its agent's native space.

        Discrete choices beyond the agent's own set are refused: to replace them by another choice would credit the
        policy with something it did not do. Continuous actions are clipped to the agent's own bounds.

        :param actions: one row per slot, in the padded space
        :param active: ``(n_slots,)`` bool; what the other slots hold is ignored
        :return: one native action per slot
        :raises ValueError: if the shape or dtype is wrong, or an active slot's action is out of range or not a number
        """
        actions = as_array("`actions` are", actions)
        if actions.shape != self._shape:
            if actions.size != int(np.prod(self._shape)):
                raise ValueError(f"`actions` must have shape {self._shape}, one row per slot, got {actions.shape}")
            actions = actions.reshape(self._shape)
        return self._read(actions, active)

    def _read_discrete(self, actions: Array, active: Array) -> list[Any]:
        self._check_integers(actions)
        wrong = ((actions < 0) | (actions >= self._n)) & active
        if wrong.any():
            self._refuse(actions, int(np.flatnonzero(wrong)[0]))
        return list(actions + self._start)

    def _read_integers(self, actions: Array, active: Array) -> list[Any]:
        if isinstance(self._team.action_space, spaces.MultiBinary) and actions.dtype.kind in "bf":
            actions = actions.astype(np.int8)
        self._check_integers(actions)
        wrong = ((actions < 0) | (actions >= self._n)).reshape(len(actions), -1).any(axis=1) & active
        if wrong.any():
            self._refuse(actions, int(np.flatnonzero(wrong)[0]))
        return list(actions + self._start if self._start.any() else actions)

    def _check_integers(self, actions: Array) -> None:
        if actions.dtype.kind not in "iu":
            raise ValueError(f"`actions` must be integers for {self._team.action_space}, got dtype {actions.dtype}")

    def _prepare_boxes(self, n_copies: int) -> None:
        boxes = [space for space in self._native if isinstance(space, spaces.Box)]
        width = self._team.action_space.shape or ()
        self._low, self._high = np.zeros((len(boxes), *width)), np.zeros((len(boxes), *width))
        for row, box in enumerate(boxes):
            where: Any = (row, *(slice(0, size) for size in box.shape))
            self._low[where], self._high[where] = box.low, box.high
        dtype = self._team.action_space.dtype
        repeats = (n_copies, *(1 for _ in width))
        self._low, self._high = (np.tile(bound, repeats).astype(dtype) for bound in (self._low, self._high))
        self._dtypes = [box.dtype for box in boxes] * n_copies
        self._widths = [box.shape[0] if box.shape != width else None for box in boxes] * n_copies
        self._uniform = all(box.shape == width and box.dtype == dtype for box in boxes)

    def _read_boxes(self, actions: Array, active: Array) -> list[Any]:
        if actions.dtype.kind not in "fiu":
            raise ValueError(f"`actions` must be real numbers for {self._team.action_space}, got dtype {actions.dtype}")
        finite = np.isfinite(actions).reshape(len(actions), -1).all(axis=1)
        if not finite.all() and (~finite & active).any():
            self._refuse(actions, int(np.flatnonzero(~finite & active)[0]), "only finite numbers can be acted on")
        clipped = np.clip(actions.astype(self._team.action_space.dtype, copy=False), self._low, self._high)
        if self._uniform:
            return list(clipped)
        return [
            (row if width is None else row[:width]).astype(dtype, copy=False)
            for row, width, dtype in zip(clipped, self._widths, self._dtypes, strict=True)
        ]

    def _refuse(self, actions: Array, slot: int, remedy: str = "mask padded actions out of the policy's distribution") -> None:
        copy, index = divmod(slot, len(self._native))
        raise ValueError(
            f"`actions[{slot}]` is {actions[slot]}, which agent {self._team.agents[index]!r} of copy {copy} does not have: "
            f"its action space is {self._native[index]}; {remedy}"
        )


def _discrete(native: Sequence[Space], name: str) -> Array:
    return np.array([int(getattr(space, name)) for space in native], dtype=np.int64)
