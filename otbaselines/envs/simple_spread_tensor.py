"""The landmark-covering task of :mod:`otbaselines.envs.simple_spread` for thousands of copies on one device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

from otbaselines.common.vec_env import TensorVecEnv
from otbaselines.envs._drawing import TensorTrail, draw_scene
from otbaselines.envs.simple_spread import (
    AGENT_RADIUS,
    CAPTURE_RADIUS,
    CONTACT_FORCE,
    CONTACT_MARGIN,
    DAMPING,
    PUSHES,
    SENSITIVITY,
    TIME_STEP,
    Curriculum,
    SimpleSpreadConfig,
    spread_scene,
)


class SimpleSpreadVecEnv(Curriculum, TensorVecEnv):
    """
    ``n_copies`` teams of the task; takes the arguments of :class:`~otbaselines.envs.simple_spread.SimpleSpreadConfig`.

    Copies are the *last* dimension of every state tensor, so that each operation runs over long contiguous rows. One
    pairwise pass per step serves the observation, the rewards, and the contact forces of the step that follows, which mpe2
    takes at the positions before the move.

    :param n_copies: number of teams
    :param device: where the state lives
    :param seed: seed of all randomness; drawn from the operating system when omitted
    :param double_precision: keep the state in float64. In float32 the contact force (100 per unit of overlap) makes
        trajectories part from mpe2's by about 1e-5 within 25 steps; observations are float32 in either case
    :param render_mode: ``"rgb_array"`` or ``None``
    :param n_render_copies: how many copies are drawn
    """

    def __init__(
        self,
        *,
        n_copies: int,
        device: th.device | str = "cpu",
        seed: int | None = None,
        double_precision: bool = False,
        render_mode: str | None = None,
        n_render_copies: int = 1,
        **config: Any,
    ) -> None:
        self.config = SimpleSpreadConfig(**config)
        super().__init__(
            n_copies=n_copies,
            agent_observation_spaces={agent: self.config.observation_space() for agent in self.config.possible_agents},
            agent_action_spaces={agent: self.config.action_space() for agent in self.config.possible_agents},
            max_episode_steps=self.config.max_cycles,
            terminates_early=self.config.terminate_on_success,
            device=device,
            seed=seed,
            render_mode=render_mode,
            n_render_copies=n_render_copies,
        )
        self._stage = 0
        self._trail = TensorTrail(self.max_episode_steps)
        self._allocate(th.float64 if double_precision else th.float32)

    def _allocate(self, dtype: th.dtype) -> None:
        """Make the state tensors, the constants, and the views into them that every step uses."""
        n, copies = self.n_agents, self.n_copies

        def zeros(*shape: int) -> th.Tensor:
            return th.zeros(shape, dtype=dtype, device=self.device)

        # Positions of the agents, then of the landmarks.
        self._entities = zeros(2 * n, 2, copies)
        # What agent i can see, as rows of two coordinates: own velocity, own position, offsets to agents, to landmarks.
        self._features = zeros(n, 2 + 2 * n, 2, copies)
        self._positions, self._landmarks = self._entities[:n], self._entities[n:]
        self._velocities, self._own_positions, self._offsets = self._features[:, 0], self._features[:, 1], self._features[:, 2:]
        self._distances = zeros(n, 2 * n, copies)
        self._touching = zeros(n, n, copies)
        # Added to squared distances. The large entry keeps an agent from touching itself; the small one, far below the
        # rounding of any other distance, keeps two agents in the same place from dividing zero by zero.
        self._distance_floor = th.full((n, 2 * n, 1), 1e-20, dtype=dtype, device=self.device)
        self._distance_floor[range(n), range(n)] = 1e12
        self._zero = zeros()
        self._contact_reach = th.full((), 2 * AGENT_RADIUS / CONTACT_MARGIN, dtype=dtype, device=self.device)
        self._push_table = th.as_tensor(TIME_STEP * SENSITIVITY * PUSHES, dtype=dtype, device=self.device).t().contiguous()
        self._visible_rows = self._row_index()
        others = [[j for j in range(n) if j != i] for i in range(n)]
        self._others = th.tensor(others, dtype=th.int64, device=self.device).view(n, n - 1, 1)

    def _row_index(self) -> th.Tensor:
        """Return which rows of the flattened features make up the observations, agent by agent."""
        n = self.n_agents
        width = 2 + 2 * n
        rows: list[int] = []
        for i in range(n):
            others = [2 + j for j in range(n) if j != i]
            # Nobody speaks in this task. An agent's offset to itself is zero, which is what its team-mates' channels read.
            silence = [2 + i] * (n - 1)
            rows += [i * width + row for row in [0, 1, *range(2 + n, 2 + 2 * n), *others, *silence]]
        return th.tensor([2 * row + axis for row in rows for axis in range(2)], device=self.device)

    def _reset_state(self, mask: th.Tensor | None) -> None:
        if mask is None:
            self._entities.uniform_(-1.0, 1.0, generator=self.generator)
            self._velocities.zero_()
            self._trail.clear()
        else:
            start = th.empty_like(self._entities).uniform_(-1.0, 1.0, generator=self.generator)
            self._entities.copy_(th.where(mask, start, self._entities))
            self._velocities.masked_fill_(mask, 0.0)
        self._measure()
        self._remember(restarting=True)

    def _measure(self) -> None:
        """Refresh all offsets and distances from the positions."""
        self._own_positions.copy_(self._positions)
        th.sub(self._entities.unsqueeze(0), self._positions.unsqueeze(1), out=self._offsets)
        dx, dy = self._offsets[:, :, 0], self._offsets[:, :, 1]
        th.addcmul(self._distance_floor, dx, dx, out=self._distances)
        self._distances.addcmul_(dy, dy).sqrt_()

    def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        n = self.n_agents
        contact = self._contact_forces()
        self._positions.add_(self._velocities, alpha=TIME_STEP)
        self._velocities.mul_(1.0 - DAMPING).add_(self._accelerations(actions)).add_(contact, alpha=TIME_STEP)
        self._measure()
        nearest = self._distances[:, n:].amin(dim=0)
        rewards = self._rewards(nearest)
        self._remember()
        if not self.terminates_early:
            return rewards, None
        # As in mpe2, running out of time takes precedence over success in the last step.
        covered = (nearest < CAPTURE_RADIUS).all(dim=0) & (self._elapsed_of_copy + 1 < self.max_episode_steps)
        return rewards, covered.unsqueeze(1).expand(self.n_copies, n)

    def _contact_forces(self) -> th.Tensor:
        """Forces ``(n_agents, 2, n_copies)`` between overlapping agents: 100 times a softened overlap, along the offset."""
        n = self.n_agents
        distances = self._distances[:, :n]
        overlap = th.logaddexp(self._zero, th.add(self._contact_reach, distances, alpha=-1.0 / CONTACT_MARGIN))
        overlap.div_(distances).mul_(-CONTACT_FORCE * CONTACT_MARGIN)
        return (overlap.unsqueeze(2) * self._offsets[:, :n]).sum(dim=1)

    def _accelerations(self, actions: th.Tensor) -> th.Tensor:
        """Change of velocity ``(n_agents, 2, n_copies)`` by the agents' own pushes."""
        if self.config.continuous_actions:
            pushes = actions.to(self._push_table.dtype) @ self._push_table.t()
            return pushes.permute(1, 2, 0)
        pushes = self._push_table.index_select(1, actions.t().reshape(-1))
        return pushes.view(2, self.n_agents, self.n_copies).transpose(0, 1)

    def _rewards(self, nearest: th.Tensor) -> th.Tensor:
        """
        Mix the team's reward with the agent's own.

        :param nearest: distance of the nearest agent to every landmark, ``(n_landmarks, n_copies)``
        """
        ratio = self.config.local_ratio
        team = nearest.sum(dim=0).mul_(ratio - 1.0)
        if self._penalise_collisions:
            th.lt(self._distances[:, : self.n_agents], 2 * AGENT_RADIUS, out=self._touching)
            rewards = th.add(team, self._touching.sum(dim=1), alpha=-ratio)
        else:
            rewards = team.expand(self.n_agents, self.n_copies)
        return rewards.t().float()

    def _observe(self) -> th.Tensor:
        if self.config.num_agent_neighbors is None and self.config.num_landmark_neighbors is None:
            rows = self._features.view(-1, self.n_copies).index_select(0, self._visible_rows)
        else:
            rows = self._nearest_rows()
        return rows.t().float().contiguous().view(self.n_copies, self.n_agents, -1)

    def _nearest_rows(self) -> th.Tensor:
        """Return the observations, ``(n_agents * obs_dim, n_copies)``, where agents see only what is near."""
        n = self.n_agents
        n_others = n - 1 if self.config.num_agent_neighbors is None else self.config.num_agent_neighbors
        others = self._offsets[:, :n]
        if self.config.num_agent_neighbors is None:
            index = self._others.expand(-1, -1, self.n_copies)
        else:
            # The agent itself comes last by its artificial distance, and is dropped.
            index = self._distances[:, :n].argsort(dim=1)[:, : n - 1][:, :n_others]
        seen_agents = _pick(others, index, n_others)
        seen_landmarks = self._offsets[:, n:]
        if self.config.num_landmark_neighbors is not None:
            count = self.config.num_landmark_neighbors
            seen_landmarks = _pick(seen_landmarks, self._distances[:, n:].argsort(dim=1)[:, :count], count)
        parts = [self._features[:, :2], seen_landmarks, seen_agents, th.zeros_like(seen_agents)]
        return th.cat(parts, dim=1).reshape(-1, self.n_copies)

    def _state(self) -> dict[str, th.Tensor]:
        tensors = {"positions": self._positions, "velocities": self._velocities, "landmarks": self._landmarks}
        return {name: value.permute(2, 0, 1) for name, value in tensors.items()}

    def _load_state(self, state: Mapping[str, th.Tensor]) -> None:
        self._positions.copy_(state["positions"].permute(1, 2, 0))
        self._velocities.copy_(state["velocities"].permute(1, 2, 0))
        self._landmarks.copy_(state["landmarks"].permute(1, 2, 0))
        self._measure()
        self._trail.clear()
        self._remember()

    def _remember(self, *, restarting: bool = False) -> None:
        """Keep the positions of the copies that are drawn, for their trails; a restart is not a moment of its own."""
        if self.render_mode is not None:
            keep = self._trail.replace_last if restarting else self._trail.append
            keep(self._positions[..., : self.n_render_copies])

    def _draw(self, copy: int) -> np.ndarray[Any, Any]:
        elapsed = int(self._elapsed_of_copy[copy]) if self.terminates_early else self._elapsed
        landmarks = self._landmarks[..., copy].cpu().double().numpy()
        scene = spread_scene(self._trail.last(elapsed + 1, copy), landmarks, step=elapsed, horizon=self.max_episode_steps)
        return draw_scene(scene)


def _pick(rows: th.Tensor, index: th.Tensor, count: int) -> th.Tensor:
    """Take the rows that ``index`` names from dimension 1, and add rows of zeros up to ``count``."""
    chosen = rows.gather(1, index.unsqueeze(2).expand(-1, -1, 2, -1))
    missing = count - chosen.shape[1]
    return th.nn.functional.pad(chosen, (0, 0, 0, 0, 0, missing)) if missing else chosen
