"""Who is in the team: names, spaces and the slot order that every part of the multi-agent core relies on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize


@dataclass(frozen=True)
class TeamLayout:
    """
    The agents of one copy of an environment, in slot order: ``slot = copy * n_agents + agent``.

    :param possible_agents: names of the agents
    :param n_copies: copies of the environment that run side by side
    :param agent_observation_spaces: each agent's own observation space, before padding
    :param agent_action_spaces: each agent's own action space, before padding
    """

    possible_agents: tuple[str, ...]
    n_copies: int
    agent_observation_spaces: dict[str, spaces.Space[Any]] = field(repr=False)
    agent_action_spaces: dict[str, spaces.Space[Any]] = field(repr=False)

    @property
    def n_agents(self) -> int:
        """Agents in the team."""
        return len(self.possible_agents)

    def to_data(self) -> dict[str, Any]:
        """What a saved file holds of the team; the copies are those of the next environment."""
        return {
            "possible_agents": list(self.possible_agents),
            "agent_observation_spaces": dict(self.agent_observation_spaces),
            "agent_action_spaces": dict(self.agent_action_spaces),
        }

    @classmethod
    def from_data(cls, data: dict[str, Any], n_envs: int, action_space: spaces.Space[Any]) -> "TeamLayout":
        """
        The inverse of :meth:`to_data`.

        :param data: what a file holds
        :param n_envs: slots, copies times agents
        :param action_space: the team's common action space
        :return: the team
        :raises ValueError: if the agents are not distinct, or have no spaces, or actions that do not fit the common space
        """
        agents = data["possible_agents"]
        if not isinstance(agents, list) or not agents or len(set(agents)) != len(agents):
            raise ValueError(f"`possible_agents` must be a list of distinct names, got {str(agents)[:100]}")
        for name in ("agent_observation_spaces", "agent_action_spaces"):
            own = data[name]
            if not isinstance(own, dict) or set(own) != set(agents):
                raise ValueError(f"`{name}` must have an entry for each of the agents {str(agents)[:100]}")
            if not all(isinstance(space, spaces.Space) for space in own.values()):
                raise ValueError(f"`{name}` holds something that is no space")
        layout = cls(
            tuple(agents),
            max(1, n_envs // len(agents)),
            dict(data["agent_observation_spaces"]),
            dict(data["agent_action_spaces"]),
        )
        for agent, space in layout.agent_action_spaces.items():
            if type(space) is not type(action_space) or _width(space) > _width(action_space):
                raise ValueError(f"`agent_action_spaces` gives {agent!r} {space}, which does not fit into {action_space}")
        return layout

    def action_mask(self, action_space: spaces.Space[Any]) -> np.ndarray | None:
        """
        Which entries of the padded action head each agent really has.

        :param action_space: the team's common (padded) action space
        :return: ``True`` where the agent has that choice (Discrete) or dimension (Box), shape ``(n_agents, width)``;
            ``None`` when nothing is padded
        """
        native = [self.agent_action_spaces[agent] for agent in self.possible_agents]
        if isinstance(action_space, spaces.Discrete):
            sizes = [int(space.n) for space in native if isinstance(space, spaces.Discrete)]
            width = int(action_space.n)
        elif isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
            sizes = [int(np.prod(space.shape)) for space in native if isinstance(space, spaces.Box)]
            width = int(action_space.shape[0])
        else:
            return None
        if len(sizes) != self.n_agents or all(size == width for size in sizes):
            return None
        mask: np.ndarray = np.arange(width)[None, :] < np.array(sizes)[:, None]
        return mask


def check_same_agents(
    theirs: TeamLayout,
    ours: TeamLayout,
    *,
    known: str,
    alike: Callable[[str, spaces.Space[Any], spaces.Space[Any]], bool] = lambda kind, given, wanted: given == wanted,
) -> None:
    """
    :param theirs: the team of an environment
    :param ours: the team that a model knows
    :param known: how the model came to know it, such as ``"built for"``
    :param alike: tells of ``"observation"`` or ``"action"`` whether a given space will do for the one that is wanted
    :raises ValueError: if an agent is missing, new or in another place, or has another space of its own
    """
    if theirs.possible_agents != ours.possible_agents:
        raise ValueError(
            f"`env` has the agents {list(theirs.possible_agents)}, but the model was {known} {list(ours.possible_agents)}"
        )
    for agent in ours.possible_agents:
        for kind in ("observation", "action"):
            given, wanted = (getattr(each, f"agent_{kind}_spaces")[agent] for each in (theirs, ours))
            if not alike(kind, given, wanted):
                raise ValueError(
                    f"`env` gives agent {agent!r} the {kind} space {given}, but the model was {known} {wanted}; make the "
                    "environment with the same arguments and wrappers"
                )


def _width(space: spaces.Space[Any]) -> int:
    return int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))


def team_layout(env: VecEnv) -> TeamLayout:
    """
    Read the team off a vector environment, through any ``VecEnvWrapper`` around it.

    :param env: a vector environment; one that names no agents is a team of one
    :return: the team's layout
    """
    agents = getattr(env, "possible_agents", None)
    if agents is None or not hasattr(env, "n_copies"):
        name = "agent_0"
        return TeamLayout((name,), env.num_envs, {name: env.observation_space}, {name: env.action_space})
    # `VecEnvWrapper` forwards attributes that it does not have, which static types cannot show.
    team: Any = env
    return TeamLayout(tuple(agents), int(team.n_copies), dict(team.agent_observation_spaces), dict(team.agent_action_spaces))


def action_vectors(env: VecEnv | None) -> Any:
    """
    :param env: a vector environment
    :return: what the agents' actions do, ``agent_action_vectors`` of its first copy, one row for each agent and action;
        ``None`` where it does not say
    """
    return None if env is None else first_attribute(env, "agent_action_vectors")


def first_attribute(env: VecEnv, name: str) -> Any:
    """
    :param env: a vector environment
    :param name: of an attribute of its copies
    :return: that of the first copy; ``None`` where it has none, or where in SB3's processes any copy has none
    """
    try:
        # These processes end when they are asked for an attribute that is missing.
        if isinstance(env.unwrapped, SubprocVecEnv) and not env.has_attr(name):
            return None
        return env.get_attr(name, [0])[0]
    except AttributeError:
        return None


def normalizes_observations(env: VecEnv) -> bool:
    """
    Tell whether a policy sees normalised observations.

    :param env: a vector environment, with any wrappers
    :return: whether a ``VecNormalize`` with ``norm_obs`` is among them
    """
    return any(normalizer.norm_obs for normalizer in normalizers(env))


def normalizers(env: VecEnv) -> list[VecNormalize]:
    """
    :param env: a vector environment, with any wrappers
    :return: every ``VecNormalize`` among them, the outermost first
    """
    found = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            found.append(env)
        env = env.venv
    return found
