"""What actions are worth to the team: averages over team-mates, their best responses, and optimism, against plain loops."""

import itertools

import numpy as np
import pytest
import torch as th

from otbaselines.wmatrpo.advantages import Box, Choices, MarginalAdvantage, optimistic
from otbaselines.wmatrpo.joint_critic import JointCritics

CPU = th.device("cpu")


class TableCritics:
    """
    Critics of choices that look joint actions up, in a table for each critic and state.

    :param table: shape ``(n_critics, n_states, *[n_actions] * n_agents)``; the first number of a state says which it is
    """

    def __init__(self, table):
        self.table = th.as_tensor(table, dtype=th.float32)

    def __call__(self, states, actions):
        joint = actions.argmax(-1)
        return self.table[(slice(None), states[:, 0].long(), *joint.unbind(-1))]

    def responses(self, states, joint, agent, candidates):
        n_states, n_joint = joint.shape[:2]
        values = []
        for candidate in candidates.expand(n_states, -1, -1).unbind(1):
            actions = joint.clone()
            actions[:, :, agent] = candidate.unsqueeze(1)
            rows = states.unsqueeze(1).expand(-1, n_joint, -1).flatten(0, 1)
            values.append(self(rows, actions.flatten(0, 1)).view(-1, n_states, n_joint))
        return th.stack(values, -1)


def _advantage(critics, n_states, joint, *, agent, n_actions, later=(), weights=None, baseline=None, scale=1.0, optimism=0.0):
    sets = [Choices(n, max(n_actions), CPU) for n in n_actions]
    return MarginalAdvantage(
        critics,
        th.arange(float(n_states)).unsqueeze(1),
        th.nn.functional.one_hot(th.as_tensor(joint), max(n_actions)).float(),
        th.ones(joint.shape[:2]) if weights is None else th.as_tensor(weights, dtype=th.float32),
        agent,
        th.zeros(n_states) if baseline is None else th.as_tensor(baseline, dtype=th.float32),
        th.tensor(scale),
        optimism,
        tuple(later),
        sets,
    )


def _everything(advantage):
    return advantage(advantage.sets[advantage.agent].grid(0).unsqueeze(0)).numpy()


# ---------------------------------------------------------------- averages over team-mates
def test_the_advantage_is_the_weighted_mean_over_the_team_mates_actions():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(1, 2, 4, 4, 4))
    joint = rng.integers(4, size=(2, 9, 3))
    weights, baseline = rng.uniform(0.5, 2.0, size=(2, 9)), rng.normal(size=2)
    for agent in range(3):
        advantage = _advantage(
            TableCritics(table), 2, joint, agent=agent, n_actions=(4, 4, 4), weights=weights, baseline=baseline, scale=2.5
        )
        expected = np.zeros((2, 4))
        for state, row, action in itertools.product(range(2), range(9), range(4)):
            played = joint[state, row].copy()
            played[agent] = action
            worth = (table[0, state, played[0], played[1], played[2]] - baseline[state]) / 2.5
            expected[state, action] += weights[state, row] * worth / 9
        np.testing.assert_allclose(_everything(advantage), expected, rtol=1e-4, atol=1e-5)


def test_the_maximum_is_taken_of_the_mean_and_not_the_mean_of_maxima():
    # Matching pennies in a team: whatever the other does, one's best action is worth 1, and neither is worth anything before
    # it is known what he does. A third, safe action is worth a quarter.
    table = np.zeros((1, 1, 3, 2))
    table[0, 0, :2] = [[1.0, -1.0], [-1.0, 1.0]]
    table[0, 0, 2] = 0.25
    padded = np.concatenate([table, np.zeros((1, 1, 3, 1))], -1)
    joint = np.array([[[0, 0], [0, 1], [1, 0], [1, 1]]])
    advantage = _everything(_advantage(TableCritics(padded), 1, joint, agent=0, n_actions=(3, 2)))
    np.testing.assert_allclose(advantage, [[0.0, 0.0, 0.25]], atol=1e-7)
    assert advantage.max() == 0.25
    assert table[0, 0].max(0).mean() == 1.0


def test_the_critics_of_a_network_give_the_same_mean_as_a_loop():
    critics = JointCritics(2, 3, 2, 1, [8, 8], th.nn.Tanh)
    states, joint, weights = th.randn(4, 3), th.randn(4, 5, 2, 1), th.rand(4, 5)
    low, high = -th.ones(1), th.ones(1)
    sets = [Box(low, high)] * 2
    candidates = th.linspace(-1, 1, 6).view(1, 6, 1)
    for optimism in (0.0, 0.7):
        advantage = MarginalAdvantage(critics, states, joint, weights, 1, th.zeros(4), th.tensor(1.0), optimism, (), sets)
        expected = th.zeros(4, 6)
        with th.no_grad():
            for state, row, number in itertools.product(range(4), range(5), range(6)):
                played = joint[state, row].clone()
                played[1] = candidates[0, number]
                both = critics(states[state : state + 1], played.unsqueeze(0)).flatten()
                # Of two, the standard deviation is half the difference.
                judged = both.mean() + optimism * (both[0] - both[1]).abs() / 2
                expected[state, number] += weights[state, row] * judged / 5
        th.testing.assert_close(advantage(candidates), expected, atol=1e-5, rtol=1e-4)


def test_states_are_judged_alike_one_by_one_and_together(monkeypatch):
    critics = JointCritics(2, 3, 2, 1, [8, 8], th.nn.Tanh)
    sets = [Box(-th.ones(1), th.ones(1))] * 2
    states, weights, baseline = th.randn(7, 3), th.rand(7, 5), th.randn(7)
    for joint, candidates in ((th.randn(7, 5, 2, 1), th.randn(1, 6, 1)), (th.randn(1, 5, 2, 1), th.randn(7, 6, 1))):
        advantage = MarginalAdvantage(critics, states, joint, weights, 0, baseline, th.tensor(2.0), 0.3, (), sets)
        together = advantage(candidates)
        assert together.shape == (7, 6)
        for number in (1, 5 * 6 * 3):
            monkeypatch.setattr("otbaselines.wmatrpo.advantages.TOGETHER", number)
            th.testing.assert_close(advantage(candidates), together, atol=1e-6, rtol=1e-5)
        monkeypatch.undo()


# ---------------------------------------------------------------- optimism
def test_optimism_adds_standard_deviations_of_the_ensemble_to_its_mean():
    values = th.tensor([[1.0, 0.0], [3.0, 0.0], [8.0, 3.0]])
    # Of 1, 3, 8 the mean is 4 and the variance (9 + 1 + 16) / 3; of 0, 0, 3 they are 1 and 2.
    expected = [4.0 + 0.5 * np.sqrt(26 / 3), 1.0 + 0.5 * np.sqrt(2.0)]
    np.testing.assert_allclose(optimistic(values, 0.5), expected, rtol=1e-6)
    assert optimistic(values, 0.0).tolist() == [4.0, 1.0]
    assert optimistic(values[:1], 0.0).tolist() == [1.0, 0.0]


# ---------------------------------------------------------------- the leader
def _brute_force(table, later, taken):
    """Each action of agent 0 with the best that the later agents can do; the others do as in the rollout."""
    best = np.full(table.shape[0], -np.inf)
    for action, second, third in itertools.product(*map(range, table.shape)):
        if (1 in later or second == taken[1]) and (2 in later or third == taken[2]):
            best[action] = max(best[action], table[action, second, third])
    return best


@pytest.mark.parametrize("later", [(1,), (2,)])
@pytest.mark.parametrize("seed", range(5))
def test_one_later_agent_answers_with_its_best_response(later, seed):
    table = np.random.default_rng(seed).normal(size=(3, 3, 3))
    joint = np.array([[[0, 1, 2]]])
    advantage = _advantage(TableCritics(table[None, None]), 1, joint, agent=0, n_actions=(3, 3, 3), later=later)
    np.testing.assert_allclose(_everything(advantage)[0], _brute_force(table, later, joint[0, 0]), rtol=1e-6)


@pytest.mark.parametrize("later", [(1, 2), (2, 1)])
@pytest.mark.parametrize("seed", range(8))
def test_several_later_agents_answer_with_their_best_joint_response(later, seed, monkeypatch):
    table = np.random.default_rng(seed).normal(size=(2, 5, 5, 5))
    joint = np.array([[[0, 1, 2], [2, 2, 0]], [[4, 1, 2], [2, 0, 0]]])
    advantage = _advantage(TableCritics(table[None]), 2, joint, agent=0, n_actions=(5, 5, 5), later=later)
    expected = table.max((2, 3))
    np.testing.assert_allclose(_everything(advantage), expected, rtol=1e-6)
    # A state at a time is the same.
    monkeypatch.setattr("otbaselines.wmatrpo.advantages.TOGETHER", 1)
    np.testing.assert_allclose(_everything(advantage), expected, rtol=1e-6)


@pytest.mark.parametrize("later", [(1, 2), (2, 1)])
@pytest.mark.parametrize("seed", range(8))
def test_a_search_finds_the_leaders_best_action_where_answers_are_too_many(later, seed, monkeypatch):
    monkeypatch.setattr("otbaselines.wmatrpo.advantages.MOST_ANSWERS", 0)
    table = np.random.default_rng(seed).normal(size=(3, 3, 3))
    joint = np.array([[[0, 1, 2], [2, 2, 0]]])
    found = _everything(_advantage(TableCritics(table[None, None]), 1, joint, agent=0, n_actions=(3, 3, 3), later=later))[0]
    exact = _brute_force(table, later, joint[0, 0])
    # Where the search starts at the best joint action it cannot get worse, for whatever was played; of the leader's other
    # actions it may miss the best answer, which takes two to change at once, but never invents one.
    assert found.argmax() == exact.argmax()
    assert found.max() == pytest.approx(table.max(), rel=1e-6)
    assert (found <= exact + 1e-6).all()
    # At least as good as the answer of the first of them alone.
    first = np.mean([_brute_force(table, later[:1], taken) for taken in joint[0]], axis=0)
    assert (found >= first - 1e-6).all()


@pytest.mark.parametrize("most", [1 << 22, 0], ids=["all", "search"])
@pytest.mark.parametrize("seed", range(6))
def test_those_who_answer_do_not_know_what_earlier_agents_do(seed, most, monkeypatch):
    r""":math:`\max_{a_2} E_{a_0}` for the agent in the middle, with the weights of the earlier one's actions."""
    monkeypatch.setattr("otbaselines.wmatrpo.advantages.MOST_ANSWERS", most)
    rng = np.random.default_rng(seed)
    table, weights = rng.normal(size=(2, 3, 4, 5)), rng.uniform(0.2, 2.0, size=(2, 3))
    weights /= weights.mean(1, keepdims=True)
    joint = np.array([[[first, 0, 0] for first in range(3)]] * 2)
    baseline = np.array([0.3, -0.2])
    critics = TableCritics(np.pad(table, ((0, 0), (0, 2), (0, 1), (0, 0)))[None])
    advantage = _advantage(
        critics, 2, joint, agent=1, n_actions=(3, 4, 5), later=(2,), weights=weights, baseline=baseline, scale=2.0
    )
    expected = ((table - baseline[:, None, None, None]) * weights[:, :, None, None] / 3 / 2.0).sum(1).max(-1)
    np.testing.assert_allclose(_everything(advantage), expected, rtol=1e-5)


def test_a_mean_of_maxima_is_not_what_a_leader_is_judged_by():
    # If the second stays, the third should do what the first does, which it does not know; else .25 is certain.
    table = np.zeros((2, 2, 2))
    table[:, 0] = [[1.0, -1.0], [-1.0, 1.0]]
    table[:, 1] = 0.25
    joint = np.array([[[0, 0, 0], [1, 0, 0]]])
    found = _everything(_advantage(TableCritics(table[None, None]), 1, joint, agent=1, n_actions=(2, 2, 2), later=(2,)))
    np.testing.assert_allclose(found, [[0.0, 0.25]], atol=1e-7)


def test_what_separates_is_answered_exactly_by_the_search(monkeypatch):
    monkeypatch.setattr("otbaselines.wmatrpo.advantages.MOST_ANSWERS", 0)
    rng = np.random.default_rng(0)
    with_second, with_third = rng.normal(size=(2, 3, 3))
    table = with_second[:, :, None] + with_third[:, None, :]
    joint = np.array([[[0, 0, 0]]])
    found = _everything(_advantage(TableCritics(table[None, None]), 1, joint, agent=0, n_actions=(3, 3, 3), later=(2, 1)))
    np.testing.assert_allclose(found[0], with_second.max(1) + with_third.max(1), rtol=1e-5)


def test_a_leader_leaves_the_trap_in_which_every_move_alone_loses():
    # Both at 1 is worth 10, both at 0 is worth 6, and apart nothing.
    table = np.array([[6.0, 0.0], [0.0, 10.0]])
    joint = np.zeros((1, 1, 2), dtype=int)
    alone, led = (
        _everything(_advantage(TableCritics(table[None, None]), 1, joint, agent=0, n_actions=(2, 2), later=later))[0]
        for later in ((), (1,))
    )
    assert alone.tolist() == [6.0, 0.0]
    assert led.tolist() == [6.0, 10.0]


def test_agents_answer_with_actions_of_their_own_only():
    # The second agent lacks the third action, which the critics would like best.
    table = np.array([[1.0, 2.0, 99.0], [3.0, 1.0, 99.0], [0.0, 0.0, 99.0]])
    joint = np.array([[[0, 0]]])
    found = _everything(_advantage(TableCritics(table[None, None]), 1, joint, agent=0, n_actions=(3, 2), later=(1,)))
    assert found.tolist() == [[2.0, 3.0, 0.0]]


class Peaks:
    """A critic of two vectors that is highest where they agree on 0.6, and lower where they agree on -0.6."""

    def __call__(self, states, actions):
        first, second = actions[:, 0, 0], actions[:, 1, 0]
        return (
            2.0 * th.exp(-20 * ((first - 0.6) ** 2 + (second - 0.6) ** 2))
            + th.exp(-20 * ((first + 0.6) ** 2 + (second + 0.6) ** 2))
        ).unsqueeze(0)

    def responses(self, states, joint, agent, candidates):
        n_states, n_joint = joint.shape[:2]
        actions = joint.unsqueeze(2).expand(-1, -1, candidates.shape[1], -1, -1).clone()
        actions[:, :, :, agent] = candidates.unsqueeze(1)
        return self(None, actions.flatten(0, 2)).view(1, n_states, n_joint, -1)


def test_a_leader_in_a_box_sees_the_peak_that_takes_two():
    candidates = th.linspace(-1, 1, 81).view(1, 81, 1)
    joint = th.full((1, 6, 2, 1), -0.6)
    best = {}
    for later in ((), (1,)):
        sets = [Box(-th.ones(1), th.ones(1))] * 2
        fixed = (Peaks(), th.zeros(1, 1), joint, th.ones(1, 6), 0, th.zeros(1), th.tensor(1.0), 0.0)
        advantage = MarginalAdvantage(*fixed, later, sets)
        best[later] = float(candidates[0, advantage(candidates)[0].argmax(), 0])
    assert best[()] == pytest.approx(-0.6, abs=0.03)
    assert best[(1,)] == pytest.approx(0.6, abs=0.03)


class Bowl(Peaks):
    """A critic of two vectors that is highest, at zero, where both are 0.513, which is on no grid."""

    def __call__(self, states, actions):
        return -(actions[:, :2, 0] - 0.513).square().sum(1).unsqueeze(0)


def _bowl(joint, later=(1,)):
    n_states = len(joint)
    fixed = (Bowl(), th.zeros(n_states, 1), joint, th.ones(joint.shape[:2]), 0, th.zeros(n_states), th.tensor(1.0), 0.0)
    return MarginalAdvantage(*fixed, later, [Box(-th.ones(1), th.ones(1))] * 2)


def test_the_search_for_the_best_joint_action_draws_closer_in_rounds():
    advantage = _bowl(2 * th.rand(200, 4, 2, 1) - 1)
    shortfall = -Bowl()(None, advantage._best_joint(advantage.joint))
    # The best of 68 points in a square of area 4 is off by 4 / (68 pi) = 0.019 in the mean.
    assert float(shortfall.mean()) < 0.019 / 4


def test_a_better_answer_than_those_of_the_grid_is_kept():
    joint = th.full((1, 3, 2, 1), 0.513)
    assert float(_bowl(joint)(th.full((1, 1, 1), 0.513))) == pytest.approx(0.0, abs=1e-9)
    # Far from it, the answer is the best of 17 between -1 and 1, which is 1/2, or that of the best joint action.
    far = -th.ones(1, 3, 2, 1)
    assert -(0.013**2) - 1e-8 <= float(_bowl(far)(th.full((1, 1, 1), 0.513))) <= 0.0


# ---------------------------------------------------------------- the actions there are
def test_choices_are_drawn_from_the_agents_own():
    own = Choices(3, 5, CPU)
    drawn = own.draw((400, 2))
    assert drawn.shape == (400, 2, 5)
    assert bool((drawn.sum(-1) == 1.0).all())
    np.testing.assert_allclose(drawn.mean((0, 1)), [1 / 3, 1 / 3, 1 / 3, 0, 0], atol=0.08)
    stay = th.nn.functional.one_hot(th.tensor(2), 5).float().expand(2000, 5)
    # A redrawn one is the same by chance in a third of the cases.
    changed = (own.near(stay, 0.3) != stay).any(-1).float().mean()
    assert float(changed) == pytest.approx(0.3 * 2 / 3, abs=0.05)
    assert th.equal(own.near(stay, 0.0), stay)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_boxes_are_covered_and_never_left(width):
    low, high = -th.linspace(0.5, 1.0, width), th.linspace(0.2, 1.0, width)
    box = Box(low, high)
    grid = box.grid(64)
    assert grid.shape == (64, width)
    for points in (grid, box.draw((500,)), box.near(grid, 0.5)):
        assert bool(((points >= low) & (points <= high)).all())
        # In every dimension from end to end, up to a twentieth.
        reached = (points.amax(0) - points.amin(0)) / (high - low)
        assert float(reached.min()) > 0.95
    th.testing.assert_close(box.near(grid, 0.0), grid)
    # The grid is the same every time, and takes nothing from the random stream.
    state = th.get_rng_state()
    assert th.equal(grid, box.grid(64))
    assert th.equal(state, th.get_rng_state())


def test_dimensions_that_an_agent_lacks_stay_where_they_are():
    box = Box(th.tensor([-1.0, 0.25]), th.tensor([1.0, 0.25]))
    for points in (box.grid(16), box.draw((16,)), box.near(box.grid(16), 0.5)):
        assert bool((points[:, 1] == 0.25).all())
        assert len(points[:, 0].unique()) > 4


def test_whether_all_answers_are_tried_is_asked_of_all_states_together(monkeypatch):
    table = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    joint = np.zeros((4, 1, 3), dtype=int)
    advantage = _advantage(TableCritics(table[None]), 4, joint, agent=0, n_actions=(3, 3, 3), later=(1, 2))
    # Four states x three actions x nine answers are 108, of which one state alone has 27.
    monkeypatch.setattr("otbaselines.wmatrpo.advantages.MOST_ANSWERS", 107)
    monkeypatch.setattr("otbaselines.wmatrpo.advantages.TOGETHER", 1)
    tried = []
    monkeypatch.setattr(MarginalAdvantage, "_led_by_all", lambda self, candidates: tried.append(len(self.states)))
    _everything(advantage)
    assert tried == []
