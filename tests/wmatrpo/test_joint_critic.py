"""Critics of the joint action and the policy that holds them: many candidates at once, targets, whose parameters are whose."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from trust_region_toys import clone, collect, rounds

from otbaselines import WMATRPO
from otbaselines.common.multi_agent.agent_view import parameter_groups
from otbaselines.common.vec_env.layout import TeamLayout
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv
from otbaselines.wmatrpo import MlpPolicy
from otbaselines.wmatrpo.joint_critic import JointCritics

SMALL = {"n_steps": 16, "n_critic_updates": 2, "seed": 0, "caatr": False, "policy_kwargs": {"net_arch": [8]}}


def _env(**kwargs):
    return SimpleSpreadVecEnv(n_copies=4, max_cycles=8, seed=0, **kwargs)


@pytest.mark.parametrize("arch", [[7], [7, 6], [7, 6, 5]], ids=len)
@pytest.mark.parametrize("activation", [th.nn.Tanh, th.nn.ReLU])
@pytest.mark.parametrize("alike", [False, True], ids=["candidates of each state", "candidates of all states"])
def test_responses_are_the_critics_with_one_action_replaced(arch, activation, alike):
    critics = JointCritics(3, 4, 2, 5, arch, activation).double()
    states, joint = th.randn(6, 4).double(), th.randn(6, 3, 2, 5).double()
    candidates = th.randn(1 if alike else 6, 8, 5).double()
    for agent in range(2):
        found = critics.responses(states, joint, agent, candidates)
        assert found.shape == (3, 6, 3, 8)
        for state in range(6):
            for row in range(3):
                actions = joint[state, row].expand(8, -1, -1).clone()
                actions[:, agent] = candidates[0 if alike else state]
                expected = critics(states[state].expand(8, -1), actions)
                th.testing.assert_close(found[:, state, row], expected)


def test_critics_of_an_ensemble_differ_from_the_start():
    model = WMATRPO("MlpPolicy", _env(), **SMALL, n_critics=4)
    values = model.policy.joint_critics(th.randn(10, model.policy.joint_critics.networks.state_width), th.zeros(10, 3, 5))
    assert values.shape == (4, 10)
    assert float(values.detach().std(0).min()) > 1e-4


# ---------------------------------------------------------------- the target
def _online(policy):
    return [*policy.vf_extractors.parameters(), *policy.vf_net.parameters(), *policy.value_net.parameters()]


@pytest.mark.parametrize("tau", [1.0, 0.0, 0.25])
def test_the_target_takes_over_its_share_of_the_critic_after_each_round(tau):
    model = WMATRPO("MlpPolicy", _env(), **SMALL, tau=tau)
    policy = model.policy
    assert all(th.equal(a, b) for a, b in zip(_online(policy), policy.target.parameters(), strict=True))
    for _ in range(2):
        before = clone(policy.target.parameters())
        rounds(model, 1)
        for old, online, target in zip(before, _online(policy), policy.target.parameters(), strict=True):
            assert not th.equal(old, online)
            if tau in (0.0, 1.0):
                assert th.equal(target, online if tau else old)
            th.testing.assert_close(target, tau * online.detach() + (1 - tau) * old)


def test_returns_come_from_the_target_and_fits_move_the_critic():
    model = WMATRPO("MlpPolicy", _env(), **SMALL, tau=0.0)
    rounds(model, 2)
    policy = model.policy
    buffer = collect(model).rollout_buffer
    observations, states = buffer.observations.flatten(0, 1), buffer.states.flatten(0, 1)
    with th.no_grad():
        target, online = policy.team_values(observations, states), policy.online_values(observations, states)
        by_hand = policy.target["value_net"](policy.target["vf_net"](states.unsqueeze(0))).squeeze(0)
    th.testing.assert_close(target, by_hand)
    th.testing.assert_close(buffer.values.flatten(0, 1), target)
    assert float((target - online).abs().max()) > 0.01
    assert not any(parameter.requires_grad for parameter in policy.target.parameters())


def test_a_loaded_model_and_a_loaded_policy_have_their_targets(tmp_path):
    model = WMATRPO("MlpPolicy", _env(), **SMALL, tau=0.3, n_critics=2)
    rounds(model, 2)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    for policy in (WMATRPO.load(tmp_path / "model").policy, MlpPolicy.load(tmp_path / "policy")):
        assert policy.n_joint_critics == 2
        assert all(th.equal(a, b) for a, b in zip(model.policy.parameters(), policy.parameters(), strict=True))
        assert not all(th.equal(a, b) for a, b in zip(_online(policy), policy.target.parameters(), strict=True))


# ---------------------------------------------------------------- whose parameters are whose
@pytest.mark.parametrize("continuous", [False, True])
def test_as_many_critics_as_agents_are_not_taken_for_the_agents_own(continuous):
    model = WMATRPO("MlpPolicy", _env(continuous_actions=continuous), **SMALL, n_critics=3)
    policy = model.policy
    # Both are stacks of three.
    assert policy.joint_critics.networks.first.n_sets == policy.action_net.n_sets == 3
    actor = {id(parameter) for parameter in policy.actor_parameters()}
    assert not actor & {id(parameter) for parameter in policy.joint_critics.parameters()}
    assert not actor & {id(parameter) for parameter in policy.target.parameters()}
    stacked, apart = parameter_groups(policy)
    assert {id(parameter) for parameter in stacked} == actor
    assert not apart
    for agent in range(3):
        view = policy.agent(agent)
        assert view.joint_critics is policy.joint_critics
        # Two layers of weights and biases, and the deviations.
        assert [len(parameter) for parameter in view.actor_parameters()] == [1] * (5 if continuous else 4)


@pytest.mark.parametrize("n_critics", [1, 3])
def test_joint_critics_are_fitted_once_before_the_actors_which_leave_them_alone(n_critics, monkeypatch):
    model = collect(WMATRPO("MlpPolicy", _env(), **SMALL, n_critics=n_critics))
    seen = []

    def watch(problem):
        seen.append(clone(model.policy.joint_critics.parameters()))
        return update(problem)

    update = model._update_agent
    monkeypatch.setattr(model, "_update_agent", watch)
    before = clone(model.policy.joint_critics.parameters())
    model.train()
    after = clone(model.policy.joint_critics.parameters())
    for fitted in seen:
        assert all(th.equal(a, b) for a, b in zip(fitted, after, strict=True))
    for old, new in zip(before, after, strict=True):
        # Every critic of the ensemble has moved.
        assert all(not th.equal(a, b) for a, b in zip(old, new, strict=True))


# ---------------------------------------------------------------- what the critics read
def _policy(own, space):
    agents = tuple(f"agent_{k}" for k in range(len(own)))
    observations = dict.fromkeys(agents, spaces.Box(-1, 1, (2,), np.float32))
    layout = TeamLayout(agents, 1, observations, dict(zip(agents, own, strict=True)))
    return MlpPolicy(observations[agents[0]], space, lambda _: 1e-3, layout=layout)


def test_choices_are_read_as_indicators():
    policy = _policy([spaces.Discrete(3), spaces.Discrete(2)], spaces.Discrete(3))
    encoded = policy.encode_actions(th.tensor([[2, 0], [1, 1]]))
    assert encoded.tolist() == [[[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]]]


def test_vectors_are_clipped_to_the_box_which_is_stretched_over_the_unit_one():
    box = spaces.Box(np.array([0.0, -2.0], np.float32), np.array([4.0, 2.0], np.float32))
    policy = _policy([box, box], box)
    encoded = policy.encode_actions(th.tensor([[[0.0, 2.0], [3.0, 0.0]], [[-9.0, 9.0], [1.0, -1.0]]]))
    assert encoded.tolist() == [[[-1.0, 1.0], [0.5, 0.0]], [[-1.0, 1.0], [-0.5, -0.5]]]


def test_critics_without_hidden_layers_get_two_because_candidates_enter_in_the_first():
    model = WMATRPO("MlpPolicy", _env(), **{**SMALL, "policy_kwargs": {"net_arch": []}})
    assert model.policy.joint_critics.networks.first.out_features == 64
    assert rounds(model, 1)[0]["train/is_update_accepted"] > 0.0
