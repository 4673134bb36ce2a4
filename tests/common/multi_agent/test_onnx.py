"""Actors as files of ONNX; skipped where its packages are not installed."""

import warnings

import numpy as np
import pytest
import torch as th

from otbaselines import HATRPO, IPPO, MAPPO, WBC, WMATRPO, make_vec_env

pytest.importorskip("onnx", reason="needs the package onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")


class _Actor(th.nn.Module):
    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, observations):
        return self.policy._predict(observations, deterministic=True)


@pytest.mark.parametrize("algorithm", [HATRPO, IPPO, MAPPO, WBC, WMATRPO])
def test_an_exported_team_acts_as_predict_does_in_any_number_of_copies(algorithm, tmp_path):
    env = make_vec_env("otbaselines/SimpleSpread-v0", 2, seed=0, backend="tensor")
    model = algorithm("MlpPolicy", env, n_steps=8, seed=0, device="cpu")
    path, space = tmp_path / "team.onnx", model.observation_space
    with warnings.catch_warnings():
        # The exporter warns of its own age, and of every shape that it meets.
        warnings.simplefilter("ignore")
        th.onnx.export(
            _Actor(model.policy).eval(),
            (th.zeros(3, *space.shape),),
            str(path),
            input_names=["observations"],
            dynamic_axes={"observations": {0: "rows"}},
            opset_version=17,
            dynamo=False,
        )
    rows = np.random.default_rng(0).normal(size=(15, *space.shape)).astype(np.float32)
    (actions,) = onnxruntime.InferenceSession(str(path)).run(None, {"observations": rows})
    np.testing.assert_array_equal(actions, model.predict(rows, deterministic=True)[0])
