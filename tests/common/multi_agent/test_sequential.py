"""A round of trust-region updates: whose likelihood ratios reach whom, what it costs, how far it goes, and what stops it."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch as th
from core_toys import WanderersEnv
from toy_teams import DiceEnv
from trust_region_toys import clone, collect, numbers, rewarding, rounds

from otbaselines import HATRPO, WMATRPO, ParallelVecEnv, make_vec_env
from otbaselines.common.multi_agent.sequential import AgentProblem
from otbaselines.common.networks.layers import StackedLinear
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv

ALGORITHMS = [HATRPO, WMATRPO]
pytestmark = pytest.mark.filterwarnings("ignore:the rollout of")
SMALL = {"n_steps": 16, "n_critic_updates": 1, "seed": 0, "policy_kwargs": {"net_arch": [8]}}
TEAMS = {
    "discrete": lambda: SimpleSpreadVecEnv(n_copies=4, max_cycles=8, seed=0),
    "continuous": lambda: SimpleSpreadVecEnv(n_copies=4, max_cycles=8, seed=0, continuous_actions=True),
    "leaving": lambda: ParallelVecEnv([WanderersEnv] * 4),
    "leaving_continuous": lambda: ParallelVecEnv([lambda: WanderersEnv(continuous=True, truncates=True)] * 4),
}


def _model(algorithm, team="discrete", **kwargs):
    return algorithm("MlpPolicy", TEAMS[team](), **{**SMALL, **kwargs})


def _watched(model, monkeypatch):
    """The problems of a round, with copies of their weights, in the order of the updates."""
    seen = []

    def watch(problem):
        seen.append((problem, problem.weights.clone()))
        return update(problem)

    update = model._update_agent
    monkeypatch.setattr(model, "_update_agent", watch)
    return seen


# ---------------------------------------------------------------- what earlier agents did
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("team", TEAMS)
def test_later_agents_weigh_steps_by_the_likelihood_ratios_of_earlier_ones(algorithm, team, monkeypatch):
    model = collect(_model(algorithm, team, importance_clip=1.2))
    seen = _watched(model, monkeypatch)
    model.train()
    buffer = model.rollout_buffer
    active = buffer.active.flatten(0, 1)
    assert bool(active.all()) == (not team.startswith("leaving"))
    with th.no_grad():
        # Nobody is updated twice, so that after the round each has the policy that the later ones had to do with.
        new = model.policy.team_distribution(buffer.observations.flatten(0, 1)).log_prob(buffer.actions.flatten(0, 1))
    ratios = (new - buffer.log_probs.flatten(0, 1)).exp().masked_fill(~active, 1.0).double().numpy()
    product = np.ones(len(ratios))
    assert sorted(problem.index for problem, _ in seen) == [0, 1, 2]
    for place, (problem, weights) in enumerate(seen):
        assert problem.later == tuple(later.index for later, _ in seen[place + 1 :])
        clipped = product.clip(1 / 1.2, 1.2)
        np.testing.assert_allclose(weights.squeeze(1), clipped / clipped.mean(), rtol=2e-4)
        # Kish's effective sample size over the number of rows.
        share = clipped.sum() ** 2 / (len(clipped) * (clipped**2).sum())
        logged = model.logger.name_to_value[f"trust_region/ess_{problem.index}"]
        assert logged == pytest.approx(share, rel=1e-4)
        assert (logged < 1.0 - 1e-6) == (place > 0)
        product = product * ratios[:, problem.index]
    assert float((seen[-1][1] - 1.0).abs().max()) > 0.02


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_importance_clip_of_one_switches_the_factors_off(algorithm, monkeypatch):
    model = collect(_model(algorithm, importance_clip=1.0))
    seen = _watched(model, monkeypatch)
    model.train()
    assert len(seen) == 3
    assert all(bool((weights == 1.0).all()) for _, weights in seen)
    assert numbers(model.logger.name_to_value, "ess") == [1.0] * 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_agents_are_updated_in_random_order(algorithm, monkeypatch):
    model = _model(algorithm)
    seen, orders = _watched(model, monkeypatch), set()
    for _ in range(6):
        collect(model).train()
        orders.add(tuple(problem.index for problem, _ in seen))
        seen.clear()
    assert len(orders) >= 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_signal_is_the_mean_advantage_of_the_team_to_which_absent_agents_add_nothing(algorithm, monkeypatch):
    model = collect(_model(algorithm, "leaving", normalize_advantage=False))
    seen = _watched(model, monkeypatch)
    model.train()
    buffer = model.rollout_buffer
    expected = (buffer.advantages * buffer.active).flatten(0, 1).sum(1) / 3.0
    for problem, weights in seen:
        th.testing.assert_close(problem.signal, expected.unsqueeze(1) * weights)
        # Means are over the rows in which the agent itself acted.
        rows = buffer.active.flatten(0, 1)[:, problem.index]
        assert bool(rows.all()) == (problem.index == 1)
        assert float(problem.mean(problem.signal)) == pytest.approx(float(problem.signal[rows].mean()), rel=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_round_costs_one_update_for_each_agent(algorithm, monkeypatch):
    passes = {"rows": 0}
    forward = StackedLinear.forward

    def count(self, x):
        if self.out_features == 5:
            # The actors' last layer; critics end in one number for each agent.
            passes["rows"] += x.shape[0] * x.shape[1]
        return forward(self, x)

    monkeypatch.setattr("otbaselines.wmatrpo.wmatrpo.TRIALS", 1)
    monkeypatch.setattr(StackedLinear, "forward", count)
    # One trial of the step for each agent, so that luck does not enter.
    settings = {HATRPO: {"line_search_max_iter": 1}, WMATRPO: {"n_actor_updates": 3}}[algorithm]
    cost = {}
    for n_agents in (2, 8):
        env = SimpleSpreadVecEnv(N=n_agents, n_copies=4, max_cycles=8, seed=0)
        model = collect(algorithm("MlpPolicy", env, **SMALL, **settings))
        passes["rows"] = 0
        model.train()
        cost[n_agents] = passes["rows"] / (16 * 4 * n_agents)
    # The old policy, which has the graph, and the trial; or that of the whole team, the old one, three steps of the fit, the
    # trial.
    assert cost[2] == cost[8] == {HATRPO: 2, WMATRPO: 6}[algorithm]


# ---------------------------------------------------------------- how far it goes
@pytest.mark.parametrize("caatr", [False, True], ids=["fixed", "caatr"])
@pytest.mark.parametrize("update", ["transport", "lagrangian"])
@pytest.mark.parametrize("team", ["discrete", "continuous", "leaving"])
def test_no_accepted_update_of_a_training_leaves_its_transport_radius(team, update, caatr):
    # A fit that is far too long, so that it is the way back that keeps the radius.
    settings = {"actor_learning_rate": 0.05, "n_actor_updates": 10, "update": update, "caatr": caatr}
    model = _model(WMATRPO, team, trust_radius=0.05, **settings)
    logs = rounds(model, 5)
    moved = [(w1, radius) for log in logs for w1, radius in zip(numbers(log, "w1"), numbers(log, "radius"), strict=True)]
    assert len(moved) == 15
    assert all(w1 <= 1.01 * radius for w1, radius in moved)
    assert sum(w1 > 0.8 * radius for w1, radius in moved) >= 5
    fits = [(fit, radius) for log in logs for fit, radius in zip(numbers(log, "fit"), numbers(log, "radius"), strict=True)]
    # Choices are fitted to probabilities that keep the radius themselves.
    assert any(fit > 2 * radius for fit, radius in fits) or (update == "transport" and team != "continuous")
    assert (len({radius for _, radius in moved}) > 1) == caatr


@pytest.mark.parametrize("caatr", [False, True], ids=["fixed", "caatr"])
@pytest.mark.parametrize("team", TEAMS)
def test_no_accepted_update_of_a_training_leaves_its_divergence(team, caatr):
    # So far that the quadratic model of the divergence is off, and the line search has to keep the bound.
    logs = rounds(_model(HATRPO, team, target_kl=0.5, cg_damping=1e-3, caatr=caatr), 5)
    moved = [(kl, radius) for log in logs for kl, radius in zip(numbers(log, "kl"), numbers(log, "radius"), strict=True)]
    assert all(kl < radius for kl, radius in moved)
    assert sum(kl > 0.5 * radius for kl, radius in moved) >= 5
    assert sum(0.0 < share < 1.0 for log in logs for share in numbers(log, "share")) >= 3
    assert (len({radius for _, radius in moved}) > 1) == caatr


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("team", TEAMS)
def test_the_logged_distance_is_that_of_the_policies_before_and_after(algorithm, team):
    model = collect(_model(algorithm, team))
    observations, active = (x.flatten(0, 1) for x in (model.rollout_buffer.observations, model.rollout_buffer.active))
    # Of a copy, because deviations that do not depend on the state are the parameters themselves.
    before = copy.deepcopy(model.policy)
    model.train()
    with th.no_grad():
        w1 = model.policy.team_distribution(observations).w1(before.team_distribution(observations))
    if hasattr(before, "log_std"):
        assert float((model.policy.log_std - before.log_std).detach().abs().max()) > 1e-3
    expected = [float(w1[active[:, agent], agent].mean()) for agent in range(3)]
    assert model.drifts == pytest.approx(expected, rel=1e-4)
    assert numbers(model.logger.name_to_value, "w1") == model.drifts
    assert max(expected) > 0.0


# ---------------------------------------------------------------- updates that fail
def _refuse(algorithm, how, model, monkeypatch):
    # What WMATRPO accepts is a distance within the radius.
    distance = {"no advantage": 1e9, "no step": 10.0, "no gain": 0.102}[how]
    monkeypatch.setattr(WMATRPO, "_distance", lambda self, new, old, agent: th.full((16 * 4, 1), distance))
    if how == "no advantage":
        model.rollout_buffer.advantages.zero_()
    elif how == "no step":
        # Not finite either.
        monkeypatch.setattr(
            AgentProblem, "surrogate", lambda self, policies: math.nan * policies.log_prob(self.actions).mean()
        )
    else:
        calls = []
        surrogate = AgentProblem.surrogate
        # What has a graph is the surrogate that the step is made for; what has none, a trial.
        monkeypatch.setattr(
            AgentProblem,
            "surrogate",
            lambda self, policies: calls.append(1) or surrogate(self, policies) - (0.0 if th.is_grad_enabled() else 1.0),
        )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("team", ["discrete", "continuous"])
@pytest.mark.parametrize("how", ["no advantage", "no step", "no gain"])
def test_an_update_that_fails_leaves_every_actor_bit_for_bit(algorithm, team, how, monkeypatch):
    model = collect(_model(algorithm, team, caatr=True))
    _refuse(algorithm, how, model, monkeypatch)
    actors, critics = model.policy.actor_parameters(), model.policy.critic_parameters()
    before, was = clone(actors), clone(critics)
    model.train()
    assert all(th.equal(old, new) for old, new in zip(before, actors, strict=True))
    assert not all(th.equal(old, new) for old, new in zip(was, critics, strict=True))
    log = model.logger.name_to_value
    assert log["train/is_update_accepted"] == 0.0
    assert numbers(log, "share") == numbers(log, "w1") == model.drifts == [0.0] * 3
    assert numbers(log, "ess") == [1.0] * 3
    # Team-mates that stand still leave the largest radius to everybody.
    assert model._radii() == [10.0 * model.fixed_radius] * 3


# ---------------------------------------------------------------- radii that know how far team-mates move
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_radii_follow_the_accepted_distances_of_the_round_before(algorithm):
    given = {"caatr_constant": 0.002, "caatr_eps_base": 0.004, "caatr_eps_max": 0.005, "trust_radius_max": 0.2}
    model = _model(algorithm, caatr=True, **given)
    first, *logs = rounds(model, 5)
    assert numbers(first, "radius") == [model.fixed_radius] * 3
    assert numbers(first, "drift") == []
    for before, log in zip([first, *logs], logs, strict=False):
        drifts = numbers(before, "w1")
        assert numbers(log, "drift") == drifts
        others = [sum(drifts) - drift for drift in drifts]
        expected = [min(0.2, 0.002 / (d + max(0.004, min(0.005, d / 10)))) for d in others]
        assert numbers(log, "radius") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n_agents", [2, 3, 5])
@pytest.mark.parametrize("radius", [1e-4, 0.03, 5.0])
def test_the_default_constant_keeps_the_radius_of_a_team_that_uses_it_up(algorithm, n_agents, radius):
    env = SimpleSpreadVecEnv(N=n_agents, n_copies=4, max_cycles=8)
    name = {HATRPO: "target_kl", WMATRPO: "trust_radius"}[algorithm]
    model = algorithm("MlpPolicy", env, **SMALL, caatr=True, **{name: radius})
    model.drifts = [model.fixed_drift] * n_agents
    assert model._radii() == pytest.approx([radius] * n_agents, rel=1e-9)
    # Those who move less leave more to the others.
    model.drifts[0] /= 2
    assert model._radii()[0] == pytest.approx(radius, rel=1e-9)
    assert min(model._radii()[1:]) > 1.01 * radius


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_agent_has_the_fixed_radius_within_the_largest(algorithm):
    env = lambda: ParallelVecEnv([lambda: WanderersEnv((9,))] * 4)  # noqa: E731
    model = algorithm("MlpPolicy", env(), **SMALL, caatr=True)
    assert [numbers(log, "radius") for log in rounds(model, 3)] == [[model.fixed_radius]] * 3
    tight = algorithm("MlpPolicy", env(), **SMALL, caatr=True, trust_radius_max=1e-3)
    assert [numbers(log, "radius") for log in rounds(tight, 2)] == [[1e-3]] * 2


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("team", ["discrete", "leaving"])
def test_drifts_are_saved_and_training_goes_on_bit_for_bit(algorithm, team, tmp_path):
    model = _model(algorithm, team, caatr=True)
    rounds(model, 2)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=TEAMS[team]())
    assert loaded.drifts == model.drifts
    assert len(set(loaded.drifts)) == 3
    logs = []
    for each in (model, loaded):
        each.set_env(TEAMS[team]())
        each.set_random_seed(5)
        logs.append(rounds(each, 2))
    assert [numbers(log, "radius") for log in logs[0]] == [numbers(log, "radius") for log in logs[1]]
    states = [each.policy.state_dict() for each in (model, loaded)]
    assert all(th.equal(value, states[1][name]) for name, value in states[0].items())
    # Without its drifts it would have started with the fixed radius.
    assert numbers(logs[1][0], "radius") != [loaded.fixed_radius] * 3


@pytest.mark.parametrize(
    "drifts", [[0.1, 0.2], [0.1, 0.2, -0.1], [0.1, 0.2, math.nan], ["a", "b", "c"], "abc", 0.1, [[0.1]] * 3]
)
def test_drifts_of_a_file_that_are_no_distances_of_the_team_are_refused(drifts, tmp_path):
    model = _model(HATRPO, caatr=True)
    model.drifts = drifts
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="`drifts` must be a distance for each of the 3 agents, got"):
        HATRPO.load(tmp_path / "model")


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ["caatr_constant", "caatr_eps_base", "caatr_eps_max", "trust_radius_max"])
def test_settings_of_caatr_without_it_are_refused(algorithm, name):
    with pytest.raises(TypeError, match=f"`{name}` applies to `caatr=True` only, got 0.5; leave it out"):
        _model(algorithm, caatr=False, **{name: 0.5})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_advantages_that_are_not_finite_leave_everything_as_it_was(algorithm, bad):
    model = collect(_model(algorithm))
    model.rollout_buffer.advantages[3, 1, 2] = bad
    before = clone(model.policy.parameters())
    with pytest.raises(ValueError, match=r"the advantages became NaN or infinite after 192 agent-steps; the policy was left"):
        model.train()
    assert all(th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("team", ["discrete", "continuous"])
def test_critics_that_diverge_are_named_and_everything_goes_back(algorithm, team):
    model = _model(algorithm, team)
    rounds(model, 1)
    model.learning_rate = 1e30
    model._setup_lr_schedule()
    before = clone(model.policy.parameters())
    optimizer = {k: clone(v.values()) for k, v in model.policy.optimizer.state_dict()["state"].items()}
    drifts = model.drifts
    with pytest.raises(ValueError, match=r"became NaN or infinite .*were restored\. Lower `learning_rate`, or scale"):
        rounds(model, 2)
    assert all(th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    after = model.policy.optimizer.state_dict()["state"]
    assert all(th.equal(old, new) for k, v in optimizer.items() for old, new in zip(v, after[k].values(), strict=True))
    assert model.drifts == drifts


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rollouts_and_minibatches_of_less_than_a_joint_step_are_refused(algorithm):
    with pytest.raises(ValueError, match=r"`n_steps` must make at least two joint steps a rollout, .* got 1 with 1 copies"):
        algorithm("MlpPolicy", SimpleSpreadVecEnv(n_copies=1), n_steps=1)
    with pytest.raises(ValueError, match="`batch_size` must hold at least one joint step of 3 agents, got 2"):
        _model(algorithm, batch_size=2)


# Rewards whose team-mates' are the opposite; the first agent's alone; shared; everybody's own; constant up to rounding.
TEAM_REWARDS = {
    "zero_sum": (2, lambda a: np.array([a[0] - a[1], a[1] - a[0]]), True),
    "one_against_two": (3, lambda a: np.array([a.sum(), -a.sum(), -a.sum()]), True),
    "shared": (2, lambda a: np.full(2, a.sum()), False),
    "own": (3, lambda a: a, False),
    "constant": (3, lambda a: np.array([-0.1, 0.2, 0.33]), False),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", TEAM_REWARDS)
def test_opposed_rewards_are_warned_of_once(algorithm, kind):
    n_agents, rewards, is_opposed = TEAM_REWARDS[kind]
    model = algorithm("MlpPolicy", rewarding(rewards, n_agents), **{**SMALL, "n_steps": 30})
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # Two rounds a call of `learn`, with one warning.
            model.learn(2 * 30 * model.n_envs)
        said = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
        assert len(said) == int(is_opposed), said
        if is_opposed:
            assert "the rewards of agent 'agent_0' fall when those of its team-mates rise (correlation -1.00)" in said[0]
            assert f"{algorithm.__name__} maximises the mean of all; use IPPO" in said[0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_agents_that_have_left_are_not_opposed_to_those_who_earn(algorithm, recwarn):
    # Rewards grow with time, and are nothing for those who have gone.
    env = ParallelVecEnv([lambda: WanderersEnv((3, 7, 5))] * 8)
    algorithm("MlpPolicy", env, **{**SMALL, "n_steps": 64}).learn(64 * env.num_envs)
    assert not [warning for warning in recwarn if "fall when" in str(warning.message)]


@pytest.mark.filterwarnings("ignore:the agents have different observation or action spaces")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_predators_and_prey_are_no_team(algorithm):
    env = make_vec_env("mpe2/simple_tag_v3", n_copies=8, seed=0, env_kwargs={"max_cycles": 10})
    with pytest.warns(UserWarning, match="the rewards of agent '.*' fall when those of its team-mates rise"):
        algorithm("MlpPolicy", env, **{**SMALL, "n_steps": 30}).learn(30 * env.num_envs)


# ---------------------------------------------------------------- teams of different agents
HETEROGENEOUS = {
    "speaker_listener": lambda: make_vec_env("mpe2/simple_speaker_listener_v4", n_copies=4, seed=0),
    "speaker_listener_continuous": lambda: make_vec_env(
        "mpe2/simple_speaker_listener_v4", n_copies=4, seed=0, env_kwargs={"continuous_actions": True}
    ),
    "leaving": TEAMS["leaving"],
    "leaving_continuous": TEAMS["leaving_continuous"],
    "dice": lambda: ParallelVecEnv([DiceEnv] * 4),
}


@pytest.mark.filterwarnings("ignore:the agents have different observation or action spaces")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("team", HETEROGENEOUS)
def test_teams_of_different_agents_train_and_survive_saving(algorithm, team, tmp_path):
    env = HETEROGENEOUS[team]()
    model = algorithm("MlpPolicy", env, **SMALL, caatr=True)
    logs = rounds(model, 2)
    assert max(log["train/is_update_accepted"] for log in logs) > 0.0
    assert all(math.isfinite(value) for log in logs for name, value in log.items() if name.startswith("trust_region"))
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=HETEROGENEOUS[team]())
    rows = np.stack([model.observation_space.sample() for _ in range(4 * env.n_agents)]).clip(-2, 2)
    for deterministic in (True, False):
        actions = []
        for each in (model, loaded):
            th.manual_seed(0)
            actions.append(each.predict(rows, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*actions)
    agents = dict(zip(model.layout.possible_agents, rows, strict=False))
    own = {agent: row[: model.layout.agent_observation_spaces[agent].shape[0]] for agent, row in agents.items()}
    assert all(model.layout.agent_action_spaces[agent].contains(action) for agent, action in loaded.predict(own)[0].items())
    assert len(rounds(loaded, 1)) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_whatever_ends_a_round_leaves_the_policy_from_before_it(algorithm, error, monkeypatch):
    model = collect(_model(algorithm, "continuous"))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}

    def fail(*args):
        # After the critics were fitted, and the agent has been moved.
        with th.no_grad():
            for parameter in args[0].view.actor_parameters():
                parameter.add_(1.0)
        raise error

    monkeypatch.setattr(model, "_update_agent", fail)
    with pytest.raises(error):
        model.train()
    after = model.policy.state_dict()
    assert all(th.equal(value, after[name]) for name, value in before.items())
    assert not vars(model).get("_round")
    assert len(vars(model).get("_replay", ())) == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_settings_that_were_changed_are_checked_again_before_learning(algorithm):
    model = _model(algorithm)
    model.caatr, model.caatr_constant = False, 1.0
    with pytest.raises(TypeError, match="`caatr_constant` applies to `caatr=True` only"):
        model.learn(64)
    with pytest.raises(ValueError, match="`caatr_eps_max` must be at least `caatr_eps_base`=1"):
        _model(algorithm, caatr=True, caatr_eps_base=1.0, caatr_eps_max=0.1)
