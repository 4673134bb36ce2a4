"""Settings of learners on data: bad ones are named where they are given, and changed ones before anything starts."""

import json
import math
import warnings
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch as th
from offline_toys import same, state, toy_dataset

from otbaselines import BC, IQL, QDOT
from otbaselines.common.offline.losses import advantage_weights, effective_share
from otbaselines.common.training import largest_moment
from otbaselines.qdot import MlpPolicy

TINY = {"net_arch": [8], "map_arch": [8]}
SEEN = toy_dataset().observations[:5].numpy()


def _qdot(**settings):
    return QDOT("MlpPolicy", **{"dataset": toy_dataset(), "device": "cpu", "seed": 0, "policy_kwargs": TINY, **settings})


# ---------------------------------------------------------------- widths
@pytest.mark.parametrize("value", [8, [], (), [0], [-1], ["a"], "88", [8.0], [True], {"pi": [8]}, np.array([8, 8]), [10**12]])
def test_widths_of_a_map_that_are_none_are_named(value):
    message = r"`policy_kwargs\['map_arch'\]` must be at least one width, as in \[64, 64\], or None, got .*; leave it out"
    with pytest.raises((TypeError, ValueError), match=message):
        _qdot(policy_kwargs={**TINY, "map_arch": value})
    model = _qdot()
    with pytest.raises((TypeError, ValueError), match="`map_arch` must be at least one width"):
        MlpPolicy(model.observation_space, model.action_space, lambda _: 1e-3, map_arch=value)


def test_a_map_beyond_the_machine_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match=r"a map of `policy_kwargs\['map_arch'\]`=\[1000000, 1000000\] would take .* GiB"):
        _qdot(policy_kwargs={**TINY, "map_arch": [10**6, 10**6]})


@pytest.mark.parametrize(
    "widths",
    [
        {"net_arch": (8,), "map_arch": (8, 8)},
        {"net_arch": [np.int64(8)], "map_arch": [np.int32(8)]},
        {"net_arch": {"pi": (8,), "qf": (9,)}},
        {"net_arch": [{"pi": [8], "qf": [9]}]},
    ],
)
def test_widths_of_every_kind_are_saved_and_loaded(widths, tmp_path):
    model = _qdot(policy_kwargs=widths).learn(2)
    model.save(tmp_path / "model")
    loaded = QDOT.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(SEEN, deterministic=True)[0], model.predict(SEEN, deterministic=True)[0])


# ---------------------------------------------------------------- attributes
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("alpha", math.inf, r"`alpha`=inf asks for `use_map`=False, but the networks were built for True; construct"),
        ("alpha", 1e20, "`alpha`=1e\\+20 is beyond 1e\\+15"),
        ("extraction", "best_of", r"`extraction`='best_of', but the networks were built for 'weighted_map'"),
        ("extraction", "bc_map", r"`extraction`='bc_map', but .*save this one and load it with `extraction=...`"),
        ("extraction", "awr", "would train a map that nothing uses"),
        ("n_candidates", 5, "`n_candidates` applies to"),
        ("max_weight", 5.0, "`max_weight` applies to"),
        ("v_target", "nowhere", "`v_target` must be one of"),
        ("reward_scale", "wide", "`reward_scale` must be a number above 0"),
        ("batch_size", 2**31 - 1, "a minibatch of `batch_size`=2147483647 rows would take"),
        ("cuda_graph", True, "`cuda_graph`=True works on CUDA only"),
        (
            "policy_kwargs",
            {**TINY, "net_arch": [9]},
            r"`policy_kwargs\['net_arch'\]`=\[9\], but .* for \[8\]",
        ),
    ],
)
def test_settings_that_are_changed_are_checked_together_before_anything_starts(name, value, message):
    model = _qdot().learn(3)
    before, usual = state(model), getattr(model, name)
    setattr(model, name, value)
    with pytest.raises((TypeError, ValueError), match=message):
        model.learn(2)
    assert model.num_timesteps == 3
    setattr(model, name, usual)
    assert same(before, state(model))


def test_settings_that_no_network_was_built_for_may_be_changed(tmp_path):
    model = _qdot().learn(2)
    model.alpha, model.order, model.noise_divergence, model.weight_divergence = 7.0, 1, None, 0.2
    model.learn(2).save(tmp_path / "model")
    assert QDOT.load(tmp_path / "model", device="cpu").alpha == 7.0
    # What the error of a changed extraction proposes.
    other = QDOT.load(tmp_path / "model", device="cpu", extraction="bc_map", weight_divergence=None, dataset=toy_dataset())
    assert other.policy.extraction == "bc_map"
    other.learn(1)


def test_critics_that_have_nobody_to_disagree_with_are_noticed_later_too():
    model = _qdot(policy_kwargs={**TINY, "n_critics": 1}, weight_divergence=0.1)
    model.weight_divergence = None
    with pytest.raises(ValueError, match="leaves nobody to disagree with"):
        model.learn(1)


# ---------------------------------------------------------------- numbers
@pytest.mark.parametrize("name", ["alpha", "inverse_temperature", "reward_scale", "gamma", "learning_rate"])
@pytest.mark.parametrize("value", [10**20, Fraction(1, 2)])
def test_numbers_that_torch_does_not_compute_with_are_named(name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        _qdot(**{name: value})


@pytest.mark.parametrize("order", [1, 2])
def test_moments_stay_finite_at_the_largest_price(order, tmp_path):
    model = _qdot(alpha=1e15, order=order).learn(40)
    model.save(tmp_path / "model")
    QDOT.load(tmp_path / "model", device="cpu")
    with pytest.raises(ValueError, match="use infinity, the map switched off"):
        _qdot(alpha=2e15)


def test_a_moment_that_overflows_is_noticed_and_taken_back():
    model = _qdot().learn(5, log_interval=5)
    before = state(model)
    # Gradients of 1e22, whose squares are infinite in single precision where losses and parameters are not.
    model.policy.log_std.register_hook(lambda gradient: gradient + 1e22)
    with pytest.raises(ValueError, match="`moments` became NaN or infinite"):
        model.learn(2, reset_num_timesteps=False)
    assert same(before, state(model))


def test_the_largest_moment_is_that_of_all_states():
    parameters = [th.nn.Parameter(th.zeros(2)), th.nn.Parameter(th.zeros(()))]
    optimizer = th.optim.Adam(parameters, betas=(0.0, 0.5))
    assert largest_moment(optimizer) == 0.0
    parameters[0].grad, parameters[1].grad = th.tensor([1.0, -4.0]), th.tensor(3.0)
    optimizer.step()
    # Half of the square of 4.
    assert largest_moment(optimizer) == 8.0


def test_candidates_beyond_the_machine_are_refused(monkeypatch):
    many = {"extraction": "best_of", "n_candidates": 1000}
    model = _qdot(**many)
    monkeypatch.setattr("otbaselines.common.memory.machine_memory", lambda: 1e6)
    assert model.predict(SEEN[0])[0].shape == (2,)
    with pytest.raises(ValueError, match="choosing among `n_candidates`=1000 actions for 50 observations would take"):
        model.predict(np.repeat(SEEN, 10, 0))
    with pytest.raises(ValueError, match="choosing among `n_candidates`=1000000 actions for 1 observations would take"):
        _qdot(**{**many, "n_candidates": 10**6})


def test_shares_of_weights_are_numbers_however_small_or_large_they_are():
    for scale in (1e-40, 1e-20, 1.0, 1e30):
        weights = scale * th.tensor([1.0, 1.0, 0.0, 0.0])
        assert float(effective_share(weights)) == pytest.approx(0.5, rel=1e-3)
    assert effective_share(th.zeros(3)) == 0.0
    weights = advantage_weights(th.tensor([-1.0, 0.5, 2.0]), 1e30, 1e-40)
    assert float(effective_share(weights)) == pytest.approx(2 / 3, rel=1e-3)


# ---------------------------------------------------------------- load
def _without(path, *names):
    """The file as a version would have written it that did not know these settings."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(entries["data"])
    entries["data"] = json.dumps({name: value for name, value in data.items() if name not in names}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_settings_that_a_file_does_not_know_are_named_with_their_defaults(tmp_path):
    path = tmp_path / "model.zip"
    _qdot(return_share=0.0).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert QDOT.load(path, device="cpu").return_share == 0.0
    _without(path, "return_share", "noise_divergence")
    with pytest.warns(UserWarning, match="does not say") as caught:
        assert QDOT.load(path, device="cpu").return_share == 0.2
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "model.zip' does not say noise_divergence, return_share; the defaults are taken" in text
    assert "`noise_divergence`=None, `return_share`=0.2" in text
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert QDOT.load(path, device="cpu", return_share=0.0, noise_divergence=0.1).return_share == 0.0


def test_what_cannot_be_changed_at_load_is_said_to_be_so(tmp_path):
    _qdot().save(tmp_path / "model")
    with pytest.raises(ValueError, match="if alpha as given asks for other networks, leave it out, or construct a new model"):
        QDOT.load(tmp_path / "model", device="cpu", alpha=math.inf)
    with pytest.raises(FileNotFoundError) as caught:
        QDOT.load(tmp_path / "model", device="cpu", dataset=str(tmp_path / "mispelt.npz"))
    assert "mispelt.npz" in str(caught.value)
    assert "cannot be loaded" not in str(caught.value)


# ---------------------------------------------------------------- scales
@pytest.mark.parametrize("algorithm", [BC, IQL])
def test_a_training_that_was_interrupted_early_keeps_its_scales(algorithm, tmp_path):
    def interrupt(scope, _):
        if scope["self"].num_timesteps == 3:
            raise KeyboardInterrupt
        return True

    model = algorithm("MlpPolicy", dataset=toy_dataset(), device="cpu", seed=0, policy_kwargs={"net_arch": [8]})
    with pytest.raises(KeyboardInterrupt):
        model.learn(20, callback=interrupt)
    model.save(tmp_path / "model")
    kept = model.policy.observation_mean.clone()
    other = toy_dataset(observations=toy_dataset().observations.numpy() + 5.0)
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    for each in (model, loaded):
        each.set_dataset(other)
        each.learn(2, reset_num_timesteps=False)
        assert th.equal(each.policy.observation_mean, kept)


def test_widths_that_were_taken_away_are_noticed_and_kinds_of_lists_are_not() -> None:
    model = BC("MlpPolicy", None, dataset=toy_dataset(), policy_kwargs={"net_arch": [16, 16]}, batch_size=16, seed=0)
    model.policy_kwargs = {"net_arch": (16, 16)}
    model.learn(1)
    model.policy_kwargs = {}
    with pytest.raises(ValueError, match=r"`policy_kwargs\['net_arch'\]`=None, but the networks were built for \[16, 16\]"):
        model.learn(1)
