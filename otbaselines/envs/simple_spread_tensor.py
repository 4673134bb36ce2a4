"""The landmark-covering task of :mod:`otbaselines.envs.simple_spread` for thousands of copies on one device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.envs._drawing import TensorTrail, draw_scene
from otbaselines.envs._parallel import state_space_of
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
    :param double_precision: keep the state in float64. In float32 the contact force magnifies rounding: of 20,000 random
        episodes of three agents 99 % end within 5e-6 of the float64 ones, and the worst within 4e-4. Observations and rewards
        are float32 in either case
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
            state_space=state_space_of(self.config.observation_space(), len(self.config.possible_agents)),
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
        """
        Make the state tensors, the constants, and the views into them that every step uses.

        With few copies a step costs what Python and the dispatcher cost, so views are taken once, and constants are tensors:
        wrapping a Python number takes longer than multiplying by it.
        """
        n, copies = self.n_agents, self.n_copies

        def full(value: float, *shape: int) -> th.Tensor:
            return th.full(shape, value, dtype=dtype, device=self.device)

        # Everything that is observed is a row of two coordinates in one tensor: the state, which is velocities, positions
        # and landmarks, and then agent by agent its offsets to all agents and to all landmarks.
        self._rows = full(0.0, 3 * n + 2 * n * n, 2, copies)
        self._flat_rows = self._rows.view(-1, copies)
        self._velocities, self._positions, self._landmarks = self._rows[:n], self._rows[n : 2 * n], self._rows[2 * n : 3 * n]
        self._offsets = self._rows[3 * n :].view(n, 2 * n, 2, copies)
        self._entities, self._velocities_by_axis = self._rows[n : 3 * n], self._velocities.transpose(0, 1)
        self._agent_offsets, self._offset_x, self._offset_y = (
            self._offsets[:, :n],
            self._offsets[:, :, 0],
            self._offsets[:, :, 1],
        )
        self._to, self._from = self._entities.unsqueeze(0), self._positions.unsqueeze(1)
        self._distances = full(0.0, n, 2 * n, copies)
        self._agent_distances, self._landmark_distances = self._distances[:, :n], self._distances[:, n:]
        self._touching = full(0.0, n, n, copies)
        # Added to squared distances. The large entry keeps an agent from touching itself; the small one, far below the
        # rounding of any other distance, keeps two agents in the same place from dividing zero by zero.
        self._distance_floor = full(1e-20, n, 2 * n, 1)
        self._distance_floor[range(n), range(n)] = 1e12
        self._zero, self._diameter = full(0.0), full(2 * AGENT_RADIUS)
        self._contact_reach, self._team_share = full(2 * AGENT_RADIUS / CONTACT_MARGIN), full(self.config.local_ratio - 1.0)
        pushes = th.as_tensor(TIME_STEP * SENSITIVITY * PUSHES, dtype=dtype, device=self.device)
        self._push_table, self._push_rows = pushes, pushes.t().contiguous()
        self._visible_rows = self._row_index()
        others = [[j for j in range(n) if j != i] for i in range(n)]
        self._others = th.tensor(others, dtype=th.int64, device=self.device).view(n, n - 1, 1)

    def _row_index(self) -> th.Tensor:
        """Return which of the flattened rows make up the observations, agent by agent."""
        n = self.n_agents
        rows: list[int] = []
        for i in range(n):
            offsets = [3 * n + 2 * n * i + j for j in range(2 * n)]
            others = [offsets[j] for j in range(n) if j != i]
            # Nobody speaks in this task. An agent's offset to itself is zero, which is what its team-mates' channels read.
            silence = [offsets[i]] * (n - 1)
            rows += [i, n + i, *offsets[n:], *others, *silence]
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
        th.sub(self._to, self._from, out=self._offsets)
        th.addcmul(self._distance_floor, self._offset_x, self._offset_x, out=self._distances)
        self._distances.addcmul_(self._offset_y, self._offset_y).sqrt_()

    def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        repulsion = self._repulsion()
        self._positions.add_(self._velocities, alpha=TIME_STEP)
        th.add(self._push(actions), self._velocities_by_axis, alpha=1.0 - DAMPING, out=self._velocities_by_axis)
        self._velocities.add_(repulsion, alpha=-TIME_STEP * CONTACT_FORCE * CONTACT_MARGIN)
        self._measure()
        nearest = self._landmark_distances.amin(dim=0)
        rewards = self._rewards(nearest)
        self._remember()
        if not self.terminates_early:
            return rewards, None
        # As in mpe2, running out of time takes precedence over success in the last step.
        covered = (nearest < CAPTURE_RADIUS).all(dim=0) & (self._elapsed_of_copy + 1 < self.max_episode_steps)
        return rewards, covered.unsqueeze(1).expand(self.n_copies, self.n_agents)

    def _repulsion(self) -> th.Tensor:
        """Softened overlaps in units of the margin times the direction *to* the other, summed: ``(n_agents, 2, n_copies)``."""
        depth = th.add(self._contact_reach, self._agent_distances, alpha=-1.0 / CONTACT_MARGIN)
        strength = th.logaddexp(self._zero, depth).div_(self._agent_distances)
        return (strength.unsqueeze(2) * self._agent_offsets).sum(dim=1)

    def _push(self, actions: th.Tensor) -> th.Tensor:
        """Change of velocity ``(2, n_agents, n_copies)`` by the agents' own pushes."""
        if self.config.continuous_actions:
            return (actions.to(self._push_table.dtype) @ self._push_table).permute(2, 1, 0)
        return self._push_rows.index_select(1, actions.t().reshape(-1)).view(2, self.n_agents, self.n_copies)

    def _rewards(self, nearest: th.Tensor) -> th.Tensor:
        """
        Mix the team's reward with the agent's own.

        :param nearest: distance of the nearest agent to every landmark, ``(n_landmarks, n_copies)``
        """
        team = nearest.sum(dim=0).mul_(self._team_share)
        if self._penalise_collisions:
            th.lt(self._agent_distances, self._diameter, out=self._touching)
            rewards = th.add(team, self._touching.sum(dim=1), alpha=-self.config.local_ratio)
        else:
            rewards = team.expand(self.n_agents, self.n_copies)
        return rewards.t().float()

    def _observe(self) -> th.Tensor:
        if self.config.num_agent_neighbors is None and self.config.num_landmark_neighbors is None:
            rows = self._flat_rows.index_select(0, self._visible_rows)
        else:
            rows = self._nearest_rows()
        return rows.t().float().contiguous().view(self.n_copies, self.n_agents, -1)

    def _nearest_rows(self) -> th.Tensor:
        """Return the observations, ``(n_agents * obs_dim, n_copies)``, where agents see only what is near."""
        n = self.n_agents
        n_others = n - 1 if self.config.num_agent_neighbors is None else self.config.num_agent_neighbors
        if self.config.num_agent_neighbors is None:
            index = self._others.expand(-1, -1, self.n_copies)
        else:
            # The agent itself comes last by its artificial distance, and is dropped.
            index = self._agent_distances.argsort(dim=1)[:, : n - 1][:, :n_others]
        seen_agents = _pick(self._agent_offsets, index, n_others)
        seen_landmarks = self._offsets[:, n:]
        if self.config.num_landmark_neighbors is not None:
            count = self.config.num_landmark_neighbors
            seen_landmarks = _pick(seen_landmarks, self._landmark_distances.argsort(dim=1)[:, :count], count)
        own = th.stack([self._velocities, self._positions], dim=1)
        parts = [own, seen_landmarks, seen_agents, th.zeros_like(seen_agents)]
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
