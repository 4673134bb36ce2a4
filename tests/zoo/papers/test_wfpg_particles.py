"""The figures of the particle flow: what is counted, against the Riccati equation and by hand, and the command that draws."""

import numpy as np
import pytest
import torch as th
from PIL import Image

from otbaselines.envs import ScalarRegulator
from zoo import plots
from zoo.papers.wfpg.figures import DoubleWell, _mass_levels
from zoo.papers.wfpg.orders import Comparison, Walk, compare, median_arrival, orders_table
from zoo.papers.wfpg.systems import SYSTEMS, TwoMotors


def test_two_motors_cost_what_one_of_half_the_price_does() -> None:
    # The best share of a force F is F / 2 each, at the cost .1 (F^2 / 4 + F^2 / 4) = .05 F^2.
    expected = ScalarRegulator(bend=0.0, control_weight=0.05).lqr()
    flow = SYSTEMS["two-motors"].flow(2, seed=0)
    for _ in range(8):
        flow.newton_step()
    assert flow.cost == pytest.approx(expected.average_cost, rel=1e-4)
    half = 0.5 * expected.gain.item()
    np.testing.assert_allclose(flow.mean_actions([[0.5]]), [[0.5 * half, 0.5 * 10.0 * half]], rtol=1e-3)


def test_the_second_motors_action_counts_a_tenth() -> None:
    motors, regulator = TwoMotors(), ScalarRegulator(bend=0.0)
    state = th.tensor([[0.7]])
    one, other = th.tensor([[0.3, 0.0]]), th.tensor([[0.0, 3.0]])
    th.testing.assert_close(motors.drift(state, one), regulator.drift(state, one[:, :1]))
    th.testing.assert_close(motors.drift(state, one), motors.drift(state, other))
    th.testing.assert_close(motors.cost(state, one), motors.cost(state, other))


def test_arrivals_are_counted_from_the_first_cost_within_one_per_cent() -> None:
    walks = (Walk((4.0, 2.03, 2.01, 2.0), 1.0), Walk((4.0, 2.019), 1.0), Walk((4.0, 3.0, float("inf")), 1.0))
    assert [walk.arrival(2.0) for walk in walks] == [2, 1, None]
    assert median_arrival(walks, 2.0, 50) == 2.0
    assert median_arrival(walks[2:], 2.0, 50) == 51.0
    table = orders_table({"linear": Comparison(2.0, 0.5, {"first order": walks})}, 50)
    assert table.rows == [("linear scalar regulator", "2.00000", "0.11207", "0.5", "2 (1 to 2), 1 never")]


def test_all_methods_walk_to_the_riccati_optimum() -> None:
    found = compare(SYSTEMS["linear"], particles=2, seeds=2, n_steps=40)
    assert found.optimum == pytest.approx(0.11207, rel=1e-4)
    assert found.best_step_size in SYSTEMS["linear"].step_sizes
    for method in ("first order", "curvature", "curvature and transport"):
        assert all(walk.arrival(0.11207) is not None for walk in found.walks[method])
    best = found.walks["first order"]
    assert median_arrival(found.walks["first order, 4 times smaller"], found.optimum, 40) > median_arrival(
        best, found.optimum, 40
    )


def test_a_walk_that_leaves_every_bound_never_arrives() -> None:
    found = compare(SYSTEMS["two-motors"], particles=2, seeds=1, n_steps=8)
    walk = found.walks["first order, 4 times larger"][0]
    assert walk.arrival(found.optimum) is None
    assert orders_table({"two-motors": found}, 8).rows[0][3:5] == ("-", "never")


def test_levels_hold_the_shares_of_the_visits_that_they_say() -> None:
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    assert _mass_levels(weights, (0.85, 0.5)) == pytest.approx([0.2, 0.3])


def test_the_double_well_is_the_one_that_is_drawn() -> None:
    actions = th.tensor([[[2.0]]])
    assert DoubleWell().cost(th.zeros(1, 1, 1), actions).item() == pytest.approx(16.0 / 100.0 - 4.0)


def test_the_command_draws_every_figure_and_writes_the_tables(tmp_path, capsys) -> None:
    options = ["--systems", "linear", "two-motors", "--seeds", "1", "--particles", "2", "--steps", "10"]
    plots.main(["wfpg-paper", *options, "--out", str(tmp_path), "--tables", str(tmp_path / "tables.md")])
    for name in ("flow", "paths", "pendulum", "orders"):
        picture = np.asarray(Image.open(tmp_path / f"wfpg_{name}.png"))
        assert picture[..., :3].std() > 10.0
    text = (tmp_path / "tables.md").read_text()
    assert text in capsys.readouterr().out
    assert "`python -m zoo.plots wfpg-paper --systems linear two-motors --seeds 1 --particles 2 --steps 10`" in text
    assert "| two motors, unlike units |" in text
