"""
Gradient steps per CPU second of learners from a replay buffer: WassersteinFlowPG beside SB3's SAC and TD3.

All have transitions of Hopper's size, batches of 256 and two layers of 256, and take turns; only updates are timed.
``python -m zoo.benchmark --only off-policy``.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import SAC, TD3

from otbaselines import WassersteinFlowPG
from zoo.drawing.tables import Table

OBSERVATIONS, ACTIONS, BATCH = 11, 3, 256
REFERENCE = "SB3's SAC"


class RandomTransitions(gym.Env[Any, Any]):
    """Normal observations and rewards of Hopper's size, whatever is done."""

    observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)

    def _observe(self) -> Any:
        return self.np_random.normal(size=OBSERVATIONS).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observe(), float(self.np_random.normal()), False, False, {}


def contenders() -> dict[str, Callable[[], Any]]:
    """:return: by name, what makes each"""
    settings: dict[str, Any] = {"seed": 0, "device": "cpu", "buffer_size": 20_000, "learning_starts": 50}

    def make(algorithm: type, **options: Any) -> Callable[[], Any]:
        return lambda: algorithm("MlpPolicy", RandomTransitions(), **settings, **options)

    return {
        REFERENCE: make(SAC),
        "SB3's TD3": make(TD3),
        "WassersteinFlowPG, first order, Gaussian": make(WassersteinFlowPG, solver="first_order", policy_form="gaussian"),
        "WassersteinFlowPG, first order": make(WassersteinFlowPG, solver="first_order"),
        "WassersteinFlowPG, regression, Gaussian": make(WassersteinFlowPG, policy_form="gaussian"),
        "WassersteinFlowPG, regression": make(WassersteinFlowPG),
        "WassersteinFlowPG, natural, Gaussian": make(WassersteinFlowPG, solver="cg", policy_form="gaussian"),
        "WassersteinFlowPG, natural": make(WassersteinFlowPG, solver="cg"),
    }


def off_policy_table(*, quick: bool) -> Table:
    """
    :param quick: few steps, to see that everything runs
    :return: the table
    """
    steps, rounds = (2, 2) if quick else (40, 7)
    models = {name: make().learn(60, log_interval=None) for name, make in contenders().items()}
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.process_time()
            model.train(gradient_steps=steps, batch_size=BATCH)
            rates[name].append(steps / (time.process_time() - start))
    table = Table(
        f"gradient steps per CPU second, {OBSERVATIONS} observations, {ACTIONS} actions, batches of {BATCH}, two layers of "
        f"256, median of {rounds} rounds in turns",
        ("learner", "gradient steps per CPU second", "range", f"beside {REFERENCE}, median of the rounds"),
    )
    for name, found in rates.items():
        ratio = statistics.median(own / other for own, other in zip(found, rates[REFERENCE], strict=True))
        table.rows.append((name, f"{statistics.median(found):.1f}", f"{min(found):.1f} to {max(found):.1f}", f"{ratio:.2f}"))
    return table
