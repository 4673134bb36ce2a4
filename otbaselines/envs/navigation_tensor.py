"""The navigation task of :mod:`otbaselines.envs.navigation` for thousands of copies on one device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.envs._drawing import TensorTrail, draw_scene
from otbaselines.envs._parallel import state_space_of
from otbaselines.envs.navigation import NavigationConfig, NavigationViews, navigation_scene


class NavigationVecEnv(NavigationViews, TensorVecEnv):
    """
    ``n_copies`` teams of the task; takes the arguments of :class:`~otbaselines.envs.navigation.NavigationConfig`.

    Copies are the *last* dimension of every state tensor, so that each operation runs over long contiguous rows.

    :param n_copies: number of teams
    :param device: where the state lives
    :param seed: seed of all randomness; drawn from the operating system when omitted
    :param double_precision: keep the state in float64; observations and rewards are float32 in either case
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
        self.config = NavigationConfig(**config)
        super().__init__(
            n_copies=n_copies,
            agent_observation_spaces={agent: self.config.observation_space() for agent in self.config.possible_agents},
            agent_action_spaces={agent: self.config.action_space() for agent in self.config.possible_agents},
            max_episode_steps=self.config.max_episode_steps,
            state_space=state_space_of(self.config.observation_space(), len(self.config.possible_agents)),
            device=device,
            seed=seed,
            render_mode=render_mode,
            n_render_copies=n_render_copies,
        )
        self._trail = TensorTrail(self.max_episode_steps)
        self._allocate(th.float64 if double_precision else th.float32)

    def _allocate(self, dtype: th.dtype) -> None:
        """Make the state tensors, the constants, and the views into them that every step uses."""
        n, copies = self.n_agents, self.n_copies

        def zeros(*shape: int) -> th.Tensor:
            return th.zeros(shape, dtype=dtype, device=self.device)

        def constant(values: np.ndarray[Any, Any]) -> th.Tensor:
            return th.as_tensor(values, dtype=dtype, device=self.device).contiguous()

        # The agents' positions, then their targets.
        self._rows = zeros(2 * n, 2, copies)
        self._flat_rows = self._rows.view(-1, copies)
        self._positions, self._targets = self._rows[:n], self._rows[n:]
        self._positions_by_axis = self._positions.transpose(0, 1)
        self._to, self._from = self._positions.unsqueeze(0), self._positions.unsqueeze(1)
        self._offsets, self._target_offsets = zeros(n, n, 2, copies), zeros(n, 2, copies)
        self._offset_x, self._offset_y = self._offsets[:, :, 0], self._offsets[:, :, 1]
        self._target_x, self._target_y = self._target_offsets[:, 0], self._target_offsets[:, 1]
        self._squared_distances, self._touching = zeros(n, n, copies), zeros(n, n, copies)
        # No distance is below the diagonal's negative entry, squared with its sign, so nobody touches itself.
        reach = self.config.collision_distances
        self._squared_reach = constant(np.sign(reach) * reach**2).unsqueeze(2)
        self._turns = constant(self.config.turns)
        self._move_rows = constant(self.config.agent_action_vectors.reshape(-1, 2).T)
        self._first_move = self.config.headings * th.arange(n, device=self.device).unsqueeze(1)
        seen = [[i, n + i, *(j for j in range(n) if j != i)] for i in range(n)]
        index = [2 * row + axis for rows in seen for row in rows for axis in range(2)]
        self._visible_rows = th.tensor(index, device=self.device)

    def _reset_state(self, mask: th.Tensor | None) -> None:
        # Nothing terminates early, so all copies restart together and the mask is always omitted.
        self._rows.uniform_(-1.0, 1.0, generator=self.generator)
        self._trail.clear()
        self._remember()

    def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        self._positions_by_axis.add_(self._steps(actions)).clamp_(-1.0, 1.0)
        cost = self._target_distances()
        if self.config.collision_penalty > 0.0 and self.n_agents > 1:
            cost = cost.add_(self._n_touched(), alpha=self.config.collision_penalty)
        if self.config.team_reward:
            cost = cost.mean(dim=0, keepdim=True).expand(self.n_agents, self.n_copies)
        self._remember()
        return cost.neg().t().float(), None

    def _steps(self, actions: th.Tensor) -> th.Tensor:
        """Displacements ``(2, n_agents, n_copies)``."""
        if self.config.continuous_actions:
            return (self._turns @ actions.to(self._turns.dtype).permute(1, 2, 0)).transpose(0, 1)
        index = (actions.t() + self._first_move).reshape(-1)
        return self._move_rows.index_select(1, index).view(2, self.n_agents, self.n_copies)

    def _target_distances(self) -> th.Tensor:
        """Distance of every agent to its target, ``(n_agents, n_copies)``."""
        th.sub(self._positions, self._targets, out=self._target_offsets)
        return (self._target_x * self._target_x).addcmul_(self._target_y, self._target_y).sqrt_()

    def _n_touched(self) -> th.Tensor:
        """Number of team-mates that each agent collides with, ``(n_agents, n_copies)``."""
        th.sub(self._to, self._from, out=self._offsets)
        th.mul(self._offset_x, self._offset_x, out=self._squared_distances).addcmul_(self._offset_y, self._offset_y)
        th.lt(self._squared_distances, self._squared_reach, out=self._touching)
        return self._touching.sum(dim=1)

    def _observe(self) -> th.Tensor:
        rows = self._flat_rows.index_select(0, self._visible_rows)
        return rows.t().float().contiguous().view(self.n_copies, self.n_agents, -1)

    def _state(self) -> dict[str, th.Tensor]:
        return {"positions": self._positions.permute(2, 0, 1), "targets": self._targets.permute(2, 0, 1)}

    def _load_state(self, state: Mapping[str, th.Tensor]) -> None:
        self._positions.copy_(state["positions"].permute(1, 2, 0))
        self._targets.copy_(state["targets"].permute(1, 2, 0))
        self._trail.clear()
        self._remember()

    def _remember(self) -> None:
        """Keep the positions of the copies that are drawn, for their trails."""
        if self.render_mode is not None:
            self._trail.append(self._positions[..., : self.n_render_copies])

    def _draw(self, copy: int) -> np.ndarray[Any, Any]:
        targets = self._targets[..., copy].cpu().double().numpy()
        trail = self._trail.last(self._elapsed + 1, copy)
        return draw_scene(navigation_scene(self.config, trail, targets, step=self._elapsed))
