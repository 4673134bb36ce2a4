"""One agent of a stacked policy: a view on its memory, at one agent's price, that takes the trust-region steps of SB3's."""

import copy

import numpy as np
import pytest
import torch as th
from core_toys import copy_to_sb3
from gymnasium import spaces
from sb3_contrib.common.utils import conjugate_gradient_solver, flat_grad
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch.nn.utils import parameters_to_vector
from torch.utils.flop_counter import FlopCounterMode

from otbaselines.common.multi_agent.agent_view import set_flat_parameters
from otbaselines.common.multi_agent.policies import MultiAgentActorCriticCnnPolicy, MultiAgentActorCriticPolicy
from otbaselines.common.vec_env.layout import TeamLayout

OBS = spaces.Box(-5, 5, (6,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
}


class Widening(FlattenExtractor):
    """An extractor with parameters."""

    def __init__(self, observation_space, features_dim=5):
        super().__init__(observation_space)
        self._features_dim = features_dim
        self.linear = th.nn.Linear(6, features_dim)

    def forward(self, observations):
        return self.linear(super().forward(observations)).relu()


def _policy(n_agents=3, obs=OBS, action=ACTIONS["box"], own=None, cls=MultiAgentActorCriticPolicy, **kwargs):
    th.manual_seed(0)
    agents = tuple(f"agent_{k}" for k in range(n_agents))
    layout = TeamLayout(agents, 1, dict.fromkeys(agents, obs), own or dict.fromkeys(agents, action))
    policy = cls(obs, action, lambda _: 3e-4, layout=layout, **kwargs)
    with th.no_grad():
        policy.action_net.weight.mul_(100.0)
        for parameter in policy.parameters():
            # Biases and deviations start equal, which would hide a mistaken order.
            parameter.add_(0.1 * th.randn_like(parameter))
    return policy


def _team(policy, batch=7):
    space = policy.observation_space
    space.seed(0)
    return th.as_tensor(np.stack([space.sample() for _ in range(batch * policy.n_agents)])).unflatten(0, (batch, -1))


def _equal(a, b):
    th.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


VARIANTS = {
    **{kind: {"action": space} for kind, space in ACTIONS.items()},
    "padded": {"action": ACTIONS["discrete"], "own": {f"agent_{k}": spaces.Discrete(2 + k) for k in range(3)}},
    "identity": {"append_agent_id": True},
    "gsde": {"use_sde": True},
    "extractor": {"features_extractor_class": Widening},
    "two_extractors": {"features_extractor_class": Widening, "share_features_extractor": False},
    "image": {"obs": IMAGE, "cls": MultiAgentActorCriticCnnPolicy},
    "shared": {"share_parameters": True},
    "shared_identity": {"share_parameters": True, "append_agent_id": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_view_of_an_agent_computes_what_the_team_computes_for_it(variant):
    policy = _policy(**VARIANTS[variant])
    if policy.use_sde:
        policy.reset_noise(21)
    team = _team(policy)
    distribution, values = policy.team_distribution(team), policy.team_values(team)
    actions = distribution.sample()
    everything = policy.evaluate_team_actions(team, actions)
    for agent in range(3):
        view, own = policy.agent(agent), slice(agent, agent + 1)
        _equal(view.team_distribution(team[:, own]).kl(distribution.select(agent)), th.zeros(7, 1))
        _equal(view.team_values(team[:, own]), values[:, own])
        evaluation = view.evaluate_team_actions(team[:, own], actions[:, own])
        for name in ("values", "log_prob", "entropy"):
            _equal(getattr(evaluation, name), getattr(everything, name)[:, own])
        _equal(
            view.policies_at(team[:, 0]).entropy().squeeze(1),
            policy.policies_at(team[:, 0]).entropy()[:, agent],
        )
        assert view.layout.possible_agents == (f"agent_{agent}",)
        if policy.use_sde:
            # With the same noise matrices.
            _equal(view.team_distribution(team[:, own]).sample(), actions[:, own])


@pytest.mark.parametrize("variant", ["box", "two_extractors", "extractor", "shared"])
def test_the_view_shares_memory_and_touches_nobody_else(variant):
    policy = _policy(**VARIANTS[variant])
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    view = policy.agent(1)
    parameters = list(view.parameters())
    set_flat_parameters(parameters, parameters_to_vector(parameters) + 1.0)
    for name, p in policy.named_parameters():
        apart = "extractors" in name
        changed = (".1." in name) if apart else th.tensor([k == 1 for k in range(len(p))])
        if policy.share_parameters:
            changed = True
        _equal(p - before[name], th.ones_like(p) * th.as_tensor(changed).float().view(-1, *[1] * (p.ndim - 1)))
    policy.load_state_dict({name: th.zeros_like(p) for name, p in policy.state_dict().items()})
    assert all((p == 0).all() for p in view.parameters())


def test_gradients_of_a_view_are_the_agents_share_of_the_teams():
    policy = _policy()
    team, actions = _team(policy), th.zeros(7, 3, 2)
    evaluation = policy.evaluate_team_actions(team, actions)
    (evaluation.log_prob + evaluation.values).sum().backward()
    for agent in range(3):
        view, own = policy.agent(agent), slice(agent, agent + 1)
        alone = view.evaluate_team_actions(team[:, own], actions[:, own])
        (alone.log_prob + alone.values).sum().backward()
        for (name, mine), theirs in zip(view.named_parameters(), policy.parameters(), strict=True):
            th.testing.assert_close(mine.grad, theirs.grad[own], atol=1e-5, rtol=1e-5, msg=name)


def test_the_view_cannot_step_the_team_by_accident_and_its_own_optimizer_moves_one_agent():
    policy = _policy()
    view = policy.agent(2)
    assert not hasattr(view, "optimizer")
    before = policy.pi_net.layers[0].weight.detach().clone()
    optimizer = view.make_optimizer(view.actor_parameters(), 1e-2)
    view.team_distribution(_team(policy)[:, 2:]).entropy().sum().backward()
    view.team_distribution(_team(policy)[:, 2:]).mode().sum().backward()
    view.clip_gradients(0.5)
    assert th.linalg.vector_norm(th.cat([p.grad.flatten() for p in view.actor_parameters()])) == pytest.approx(0.5, abs=1e-4)
    optimizer.step()
    moved = (policy.pi_net.layers[0].weight != before).flatten(1).any(1)
    assert moved.tolist() == [False, False, True]


def test_there_are_only_as_many_views_as_agents():
    with pytest.raises(IndexError, match="`index` must be from 0 to 2, got 3"):
        _policy().agent(3)


def test_a_flat_vector_of_another_size_is_an_error():
    parameters = _policy().agent(0).actor_parameters()
    with pytest.raises(ValueError, match="`vector` must have the shape"):
        set_flat_parameters(parameters, th.zeros(3))


# ---------------------------------------------------------------- trust regions
@pytest.mark.parametrize("kind", ["box", "discrete"])
def test_a_natural_gradient_step_of_one_agent_is_that_of_an_sb3_policy_with_its_weights(kind, monkeypatch):
    # Which casts to single precision.
    monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", lambda obs, *_, **__: obs)
    policy = _policy(action=ACTIONS[kind], net_arch=[8, 8]).double()
    team = _team(policy).double()
    for agent in range(3):
        view = policy.agent(agent)
        target = ActorCriticPolicy(OBS, ACTIONS[kind], lambda _: 3e-4, net_arch=[8, 8]).double()
        copy_to_sb3(policy, target, agent)
        own, theirs = view.actor_parameters(), [p for n, p in target.named_parameters() if "value" not in n]
        distribution = view.team_distribution(team[:, agent : agent + 1])
        kl = distribution.detach().kl(distribution).mean()
        gradient = flat_grad(kl, own, create_graph=True, retain_graph=True)
        with th.no_grad():
            # SB3 writes into one distribution.
            old = copy.copy(target.get_distribution(team[:, agent]))
        divergence = kl_divergence(old, target.get_distribution(team[:, agent]))
        their_kl = divergence.sum(-1).mean() if kind == "box" else divergence.mean()
        their_gradient = flat_grad(their_kl, theirs, create_graph=True, retain_graph=True)
        # The same vector in both orders of parameters, weights transposed.
        order = _order(own, theirs)
        vector = th.randn(len(their_gradient), dtype=th.float64)
        mine = th.empty_like(vector)
        mine[order] = vector
        ours = flat_grad((gradient * mine).sum(), own, retain_graph=True)
        oracle = flat_grad((their_gradient * vector).sum(), theirs, retain_graph=True)
        th.testing.assert_close(ours[order], oracle, atol=1e-10, rtol=1e-8)
        assert ours.abs().max() > 1e-3
        step = conjugate_gradient_solver(
            lambda v, g=gradient, own=own: flat_grad((g * v).sum(), own, retain_graph=True) + 0.1 * v, mine, 50, 1e-14
        )
        th.testing.assert_close(
            flat_grad((gradient * step).sum(), own, retain_graph=True) + 0.1 * step, mine, atol=1e-6, rtol=0
        )


def _order(own, theirs):
    """Positions of SB3's flat parameters among ours; they are recognised by their contents."""
    positions = th.arange(sum(p.numel() for p in own)).split([p.numel() for p in own])
    found = []
    for p in theirs:
        wanted = p.detach().T if p.ndim == 2 else p.detach()
        (index,) = (i for i, q in zip(positions, own, strict=True) if th.equal(q.detach().squeeze(0).squeeze(0), wanted))
        found.append((index.view_as(wanted).T if p.ndim == 2 else index).flatten())
    return th.cat(found)


def test_sixteen_views_one_after_another_cost_what_sixteen_single_policies_cost():
    def flops(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    def fisher_product(view, rows):
        distribution, parameters = view.team_distribution(rows), view.actor_parameters()
        kl = distribution.detach().kl(distribution).mean()
        gradient = flat_grad(kl, parameters, create_graph=True, retain_graph=True)
        flat_grad((gradient * gradient.detach()).sum(), parameters)

    team, single = _policy(16), _policy(1)
    rows = _team(team)
    alone = flops(lambda: fisher_product(single, rows[:, :1]))
    assert alone > 0
    assert flops(lambda: [fisher_product(team.agent(k), rows[:, k : k + 1]) for k in range(16)]) == 16 * alone


# ---------------------------------------------------------------- actors and critics
@pytest.mark.parametrize("variant", ["box", "gsde", "extractor", "two_extractors", "shared"])
def test_actor_and_critic_parameters_are_disjoint_complete_and_what_their_losses_reach(variant):
    policy = _policy(**VARIANTS[variant])
    actor, critic = policy.actor_parameters(), policy.critic_parameters()
    everything = list(policy.parameters())
    assert sorted(map(id, actor + critic)) == sorted(map(id, everything))
    team = _team(policy)
    of_critic = th.autograd.grad(policy.team_values(team).sum(), everything, allow_unused=True)
    reached = {id(p) for p, grad in zip(everything, of_critic, strict=True) if grad is not None}
    shared_extractor = variant == "extractor"
    extractors = {id(p) for p in policy.pi_extractors.parameters()}
    # A shared extractor learns with the actors, though the critics read it.
    assert reached - (extractors if shared_extractor else set()) == set(map(id, critic))
    d = policy.team_distribution(team)
    of_actor = th.autograd.grad((d.log_prob(d.sample().detach()) + d.entropy()).sum(), everything, allow_unused=True)
    assert {id(p) for p, grad in zip(everything, of_actor, strict=True) if grad is not None} == set(map(id, actor))


def test_actors_and_critics_can_be_stepped_separately_and_together_make_the_joint_step():
    joint, apart = _policy(), _policy()
    optimizers = [apart.make_optimizer(ps, 3e-4) for ps in (apart.actor_parameters(), apart.critic_parameters())]
    for policy in (joint, apart):
        evaluation = policy.evaluate_team_actions(_team(policy), th.zeros(7, 3, 2))
        (evaluation.log_prob + evaluation.values).sum().backward()
    start = [p.detach().clone() for p in apart.critic_parameters()]
    optimizers[0].step()
    assert all(th.equal(p, old) for p, old in zip(apart.critic_parameters(), start, strict=True))
    optimizers[1].step()
    joint.optimizer.step()
    assert all(th.equal(p, q) for p, q in zip(joint.parameters(), apart.parameters(), strict=True))
