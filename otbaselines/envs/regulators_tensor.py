"""The systems of :mod:`otbaselines.envs.regulators` for thousands of copies on one device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy.typing as npt
import torch as th

from otbaselines.common.memory import check_fits
from otbaselines.common.settings import COUNT
from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.envs._drawing import draw_scene
from otbaselines.envs.regulators import CoupledOscillators, PendulumRegulator, Regulator, ScalarRegulator
from otbaselines.envs.regulators_gym import MAX_EPISODE_STEPS

AGENT = "agent_0"


class RegulatorVecEnv(TensorVecEnv):
    """
    ``n_copies`` copies of a regulator, stepped together: a team of one, and so an ordinary vector environment with as many
    slots as copies for the learners of stable-baselines3. All copies are truncated at the same steps.

    :param n_copies: number of copies
    :param max_episode_steps: length of an episode
    :param device: where the states live
    :param seed: of all randomness; drawn from the operating system when omitted
    :param double_precision: keep states in float64; observations and rewards are float32 in either case
    :param render_mode: ``"rgb_array"`` or ``None``
    :param n_render_copies: how many copies are drawn
    :param parameters: those of the system
    :raises TypeError: if a parameter is of the wrong type
    :raises ValueError: if one is out of range
    """

    #: The class of the system.
    model: ClassVar[type[Regulator]]

    def __init__(
        self,
        *,
        n_copies: int,
        max_episode_steps: int = MAX_EPISODE_STEPS,
        device: th.device | str = "cpu",
        seed: int | None = None,
        double_precision: bool = False,
        render_mode: str | None = None,
        n_render_copies: int = 1,
        **parameters: Any,
    ) -> None:
        self.regulator = self.model(**parameters)
        COUNT.check("n_copies", n_copies)
        # States before and after a step, their noise, and what is seen of them.
        numbers = 4 * self.regulator.state_dim + self.regulator.action_dim
        check_fits(
            n_copies * numbers * (8 if double_precision else 4),
            f"`n_copies`={n_copies} of {type(self.regulator).__name__}",
            "use fewer",
            th.device(device) if th.cuda.is_available() else None,
        )
        super().__init__(
            n_copies=n_copies,
            agent_observation_spaces={AGENT: self.regulator.observation_space()},
            agent_action_spaces={AGENT: self.regulator.action_space()},
            max_episode_steps=max_episode_steps,
            device=device,
            seed=seed,
            render_mode=render_mode,
            n_render_copies=n_render_copies,
        )
        self._dtype = th.float64 if double_precision else th.float32
        self._step = self.regulator.transition(self._dtype, self.device)
        self._states = th.zeros(n_copies, self.regulator.state_dim, dtype=self._dtype, device=self.device)

    def _reset_state(self, mask: th.Tensor | None) -> None:
        drawn = self._step.start(th.rand(self._states.shape, generator=self.generator, dtype=self._dtype, device=self.device))
        self._states = drawn if mask is None else th.where(mask[:, None], drawn, self._states)

    def _observe(self) -> th.Tensor:
        # Steps put new tensors in the place of the old ones, so that what is handed out stays as it is.
        return self.regulator.observe(self._states).float().unsqueeze(1)

    def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        self._states, rewards = self._step(self._states, actions[:, 0].to(self._dtype), self._noise())
        return rewards.float().unsqueeze(1), None

    def _noise(self) -> th.Tensor:
        return th.randn(self._states.shape, generator=self.generator, dtype=self._dtype, device=self.device)

    def _state(self) -> dict[str, th.Tensor]:
        return {"states": self._states}

    def _load_state(self, state: Mapping[str, th.Tensor]) -> None:
        self._states = state["states"].clone()

    def _draw(self, copy: int) -> npt.NDArray[Any]:
        return draw_scene(self.regulator.scene(self._states[copy].double().cpu().numpy()))


class ScalarRegulatorVecEnv(RegulatorVecEnv):
    """:class:`~otbaselines.envs.regulators.ScalarRegulator` as tensors."""

    model = ScalarRegulator


class PendulumRegulatorVecEnv(RegulatorVecEnv):
    """:class:`~otbaselines.envs.regulators.PendulumRegulator` as tensors."""

    model = PendulumRegulator


class CoupledOscillatorsVecEnv(RegulatorVecEnv):
    """:class:`~otbaselines.envs.regulators.CoupledOscillators` as tensors."""

    model = CoupledOscillators
