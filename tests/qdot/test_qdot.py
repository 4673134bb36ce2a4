"""QDOT against closed forms of its map, and against implicit Q-learning, which it is without one."""

import math

import numpy as np
import ot as pot
import pytest
import torch as th
from offline_toys import same, state, toy_dataset

from otbaselines import IQL, QDOT
from otbaselines.common.offline.losses import bounded_weights
from otbaselines.ot.maps import displacement_cost
from otbaselines.qdot.qdot import transport_loss

SMALL = {"net_arch": [16], "map_arch": [64]}
MAP_SETTINGS = {"normalize_q": False, "reward_scale": 1.0, "policy_kwargs": SMALL, "seed": 0, "device": "cpu"}


def _qdot(**kwargs):
    return QDOT("MlpPolicy", dataset=toy_dataset(), **{**MAP_SETTINGS, "batch_size": 128, **kwargs})


def _with_quadratic_values(model, hessian, goal):
    """Put :math:`Q(s, a) = -(a - m(s))^T H (a - m(s)) / 2` in the place of the slow critics."""
    sees = model.policy.obs_dim

    def target_values(rows):
        gap = rows[:, sees:] - goal(rows[:, :sees])
        return -0.5 * (gap @ hessian * gap).sum(-1).expand(2, -1)

    model.policy.target_values = target_values
    return model


def _goal(observations):
    return 0.4 * th.tanh(observations[:, :2]) + 0.1


HESSIAN = th.tensor([[2.0, 0.6], [0.6, 1.0]])


# ---------------------------------------------------------------- oracles
@pytest.mark.parametrize("alpha", [0.2, 2.0])
def test_a_quadratic_value_has_its_closed_map(alpha):
    r"""The minimiser of :math:`-Q(T) + \alpha |a - T|^2` is :math:`(2 \alpha I + H)^{-1} (2 \alpha a + H m)`."""
    model = _with_quadratic_values(_qdot(alpha=alpha, learning_rate="lin_2e-2"), HESSIAN, _goal).learn(1200)
    observations, actions = _inputs(model)
    with th.no_grad():
        moved = model.policy.transport(observations, actions)
    right = 2 * alpha * actions + _goal(observations) @ HESSIAN
    exact = th.linalg.solve(2 * alpha * th.eye(2) + HESSIAN, right.T).T
    assert exact.abs().max() < 1, "the closed form knows no box"
    error = th.linalg.norm(moved - exact) / th.linalg.norm(exact)
    assert error < 1e-2
    # The map has something to do.
    assert th.linalg.norm(actions - exact) > 0.1 * th.linalg.norm(exact)


def _inputs(model):
    batch = model._rows.batch(th.arange(300))
    return batch.observations, batch.actions


def test_a_high_price_leaves_actions_where_they_are():
    model = _with_quadratic_values(_qdot(alpha=1e4, learning_rate="lin_1e-3"), HESSIAN, _goal).learn(400)
    observations, actions = _inputs(model)
    assert (model.policy.transport(observations, actions) - actions).abs().max() < 1e-3


def test_the_price_of_a_trained_map_is_the_exact_distance_between_policies():
    model = _with_quadratic_values(_qdot(alpha=0.3, learning_rate="lin_1e-2"), HESSIAN, _goal).learn(300)
    observations, actions = _inputs(model)
    # In one state, so that the two clouds are the policy's and the data's there.
    here = observations[:1].expand(len(actions), -1)
    moved = model.policy.transport(here, actions).detach()
    weights = np.full(len(actions), 1 / len(actions))
    exact = pot.emd2(weights, weights, pot.dist(actions.double().numpy(), moved.double().numpy()))
    assert exact > 0.01
    assert float(displacement_cost(actions, moved).mean()) == pytest.approx(exact, rel=1e-4)


def test_where_the_box_ends_the_map_stops_at_its_edge():
    model = _with_quadratic_values(_qdot(alpha=0.05, learning_rate="lin_1e-2"), HESSIAN, lambda s: th.full((1, 2), 2.0))
    model.learn(300)
    observations, actions = _inputs(model)
    moved = model.policy.transport(observations, actions).detach()
    assert (moved - 1.0).abs().mean() < 0.04
    # A network is continuous: a few of the actions that have the furthest to go fall short or overshoot.
    assert (moved - 1.0).abs().quantile(0.95) < 0.1


def test_a_linear_price_is_paid_in_full_or_not_at_all():
    r"""For a linear value of slope :math:`g`, moving pays where :math:`|g| > \alpha`, and then to the edge of the box."""
    slope = th.tensor([0.5, 0.0])
    for alpha, moves in ((1.0, False), (0.25, True)):
        model = _qdot(alpha=alpha, order=1, learning_rate="lin_1e-2")
        model.policy.target_values = lambda rows: (rows[:, -2:] @ slope).expand(2, -1)
        model.learn(300)
        observations, actions = _inputs(model)
        moved = model.policy.transport(observations, actions).detach()
        expected = th.where(th.tensor([True, False]), 1.0, actions) if moves else actions
        assert (moved - expected).abs().mean() < 0.03


def test_the_loss_is_the_value_less_the_price():
    actions, moved = th.tensor([[0.0, 0.0], [1.0, 0.0]]), th.tensor([[3.0, 4.0], [1.0, 0.0]])
    values, scale = th.tensor([2.0, 4.0]), th.tensor(2.0)
    assert float(transport_loss(values, actions, moved, alpha=0.1, order=2, scale=scale)) == pytest.approx(1.25 - 1.5)
    assert float(transport_loss(values, actions, moved, alpha=0.1, order=1, scale=scale)) == pytest.approx(0.25 - 1.5)


def test_the_scale_of_rewards_does_not_matter_when_values_are_normalised():
    gradients = []
    for factor in (1.0, 100.0):
        model = _qdot(normalize_q=True, alpha=0.5)
        _with_quadratic_values(model, factor * HESSIAN, _goal).learn(1)
        batch = model._rows.batch(th.arange(300))
        loss = model._moved(batch, model.policy.target_values(batch.observation_actions))[3]
        gradients.append(th.autograd.grad(loss, model.policy.potential.last_head.bias)[0])
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- reductions
def _learned(algorithm, **kwargs):
    settings = {"dataset": toy_dataset(), "seed": 0, "device": "cpu", "batch_size": 32, "policy_kwargs": {"net_arch": [16]}}
    return algorithm("MlpPolicy", **{**settings, **kwargs}).learn(25)


@pytest.mark.parametrize("extraction", ["weighted_map", "awr"])
def test_without_the_map_it_is_implicit_q_learning_bit_for_bit(extraction):
    iql = _learned(IQL, inverse_temperature=2.0)
    assert same(
        state(iql), state(_learned(QDOT, alpha=math.inf, extraction=extraction, inverse_temperature=2.0, return_share=0.0))
    )
    assert not same(state(iql), state(_learned(IQL, inverse_temperature=1.0)))


def test_a_price_beyond_all_values_is_the_map_switched_off():
    """Actor and values are those without a map as long as the map has not moved."""
    priced, off = (_learned(QDOT, alpha=alpha, learning_rate=1e-5) for alpha in (1e9, math.inf))
    theirs = state(priced)
    for name, value in state(off).items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_values_under_a_map_that_stays_are_those_of_the_behaviour():
    """With `v_target="map"` and no map, V is regressed on Q(s, a): the expectile one half, at half the loss in both."""
    mean = _learned(IQL, expectile=0.5)
    assert same(state(mean), state(_learned(QDOT, alpha=math.inf, v_target="map", inverse_temperature=3.0, return_share=0.0)))


def test_regression_without_a_map_is_cloning():
    cloned = _learned(IQL, inverse_temperature=0.0)
    assert same(state(cloned), state(_learned(QDOT, alpha=math.inf, extraction="regression", return_share=0.0)))


@pytest.mark.parametrize("sharpness", [{}, {"weight_divergence": 0.1}, {"inverse_temperature": 3.0}])
def test_one_step_weighs_and_follows_the_moved_actions_by_hand(sharpness):
    model = _learned(QDOT, alpha=0.1, learning_rate=1e-2, reward_scale=1.0, **sharpness)
    policy, batch = model.policy, model._rows.batch(th.arange(20))
    seen, actions = batch.observations, batch.actions
    with th.no_grad():
        moved = policy.potential.transport(actions, seen)
        assert (moved - actions).abs().max() > 0.05
        inside = moved.clamp(-1, 1)
        q = policy.critic_target(th.cat([seen, actions], 1)).amin(0)
        first, second = policy.critic_target(th.cat([seen, inside], 1))
        moved_q = th.minimum(first, second)
        values = policy.value(seen)
        weights = (3.0 * (moved_q - values)).exp().clamp(max=100.0)
        if "weight_divergence" in sharpness:
            weights = bounded_weights(moved_q - values, 0.1)
        elif not sharpness:
            # The mean of two numbers that differ by d varies by d^2 / 4.
            temperature = ((first - second).square().mean() / 4 / (2 * 0.05)).sqrt()
            weights = 20 * th.softmax((moved_q - values) / temperature, 0)
        map_loss = 0.1 * (moved - actions).square().sum(1).mean() - moved_q.mean() / q.abs().mean()
        actor_loss = -(weights * policy.log_prob(seen, inside)).mean()
        gap = q - values
        value_loss = (th.where(gap > 0, 0.7, 0.3) * gap.square()).mean()
    scalars = dict(zip(model.metric_names, model._losses(batch)[1].tolist(), strict=True))
    expected = {"map_loss": map_loss, "actor_loss": actor_loss, "value_loss": value_loss, "moved_q": moved_q.mean()}
    for name, value in expected.items():
        assert scalars[name] == pytest.approx(float(value), rel=1e-4), name


def test_the_datas_own_actions_are_weighed_by_their_own_values_and_errors():
    """With `extraction="awr"` the map counts in V alone."""
    model = _learned(QDOT, alpha=0.1, learning_rate=1e-2, reward_scale=1.0, extraction="awr", v_target="map")
    policy, batch = model.policy, model._rows.batch(th.arange(20))
    with th.no_grad():
        first, second = policy.critic_target(batch.observation_actions)
        temperature = ((first - second).square().mean() / 4 / (2 * 0.05)).sqrt()
        advantages = th.minimum(first, second) - policy.value(batch.observations)
        weights = 20 * th.softmax(advantages / temperature, 0)
        actor_loss = -(weights * policy.log_prob(batch.observations, batch.actions)).mean()
    scalars = dict(zip(model.metric_names, model._losses(batch)[1].tolist(), strict=True))
    assert scalars["actor_loss"] == pytest.approx(float(actor_loss), rel=1e-4)


def test_a_fifth_of_the_targets_are_returns_unless_it_is_said_otherwise():
    assert QDOT("MlpPolicy", dataset=toy_dataset(), policy_kwargs=SMALL).return_share == 0.2
    assert IQL("MlpPolicy", dataset=toy_dataset(), policy_kwargs={"net_arch": [8]}).return_share == 0.0


def test_no_loss_reaches_into_the_network_of_another():
    model = _learned(QDOT, alpha=0.1, learning_rate=1e-2)
    batch, policy = model._rows.batch(th.arange(20)), model.policy
    moved, _, moved_q, map_loss = model._moved(batch, policy.target_values(batch.observation_actions))
    assert moved.requires_grad
    assert moved_q.requires_grad
    map_loss.backward()
    assert policy.potential.last_head.bias.grad.abs().max() > 0
    own = {id(parameter) for parameter in policy.potential.parameters()}
    others = [parameter for parameter in policy.parameters() if id(parameter) not in own]
    policy.zero_grad()
    model._losses(batch)[0].backward()
    # What the sum of the losses says of the map is what the map's own loss says.
    total = [parameter.grad.clone() for parameter in policy.potential.parameters()]
    policy.zero_grad()
    model._moved(batch, policy.target_values(batch.observation_actions))[3].backward()
    assert all(parameter.grad is None for parameter in others)
    for parameter, gradient in zip(policy.potential.parameters(), total, strict=True):
        np.testing.assert_allclose(parameter.grad, gradient, atol=1e-7)


# ---------------------------------------------------------------- acting
def test_the_map_is_applied_to_cloned_behaviour():
    model = _learned(QDOT, alpha=0.05, extraction="bc_map", learning_rate=1e-2)
    seen = toy_dataset().observations[:7]
    policy = model.policy
    with th.no_grad():
        normal = policy.normalize(seen)
        expected = policy.transport(normal, policy.actor(normal)).clamp(-1, 1)
        assert (expected - policy.actor(normal)).abs().max() > 1e-3
    np.testing.assert_allclose(policy.act(normal, None).detach(), expected)


def test_the_best_candidate_is_the_one_of_the_highest_value():
    model = _learned(QDOT, alpha=0.05, extraction="best_of", n_candidates=6)
    policy, seen = model.policy, toy_dataset().observations[:7]
    with th.no_grad():
        normal = policy.normalize(seen)
        noise = policy.candidate_noise
        assert th.equal(noise[0], th.zeros(2))
        chosen = policy.act(normal, None)
        for row in range(7):
            here = normal[row : row + 1].expand(6, -1)
            moved = policy.transport(here, (policy.actor(here) + policy._std() * noise).clamp(-1, 1)).clamp(-1, 1)
            best = policy.target_value(th.cat([here, moved], 1)).argmax()
            np.testing.assert_allclose(chosen[row], moved[best], atol=1e-5)
    assert not np.array_equal(model.predict(seen.numpy())[0], model.predict(seen.numpy())[0])
    np.testing.assert_array_equal(*(model.predict(seen.numpy(), deterministic=True)[0] for _ in range(2)))


@pytest.mark.parametrize("extraction", ["weighted_map", "regression", "bc_map", "best_of"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("v_target", ["expectile", "map"])
def test_every_choice_trains_saves_and_predicts(extraction, order, v_target, tmp_path):
    model = _learned(QDOT, extraction=extraction, order=order, v_target=v_target)
    model.save(tmp_path / "model")
    seen = toy_dataset().observations[:5].numpy()
    loaded = QDOT.load(tmp_path / "model", device="cpu")
    assert all(th.isfinite(value).all() for value in state(model).values())
    np.testing.assert_array_equal(loaded.predict(seen, deterministic=True)[0], model.predict(seen, deterministic=True)[0])


def test_infinite_prices_survive_saving(tmp_path):
    _learned(QDOT, alpha=math.inf).save(tmp_path / "model")
    assert QDOT.load(tmp_path / "model", device="cpu").alpha == math.inf


# ---------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"alpha": 0.0}, ValueError, "`alpha` must be a number above 0, got 0.0"),
        ({"alpha": math.nan}, ValueError, "`alpha` must be a number above 0, got nan"),
        ({"order": 3}, ValueError, r"`order` must be one of 1, 2, got 3"),
        ({"extraction": "magic"}, ValueError, "`extraction` must be one of 'awr', .* got 'magic'"),
        ({"v_target": "mean"}, ValueError, "`v_target` must be one of 'expectile', 'map', got 'mean'"),
        ({"extraction": "awr"}, ValueError, "a map that nothing uses"),
        ({"expectile": 0.9, "v_target": "map"}, TypeError, "`expectile` applies to `v_target='expectile'` only, got 0.9"),
        ({"expectile": 1.0}, ValueError, "`expectile` must be a number inside of"),
        ({"max_weight": 9.0}, TypeError, "`max_weight` applies to weights of a given `inverse_temperature` only, got 9.0"),
        (
            {"inverse_temperature": 9.0, "extraction": "regression"},
            TypeError,
            "`inverse_temperature` applies to `extraction` in",
        ),
        ({"weight_divergence": 0.1, "extraction": "bc_map"}, TypeError, "`weight_divergence` applies to `extraction` in"),
        ({"weight_divergence": 0.0}, ValueError, r"`weight_divergence` must be a number in \(0, 100\]"),
        (
            {"weight_divergence": 0.1, "inverse_temperature": 1.0},
            TypeError,
            "different ways to say how sharply advantages weigh",
        ),
        ({"noise_divergence": 0.1, "weight_divergence": 0.1}, TypeError, "different ways to say how sharply advantages weigh"),
        ({"noise_divergence": 0.1, "extraction": "regression"}, TypeError, "`noise_divergence` applies to `extraction` in"),
        ({"policy_kwargs": {"n_critics": 1}}, ValueError, "leaves nobody to disagree with"),
        ({"n_candidates": 3}, TypeError, "`n_candidates` applies to `extraction='best_of'` only, got 3"),
        ({"reward_scale": "range"}, TypeError, "`reward_scale` must be a number above 0, got 'range'; or use 'return_range'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        QDOT("MlpPolicy", dataset=toy_dataset(), **kwargs)
