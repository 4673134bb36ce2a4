"""Ground costs against their definition, written out."""

from __future__ import annotations

import pytest
import torch as th

from otbaselines import ot


def test_state_action_cost_is_the_definition() -> None:
    generator = th.Generator().manual_seed(0)
    states, others = th.rand(4, 2, generator=generator), th.rand(3, 2, generator=generator)
    actions, other_actions = th.tensor([0, 1, 2, 1]), th.tensor([1, 1, 0])
    moves = th.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
    scale = th.tensor([2.0, 0.5])
    cost = ot.state_action_cost(states, actions, others, other_actions, beta=0.8, p=2, scale=scale, embedding=moves)
    for i in range(4):
        for j in range(3):
            distance = ((states[i] - others[j]) / scale).norm() + 0.8 * (moves[actions[i]] - moves[other_actions[j]]).norm()
            assert float(cost[i, j]) == pytest.approx(float(distance) ** 2, rel=1e-5)


def test_the_additive_cost_is_the_sum_of_the_powers() -> None:
    generator = th.Generator().manual_seed(0)
    states, others = th.rand(4, 2, generator=generator), th.rand(3, 2, generator=generator)
    actions, other_actions = th.tensor([0, 1, 2, 1]), th.tensor([1, 1, 0])
    moves = th.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
    cost = ot.state_action_cost(states, actions, others, other_actions, beta=0.8, p=2, embedding=moves, additive=True)
    for i in range(4):
        for j in range(3):
            squares = (states[i] - others[j]).square().sum() + 0.64 * (
                moves[actions[i]] - moves[other_actions[j]]
            ).square().sum()
            assert float(cost[i, j]) == pytest.approx(float(squares), rel=1e-5)
    with pytest.raises(TypeError, match="`additive` must be True or False, got 1"):
        ot.state_action_cost(states, actions, embedding=moves, additive=1)  # type: ignore[arg-type]


def _two_places() -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """Two states half a unit apart, and two agents who do the opposite of each other in both: pairs and measures."""
    states, actions = th.tensor([[0.0], [0.0], [0.5], [0.5]], dtype=th.float64), th.tensor([0, 1, 0, 1])
    return states, actions, *th.tensor([[0.5, 0.0, 0.0, 0.5], [0.0, 0.5, 0.5, 0.0]], dtype=th.float64)


def test_the_square_of_a_sum_of_distances_makes_a_negative_divergence_and_the_sum_of_squares_does_not() -> None:
    states, actions, first, second = _two_places()
    options = {"beta": 0.8, "p": 2, "embedding": ot.one_hot_embedding(2, dtype=th.float64)}
    values = {
        additive: float(
            ot.sinkhorn_divergence(
                ot.state_action_cost(states, actions, additive=additive, **options), first, second, reg=2.0
            ).value
        )
        for additive in (False, True)
    }
    assert values[False] == pytest.approx(-0.218, abs=1e-3)
    assert values[True] > 0.05


def test_the_sum_of_squares_is_of_negative_type_in_many_dimensions_and_the_square_of_the_sum_is_not() -> None:
    # A cost of negative type has no negative eigenvalue in -C/2, centred (Schoenberg 1938).
    states = th.randn(32, 8, generator=th.Generator().manual_seed(0), dtype=th.float64).repeat_interleave(5, 0)
    actions, table = th.arange(5).repeat(32), ot.one_hot_embedding(5, dtype=th.float64)
    centring = th.eye(160, dtype=th.float64) - 1 / 160
    lowest = {}
    for name, options in {"square": {"p": 2}, "sum": {"p": 2, "additive": True}, "metric": {"p": 1}}.items():
        cost = ot.state_action_cost(states, actions, beta=0.8, embedding=table, **options)
        lowest[name] = float(th.linalg.eigvalsh(centring @ (-0.5 * cost) @ centring)[0])
    assert lowest["square"] == pytest.approx(-18.817, abs=1e-2)
    assert lowest["sum"] > -1e-9
    assert lowest["metric"] > -1e-9


def test_under_an_additive_cost_determinism_is_not_rewarded() -> None:
    # Two agents in places of their own, with one policy: what is left is how far the places are apart, whatever the policy.
    states = th.randn(16, 3, generator=th.Generator().manual_seed(0), dtype=th.float64).repeat_interleave(3, 0)
    actions, table = th.arange(3).repeat(16), ot.one_hot_embedding(3, dtype=th.float64)
    policies = th.tensor([[1 / 3, 1 / 3, 1 / 3], [0.98, 0.01, 0.01]], dtype=th.float64)
    own = th.zeros(2, 16, dtype=th.float64)
    own[0, :8] = own[1, 8:] = 1 / 8
    found = {}
    for additive in (False, True):
        cost = ot.state_action_cost(states, actions, beta=0.8, p=2, embedding=table, additive=additive)
        measures = own.unsqueeze(-1) * policies.view(2, 1, 1, 3)
        found[additive] = [
            float(ot.sinkhorn_divergence(cost, both[0].flatten(), both[1].flatten(), reg=0.6, tol=1e-8).value)
            for both in measures
        ]
    uniform, certain = found[False]
    assert uniform > certain + 0.05
    assert found[True][0] == pytest.approx(found[True][1], abs=1e-5)


def test_action_cost_of_one_hot_actions_is_root_two_between_all() -> None:
    cost = ot.action_cost(ot.one_hot_embedding(3, dtype=th.float64), beta=0.5, p=1.0)
    expected = 0.5 * 2**0.5 * (1 - th.eye(3, dtype=th.float64))
    assert th.allclose(cost, expected)


def test_a_lattice_of_states_and_actions_is_the_state_action_cost_at_p_1() -> None:
    states = th.rand(4, 2, generator=th.Generator().manual_seed(0), dtype=th.float64)
    table = ot.one_hot_embedding(3, dtype=th.float64)
    lattice = ot.LatticeCost([ot.pairwise(states), ot.action_cost(table, beta=0.7)])
    index = th.cartesian_prod(th.arange(4), th.arange(3))
    dense = ot.state_action_cost(states[index[:, 0]], index[:, 1], beta=0.7, embedding=table)
    assert lattice.shape == (12, 12)
    assert th.allclose(lattice.dense(), dense)


def test_distances_of_close_points_keep_their_digits_in_float32() -> None:
    # The matrix-product form of the distance returns 0 or 0.03 here.
    points = 100 + th.tensor([[0.0, 0.0], [0.001, 0.0]]).repeat(20, 1)
    assert float(ot.pairwise(points)[0, 1]) == pytest.approx(0.001, rel=0.02)


def test_gradient_of_the_cost_is_finite_at_zero_distance() -> None:
    points = th.zeros(3, 2, requires_grad=True)
    ot.pairwise(points).sum().backward()
    assert points.grad is not None
    assert th.isfinite(points.grad).all()


def test_a_wrong_argument_is_named() -> None:
    x, actions = th.zeros(3, 2), th.zeros(3, dtype=th.long)
    with pytest.raises(ValueError, match="`embedding` is needed for action numbers"):
        ot.state_action_cost(x, actions)
    with pytest.raises(ValueError, match="give both or neither"):
        ot.state_action_cost(x, x, x)
    with pytest.raises(ValueError, match="`beta` must be non-negative"):
        ot.action_cost(x, beta=-1.0)
    with pytest.raises(ValueError, match="`scale` must be positive"):
        ot.pairwise(x, scale=0.0)
    with pytest.raises(ValueError, match="`p` must be positive"):
        ot.pairwise(x, p=0)
    with pytest.raises(ValueError, match="`n_actions` must be at least 1"):
        ot.one_hot_embedding(0)
    with pytest.raises(ValueError, match="`factors` must be one or more matrices"):
        ot.LatticeCost([th.zeros(2)])
    with pytest.raises(ValueError, match=r"`cost.factors\[1\]` must be non-negative"):
        ot.validate_cost(ot.LatticeCost([th.ones(2, 2), -th.ones(2, 2)]))


def test_action_numbers_are_rows_of_the_table() -> None:
    states, table = th.zeros(2, 2), ot.one_hot_embedding(3)
    for actions in ([-1, 0], [0, 3]):
        with pytest.raises(ValueError, match=r"`actions` must be in \[0, 3\), the rows of `embedding`"):
            ot.state_action_cost(states, th.tensor(actions), embedding=table)
    # Truth values are numbers, not a mask.
    expected = ot.state_action_cost(states, th.tensor([0, 1]), embedding=table)
    assert th.equal(ot.state_action_cost(states, th.tensor([False, True]), embedding=table), expected)


def test_errors_of_inner_functions_have_the_callers_names() -> None:
    states, table = th.zeros(2, 2), ot.one_hot_embedding(3)
    with pytest.raises(ValueError, match="`states` holds NaN"):
        ot.state_action_cost(states / 0, th.tensor([0, 1]), embedding=table)
    with pytest.raises(ValueError, match="`embedding` holds NaN"):
        ot.action_cost(table * float("nan"))


def test_a_metric_is_one() -> None:
    ot.check_metric(1 - th.eye(4, dtype=th.float64))
    ot.check_metric(ot.pairwise(th.rand(5, 12, 3, generator=th.Generator().manual_seed(0))))
    # Two actions that do the same are at a distance of zero.
    ot.check_metric(ot.action_cost(th.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])))


def test_what_is_no_metric_is_told_by_the_entry_that_breaks_it() -> None:
    line = ot.pairwise(th.arange(4, dtype=th.float64)[:, None])

    def broken(value: float, *where: tuple[int, int]) -> th.Tensor:
        matrix = line.clone()
        for i, j in where:
            matrix[i, j] = value
        return matrix

    both_ways = ((0, 3), (3, 0))
    for matrix, message in (
        (broken(2.5, (3, 1)), r"`cost\[1, 3\]` must be symmetric, got 2; use"),
        (broken(-0.5, (1, 2)), r"`cost\[1, 2\]` must be non-negative, got -0.5; use distances"),
        (broken(0.25, (2, 2)), r"`cost\[2, 2\]` must be zero, from a point to itself, got 0.25; set"),
        (broken(5.0, *both_ways), r"`cost\[0, 3\]` must be at most 3, the way over point 1, got 5; use the lengths"),
        (broken(float("nan"), (0, 1)), r"`cost\[0, 1\]` is NaN or infinite"),
        (broken(float("inf"), (0, 1)), r"`cost\[0, 1\]` is NaN or infinite"),
        (th.stack((line, broken(0.25, (2, 2)))), r"`cost\[1, 2, 2\]` must be zero"),
        (line[:2], r"`cost` must be square, one support on both sides, got shape \(2, 4\)"),
        (line[0], "`cost` must have 2 or more dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            ot.check_metric(matrix)
    with pytest.raises(TypeError, match="`ground` must be a torch tensor, got list"):
        ot.check_metric([[0.0]], name="ground")  # type: ignore[arg-type]


def test_squares_of_distances_are_no_metric_and_rounding_breaks_none() -> None:
    points = th.rand(30, 2, generator=th.Generator().manual_seed(0), dtype=th.float64)
    with pytest.raises(ValueError, match="the way over point"):
        ot.check_metric(ot.pairwise(points, p=2.0))
    # Many triangles of points on a line are degenerate: their sides agree up to rounding only.
    for dtype in (th.float32, th.float64):
        ot.check_metric(ot.pairwise(points[:, :1].to(dtype) / 3))
