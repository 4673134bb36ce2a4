"""Team PPO: every loss and gradient against SB3's policies under the loss as published, and what may not influence them."""

import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv, WanderersEnv, copy_to_sb3, sb3_ppo_backward, stacked_gradients
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import explained_variance as sb3_explained_variance
from toy_teams import CustomSpacesEnv, vector

from otbaselines.common.multi_agent.buffers import AgentRolloutSamples
from otbaselines.common.multi_agent.losses import (
    agent_mean,
    clipped_surrogate,
    explained_variance,
    normalize_advantages,
    squared_value_error,
)
from otbaselines.common.networks.parameter_sets import missed_steps
from otbaselines.common.training import Metrics
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.ippo import IPPO

ACTIONS = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
}
SETTINGS = {"clip_range": 0.1, "clip_range_vf": None, "ent_coef": 0.03, "vf_coef": 0.7, "max_grad_norm": 0.2}


def _team(n_agents, action, **kwargs):
    agents = [f"agent_{k}" for k in range(n_agents)]
    env = CustomSpacesEnv(dict.fromkeys(agents, vector(6)), dict.fromkeys(agents, action))
    return IPPO("MlpPolicy", env, n_steps=16, batch_size=16 * n_agents, n_epochs=1, seed=0, **kwargs)


def _batch(model, n=16, seed=1):
    """A minibatch whose likelihood ratios and values have moved on both sides of the clipping bounds."""
    th.manual_seed(seed)
    with th.no_grad():
        model.policy.action_net.weight.mul_(50.0)
    n_agents = model.layout.n_agents
    obs = th.rand(n, n_agents, 6) * 2 - 1
    with th.no_grad():
        actions = model.policy.team_distribution(obs).sample()
        now = model.policy.evaluate_team_actions(obs, actions)

    def noise():
        return th.randn(n, n_agents)

    return AgentRolloutSamples(
        obs, actions, now.values + noise(), now.log_prob + 0.2 * noise(), noise() * 3 + 1, now.values + 2 * noise(), None
    )


def _rows(batch, agents):
    def take(tensor):
        return tensor[:, agents].flatten(0, 1)

    names = {"obs": "observations", "actions": "actions", **{k: k for k in ("old_values", "old_log_prob")}}
    names |= {"advantages": "advantages", "returns": "returns"}
    return {name: take(getattr(batch, attribute)) for name, attribute in names.items()}


def _update_without_step(model, batch):
    """The loss and, in the parameters, the clipped gradients of the model's own update, on a batch as the buffer gives it."""
    scaled = normalize_advantages(batch.advantages, batch.active, pooled=model.share_parameters)
    batch = replace(batch, advantages=scaled)
    model.policy.optimizer.step = lambda: None
    metrics = Metrics(model._summarize)
    assert model._update(batch, metrics)
    return metrics.means()


def _assert_gradients_equal(model, target, agent=0):
    for name, (ours, theirs) in stacked_gradients(model.policy, target, agent).items():
        th.testing.assert_close(ours, theirs, atol=1e-6, rtol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize(
    "change", [{}, {"clip_range_vf": 0.5}, {"max_grad_norm": 1e6, "ent_coef": 0.0}], ids=["default", "clip_vf", "no_clip"]
)
def test_a_team_of_one_has_the_loss_and_gradient_of_sb3(kind, change):
    settings = {**SETTINGS, **change}
    model = _team(1, ACTIONS[kind], **settings)
    batch = _batch(model)
    target = ActorCriticPolicy(vector(6), ACTIONS[kind], lambda _: 3e-4)
    copy_to_sb3(model.policy, target)
    expected = sb3_ppo_backward(target, _rows(batch, [0]), settings)
    assert _update_without_step(model, batch)["train/loss"] == pytest.approx(float(expected), abs=2e-6, rel=2e-6)
    _assert_gradients_equal(model, target)


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_separate_parameters_have_the_gradients_of_agents_trained_alone(kind):
    # Normalisation of advantages and clipping of gradients are the agent's own, so the three losses just add up.
    model = _team(3, ACTIONS[kind], **SETTINGS)
    batch, total = _batch(model), 0.0
    targets = [ActorCriticPolicy(vector(6), ACTIONS[kind], lambda _: 3e-4) for _ in range(3)]
    for agent, target in enumerate(targets):
        copy_to_sb3(model.policy, target, agent)
        total += float(sb3_ppo_backward(target, _rows(batch, [agent]), SETTINGS))
    assert _update_without_step(model, batch)["train/loss"] == pytest.approx(total, abs=5e-6, rel=2e-6)
    for agent, target in enumerate(targets):
        _assert_gradients_equal(model, target, agent)


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_shared_parameters_have_the_gradient_of_sb3_on_slots(kind):
    model = _team(3, ACTIONS[kind], share_parameters=True, **SETTINGS)
    batch = _batch(model)
    target = ActorCriticPolicy(vector(6), ACTIONS[kind], lambda _: 3e-4)
    copy_to_sb3(model.policy, target)
    expected = sb3_ppo_backward(target, _rows(batch, [0, 1, 2]), SETTINGS)
    assert _update_without_step(model, batch)["train/loss"] == pytest.approx(float(expected), abs=2e-6, rel=2e-6)
    _assert_gradients_equal(model, target)


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_training_on_a_rollout_moves_the_parameters_as_sb3_does(kind):
    # One minibatch per epoch, so that the order in which rows are drawn does not matter.
    settings = {"n_steps": 32, "batch_size": 32, "n_epochs": 4, "learning_rate": 1e-3, "ent_coef": 0.01, "seed": 0}
    env = AnySpacesEnv(vector(6), ACTIONS[kind])
    theirs = PPO("MlpPolicy", env, device="cpu", **settings)
    ours = IPPO("MlpPolicy", AnySpacesEnv(vector(6), ACTIONS[kind]), device="cpu", **settings)
    for model in (ours, theirs):
        model.set_logger(Logger(None, []))
    copy_to_sb3(ours.policy, theirs.policy)
    rng = np.random.default_rng(0)
    starts = np.ones(1)
    theirs.rollout_buffer.reset()
    for _ in range(32):
        obs = th.as_tensor(rng.uniform(-1, 1, (1, 6)), dtype=th.float32)
        with th.no_grad():
            actions, values, log_prob = theirs.policy(obs)
        reward, done = rng.normal(size=1), rng.random(1) < 0.2
        theirs.rollout_buffer.add(obs.numpy(), actions.numpy().reshape(1, -1), reward, starts, values, log_prob)
        act = actions.unsqueeze(0) if kind == "box" else actions.view(1, 1)
        row = (obs.unsqueeze(0), act, log_prob.view(1, 1), th.as_tensor(reward).view(1, 1), th.as_tensor(done).view(1, 1))
        ours.rollout_buffer.add(*row)
        starts = done
    last = th.tensor([0.3])
    theirs.rollout_buffer.compute_returns_and_advantage(last, starts)
    values = ours._rollout_values(ours.rollout_buffer.observations)
    ours.rollout_buffer.compute_returns_and_advantages(values, last.view(1, 1))
    before = theirs.policy.state_dict()["action_net.weight"].clone()
    ours.train()
    theirs.train()
    reference = ActorCriticPolicy(vector(6), ACTIONS[kind], lambda _: 3e-4)
    copy_to_sb3(ours.policy, reference)
    moved = theirs.policy.state_dict()
    for name, value in reference.state_dict().items():
        th.testing.assert_close(value, moved[name], atol=2e-5, rtol=0)
    assert (moved["action_net.weight"] - before).abs().max() > 1e-3
    logged, expected = ours.logger.name_to_value, theirs.logger.name_to_value
    assert set(logged) == set(expected)
    # SB3 logs the last minibatch's loss and the last epoch's divergence, where we log means over the update.
    for name in set(expected) - {"train/loss", "train/approx_kl"}:
        assert logged[name] == pytest.approx(expected[name], abs=1e-5, rel=1e-3), name


# ---------------------------------------------------------------- agents that have left
def _with_absent(batch, garbage):
    active = th.ones(16, 3, dtype=th.bool)
    active[5:, 0] = active[11:, 2] = False
    fields = {}
    for name in ("observations", "old_values", "old_log_prob", "advantages", "returns"):
        value = getattr(batch, name).clone()
        value[~active] = garbage
        fields[name] = value
    return AgentRolloutSamples(actions=batch.actions, active=active, **fields)


@pytest.mark.parametrize("garbage", [3.0, -1e4])
@pytest.mark.parametrize("share_parameters", [False, True])
def test_rows_of_agents_that_have_left_have_no_influence(share_parameters, garbage):
    gradients, losses = [], []
    for value in (0.0, garbage):
        model = _team(3, ACTIONS["discrete"], share_parameters=share_parameters, **SETTINGS)
        losses.append(_update_without_step(model, _with_absent(_batch(model), value)))
        gradients.append([parameter.grad for parameter in model.policy.parameters()])
    assert losses[0] == losses[1]
    assert all(th.isfinite(grad).all() for grad in gradients[1])
    assert all((first == second).all() for first, second in zip(*gradients, strict=True))


def test_an_agent_that_left_early_has_the_gradient_of_its_own_steps_alone():
    model = _team(3, ACTIONS["discrete"], **SETTINGS)
    batch = _with_absent(_batch(model), 7.0)
    target = ActorCriticPolicy(vector(6), ACTIONS["discrete"], lambda _: 3e-4)
    copy_to_sb3(model.policy, target, 0)
    rows = {name: value[:5] for name, value in _rows(batch, [0]).items()}
    sb3_ppo_backward(target, rows, SETTINGS)
    _update_without_step(model, batch)
    _assert_gradients_equal(model, target, 0)


@pytest.mark.parametrize("truncates", [False, True])
def test_a_team_whose_members_leave_early_learns_from_their_living_steps(truncates):
    env = ParallelVecEnv([lambda: WanderersEnv(truncates=truncates)] * 2, seed=0)
    model = IPPO("MlpPolicy", env, n_steps=14, batch_size=42, n_epochs=1, seed=0).learn(84)
    buffer = model.rollout_buffer
    # Lives of 3, 7 and 5 steps: two episodes of 7 steps each.
    assert buffer.active.sum((0, 1)).tolist() == [12, 28, 20]
    assert buffer.dones.sum((0, 1)).tolist() == [4, 4, 4]
    assert ((buffer.bootstrap != 0) == (buffer.dones & truncates)).all()
    # The last living step of each agent sees no value from after its own end.
    last = buffer.dones
    expected = buffer.rewards + model.gamma * buffer.bootstrap
    th.testing.assert_close(buffer.returns[last], expected[last], atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- the pieces
def test_the_clipped_surrogate_is_the_pessimistic_one():
    ratio = th.tensor([0.5, 0.5, 1.5, 1.5, 1.0])
    advantages = th.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    # min(r A, clip(r, .8, 1.2) A), worked out by hand.
    assert clipped_surrogate(ratio, advantages, 0.2).tolist() == pytest.approx([0.5, -0.8, 1.2, -1.5, 2.0])


def test_the_clipped_surrogate_moves_only_what_is_not_clipped_away():
    ratio = th.tensor([0.5, 0.5, 1.5, 1.5, 1.0, 1.25, 0.75, 0.5], requires_grad=True)
    advantages = th.tensor([1.0, -1.0, 1.0, -1.0, 2.0, 3.0, -3.0, 0.0])
    # dA r / dr = A wherever the first term of the minimum is the smaller one, or both are equal: within and on the bounds.
    by_hand = [1.0, 0.0, 0.0, -1.0, 2.0, 3.0, -3.0, 0.0]
    assert th.autograd.grad(clipped_surrogate(ratio, advantages, 0.25).sum(), ratio)[0].tolist() == by_hand


def test_the_clipped_surrogate_and_its_gradient_are_those_of_the_minimum_bit_for_bit():
    ratio, advantages = (0.3 * th.randn(2000, 3)).exp().requires_grad_(), th.randn(2000, 3)
    minimum = th.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2))
    ours = clipped_surrogate(ratio, advantages, 0.2)
    assert th.equal(ours, minimum)
    assert th.equal(*(th.autograd.grad(x.sum(), ratio)[0] for x in (ours, minimum)))


def test_the_change_of_a_value_is_clipped():
    error = squared_value_error(th.tensor([3.0, -3.0, 0.1]), th.zeros(3), th.tensor([1.0, 1.0, 1.0]), 0.5)
    assert error.tolist() == pytest.approx([0.25, 2.25, 0.81])


@pytest.mark.parametrize("pooled", [False, True])
def test_advantages_are_normalised_over_what_was_lived(pooled):
    advantages = th.randn(10, 2, dtype=th.float64) * 3 + th.tensor([5.0, -2.0])
    active = th.rand(10, 2) < 0.6
    ours = normalize_advantages(advantages, active, pooled=pooled)
    groups = [active] if pooled else [active & (th.arange(2) == k) for k in range(2)]
    for group in groups:
        lived = advantages[group]
        expected = (lived - lived.mean()) / (lived.std() + 1e-8)
        th.testing.assert_close(ours[group], expected, atol=1e-12, rtol=0)


def test_a_mean_over_nobody_is_zero():
    nobody = th.zeros(4, 2, dtype=th.bool)
    assert agent_mean(th.ones(4, 2), nobody, pooled=False).tolist() == [0.0, 0.0]
    assert agent_mean(th.ones(4, 2), nobody, pooled=True) == 0.0


# ---------------------------------------------------------------- stopping and recovering
def test_an_update_stops_before_the_step_that_would_exceed_target_kl():
    model = _team(2, ACTIONS["discrete"], target_kl=1e-9)
    batch = _batch(model)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    assert not model._update(batch, Metrics())
    assert all((old == new).all() for old, new in zip(before, model.policy.parameters(), strict=True))


def _ready(n_agents, **settings):
    model = _team(n_agents, ACTIONS["discrete"], **settings)
    model.n_epochs, model.batch_size = 6, 4 * n_agents
    model.set_logger(Logger(None, []))
    return model


def _fill(model, seed):
    """Random experience, with the likelihoods and values of the present policies."""
    buffer, rng = model.rollout_buffer, th.Generator().manual_seed(seed)
    buffer.observations.copy_(th.rand(buffer.observations.shape, generator=rng) * 2 - 1)
    buffer.actions.copy_(th.randint(4, buffer.actions.shape, generator=rng))
    buffer.advantages.copy_(th.randn(buffer.advantages.shape, generator=rng))
    buffer.returns.copy_(buffer.advantages)
    with th.no_grad():
        now = model.policy.evaluate_team_actions(buffer.observations.flatten(0, 1), buffer.actions.flatten(0, 1))
    buffer.log_probs.copy_(now.log_prob.view_as(buffer.log_probs))
    buffer.values.copy_(now.values.view_as(buffer.values))
    buffer.pos = buffer.n_steps


def _of_agent(model, agent):
    """Bits of one agent's parameters and of its part of the optimizer's state."""
    bits = {}
    for name, parameter in model.policy.named_parameters():
        bits[name] = parameter.detach()[agent].clone()
        for key, value in model.policy.optimizer.state[parameter].items():
            if value.shape == parameter.shape:
                bits[f"{name}/{key}"] = value[agent].clone()
    return bits


def _missed(model):
    return missed_steps(model.policy.optimizer, model.layout.n_agents)


def _equal(first, second):
    return first.keys() == second.keys() and all(th.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.RMSprop, th.optim.SGD])
def test_an_agent_that_jumps_stops_alone(optimizer):
    models = []
    for jump in (0.0, 3.0):
        kwargs = {
            "policy_kwargs": {
                "optimizer_class": optimizer,
                **({"optimizer_kwargs": {"momentum": 0.5}} if optimizer is th.optim.SGD else {}),
            }
        }
        model = _ready(3, target_kl=0.5, learning_rate=1e-3, **kwargs)
        for seed in range(2):
            _fill(model, seed)
            before = _of_agent(model, 1)
            # Only in the second update, so that there are moments that could change.
            model.rollout_buffer.log_probs[:, :, 1] += jump if seed == 1 else 0.0
            th.manual_seed(seed)
            model.train()
        models.append(model)
    free, jumped = models
    assert _missed(free) == [0, 0, 0]
    assert _missed(jumped) == [0, 24, 0]
    assert _equal(_of_agent(jumped, 1), before)
    assert not _equal(_of_agent(free, 1), before)
    for agent in (0, 2):
        assert _equal(_of_agent(free, agent), _of_agent(jumped, agent))


def _single(team, agent):
    """A team of one that is this agent of the team: its parameters and its share of the rollout."""
    single = _ready(1, target_kl=team.target_kl, learning_rate=team.learning_rate)
    single.policy.load_state_dict({name: value[agent : agent + 1] for name, value in team.policy.state_dict().items()})
    return single


def test_agents_that_stop_and_go_on_learn_as_if_each_were_trained_alone():
    # Each agent stops somewhere else in each update, and Adam's young moments depend on the number of its own steps.
    team = _ready(3, target_kl=0.02, learning_rate=3e-3)
    singles = [_single(team, agent) for agent in range(3)]
    for seed in range(4):
        _fill(team, seed)
        for agent, single in enumerate(singles):
            for name in ("observations", "actions", "log_probs", "values", "advantages", "returns"):
                own = getattr(team.rollout_buffer, name)[:, :, agent : agent + 1]
                getattr(single.rollout_buffer, name).copy_(own)
            th.manual_seed(seed)
            single.train()
        th.manual_seed(seed)
        team.train()
    assert len(set(_missed(team))) > 1
    assert max(_missed(team)) < 4 * 24
    for agent, single in enumerate(singles):
        for name, value in single.policy.state_dict().items():
            th.testing.assert_close(team.policy.state_dict()[name][agent], value[0], atol=2e-6, rtol=1e-4)


def test_shared_parameters_stop_as_one():
    model = _ready(3, target_kl=0.4, share_parameters=True)
    _fill(model, 0)
    model.train()
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    _fill(model, 1)
    # The mean over agents decides: 3.0 for one of three is a divergence of (exp(-3) - 1 + 3) / 3 = 0.68.
    model.rollout_buffer.log_probs[:, :, 1] += 3.0
    model.train()
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


def _stopped(target_kl=0.01, timesteps=128):
    env = ParallelVecEnv(lambda: WanderersEnv((20, 20)), 2, seed=0)
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 6, "learning_rate": 1e-2, "target_kl": target_kl, "seed": 0}
    return IPPO("MlpPolicy", env, **settings).learn(timesteps)


def _exchange(model, route, path):
    if route == "parameters":
        model.set_parameters(IPPO("MlpPolicy", model.env, n_steps=16, batch_size=16, seed=0).get_parameters())
    elif route == "optimizer":
        model.policy.optimizer = model.policy.make_optimizer(model.policy.parameters(), 1e-2)
    elif route == "policy":
        model.policy.save(path)
        model.policy = type(model.policy).load(path)
    else:
        model.set_parameters(
            {"policy.optimizer": model.policy.make_optimizer(model.policy.parameters(), 1e-2).state_dict()}, False
        )


@pytest.mark.parametrize("route", ["parameters", "optimizer", "policy", "optimizer_state"])
def test_a_fresh_optimizer_has_missed_no_steps(route, tmp_path):
    # A count that outlived its optimizer would make Adam's corrections negative, and the parameters NaN.
    model = _stopped()
    assert sum(_missed(model)) > 0
    _exchange(model, route, tmp_path / "policy")
    assert _missed(model) == [0, 0]
    model.learn(128, reset_num_timesteps=False)
    assert sum(_missed(model)) > 0


def test_steps_that_were_missed_go_with_the_parameters(tmp_path):
    model = _stopped()
    missed = _missed(model)
    assert sum(missed) > 0
    model.save(tmp_path / "model")
    fresh = _stopped(None, 64)
    fresh.set_parameters(model.get_parameters())
    assert _missed(IPPO.load(tmp_path / "model")) == _missed(fresh) == missed
    taken = model.get_parameters()
    model.learn(128, reset_num_timesteps=False)
    assert _missed(model) != missed
    assert taken["policy.optimizer"]["param_groups"][0]["missed_steps"] == missed


def test_an_interrupted_update_keeps_the_count_of_its_steps():
    model, calls = _stopped(timesteps=64), []
    loss, before = model._ppo_loss, sum(_missed(model))

    def interrupted(*args):
        calls.append(sum(_missed(model)))
        if sum(_missed(model)) > before:
            raise KeyboardInterrupt
        return loss(*args)

    model._ppo_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.learn(640, reset_num_timesteps=False)
    assert sum(_missed(model)) == before + 1
    model._ppo_loss = loss
    model.learn(128, reset_num_timesteps=False)


@pytest.mark.parametrize("bad", [None, 3, [1], [1, 2, 3], [10**40, 0], [10**9, 0], [-1, 0], [0.5, 0], [True, 0], "ab"])
def test_impossible_counts_of_missed_steps_are_refused(bad):
    model = _stopped()
    parameters = model.get_parameters()
    parameters["policy.optimizer"]["param_groups"][0]["missed_steps"] = bad
    with pytest.raises(ValueError, match=r"missed_steps.*must"):
        model.set_parameters(parameters)
    with pytest.raises(ValueError, match=r"missed_steps.*must"):
        _stopped(None, 64).set_parameters(parameters)
    model.policy.optimizer.param_groups[0]["missed_steps"] = bad
    with pytest.raises(ValueError, match=r"missed_steps.*must"):
        model.learn(64)


def test_target_kl_ends_the_epochs_of_a_rollout():
    counts = []
    for target_kl in (None, 1e-9):
        model = IPPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=16, n_epochs=5, target_kl=target_kl, seed=0)
        counts.append(model.learn(32)._n_updates)
    assert counts == [5, 1]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_parameters_that_become_nan_are_restored_with_the_optimizer(what):
    model = _team(2, ACTIONS["discrete"]).learn(32)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    state = model.policy.optimizer.state_dict()["state"]
    moments = {key: entry["exp_avg"].clone() for key, entry in state.items()}
    if what == "loss":
        model._auxiliary_loss = lambda *_: model.policy.value_net.bias.sum() * float("nan")
    else:
        model.policy.clip_gradients = lambda _: [p.grad.fill_(float("nan")) for p in model.policy.parameters()]
    with pytest.raises(ValueError, match=r"became NaN or infinite in the update after 64 agent-steps.*restored"):
        model.learn(32, reset_num_timesteps=False)
    assert all((value == before[name]).all() for name, value in model.policy.state_dict().items())
    state = model.policy.optimizer.state_dict()["state"]
    assert all((entry["exp_avg"] == moments[key]).all() for key, entry in state.items())


# ---------------------------------------------------------------- settings
def test_the_default_minibatches_divide_the_rollout():
    for n_copies, n_agents in ((1, 1), (8, 3), (5, 2)):
        agents = [f"a{k}" for k in range(n_agents)]
        env = CustomSpacesEnv(dict.fromkeys(agents, vector(2)), dict.fromkeys(agents, spaces.Discrete(2)))
        model = IPPO("MlpPolicy", ParallelVecEnv(env, n_copies), seed=0)
        joint = model.n_steps * n_copies
        assert joint % (model.batch_size // n_agents) == 0
        assert 2 <= joint // (model.batch_size // n_agents) <= 10


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 100}, r"`batch_size` must not exceed the rollout, got 100 > .* = 8 \* 1 \* 2 = 16"),
        ({"batch_size": 2}, "needs two samples of each parameter set; use at least 4"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1 or None, got 0"),
        ({"n_epochs": 0}, "`n_epochs` must be an integer of at least 1, got 0"),
        ({"clip_range_vf": -1.0}, "`clip_range_vf` must be .* above 0 or None, got -1.0; None switches it off"),
        ({"gamma": 1.5}, r"`gamma` must be a number in \[0, 1\], got 1.5"),
        ({"gae_lambda": -0.1}, "`gae_lambda` must be a number in"),
        ({"n_steps": 0}, "`n_steps` must be an integer of at least 1 or None, got 0"),
    ],
)
def test_settings_out_of_range_are_errors_before_anything_is_built(kwargs, message):
    agents = dict.fromkeys("ab")
    env = CustomSpacesEnv({agent: vector(2) for agent in agents}, {agent: spaces.Discrete(2) for agent in agents})
    with pytest.raises(ValueError, match=message):
        IPPO("MlpPolicy", env, **{"n_steps": 8, "batch_size": 8, **kwargs})


def test_a_minibatch_that_does_not_divide_the_rollout_is_a_warning():
    with pytest.warns(UserWarning, match="each epoch ends with a minibatch of 2"):
        IPPO("MlpPolicy", AnySpacesEnv(vector(2), spaces.Discrete(2)), n_steps=8, batch_size=3)


@pytest.mark.parametrize("absent", [False, True])
def test_the_explained_variance_is_sb3s_over_those_who_were_there(absent):
    values, returns = th.randn(30, 2), th.randn(30, 2)
    active = th.rand(30, 2) > 0.3 if absent else None
    if active is not None:
        values[~active], returns[~active] = 1e3, -1e3
    there = th.ones(30, 2, dtype=th.bool) if active is None else active
    expected = sb3_explained_variance(values[there].numpy(), returns[there].numpy())
    assert float(explained_variance(values, returns, active)) == pytest.approx(expected, rel=1e-4)


def test_constant_returns_leave_nothing_to_explain():
    # Whose values differ would otherwise be a multiple of rounding, some -1e10.
    values = th.randn(30, 2)
    for returns in (th.zeros(30, 2), th.full((30, 2), 5.0) + 1e-6 * th.rand(30, 2)):
        assert th.isnan(explained_variance(values, returns, None))
    assert float(explained_variance(values, 5.0 + 1e-3 * values, None)) < 0.0
    model = _ready(2)
    _fill(model, 0)
    model.rollout_buffer.returns.fill_(1.0)
    model.train()
    assert np.isnan(model.logger.name_to_value["train/explained_variance"])


@pytest.mark.parametrize("name", ["num_timesteps", "_n_updates"])
def test_impossible_counters_in_a_file_are_refused(name, tmp_path):
    _stopped(None, 64).save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as old, zipfile.ZipFile(tmp_path / "tampered.zip", "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            if entry == "data":
                content = re.sub(rf'"{name}": ?\d+'.encode(), f'"{name}": {10**30}'.encode(), content)
            new.writestr(entry, content)
    with pytest.raises(ValueError, match=rf"{name}.* must be a whole number from 0 to "):
        IPPO.load(tmp_path / "tampered.zip")


def _uniformly_moved(log_ratio, **settings):
    """A team whose actions all became more likely by the same factor, and next to no step: every batch looks alike."""
    model = _ready(2, learning_rate=1e-9, **settings)
    _fill(model, 0)
    model.rollout_buffer.log_probs -= log_ratio
    return model


@pytest.mark.parametrize(("share_of_bound", "steps"), [(0.8, True), (1.2, False)])
def test_the_bound_on_the_divergence_is_one_and_a_half_times_target_kl(share_of_bound, steps):
    log_ratio = -0.3
    divergence = float(np.exp(log_ratio)) - 1.0 - log_ratio
    model = _uniformly_moved(log_ratio, target_kl=divergence / (1.5 * share_of_bound))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.train()
    assert any(not th.equal(value, before[name]) for name, value in model.policy.state_dict().items()) == steps


@pytest.mark.parametrize(("ratio", "fraction"), [(0.7, 1.0), (1.3, 1.0), (0.85, 0.0), (1.15, 0.0)])
def test_the_clip_fraction_counts_ratios_beyond_the_range(ratio, fraction):
    model = _uniformly_moved(float(np.log(ratio)), clip_range=0.2)
    model.train()
    assert model.logger.name_to_value["train/clip_fraction"] == pytest.approx(fraction)
