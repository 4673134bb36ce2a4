"""Groups: who is pulled, that groups do not know of each other, and that a team of unlike agents is left alone."""

import math
import re

import numpy as np
import pytest
import torch as th
from consensus_toys import LinearTeam, metric, rollout
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from toy_teams import CustomSpacesEnv, vector

from otbaselines import IPPO, WBC, ParallelVecEnv, make_vec_env
from otbaselines.common.multi_agent.distributions import DiagonalGaussian, MaskedCategorical
from otbaselines.envs.navigation_tensor import NavigationVecEnv
from otbaselines.wbc.conditional import CategoricalConsensus
from otbaselines.wbc.groups import GroupedConsensus

pytestmark = pytest.mark.filterwarnings("ignore:the rollout of")
SMALL = {"n_steps": 6, "batch_size": 20, "n_epochs": 2, "seed": 0}


def _hunters():
    """Two teams of equals and somebody else."""
    wide, narrow = vector(3), vector(2)
    own = {"a": wide, "x": narrow, "b": wide, "y": narrow, "z": vector(1)}
    return CustomSpacesEnv(own, {name: spaces.Discrete(3 if space is wide else 2) for name, space in own.items()})


def _env():
    return ParallelVecEnv([_hunters] * 2, seed=0)


def _navigation():
    return NavigationVecEnv(n_copies=2, n_agents=4, max_episode_steps=5, seed=0)


def _wbc(env, **settings):
    options = {"n_support": 8, **settings.pop("options", {})}
    return WBC("MlpPolicy", env, **{**SMALL, "estimator_kwargs": options, **settings})


def _same(first, second):
    ours, theirs = first.policy.state_dict(), second.policy.state_dict()
    return ours.keys() == theirs.keys() and all(th.equal(value, theirs[name]) for name, value in ours.items())


def _parameters(model, agent):
    """An agent's part of every stacked parameter."""
    return [value[agent].clone() for value in model.policy.state_dict().values() if len(value) == model.layout.n_agents]


def _learn(model, rollouts=2):
    return model.learn(rollouts * model.n_steps * model.n_envs)


def test_agents_with_equal_spaces_are_a_group():
    model = _wbc(_env())
    assert model._consensus.groups == [(0, 2), (1, 3)]
    assert _wbc(NavigationVecEnv(n_copies=2))._consensus.groups == [(0, 1, 2)]
    assert _wbc(_env(), consensus_groups=[["b", "a"], ["z"]])._consensus.groups == [(2, 0)]
    assert _wbc(_env(), consensus_groups=())._consensus.groups == []


def test_on_speaker_and_listener_wbc_is_ippo_to_the_bit():
    def env():
        return make_vec_env("mpe2/simple_speaker_listener_v4", 2, seed=0)

    settings = {**SMALL, "n_steps": 30, "batch_size": 60}
    with pytest.warns(UserWarning, match="no two agents have equal spaces, so that nobody is pulled and WBC is IPPO"):
        model = WBC("MlpPolicy", env(), **settings)
    assert _same(_learn(model, 3), _learn(IPPO("MlpPolicy", env(), **settings), 3))


@pytest.mark.parametrize("estimator", ["conditional", "kl", "energy", "pooled", "sampled", "sliced"])
def test_agents_who_are_alone_learn_as_by_themselves(estimator):
    alone = _learn(IPPO("MlpPolicy", _navigation(), **SMALL), 1)
    pulled = _learn(
        _wbc(_navigation(), estimator=estimator, consensus_coef=50.0, consensus_groups=[["agent_0", "agent_2"]]), 1
    )
    for agent, is_pulled in enumerate((True, False, True, False)):
        pairs = zip(_parameters(alone, agent), _parameters(pulled, agent), strict=True)
        # Matrices with more rows are multiplied in another order, which rounds differently.
        assert (max(float((x - y).abs().max()) for x, y in pairs) < 1e-6) is not is_pulled, agent


def test_a_group_is_pulled_as_if_the_others_were_not_there():
    # The same policies, states and weights: the group's loss is that of a team of its own.
    team, buffer = LinearTeam(True), rollout(True)
    small = LinearTeam(True)
    small.weight, small.offset = team.weight[[0, 2]], team.offset[[0, 2]]
    weights = th.tensor([0.4, 0.0, 0.6], dtype=th.float64)

    def part():
        return CategoricalConsensus(5, th.Generator().manual_seed(1), metric(True), debiased=True)

    grouped = GroupedConsensus([(0, 2)], [part()], 3, th.device("cpu"))
    (report,) = grouped.prepare(team, buffer, n_chunks=2, reg=0.5, weights=weights)
    states = grouped.states(1)
    loss = grouped.loss(team.policies_at(states), 1)

    class Others:
        n_agents, device, all_active = 2, buffer.device, True
        observations, actions, active = (x[:, :, [0, 2]] for x in (buffer.observations, buffer.actions, buffer.active))

    by_itself = part()
    expected = by_itself.prepare(small, Others(), n_chunks=2, reg=0.5, weights=weights[[0, 2]])
    assert th.equal(states, by_itself.states(1))
    th.testing.assert_close(report.divergences, expected.divergences)
    th.testing.assert_close(report.max_divergence, expected.max_divergence)
    th.testing.assert_close(loss, by_itself.loss(small.policies_at(states), 1))


def test_every_group_has_its_own_loss():
    team, buffer, groups = LinearTeam(True), rollout(True), [(0, 1), (1, 2)]
    weights = th.tensor([0.5, 0.5, 0.5], dtype=th.float64)

    def part():
        return CategoricalConsensus(5, th.Generator().manual_seed(1), metric(True), debiased=True)

    def loss_of(groups):
        grouped = GroupedConsensus(groups, [part() for _ in groups], 3, th.device("cpu"))
        grouped.prepare(team, buffer, n_chunks=1, reg=0.5, weights=weights)
        return grouped.loss(team.policies_at(grouped.states(0)), 0)

    th.testing.assert_close(loss_of(groups), th.cat([loss_of([group]) for group in groups]))


def test_two_groups_have_states_barycenters_and_logs_of_their_own():
    model = _wbc(_env(), learning_rate=0.0)
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        # The first group agrees on its first action; of the second one does the opposite of the other.
        model.policy.action_net.bias.zero_()
        model.policy.action_net.bias[[0, 2, 1], 0, 0] = 5.0
        model.policy.action_net.bias[3, 0, 1] = 5.0
    model.set_logger(configure(None, []))
    _learn(model, 1)
    logged = model.logger.name_to_value
    groups = [logged[f"consensus/max_divergence_group_{k}"] for k in range(2)]
    assert groups[0] == pytest.approx(0.0, abs=1e-5)
    assert logged["consensus/max_divergence"] == groups[1] > 0.5
    assert {key for key in logged if "divergence_" in key and "group" not in key} == {
        f"consensus/divergence_{agent}" for agent in (0, 1, 2, 3)
    }
    assert logged["consensus/divergence_1"] > 0.1 > logged["consensus/divergence_0"]
    states = model._consensus.states(0)
    assert len(states) == 16
    # Rows of the second group are padded: what its agents see has two entries.
    assert bool((states[8:, 2] == 0).all())
    assert bool((states[:8, 2] != 0).any())


def test_weights_by_return_are_within_the_group():
    model = _wbc(_env(), options={"weights": "return"})
    model.rollout_buffer.rewards.copy_(th.tensor([1.0, 5.0, 2.0, 5.0, 9.0]))
    # Two rewards standardised by their sample deviation are -1/sqrt 2 and 1/sqrt 2.
    first, second = (
        math.exp(x) / (math.exp(math.sqrt(0.5)) + math.exp(-math.sqrt(0.5))) for x in (-math.sqrt(0.5), math.sqrt(0.5))
    )
    np.testing.assert_allclose(model._barycenter_weights(), [first, 0.5, second, 0.5, 0.0], rtol=1e-4)


def test_a_table_for_every_agent_is_read_by_the_group_that_it_is_for():
    table = [[[0.0], [1.0], [2.0]], [[9.0]] * 3, [[2.0], [1.0], [0.0]], [[9.0]] * 3, [[9.0]] * 3]
    model = _wbc(_env(), consensus_groups=[["a", "b"]], options={"action_embedding": table})
    ground = model._consensus.parts[0].metric
    assert ground.codebook.flatten().tolist() == [0.0, 1.0, 2.0]
    assert ground.placement.tolist() == [[0, 1, 2], [2, 1, 0]]


def test_groups_survive_saving(tmp_path):
    model = _learn(_wbc(_navigation(), consensus_groups=(("agent_2", "agent_0"),)), 1)
    model.save(tmp_path / "model")
    loaded = WBC.load(tmp_path / "model", env=_navigation())
    assert loaded._consensus.groups == [(2, 0)]
    model.set_env(_navigation())
    for each in (model, loaded):
        each.set_random_seed(3)
        each.learn(2 * each.n_steps * each.n_envs, reset_num_timesteps=False)
    assert _same(model, loaded)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_a_part_of_the_team_has_the_distributions_of_its_agents(kind):
    generator = th.Generator().manual_seed(0)
    head = th.randn(6, 4, 3, generator=generator)
    mask = th.tensor([[True, True, False], [True, True, True], [True, False, False], [True, True, True]])
    if kind == "categorical":
        whole = MaskedCategorical(head, mask)
        actions = th.zeros(2, 2, dtype=th.long)
    else:
        whole = DiagonalGaussian(head, 0.1 * th.randn(4, 3, generator=generator), mask)
        actions = th.randn(2, 2, 3, generator=generator)
    part = whole.subset(th.tensor([3, 0]), slice(2, 4))
    padded = actions.new_zeros(6, 4, *actions.shape[2:])
    padded[2:4, [3, 0]] = actions
    th.testing.assert_close(part.log_prob(actions), whole.log_prob(padded)[2:4][:, [3, 0]])
    assert part.n_agents == 2


@pytest.mark.parametrize(
    ("groups", "kind", "message"),
    [
        ([["a", "w"]], ValueError, "`consensus_groups` names 'w', who is not in the team of ['a', 'x', 'b', 'y', 'z']"),
        ([["a", "b"], ["b"]], ValueError, "`consensus_groups` names 'b' twice"),
        (["a", "b"], TypeError, "`consensus_groups` must be a list of lists of agents' names or None, got ['a', 'b']"),
        ([[0, 1]], TypeError, "`consensus_groups` must be a list of lists"),
        ("ab", TypeError, "`consensus_groups` must be a list of lists"),
    ],
)
def test_groups_that_cannot_be_are_named(groups, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        _wbc(_env(), consensus_groups=groups)


def test_options_must_fit_the_spaces_where_nobody_is_pulled_too():
    with pytest.raises(ValueError, match="`action_embedding` must have one row"):
        _wbc(_env(), consensus_groups=[], options={"action_embedding": [[0.0], [1.0]]})
