"""Fusion of rewards against closed forms, symmetries, a linear programme and the bound of the paper's first theorem."""

import numpy as np
import ot as pot
import pytest
import torch as th

from otbaselines.fedirl.fusion import FUSIONS, Support, aggregate, lattice_cost, project, usable_updates


def _support(lengths=(5, 4, 3), k=3, seed=0):
    n = int(np.prod(lengths))
    return Support(th.as_tensor(np.random.default_rng(seed).normal(size=(n, k))), lattice_cost(lengths))


def _thetas(n_clients=4, k=3, seed=1):
    return th.as_tensor(np.random.default_rng(seed).normal(size=(n_clients, k)))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_client_and_equal_clients_keep_their_parameters(fusion):
    support = _support()
    for n_clients in (1, 3):
        thetas = _thetas(1).expand(n_clients, -1)
        found = aggregate(thetas, support, fusion=fusion, tol=1e-9, max_iter=5000)
        np.testing.assert_allclose(found.theta, thetas[0], atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_order_of_the_clients_does_not_matter(fusion):
    thetas, support = _thetas(), _support()
    weights = th.tensor([0.1, 0.2, 0.3, 0.4]).double()
    one = aggregate(thetas, support, fusion=fusion, weights=weights, tol=1e-9, max_iter=5000)
    other = aggregate(thetas.flip(0), support, fusion=fusion, weights=weights.flip(0), tol=1e-9, max_iter=5000)
    np.testing.assert_allclose(one.theta, other.theta, atol=1e-6)


def test_means_by_hand():
    thetas, support = _thetas(3), _support()
    weights = th.tensor([0.5, 0.3, 0.2]).double()
    rewards = (thetas @ support.features.T).numpy()
    np.testing.assert_allclose(aggregate(thetas, support, fusion="mean_params", weights=weights).theta, weights @ thetas)
    found = aggregate(thetas, support, fusion="mean_measure", weights=weights, shift=7.5)
    sums = (rewards + 7.5).sum(-1)
    by_hand = (weights.numpy() @ sums) * (weights.numpy() @ ((rewards + 7.5) / sums[:, None])) - 7.5
    np.testing.assert_allclose(found.rewards, by_hand)
    np.testing.assert_allclose(found.theta, np.linalg.lstsq(support.features.numpy(), by_hand)[0])


def test_the_matched_mean_has_the_barycenters_offset_and_scale_and_the_means_shape():
    thetas, support = _thetas(), _support()
    matched, target = (aggregate(thetas, support, fusion=name) for name in ("mean_matched", "barycenter"))
    mean = aggregate(thetas, support, fusion="mean_params")
    np.testing.assert_allclose(matched.rewards.mean(), target.rewards.mean())
    np.testing.assert_allclose(matched.rewards.std(), target.rewards.std())
    assert np.corrcoef(matched.rewards, mean.rewards)[0, 1] == pytest.approx(1.0)


def test_two_hills_become_one_in_the_middle_where_their_mean_has_two():
    line = th.arange(31).double()
    hills = th.stack([(-((line - top) ** 2) / 8).exp() for top in (8.0, 22.0)])
    # Every point is a feature of its own, so that parameters are rewards.
    support = Support(th.eye(31).double(), lattice_cost([31]))
    fused = aggregate(hills, support, shift=1e-6, tol=1e-6, max_iter=5000)
    assert int(fused.rewards.argmax()) == 15
    # The barycenter of equal normals at -7 and 7 is the same normal in the middle.
    np.testing.assert_allclose(fused.rewards, (-((line - 15) ** 2) / 8).exp(), atol=0.02)
    mean = aggregate(hills, support, fusion="mean_measure", shift=1e-6)
    assert float(mean.rewards[15]) < 0.01


def test_the_lattice_gives_what_its_matrix_gives():
    thetas, support = _thetas(), _support()
    dense = Support(support.features, support.cost.dense())
    one, other = (aggregate(thetas, each, tol=1e-11, max_iter=5000) for each in (support, dense))
    np.testing.assert_allclose(one.theta, other.theta, atol=1e-8)


def test_without_debiasing_the_measure_is_that_of_pots_solver():
    thetas, support = _thetas(), _support()
    found = aggregate(thetas, support, debiased=False, shift=20.0, tol=1e-10, max_iter=5000)
    measures = (thetas @ support.features.T + 20.0).numpy()
    measures = measures / measures.sum(-1, keepdims=True)
    expected = pot.bregman.barycenter(measures.T, support.cost.dense().numpy(), 0.5, method="sinkhorn_log", stopThr=1e-11)
    np.testing.assert_allclose((found.rewards.numpy() + 20.0) / found.scale, expected, atol=1e-9)


@pytest.mark.parametrize("method", ["exact", "ours"])
def test_theorem_1_bounds_the_distance_to_the_true_reward_on_100_random_instances(method):
    # W2(barycenter, p*) <= 2 D / sqrt(Z_min) sqrt(sum_i w_i eps_i), eps_i = |r_i - r*|_1, sums of the shifted rewards in Z.
    rng = np.random.default_rng(0)
    lengths, slack = (4, 3), []
    support = _support(lengths, k=3)
    matrix, features = support.cost.dense().numpy(), support.features.numpy()
    for _ in range(100):
        truth, n_clients = rng.normal(size=3), rng.integers(2, 5)
        thetas = truth + rng.uniform(0.01, 1.0) * rng.normal(size=(n_clients, 3))
        weights = rng.dirichlet(np.ones(n_clients))
        rewards, true = thetas @ features.T, features @ truth
        sigma = 0.1 - min(rewards.min(), true.min())
        sums = np.append((rewards + sigma).sum(-1), (true + sigma).sum())
        measures, target = (rewards + sigma) / sums[:-1, None], (true + sigma) / sums[-1]
        if method == "exact":
            fused = pot.lp.barycenter(measures.T, matrix, weights=weights)
        else:
            found = aggregate(th.as_tensor(thetas), support, weights=th.as_tensor(weights), shift=sigma, reg=0.5)
            fused = (found.rewards.numpy() + sigma) / found.scale
        fused = np.clip(fused, 0, None)
        distance = np.sqrt(pot.emd2(fused / fused.sum(), target, matrix))
        errors = np.abs(rewards - true).sum(-1)
        bound = 2 * np.sqrt(matrix.max() / sums.min() * (weights @ errors))
        slack.append(distance / bound)
    assert max(slack) <= 1.0
    # The bound is not empty: it is missed by a factor, and not by orders of magnitude.
    assert max(slack) > 0.05


def test_projection_is_exact_within_the_span_and_says_what_it_leaves():
    support = _support()
    theta, left = project(support.features @ th.tensor([1.0, -2.0, 0.5]).double(), support.features)
    np.testing.assert_allclose(theta, [1.0, -2.0, 0.5])
    assert left < 1e-12
    noise = th.as_tensor(np.random.default_rng(3).normal(size=60))
    assert 0.5 < project(noise, support.features)[1] <= 1.01


def test_neighbours_are_one_apart_and_categories_all_equally_far():
    cost = lattice_cost([3, 3], categorical=[False, True]).dense()
    np.testing.assert_allclose(cost[0], [0, 1, 1, 1, 2, 2, 4, 5, 5])


def test_bad_updates_are_dropped_with_a_warning_until_the_quorum_is_missed():
    good = np.zeros(3)
    updates = [good, None, good * np.nan, np.zeros(2), "theta", good]
    reasons = r"nothing|NaN|shape \(2,\)|a str"
    with pytest.warns(UserWarning, match=reasons) as record:
        assert usable_updates(updates, _support(), quorum=2) == [0, 5]
    assert len(record) == 4
    with pytest.warns(UserWarning, match=reasons), pytest.raises(ValueError, match="`quorum` is 3, but only 2 of 6"):
        usable_updates(updates, _support(), quorum=3)


def test_bad_arguments_are_named():
    support, thetas = _support(), _thetas()
    with pytest.raises(ValueError, match="`fusion` must be one of 'barycenter'"):
        aggregate(thetas, support, fusion="median")
    with pytest.raises(ValueError, match=r"`thetas` holds NaN or infinite entries, of the clients \[2\]"):
        aggregate(thetas.index_fill(0, th.tensor([2]), float("nan")), support)
    with pytest.raises(ValueError, match=r"`thetas` must have the shape \(n_clients, 3\)"):
        aggregate(thetas[:, :2], support)
    with pytest.raises(ValueError, match="`weights` must be 4 positive numbers"):
        aggregate(thetas, support, weights=th.ones(4).double())
    with pytest.raises(ValueError, match="`shift` must be at least"):
        aggregate(thetas, support, shift=0.0)
    with pytest.raises(ValueError, match="`margin` must be a number in"):
        aggregate(thetas, support, margin=0.0)
    with pytest.raises(ValueError, match="`features` must have full column rank, got 2 of 3"):
        Support(th.cat((support.features[:, :2], support.features[:, :1]), 1), support.cost)
    with pytest.raises(ValueError, match=r"`cost` must be of shape \(60, 60\)"):
        Support(support.features, lattice_cost([5]))
    with pytest.raises(ValueError, match=r"`lengths\[1\]` must be an integer in"):
        lattice_cost([3, 0])
    with pytest.warns(RuntimeWarning, match="stopped at the marginal error .* after 2 iterations"):
        aggregate(thetas, support, max_iter=2, tol=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_client_of_twice_the_weight_is_two_clients(fusion):
    thetas, support = _thetas(2), _support()
    one = aggregate(thetas, support, fusion=fusion, weights=th.tensor([2.0, 1.0]).double() / 3, tol=1e-9, max_iter=5000)
    two = aggregate(thetas[[0, 0, 1]], support, fusion=fusion, tol=1e-9, max_iter=5000)
    np.testing.assert_allclose(one.theta, two.theta, atol=1e-6)
    even = aggregate(thetas, support, fusion=fusion, tol=1e-9, max_iter=5000)
    assert float((one.theta - even.theta).abs().max()) > 1e-2


def test_the_smallest_reward_becomes_the_margin_of_the_range():
    thetas, support = _thetas(3), _support()
    rewards = thetas @ support.features.T
    span = float(rewards.max() - rewards.min())
    found = aggregate(thetas, support, fusion="mean_measure", margin=0.3)
    np.testing.assert_allclose(float(rewards.min()) + found.shift, 0.3 * span)
    constant = Support(th.ones(6, 1).double(), lattice_cost([6]))
    for reward, lifted in ((2.0, 2.0), (-2.0, 2.0), (0.5, 1.0), (0.0, 1.0)):
        found = aggregate(th.tensor([[reward]]).double(), constant, fusion="mean_measure")
        assert found.shift + reward == pytest.approx(lifted)
    with pytest.raises(ValueError, match=r"`shift` leaves no reward above zero of the clients \[0\]"):
        aggregate(th.tensor([[1.0], [2.0]]).double(), constant, fusion="mean_measure", shift=-1.0)
