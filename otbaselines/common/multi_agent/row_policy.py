"""SB3's view of a team's policy: rows of observations, or a dict of agents, instead of teams."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from otbaselines.common.multi_agent.distributions import TeamDistribution
from otbaselines.common.observations import as_array, check_is_observation, not_finite, on_host
from otbaselines.common.saving.policy import JsonPolicyMixin
from otbaselines.common.vec_env.agent_dicts import check_numbers, named_agents, native_actions, rows_of_agents
from otbaselines.common.vec_env.layout import TeamLayout


@dataclass(frozen=True)
class TeamActionEvaluation:
    """
    What the current policies and critics say of recorded actions.

    :param values: shape ``(batch, n_agents)``
    :param log_prob: shape ``(batch, n_agents)``
    :param entropy: in nats, shape ``(batch, n_agents)``
    :param distribution: the policies at those observations
    :param common: every agent's policy at the common states that were asked about, leading shape ``(n, n_agents)``
    """

    values: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor
    distribution: TeamDistribution | None = None
    common: TeamDistribution | None = None


class TeamPolicy(ABC):
    """
    What rollouts and losses ask of a team's policy, whatever its class.

    Rows are ordered ``row = copy * n_agents + agent``, as in the vector environments.
    """

    layout: TeamLayout
    n_agents: int
    observation_space: spaces.Space[Any]
    device: th.device
    #: What the critic reads beside the agents' own observations: the state of this space, or all observations of its team.
    state_space: spaces.Box | None = None
    critic: str = "own"

    @property
    def reads_team(self) -> bool:
        """Whether an agent's value depends on what its team-mates observe."""
        return self.critic == "central" and self.state_space is None and self.n_agents > 1

    @abstractmethod
    def act(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        What a rollout needs of one step, without gradients.

        :param obs: shape ``(n_copies, n_agents, ...)``
        :return: sampled actions ``(n_copies, n_agents, ...)``, their log-likelihoods ``(n_copies, n_agents)``, and the critics
            at ``obs``, of the same shape; ``None`` where these are cheaper in one pass over the whole rollout
        """

    @abstractmethod
    def env_actions(self, actions: th.Tensor) -> th.Tensor:
        """
        Sampled actions as the environment wants them: within the box, or counted from the space's start.

        :param actions: of :meth:`act`, shape ``(n_copies, n_agents, ...)``
        :return: shape ``(n_copies, n_agents, *action_space.shape)``
        """

    @abstractmethod
    def team_values(self, obs: PyTorchObs, states: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: shape ``(batch, n_agents, ...)``
        :param states: of the teams, shape ``(batch, state_dim)``, where the critic reads them
        :return: every agent's value, from its own observation or from the team's state, shape ``(batch, n_agents)``
        """

    @abstractmethod
    def evaluate_team_actions(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        common_states: PyTorchObs | None = None,
        states: th.Tensor | None = None,
    ) -> TeamActionEvaluation:
        """
        :param obs: shape ``(batch, n_agents, ...)``
        :param actions: shape ``(batch, n_agents, ...)``
        :param common_states: rows of observations ``(n, ...)`` at which every agent's policy is wanted as well; they join
            the same forward pass
        :param states: of the teams, shape ``(batch, state_dim)``, where the critic reads them
        :return: values, log-likelihoods and entropies
        """

    @abstractmethod
    def track_states(self, states: th.Tensor) -> None:
        """
        Let the scale of the states follow those of a rollout; called only where the critic reads them.

        :param states: shape ``(..., state_dim)``
        """

    @abstractmethod
    def clip_gradients(self, max_norm: float) -> None:
        """
        Bound the norm of each parameter set's gradient.

        :param max_norm: the bound; the gradients are scaled in place
        """

    @abstractmethod
    def reset_noise(self, n_envs: int = 1) -> None:
        """
        Draw new noise matrices for state-dependent exploration.

        :param n_envs: slots of the environment, copies times agents
        """

    @abstractmethod
    def _team_actions(self, obs: PyTorchObs, deterministic: bool) -> th.Tensor:
        """Actions at observations ``(n_copies, n_agents, ...)``, for each agent's own space still to be cut and clipped."""

    @abstractmethod
    def _predict_rows(self, observation: Any, deterministic: bool) -> np.ndarray:
        """SB3's ``predict`` for rows of observations."""

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """
        Actions for rows of observations, or for a dict of agents as PettingZoo gives it.

        :param observation: rows ``(n_copies * n_agents, ...)``, or ``{agent: observation}`` with each agent's own,
            unpadded observation (an optional first batch dimension is kept)
        :param state: unused; returned as given
        :param episode_start: unused
        :param deterministic: the most probable actions instead of samples
        :return: the actions in the form of the observation, and ``state``
        :raises TypeError: if observations are no numbers
        :raises ValueError: if it is what ``reset`` returns, rows do not fill whole teams, a dict names an unknown agent,
            numbers are NaN or infinite, or a discrete observation has a value that its space does not
        """
        check_is_observation(observation)
        observation, space = on_host(observation), self.observation_space
        if isinstance(observation, dict) and not (isinstance(space, spaces.Dict) and set(observation) == set(space.spaces)):
            return self._predict_agents(observation, deterministic), state
        _check_rows(observation)
        remedy = "rows count them from zero: pass rows of the vector environment, or a dict of the agents' own observations"
        _check_discrete("`observation`", observation, space, remedy)
        return self._predict_rows(observation, deterministic), state

    def _predict_agents(self, observation: dict[str, Any], deterministic: bool) -> dict[str, Any]:
        for agent, value in observation.items():
            check_is_observation(value)
            native = self.layout.agent_observation_spaces.get(str(agent))
            _check_discrete(f"`observation[{agent!r}]`", value, native, "pass what its environment gives")
        rows, batch = rows_of_agents(named_agents(observation, self.layout), self.layout, self.observation_space)
        with th.no_grad():
            team = self.split_rows(obs_as_tensor(rows, self.device))
            actions = self._team_actions(team, deterministic).cpu().numpy()
        index = {agent: i for i, agent in enumerate(self.layout.possible_agents)}
        own = self.layout.agent_action_spaces
        return {
            agent: native_actions(actions[:, index[str(agent)]], own[str(agent)], is_batch=batch is not None)
            for agent in observation
        }

    def split_rows(self, obs: PyTorchObs) -> PyTorchObs:
        """
        :param obs: rows, shape ``(n_copies * n_agents, ...)``
        :return: a view of shape ``(n_copies, n_agents, ...)``
        :raises ValueError: if the rows do not fill whole teams
        """
        if isinstance(obs, dict):
            return {key: self._split_tensor(value) for key, value in obs.items()}
        return self._split_tensor(obs)

    def _split_tensor(self, rows: th.Tensor) -> th.Tensor:
        try:
            return rows.unflatten(0, (-1, self.n_agents))  # type: ignore[no-any-return]
        except RuntimeError:
            raise ValueError(
                f"`observation` has {rows.shape[0]} rows, which is not a multiple of the team's {self.n_agents} agents; "
                f"pass one row per agent in the order {list(self.layout.possible_agents)}, or a dict of agents"
            ) from None


def _check_rows(observation: Any) -> None:
    for key, part in observation.items() if isinstance(observation, dict) else [(None, observation)]:
        name = "`observation`" if key is None else f"`observation[{key!r}]`"
        values = as_array(name, part)
        is_bad = not_finite(values)
        if values.ndim and is_bad.any():
            # The first row that is to blame.
            name = f"row {np.argwhere(is_bad)[0, 0]} of {name}"
        check_numbers(name, values)


def _check_discrete(name: str, observation: Any, space: spaces.Space[Any] | None, remedy: str) -> None:
    """
    :param name: of the observation
    :param observation: one or several
    :param space: what it is to be of; others than discrete ones are looked at elsewhere
    :param remedy: what to do
    :raises ValueError: if a value is none of the space's
    """
    if isinstance(space, spaces.Dict) and isinstance(observation, dict):
        for key, part in observation.items():
            _check_discrete(f"{name}[{key!r}]", part, space.spaces.get(key), remedy)
    low: Any
    sizes: Any
    if isinstance(space, spaces.Discrete):
        low, sizes = space.start, space.n
    elif isinstance(space, spaces.MultiDiscrete):
        low, sizes = space.start, space.nvec
    elif isinstance(space, spaces.MultiBinary):
        low, sizes = 0, np.full(space.shape, 2)
    else:
        return
    values = as_array(name, observation)
    shape = np.shape(sizes)
    # Shapes that do not fit are named by what reads them.
    if values.dtype.kind not in "iuf" or values.shape[values.ndim - len(shape) :] != shape:
        return
    outside = (values < low) | (values >= low + sizes) | (values != np.floor(values))
    if outside.any():
        raise ValueError(f"{name} has {values[outside].flat[0]}, which is no value of {space}; {remedy}")


def box_actions(actions: th.Tensor, low: th.Tensor, high: th.Tensor, *, is_squashed: bool) -> th.Tensor:
    """
    :param actions: what a policy chose, shape ``(..., *box.shape)``
    :param low: the box's lower bounds
    :param high: its upper bounds
    :param is_squashed: whether they lie within -1 and 1
    :return: the actions in the box: stretched over it if they are squashed, else clipped to it
    """
    return low + 0.5 * (actions + 1.0) * (high - low) if is_squashed else actions.clamp(low, high)


class TeamRowPolicy(TeamPolicy, JsonPolicyMixin):
    """What SB3's algorithms, callbacks and evaluation call, in terms of what a team's policy computes."""

    action_start: int
    action_low: th.Tensor
    action_high: th.Tensor

    @abstractmethod
    def team_distribution(self, obs: PyTorchObs) -> TeamDistribution:
        """
        :param obs: shape ``(batch, n_agents, ...)``
        :return: every agent's policy at its own observation
        """

    @th.no_grad()
    def act(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        distribution = self.team_distribution(obs)
        actions = distribution.sample()
        return actions, distribution.log_prob(actions), None

    def env_actions(self, actions: th.Tensor) -> th.Tensor:
        if isinstance(self.action_space, spaces.Box):
            actions = actions.reshape(*actions.shape[:-1], *self.action_space.shape)
            return box_actions(actions, self.action_low, self.action_high, is_squashed=self.squash_output)
        return actions + self.action_start if self.action_start else actions

    def _team_actions(self, obs: PyTorchObs, deterministic: bool) -> th.Tensor:
        self.set_training_mode(False)
        actions = self.team_distribution(obs).get_actions(deterministic)
        return self.env_actions(actions) if self.squash_output else actions

    def _predict_rows(self, observation: Any, deterministic: bool) -> np.ndarray:
        return JsonPolicyMixin.predict(self, observation, deterministic=deterministic)[0]

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, states: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: rows, shape ``(n_copies * n_agents, ...)``
        :param deterministic: the most probable actions instead of samples
        :param states: of the teams, shape ``(n_copies, state_dim)``, where the critic reads them
        :return: actions, values ``(rows, 1)`` and log-likelihoods ``(rows,)``
        :raises ValueError: if the critic reads states and none are given; ``predict`` and ``get_distribution`` need none
        """
        self._require_states(states)
        team = self.split_rows(obs)
        distribution = self.team_distribution(team)
        actions = distribution.get_actions(deterministic)
        log_prob = distribution.log_prob(actions).flatten()
        return actions.reshape(-1, *self.action_space.shape), self.team_values(team, states).reshape(-1, 1), log_prob  # type: ignore[misc]

    def evaluate_actions(
        self, obs: PyTorchObs, actions: th.Tensor, states: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: rows, shape ``(n_copies * n_agents, ...)``
        :param actions: rows of actions
        :param states: of the teams, shape ``(n_copies, state_dim)``, where the critic reads them
        :return: values ``(rows, 1)``, log-likelihoods ``(rows,)`` and entropies ``(rows,)``
        """
        result = self.evaluate_team_actions(self.split_rows(obs), self._split_tensor(actions), states=states)
        return result.values.reshape(-1, 1), result.log_prob.flatten(), result.entropy.flatten()

    def predict_values(self, obs: PyTorchObs, states: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: rows, shape ``(n_copies * n_agents, ...)``
        :param states: of the teams, shape ``(n_copies, state_dim)``, where the critic reads them
        :return: values, shape ``(rows, 1)``
        :raises ValueError: if the critic reads states and none are given
        """
        self._require_states(states)
        return self.team_values(self.split_rows(obs), states).reshape(-1, 1)

    def _require_states(self, states: th.Tensor | None) -> None:
        if states is None and self.state_space is not None:
            raise ValueError(
                "`states` is missing: this critic values the team's state, not the observations; pass the environment's "
                "`team_states()` as a tensor, or call `predict` or `get_distribution`, which need no values"
            )

    def get_distribution(self, obs: PyTorchObs) -> TeamDistribution:
        """
        :param obs: rows, shape ``(n_copies * n_agents, ...)``
        :return: the policies, with leading shape ``(n_copies, n_agents)``
        """
        return self.team_distribution(self.split_rows(obs))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        actions = self.get_distribution(observation).get_actions(deterministic)
        return actions.flatten(0, 1) + self.action_start
