"""The theorems of the WBC paper: that the commands say what they measured, and the arithmetic behind the tables."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch as th

from otbaselines import ot
from zoo import theory
from zoo.papers.wbc import own_support
from zoo.papers.wbc.contraction import UnrewardedNavigation, consensus_only, disagreement, fit_geometric


def test_a_geometric_sequence_is_fitted_exactly() -> None:
    values = 3.0 * 0.8 ** np.arange(60)
    fit = fit_geometric(values)
    assert fit.kappa == pytest.approx(0.8, abs=1e-12)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-12)
    # 0.8^t <= 1/2 from t = 4 (0.41); 0.8^t >= 1/50 until t = 17 (0.0225).
    assert (fit.first, fit.last) == (4, 17)


def test_the_fit_leaves_out_a_slow_start_and_a_floor() -> None:
    head, fall, floor = np.ones(10), 0.5 ** np.arange(1, 6), np.full(30, 1e-3)
    assert fit_geometric(np.concatenate([head, fall, floor])).kappa == pytest.approx(0.5, abs=1e-12)


def test_a_sequence_that_hardly_falls_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than three"):
        fit_geometric(np.linspace(1.0, 0.9, 50))


def test_only_the_product_of_step_size_and_consensus_weight_matters() -> None:
    # Plain gradient descent multiplies the two, so the curves agree up to float32's rounding.
    one = disagreement(consensus_only(step_size=0.8, consensus_coef=0.5, seed=3), 8).max_divergence
    other = disagreement(consensus_only(step_size=0.2, consensus_coef=2.0, seed=3), 8).max_divergence
    assert len(one) == 8
    np.testing.assert_allclose(one, other, rtol=1e-4)
    assert one[-1] < 0.5 * one[0]


def test_without_consensus_the_unrewarded_team_stays_as_it_is() -> None:
    model = consensus_only(step_size=1.0, consensus_coef=0.0, seed=0)
    assert isinstance(model.get_env(), UnrewardedNavigation)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    disagreement(model, 3)
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, before[name]), name


def test_the_theorems_are_drawn_and_tabulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theory.main(["contraction", "--quick", "--seeds", "2", "--out", str(tmp_path)])
    theory.main(["rate", "--quick", "--seeds", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "theorem31.png").stat().st_size > 10_000
    assert (tmp_path / "theorem32.png").stat().st_size > 10_000
    kappas = [float(row.split("|")[2].split()[0]) for row in printed.splitlines() if re.match(r"\| 0\.[48] ", row)]
    assert len(kappas) == 2
    assert 0 < kappas[1] < kappas[0] < 1  # twice the step contracts more


def test_what_own_supports_do_is_tabulated(capsys: pytest.CaptureFixture[str]) -> None:
    theory.main(["supports", "--quick", "--seeds", "2"])
    printed = capsys.readouterr().out
    rows = [row for row in printed.splitlines() if row.startswith(("| no consensus", "| expected", "| conditional"))]
    assert [row.count("|") for row in rows] == [6] * 6


def test_a_team_that_ignores_its_states_carries_no_information_about_them() -> None:
    model = own_support.train(None, 0.0, seed=0, n_timesteps=2400)
    with th.no_grad():
        head = model.policy.action_net
        head.weight.zero_()
        # The first two agents always do one thing each, the third draws.
        head.bias.copy_(th.tensor([[50.0, 0, 0, 0, 0], [0, 50.0, 0, 0, 0], [0, 0, 0, 0, 0]]).unsqueeze(1))
    found = own_support.behaviour(model)
    assert found.information == pytest.approx(0.0, abs=1e-5)
    assert found.entropy == pytest.approx(np.log(5) / 3, rel=1e-5)
    # Total variation 1 between the first two, and 4/5 with the third.
    assert found.disagreement == pytest.approx((1.0 + 0.8 + 0.8) / 3, rel=1e-5)
    nearest, mean, actions = own_support.distances(model)
    assert actions == pytest.approx(0.8 * np.sqrt(2))
    assert actions < nearest < mean


def test_a_single_seed_has_no_spread_and_is_refused() -> None:
    with pytest.raises(SystemExit):
        theory.main(["contraction", "--seeds", "1"])


def test_with_opposed_rewards_disagreement_does_not_vanish() -> None:
    # Two agents, one state, two actions, each paid for another one: they settle where pull and rewards balance.
    cost = ot.action_cost(ot.one_hot_embedding(2, dtype=th.float64), beta=0.8, p=2)
    solver, reward = ot.ScalingSolver(cost, reg=0.6), th.eye(2, dtype=th.float64)
    logits, state, distances = 0.1 * reward, None, []
    for step in range(240):
        policies = logits.softmax(-1)
        solved = solver.solve(policies.unsqueeze(0), 20, state)
        state = solved.state
        slope = reward - 2.0 * solved.gradient[0]
        logits = logits + 0.5 * policies * (slope - (policies * slope).sum(-1, keepdim=True))
        if step % 120 == 119:
            distances.append(float(ot.sinkhorn_divergence(cost, *policies, reg=0.6).value))
    assert distances[0] == pytest.approx(distances[1], rel=1e-2)
    assert distances[1] > 0.05
