"""What the team-mates do in each state: all of their joint actions, or draws, from the policies as they are at the time."""

import itertools

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from toy_teams import CustomSpacesEnv, vector
from trust_region_toys import collect

from otbaselines import WMATRPO, ParallelVecEnv
from otbaselines.common.multi_agent.distributions import DiagonalGaussian, MaskedCategorical
from otbaselines.common.multi_agent.sequential import TeamSteps
from otbaselines.wmatrpo import rollout
from otbaselines.wmatrpo.advantages import Box, Choices
from otbaselines.wmatrpo.rollout import JointRollout, TeamMates

CPU = th.device("cpu")


def _one_hot(width):
    return lambda actions, _agents: th.nn.functional.one_hot(actions.long(), width).float()


def _choices(sizes, n_states, seed=0):
    width = max(sizes)
    logits = th.randn(n_states, len(sizes), width, generator=th.Generator().manual_seed(seed))
    mask = th.arange(width) < th.tensor(sizes).unsqueeze(1)
    return MaskedCategorical(logits, mask), [Choices(n, width, CPU) for n in sizes]


# ---------------------------------------------------------------- all joint actions
@pytest.mark.parametrize("sizes", [(2, 3), (4, 4, 2), (3,)])
def test_all_joint_actions_of_the_others_come_with_their_probabilities(sizes):
    policies, sets = _choices(sizes, 5)
    mates, probs = TeamMates(policies, _one_hot(max(sizes)), sets), policies.probs.numpy()
    for agent in range(len(sizes)):
        joint, weights = mates.joint(agent)
        others = [i for i in range(len(sizes)) if i != agent]
        expected = {
            taken: np.prod([probs[:, i, a] for i, a in zip(others, taken, strict=True)], axis=0)
            for taken in itertools.product(*(range(sizes[i]) for i in others))
        }
        assert joint.shape[:2] == (1, len(expected))
        np.testing.assert_allclose(weights.mean(1), np.ones(5), rtol=1e-5)
        for row, weight in zip(joint[0], weights.T, strict=True):
            taken = tuple(int(row[i].argmax()) for i in others)
            np.testing.assert_allclose(weight / joint.shape[1], expected.pop(taken), rtol=1e-4)
        assert not expected


def test_the_limit_decides_between_all_joint_actions_and_draws():
    policies, sets = _choices((4, 4, 4), 2)
    for n_joint, expected in ((None, 16), (16, 16), (15, 15), (3, 3)):
        joint, weights = TeamMates(policies, _one_hot(4), sets, n_joint).joint(0)
        assert joint.shape == (1 if expected == 16 else 2, expected, 3, 4)
        assert weights.shape == (2, expected)


def test_unless_it_is_said_there_are_sixteen_draws_of_choices_and_eight_of_vectors():
    policies, sets = _choices((6, 7, 5), 2)
    assert TeamMates(policies, _one_hot(7), sets).joint(0)[0].shape[1] == 16
    normal, box = DiagonalGaussian(th.zeros(4, 2, 1), th.zeros(2, 1)), [Box(-th.ones(1), th.ones(1))] * 2
    mates = TeamMates(normal, lambda x, _: x, box)
    assert mates.joint(0)[0].shape[1] == 8
    # Where others answer whatever they did, a leader considers four.
    joint, weights = mates.joint(0, (1,))
    assert (joint.shape[1], weights.tolist()) == (4, [[1.0] * 4] * 4)


def test_those_who_answer_are_not_enumerated():
    policies, sets = _choices((2, 3, 4), 5)
    joint, weights = TeamMates(policies, _one_hot(4), sets).joint(1, (2,))
    assert joint.shape == (1, 2, 3, 4)
    np.testing.assert_allclose(weights / 2, policies.probs[:, 0, :2], rtol=1e-5)


def test_an_agent_without_team_mates_needs_one_joint_action():
    box = [Box(-th.ones(1), th.ones(1))]
    for policies, sets, encode in (
        (*_choices((3,), 4), _one_hot(3)),
        (DiagonalGaussian(th.zeros(4, 1, 1), th.zeros(1, 1)), box, lambda x, _: x),
    ):
        joint, weights = TeamMates(policies, encode, sets, 64).joint(0)
        assert joint.shape[1] == 1
        assert weights.tolist() == [[1.0]] * 4


# ---------------------------------------------------------------- draws
def test_draws_have_the_distribution_of_the_policies(monkeypatch):
    policies, sets = _choices((3, 4), 2)
    monkeypatch.setattr(rollout, "can_enumerate", lambda *_: False)
    joint, weights = TeamMates(policies, _one_hot(4), sets, 4000).joint(0)
    assert th.equal(weights, th.ones(2, 4000))
    # The standard error of a frequency is at most 1 / (2 sqrt(4000)) = 0.008.
    np.testing.assert_allclose(joint.mean(1), policies.probs, atol=0.035)
    # Agents act independently of each other.
    together = th.einsum("snk,snl->skl", joint[:, :, 0], joint[:, :, 1]) / 4000
    np.testing.assert_allclose(together, th.einsum("sk,sl->skl", *policies.probs.unbind(1)), atol=0.035)


def test_vectors_are_drawn_with_their_means_and_deviations():
    means = th.tensor([[[0.5], [-2.0]], [[1.0], [3.0]]])
    policies = DiagonalGaussian(means, th.log(th.tensor([[0.1], [2.0]])))
    joint, _ = TeamMates(policies, lambda x, _: x, [Box(-th.ones(1), th.ones(1))] * 2, 4000).joint(1)
    np.testing.assert_allclose(joint.mean(1), means, atol=4 * 2.0 / np.sqrt(4000))
    np.testing.assert_allclose(joint.std(1), [[[0.1], [2.0]]] * 2, rtol=0.06)


@pytest.mark.parametrize("enumerates", [True, False])
def test_only_what_has_moved_is_another(enumerates, monkeypatch):
    policies, sets = _choices((3, 3, 3), 2)
    monkeypatch.setattr(rollout, "can_enumerate", lambda *_: enumerates)
    mates = TeamMates(policies, _one_hot(3), sets, 600)

    def marginals():
        joint, weights = mates.joint(0)
        return (joint * weights[:, :, None, None]).mean(1)

    before = marginals()
    other, _ = _choices((3, 3, 3), 2, seed=1)
    mates.moved(1, other.select(1))
    after = marginals()
    np.testing.assert_allclose(after[:, 1], other.probs[:, 1], atol=1e-5 if enumerates else 0.09)
    np.testing.assert_allclose(after[:, 2], before[:, 2], atol=1e-5)


def test_vectors_that_have_moved_are_drawn_anew_and_not_put_to_their_mean():
    old, new = (DiagonalGaussian(th.full((2, 2, 1), mean), th.log(th.tensor([[0.3], [0.3]]))) for mean in (0.0, 2.0))
    mates = TeamMates(old, lambda x, _: x, [Box(-th.ones(1), th.ones(1))] * 2, 2000)
    mates.moved(1, new.select(1))
    joint, _ = mates.joint(0)
    np.testing.assert_allclose(joint.mean(1).flatten(), [0.0, 2.0] * 2, atol=0.03)
    np.testing.assert_allclose(joint.std(1).flatten(), [0.3] * 4, rtol=0.08)


@pytest.mark.parametrize("n_joint", [None, 400])
def test_in_a_round_every_agent_meets_the_policies_of_those_before_it(n_joint, monkeypatch):
    env = ParallelVecEnv([lambda: TwoStatesEnv(3)] * 2)
    if n_joint is not None:
        monkeypatch.setattr(rollout, "can_enumerate", lambda *_: False)
    model = WMATRPO("MlpPolicy", env, n_steps=8, caatr=False, trust_radius=0.4, seed=0, n_joint=n_joint)
    seen = []

    def watch(problem):
        found = advantage(problem)
        with th.no_grad():
            probs = model.policy.team_distribution(model.rollout_buffer.observations.flatten(0, 1)).probs
        met = (found.joint[:, :, 1 - problem.index] * found.weights[:, :, None]).mean(1)
        seen.append((1 - problem.index, found.joint.shape[1], met, probs))
        return found

    advantage = model._advantage
    monkeypatch.setattr(model, "_advantage", watch)
    collect(model).train()
    for other, found, met, probs in seen:
        assert found == (n_joint or 3)
        np.testing.assert_allclose(met, probs[:, other], atol=1e-5 if n_joint is None else 0.12)
    # The second meets another policy than that of the rollout.
    other = seen[1][0]
    assert float((seen[1][3] - seen[0][3])[:, other].abs().max()) > 0.12


# ---------------------------------------------------------------- what that is for
class TwoStatesEnv(CustomSpacesEnv):
    """
    Two agents and two states, of which each episode of one step draws one.

    The first pays 3 where both do the same. The second pays each agent's number of its action.
    """

    def __init__(self, n_choices=2):
        agents = ("left", "right")
        super().__init__(dict.fromkeys(agents, vector(2)), dict.fromkeys(agents, spaces.Discrete(n_choices)))
        self.rng = np.random.default_rng(0)

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.is_second = self.rng.random() < 0.5
        seen = np.array([1.0 - self.is_second, float(self.is_second)], np.float32)
        self.observations = dict.fromkeys(self.possible_agents, seen)
        return super().reset(seed, options)

    def step(self, actions):
        result = super().step(actions)
        left, right = (int(action) for action in self.actions.values())
        reward = float(left + right) if self.is_second else 3.0 * (left == right)
        return (result[0], dict.fromkeys(self.actions, reward), *result[2:])


def test_the_radius_is_spent_where_the_agent_alone_can_gain(monkeypatch):
    env = ParallelVecEnv([TwoStatesEnv] * 16)
    model = WMATRPO(
        "MlpPolicy",
        env,
        n_steps=32,
        n_critic_updates=60,
        batch_size=256,
        learning_rate=1e-2,
        caatr=False,
        seed=0,
        policy_kwargs={"net_arch": [16]},
    )
    seen = []

    def watch(problem, advantage, old):
        seen.append((problem, old, solve(problem, advantage, old)))
        return seen[-1][2]

    solve = model._transport
    monkeypatch.setattr(model, "_transport", watch)
    collect(model).train()
    problem, old, transport = seen[0]
    # The team-mate is still as likely to do one as the other, so that in the first state nothing is to be gained; its sampled
    # actions, which the agent's policy does not know, would offer 3 there and 1 in the second.
    moved = 0.5 * (transport.targets * len(problem.actions) - old.probs[:, 0]).abs().sum(1)
    second = problem.observations[:, 0, 1] > 0.5
    assert float(moved.mean()) == pytest.approx(0.1, rel=1e-3)
    assert float(moved[second].sum() / moved.sum()) > 0.95


def test_a_rollout_with_absent_agents_is_not_that_of_one_state():
    constant, rows = th.ones(6, 2, 3), th.ones(6, 2)
    for active, expected in ((None, True), (th.ones(6, 2, dtype=th.bool), False)):
        steps = TeamSteps(constant, rows, rows, active, None, rows[:, 0], rows[:, 0])
        now = JointRollout(steps, constant[:, 0], constant, rows[:, 0], rows[:, 0], th.tensor(1.0), 0.0, [])
        assert now.is_one_state is expected
