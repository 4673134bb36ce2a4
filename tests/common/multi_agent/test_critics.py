"""Critics of a team: whom they belong to, what they read, and how they are trained."""

import copy

import numpy as np
import pytest
import torch as th
from core_toys import WanderersEnv
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from toy_teams import RelayEnv

from otbaselines import IPPO, MAPPO, WBC, ParallelVecEnv
from otbaselines.common.multi_agent.critics import RunningNormalizer
from otbaselines.common.multi_agent.losses import normalize_advantages
from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.common.vec_env.layout import TeamLayout
from otbaselines.common.vec_env.subproc import SubprocParallelVecEnv
from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv

SMALL = {"n_steps": 8, "batch_size": 24, "n_epochs": 2, "seed": 0}
AGENTS = ("a", "b", "c")


def _policy(critic, *, state_dim=5, **kwargs):
    observation, action = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(3)
    layout = TeamLayout(AGENTS, 1, dict.fromkeys(AGENTS, observation), dict.fromkeys(AGENTS, action))
    state_space = spaces.Box(-1, 1, (state_dim,), np.float32) if state_dim else None
    kwargs = {"layout": layout, "critic": critic, "state_space": state_space, **kwargs}
    return MultiAgentActorCriticPolicy(observation, action, lambda _: 1e-3, **kwargs)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("state_dim", [5, 0], ids=["state", "stacked"])
@pytest.mark.parametrize("share_parameters", [False, True])
def test_a_central_critic_is_one_network_with_a_value_for_each_agent(state_dim, share_parameters):
    policy = _policy("central", state_dim=state_dim, share_parameters=share_parameters)
    by_hand = th.nn.Sequential(
        th.nn.Linear(state_dim or 12, 64), th.nn.Tanh(), th.nn.Linear(64, 64), th.nn.Tanh(), th.nn.Linear(64, 3)
    )
    layers = [*policy.vf_net.layers[::2], policy.value_net]
    for own, hand in zip(layers, by_hand[::2], strict=True):
        hand.load_state_dict({"weight": own.weight[0].T.detach().clone(), "bias": own.bias[0, 0].detach().clone()})
    obs, states = th.randn(6, 3, 4), th.randn(6, 5)
    values = policy.team_values(obs, states)
    expected = by_hand(states if state_dim else obs.flatten(1))
    th.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    values.square().sum().backward()
    expected.square().sum().backward()
    for own, hand in zip(layers, by_hand[::2], strict=True):
        th.testing.assert_close(own.weight.grad[0].T, hand.weight.grad, atol=1e-4, rtol=1e-4)
    assert all(parameter.grad is None for parameter in policy.actor_parameters())


def test_a_shared_critic_is_the_same_network_for_every_agent():
    # Three critics of equal weights have its values, and the mean of their gradients is its gradient.
    shared, stacked = _policy("shared"), _policy("own")
    stacked.load_state_dict(
        {name: value.expand_as(stacked.state_dict()[name]) for name, value in shared.state_dict().items()}, strict=True
    )
    obs, targets = th.randn(6, 3, 4), th.randn(6, 3)
    th.testing.assert_close(shared.team_values(obs), stacked.team_values(obs))
    for policy in (shared, stacked):
        (policy.team_values(obs) - targets).square().mean().backward()
    for ours, theirs in zip(shared.critic_parameters(), stacked.critic_parameters(), strict=True):
        assert ours.shape[0] == 1
        th.testing.assert_close(ours.grad[0], theirs.grad.sum(0))


@pytest.mark.parametrize("critic", ["own", "shared", "central"])
def test_values_are_the_same_whichever_way_they_are_asked_for(critic):
    policy = _policy(critic)
    obs, states, actions = th.randn(6, 3, 4), th.randn(6, 5), th.randint(3, (6, 3))
    values = policy.team_values(obs, states)
    assert th.equal(policy.evaluate_team_actions(obs, actions, states=states).values, values)
    rows = obs.flatten(0, 1)
    for given in (policy.predict_values(rows, states), policy(rows, states=states)[1]):
        assert th.equal(given.view(6, 3), values)
    assert th.equal(policy.evaluate_actions(rows, actions.flatten(), states)[0].view(6, 3), values)


@pytest.mark.parametrize("critic", ["own", "shared", "central"])
def test_whose_values_follow_whose_observations(critic):
    policy = _policy(critic, state_dim=0)
    obs = th.randn(1, 3, 4, requires_grad=True)
    jacobian = th.stack([th.autograd.grad(value, obs, retain_graph=True)[0][0] for value in policy.team_values(obs)[0]])
    depends = jacobian.abs().sum(-1) > 0
    assert depends.tolist() == (th.ones(3, 3) if critic == "central" else th.eye(3)).bool().tolist()


def test_a_common_critic_has_an_extractor_of_its_own():
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    layout = TeamLayout(AGENTS, 1, dict.fromkeys(AGENTS, image), dict.fromkeys(AGENTS, spaces.Discrete(2)))
    for critic, n_extractors in (("own", 3), ("shared", 1), ("central", 1)):
        policy = IPPO.policy_aliases["CnnPolicy"](image, spaces.Discrete(2), lambda _: 1e-3, layout=layout, critic=critic)
        assert len(policy.vf_extractors) == n_extractors
        assert (policy.vf_extractors is policy.pi_extractors) is (critic == "own")
        assert policy.team_values(th.randint(256, (2, 3, 3, 36, 36))).shape == (2, 3)


def test_every_parameter_set_and_the_common_critic_have_gradients_of_their_own_norm():
    policy = _policy("central")
    obs, states = th.randn(6, 3, 4), th.randn(6, 5)
    result = policy.evaluate_team_actions(obs, th.randint(3, (6, 3)), states=states)
    (1e3 * result.values.sum() + 1e3 * result.log_prob.sum(0) @ th.tensor([1.0, 2.0, 1e-9])).backward()
    policy.clip_gradients(0.5)
    actors = th.cat([parameter.grad.reshape(3, -1) for parameter in policy.actor_parameters()], 1).norm(dim=1)
    critic = th.cat([parameter.grad.flatten() for parameter in policy.critic_parameters()]).norm()
    assert actors[:2].tolist() == pytest.approx([0.5, 0.5], rel=1e-4)
    assert actors[2] < 1e-3
    assert float(critic) == pytest.approx(0.5, rel=1e-4)


def test_one_agent_of_a_team_has_its_share_of_the_critic():
    obs, states = th.randn(6, 3, 4), th.randn(6, 5)
    shared = _policy("shared")
    th.testing.assert_close(shared.agent(1).team_values(obs[:, 1:2]), shared.team_values(obs)[:, 1:2])
    central = _policy("central")
    own = central.agent(1).team_distribution(obs[:, 1:2]).log_probs
    th.testing.assert_close(own, central.team_distribution(obs).log_probs[:, 1:2])
    with pytest.raises(ValueError, match="one agent of a team has no critic of its own"):
        central.agent(1).team_values(obs[:, 1:2], states)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="`critic` must be one of 'own', 'shared', 'central', got 'other'"):
        IPPO("MlpPolicy", "CartPole-v1", critic="other")
    with pytest.raises(ValueError, match="`critic`='shared' has no meaning with `share_parameters=True`"):
        IPPO("MlpPolicy", "CartPole-v1", critic="shared", share_parameters=True)
    with pytest.raises(TypeError, match="`critic` must be"):
        IPPO("MlpPolicy", "CartPole-v1", critic=None)
    with pytest.raises(ValueError, match=r"`policy` ActorCriticPolicy brings a critic .* but `critic` is 'central'"):
        MAPPO(ActorCriticPolicy, "CartPole-v1")
    with pytest.raises(ValueError, match=r"`states` is missing: the central critic reads the teams' states"):
        _policy("central").team_values(th.zeros(1, 3, 4))


# ---------------------------------------------------------------- the scale of states


def test_the_normalizer_has_the_mean_and_variance_of_all_that_it_saw():
    normalizer, reference = RunningNormalizer(2), RunningMeanStd(epsilon=0.0, shape=(2,))
    batches = [th.randn(n, 3, 2) * th.tensor([3.0, 0.1]) + th.tensor([5.0, -1.0]) for n in (4, 1, 50)]
    x = th.randn(7, 2)
    assert th.equal(normalizer(x), x)
    for batch in batches:
        normalizer.update(batch)
        reference.update(batch.reshape(-1, 2).double().numpy())
    everything = th.cat(batches).reshape(-1, 2).double()
    th.testing.assert_close(normalizer.mean.double(), everything.mean(0), rtol=1e-5, atol=1e-5)
    th.testing.assert_close(normalizer.variance.double(), everything.var(0, correction=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normalizer.variance, reference.var, rtol=1e-4)
    assert float(normalizer(everything.float()).mean().abs()) < 1e-4
    assert normalizer(th.full((2,), 1e9)).tolist() == [10.0, 10.0]


# ---------------------------------------------------------------- rollouts


class ClockEnv(RelayEnv):
    """The state at step ``t`` of the episode number ``e`` is ``[[10 e + t, e]]``; ``b`` is truncated at the end, step 5."""

    state_space = spaces.Box(-1e3, 1e3, (1, 2), np.float64)
    episode = 0

    def reset(self, **kwargs):
        self.episode += 1
        return super().reset(**kwargs)

    def state(self):
        return np.array([[10.0 * self.episode + self.t, self.episode]])


class PairClock(TensorVecEnv):
    """Both copies count to three and are truncated; the state is the count and its square, the observation is zero."""

    def __init__(self, broken_at=None, **kwargs):
        agents = ["a", "b"]
        super().__init__(
            n_copies=2,
            agent_observation_spaces={name: spaces.Box(-1, 1, (1,), np.float32) for name in agents},
            agent_action_spaces={name: spaces.Discrete(2) for name in agents},
            state_space=spaces.Box(-np.inf, np.inf, (2,), np.float32),
            max_episode_steps=3,
            **kwargs,
        )
        self.broken_at = broken_at

    def _reset_state(self, mask):
        self.count = 0

    def _observe(self):
        return th.zeros(2, 2, 1)

    def _observe_global(self, obs):
        count = float("nan") if self.count == self.broken_at else self.count
        return th.tensor([count, count**2], dtype=th.float32).expand(2, 2).clone()

    def _transition(self, actions):
        self.count += 1
        return th.zeros(2, 2), None


def _first_of_the_state(model):
    """Make the critic return the first number of the state for every agent, as can be followed by hand."""
    policy = model.policy
    policy.team_values = lambda obs, states=None: states[:, :1].expand(-1, policy.n_agents)
    return model


def _collect(model):
    """One rollout, without the training after it."""
    model.train = lambda: None
    model.learn(model.n_steps * model.n_envs)
    return model.rollout_buffer


def make_serial(env, n_copies):
    return ParallelVecEnv(env, n_copies)


def make_processes(env, n_copies):
    return SubprocParallelVecEnv(env, n_copies, n_workers=2, start_method="fork")


@pytest.mark.parametrize("make", [make_serial, make_processes])
def test_states_reach_the_critic_through_rows(make):
    env = make(ClockEnv(), 2)
    model = _first_of_the_state(MAPPO("MlpPolicy", env, gamma=0.5, gae_lambda=0.0, **SMALL))
    buffer = _collect(model)
    first_episode, second = [10.0, 11, 12, 13, 14], [20.0, 21, 22]
    assert buffer.states[:, 0].tolist() == [*([t, 1] for t in first_episode), *([t, 2] for t in second)]
    # Of those who leave only `b` is cut off, at the end of the episode, whose last state counts and not the one after it.
    assert buffer.bootstrap.nonzero().tolist() == [[4, 0, 1], [4, 1, 1]]
    assert buffer.bootstrap[4, :, 1].tolist() == [15.0, 15.0]
    # With lambda = 0 the return is r + gamma V(next), and the last one ends in the state after the rollout.
    expected = buffer.rewards[:, :, 1] + 0.5 * th.tensor([11.0, 12, 13, 14, 15, 21, 22, 23]).unsqueeze(1)
    th.testing.assert_close(buffer.returns[:, :, 1], expected)
    env.close()


def test_states_reach_the_critic_on_the_device():
    model = _first_of_the_state(MAPPO("MlpPolicy", PairClock(), gamma=0.5, gae_lambda=0.0, n_steps=8, batch_size=16))
    buffer = _collect(model)
    counts = [0.0, 1, 2, 0, 1, 2, 0, 1]
    assert buffer.states[:, 1].tolist() == [[t, t**2] for t in counts]
    assert buffer.bootstrap[:, 0, 0].tolist() == [0, 0, 3, 0, 0, 3, 0, 0]
    assert buffer.returns[:, 0, 0].tolist() == [0.5, 1, 1.5, 0.5, 1, 1.5, 0.5, 1]


def test_minibatches_keep_states_beside_their_observations():
    model = MAPPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=2, max_cycles=5), **SMALL)
    buffer = _collect(model)
    for batch in buffer.get(4):
        # The state of the native spread is the team's observations.
        assert th.equal(batch.states, batch.observations.flatten(1))


def test_nobody_keeps_or_asks_for_states_that_no_critic_reads():
    env = ParallelVecEnv(ClockEnv(), 2)
    env.team_states = None
    model = IPPO("MlpPolicy", env, critic="shared", **SMALL)
    model.learn(48)
    assert model.rollout_buffer.states is None
    assert model.state_space is None


@pytest.mark.parametrize("normalize", [False, True])
def test_the_scale_of_states_follows_that_of_normalised_observations(normalize):
    env = SimpleSpreadVecEnv(n_copies=2, max_cycles=5)
    model = MAPPO("MlpPolicy", VecNormalize(env) if normalize else env, **SMALL)
    seen = []
    train = model.train
    model.train = lambda: (seen.append(model.rollout_buffer.states.clone()), train())
    model.learn(2 * 48)
    if not normalize:
        assert model.policy.state_normalizer is None
        return
    states = th.cat(seen).flatten(0, 1)
    assert float(states.abs().max()) <= 10
    th.testing.assert_close(model.policy.state_normalizer.mean, states.mean(0), atol=1e-5, rtol=1e-5)
    assert "state_normalizer.mean" in model.policy.state_dict()


def test_states_that_are_not_finite_stop_the_training():
    model = MAPPO("MlpPolicy", PairClock(broken_at=2), n_steps=6, batch_size=24)
    with pytest.raises(ValueError, match="`states` of copy 0 became NaN or infinite at step 2"):
        model.learn(24)


class StaggeredEnv(WanderersEnv):
    """Agents who leave by truncation after 2, 4 and 4 steps; agent ``k`` sees ``100 (k + 1) + t`` four times."""

    def __init__(self):
        super().__init__((2, 4, 4), truncates=True)

    def _observe(self, agents):
        return {agent: np.full(4, 100 * (self.possible_agents.index(agent) + 1) + self.t, np.float32) for agent in agents}


def test_the_last_observations_of_a_team_are_those_of_all_its_members():
    env = ParallelVecEnv(StaggeredEnv(), 1)
    model = MAPPO("MlpPolicy", env, n_steps=5, batch_size=15, seed=0)
    asked = []
    values = model.policy.team_values
    model.policy.team_values = lambda obs, states=None: asked.append(obs[..., 0].tolist()) or values(obs, states)
    buffer = _collect(model)
    # When w0 is cut off its mates go on; when these are cut off w0 is long gone, and the next episode has begun.
    assert asked[0] == [[102.0, 202.0, 302.0], [0.0, 204.0, 304.0]]
    assert buffer.bootstrap.nonzero().tolist() == [[1, 0, 0], [3, 0, 1], [3, 0, 2]]
    assert buffer.observations[:, 0, :, 0].tolist()[2:] == [[0, 202, 302], [0, 203, 303], [100, 200, 300]]


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("critic", ["shared", "central"])
@pytest.mark.parametrize("has_left", [False, True])
def test_the_critics_loss_is_the_mean_over_all_agents_and_the_actors_losses_are_their_own(critic, has_left):
    env = SimpleSpreadVecEnv(n_copies=4, max_cycles=5)
    model = IPPO("MlpPolicy", env, critic=critic, vf_coef=0.7, n_steps=8, batch_size=96, n_epochs=1, seed=0)
    _collect(model)
    batch = next(model.rollout_buffer.get(32))
    active = th.rand(32, 3) < 0.7 if has_left else th.ones(32, 3, dtype=th.bool)
    batch = copy.copy(batch)
    object.__setattr__(batch, "active", active if has_left else None)
    scaled = normalize_advantages(batch.advantages, batch.active, pooled=False)
    object.__setattr__(batch, "advantages", scaled)
    evaluation = model.policy.evaluate_team_actions(batch.observations, batch.actions, states=batch.states)
    model._ppo_loss(batch, evaluation, (evaluation.log_prob - batch.old_log_prob).exp())[0].backward()
    gradients = [parameter.grad.clone() for parameter in model.policy.parameters()]
    policy = copy.deepcopy(model.policy)
    policy.zero_grad()
    by_hand = 0.7 * (policy.team_values(batch.observations, batch.states) - batch.returns)[active].square().mean()
    for agent in range(3):
        rows = active[:, agent]
        advantages = batch.advantages[rows, agent]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        log_prob = policy.team_distribution(batch.observations).log_prob(batch.actions)[rows, agent]
        by_hand = by_hand - ((log_prob - batch.old_log_prob[rows, agent]).exp() * advantages).mean()
    by_hand.backward()
    for ours, theirs in zip(gradients, policy.parameters(), strict=True):
        th.testing.assert_close(ours, theirs.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("critic", ["shared", "central"])
def test_a_common_critic_goes_on_while_any_agent_does(critic):
    env = SimpleSpreadVecEnv(n_copies=2, max_cycles=5)
    model = IPPO("MlpPolicy", env, critic=critic, target_kl=1.0, **SMALL)
    before = copy.deepcopy(model.policy)
    # As if the first agent had moved too far at once.
    model._go_on = lambda *_: model._sets.stop([True, False, False]) is not None
    model.learn(48)
    for new, old in zip(model.policy.actor_parameters(), before.actor_parameters(), strict=True):
        assert th.equal(new[0], old[0])
        assert not th.equal(new[1:], old[1:])
    changes = zip(model.policy.critic_parameters(), before.critic_parameters(), strict=True)
    assert all(not th.equal(new, old) for new, old in changes)


@pytest.mark.parametrize("critic", ["own", "central"])
def test_a_central_critic_learns_what_own_observations_do_not_tell(critic):
    class Payday(PairClock):
        def _transition(self, actions):
            return super()._transition(actions)[0] + 1.0, None

    # Every step earns 1 and the third is the last: returns are 3, 2, 1. Who sees nothing can only expect 2.
    model = IPPO("MlpPolicy", Payday(terminates_in_lockstep=True), critic=critic, learning_rate=3e-3, gamma=1.0,
                 gae_lambda=1.0, n_steps=30, batch_size=40, seed=0)  # fmt: skip
    model.learn(30 * 4 * 15)
    expected = th.tensor([3.0, 2.0, 1.0] if critic == "central" else [2.0, 2.0, 2.0])
    th.testing.assert_close(model.rollout_buffer.values[:3, 0, 0], expected, atol=0.25, rtol=0)


def test_other_states_are_refused(tmp_path):
    class WiderClock(ClockEnv):
        state_space = spaces.Box(-1e3, 1e3, (3,), np.float64)

    class NoClock(ClockEnv):
        state_space = None

    envs = [ParallelVecEnv(cls(), 2) for cls in (ClockEnv, WiderClock, NoClock)]
    model = MAPPO("MlpPolicy", envs[0], **SMALL)
    model.save(tmp_path / "model")
    for env in envs[1:]:
        for attempt in (model.set_env, lambda env: MAPPO.load(tmp_path / "model", env=env)):
            with pytest.raises(ValueError, match=r"`env` has the state space .* reads states of 2 numbers"):
                attempt(env)
    assert MAPPO.load(tmp_path / "model").state_space == envs[0].state_space


@pytest.mark.parametrize("critic", ["shared", "central"])
def test_consensus_takes_every_critic(critic):
    def learn(algorithm, **kwargs):
        env = SimpleSpreadVecEnv(n_copies=2, max_cycles=5)
        return algorithm("MlpPolicy", env, critic=critic, **SMALL, **kwargs).learn(96).policy.state_dict()

    alone, without, pulled = learn(IPPO), learn(WBC, consensus_coef=0.0), learn(WBC, consensus_coef=5.0)
    assert all(th.equal(value, without[name]) for name, value in alone.items())
    assert not th.equal(alone["action_net.weight"], pulled["action_net.weight"])


def test_states_stay_raw_where_observations_do():
    env = VecNormalize(SimpleSpreadVecEnv(n_copies=2, max_cycles=5), norm_obs=False)
    model = MAPPO("MlpPolicy", env, **SMALL)
    assert not model.normalize_states
    assert model.policy.state_normalizer is None


def test_an_agent_that_terminated_in_a_copy_that_restarts_is_not_bootstrapped():
    class Ends(SimpleSpreadVecEnv):
        def _transition(self, actions):
            rewards = super()._transition(actions)[0]
            terminated = th.zeros_like(rewards, dtype=th.bool)
            terminated[:, 0] = True
            return rewards, terminated

    env = Ends(n_copies=2, seed=0)
    env.terminates_early, env._elapsed_of_copy = True, th.zeros(2, dtype=th.int64)
    model = IPPO("MlpPolicy", env, **SMALL)
    with th.no_grad():
        model.policy.value_net.bias.fill_(5.0)
    _collect(model)
    ends = model.rollout_buffer.bootstrap
    assert (ends[..., 0] == 0.0).all()
    assert (ends[..., 1:] != 0.0).all()


def test_a_last_observation_that_is_nan_blames_its_agent_alone():
    # A critic of stacked observations gives NaN to the whole team.
    model = MAPPO("MlpPolicy", ParallelVecEnv(WanderersEnv, 2, seed=0), **SMALL)
    n = model.layout.n_agents
    obs = th.zeros(2, n, *model.observation_space.shape)
    obs[1, n - 1] = th.nan
    values = model._final_values(obs, None)
    expected = th.zeros(2, n, dtype=th.bool)
    expected[1, n - 1] = True
    assert th.equal(values.isnan(), expected)
