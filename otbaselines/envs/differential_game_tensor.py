"""The game of :mod:`otbaselines.envs.differential_game` for thousands of copies on one device."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.envs._surface import draw_surface
from otbaselines.envs.differential_game import (
    HIGH,
    LOW,
    DifferentialGameConfig,
    DifferentialGameViews,
    _distance,
    game_scene,
)


class DifferentialGameVecEnv(DifferentialGameViews, TensorVecEnv):
    """
    ``n_copies`` teams of the game; takes the arguments of
    :class:`~otbaselines.envs.differential_game.DifferentialGameConfig`.

    Every step ends and restarts every copy, and terminates its episode. Pictures show the joint action of the last step.

    :param n_copies: number of teams
    :param device: where the game is computed
    :param seed: accepted as everywhere; nothing in the game is random
    :param double_precision: compute in float64; rewards and infos are float32 in either case
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
        self.config = DifferentialGameConfig(**config)
        super().__init__(
            n_copies=n_copies,
            agent_observation_spaces={agent: self.config.observation_space() for agent in self.config.possible_agents},
            agent_action_spaces={agent: self.config.action_space() for agent in self.config.possible_agents},
            max_episode_steps=1,
            terminates_in_lockstep=True,
            state_space=self.config.state_space(),
            device=device,
            seed=seed,
            render_mode=render_mode,
            n_render_copies=n_render_copies,
        )
        self._dtype = th.float64 if double_precision else th.float32
        self._surface = self.config.surface(self._dtype, self.device)
        self._played: th.Tensor | None = None
        self._distances = self._rewards = th.zeros(n_copies, self.n_agents, device=self.device)

    def _reset_state(self, mask: th.Tensor | None) -> None:
        """Nothing is remembered from one episode to the next but the picture."""

    def _observe(self) -> th.Tensor:
        return th.ones(self.n_copies, self.n_agents, 1, device=self.device)

    def _observe_global(self, obs: th.Tensor) -> th.Tensor:
        return obs[:, 0]

    def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        self._played = actions[..., 0].to(self._dtype).clamp(LOW, HIGH)
        self._rewards = self._of_all(self._surface.reward(self._played))
        self._distances = self._of_all(_distance(self._played))
        return self._rewards, None

    def _of_all(self, of_team: th.Tensor) -> th.Tensor:
        """What is the same for all agents, ``(n_copies, n_agents)`` float32."""
        return of_team.float().unsqueeze(1).repeat(1, self.n_agents)

    def _infos(self) -> Mapping[str, th.Tensor]:
        return {"distance": self._distances, "reward": self._rewards}

    def _state(self) -> dict[str, th.Tensor]:
        return {}

    def _load_state(self, state: Mapping[str, th.Tensor]) -> None:
        """Every episode starts alike."""

    def _draw(self, copy: int) -> np.ndarray[Any, Any]:
        played = None if self._played is None else self._played[copy].cpu().double().numpy()
        return draw_surface(game_scene(self.config, played))
