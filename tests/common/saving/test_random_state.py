"""A learner without an environment resumes to the bit, because its random streams are stored."""

import io
import json
import random
import zipfile
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from otbaselines.common.saving.algorithm import JsonSaveMixin

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)


class Regression(JsonSaveMixin, BaseAlgorithm):
    """An offline learner that draws from every stream there is: torch's, NumPy's, Python's, and two of its own."""

    _saves_random_state = True
    policy_aliases = {"MlpPolicy": ActorCriticPolicy}  # noqa: RUF012

    def __init__(
        self, policy: Any, env: Any = None, seed: int | None = None, device: str = "auto", _init_setup_model: bool = True
    ) -> None:
        super().__init__(policy, env, 1e-2, seed=seed, device=device)
        self.observation_space, self.action_space = BOX, spaces.Discrete(2)
        self.own = np.random.default_rng(1)
        self.torch_own = th.Generator().manual_seed(2)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, net_arch=[4])

    def learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        for _ in range(total_timesteps):
            noise = float(np.random.normal() + random.random() + self.own.normal())  # noqa: NPY002
            batch = th.randn(8, 3) + th.randn(8, 3, generator=self.torch_own) + noise
            loss = (self.policy.predict_values(batch).squeeze(-1) - batch.sum(1)).square().mean()
            self.policy.optimizer.zero_grad()
            loss.backward()
            self.policy.optimizer.step()
            self.num_timesteps += 1
        return self


def state_of(model: Regression) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def same(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    return all(th.equal(value, second[name]) for name, value in first.items())


def test_training_after_load_is_the_uninterrupted_training_bit_for_bit() -> None:
    model = Regression("MlpPolicy", seed=0, device="cpu").learn(5)
    file = io.BytesIO()
    model.save(file)
    uninterrupted = state_of(model.learn(5))
    random.seed(9), np.random.seed(9), th.manual_seed(9)  # noqa: NPY002
    resumed = Regression.load(file, device="cpu")
    assert same(state_of(resumed.learn(5)), uninterrupted)
    assert resumed.num_timesteps == 10


def test_without_the_declaration_the_streams_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Regression, "_saves_random_state", False)
    model = Regression("MlpPolicy", seed=0, device="cpu").learn(5)
    file = io.BytesIO()
    model.save(file)
    uninterrupted = state_of(model.learn(5))
    assert not same(state_of(Regression.load(file, device="cpu").learn(5)), uninterrupted)


@pytest.mark.parametrize("stream", ["python", "numpy", "torch", "own"])
def test_a_tampered_stream_is_refused_and_touches_none(stream: str) -> None:
    file = io.BytesIO()
    Regression("MlpPolicy", seed=0, device="cpu").save(file)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(entries["data"])
    for value in (None, [1, 2], {}, "x", {":kind:": "tensor", "dtype": "uint8", "shape": [3], "data": [1, 2, 3]}):
        data["_random_state"][stream] = value
        tampered = io.BytesIO()
        with zipfile.ZipFile(tampered, "w") as archive:
            for name, content in {**entries, "data": json.dumps(data).encode()}.items():
                archive.writestr(name, content)
        with pytest.raises(ValueError, match="'BytesIO' cannot be loaded: `_random_state`"):
            Regression.load(tampered, device="cpu")


def test_a_class_that_asks_for_none_neither_stores_nor_takes_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Regression("MlpPolicy", seed=0, device="cpu").save(file)
    monkeypatch.setattr(Regression, "_saves_random_state", False)
    with pytest.raises(ValueError, match="holds _random_state, which Regression does not know"):
        Regression.load(file, device="cpu")
