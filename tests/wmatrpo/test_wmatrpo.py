"""WMATRPO as a whole: what its critics are fitted to, teams in one state, absent agents, leaders, and what it refuses."""

import copy

import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv, WanderersEnv
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from toy_teams import CustomSpacesEnv, vector
from trust_region_toys import clone, collect, numbers, rewarding, rounds

from otbaselines import HATRPO, IPPO, WMATRPO, ParallelVecEnv
from otbaselines.common.multi_agent.policies import MultiAgentActorCriticPolicy
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv
from otbaselines.wmatrpo import MlpPolicy
from otbaselines.wmatrpo.advantages import Box, MarginalAdvantage
from otbaselines.wmatrpo.transport import Transport

pytestmark = pytest.mark.filterwarnings("ignore:the rollout of")
SMALL = {"n_steps": 16, "n_critic_updates": 1, "seed": 0, "caatr": False, "policy_kwargs": {"net_arch": [8]}}


def _spread(**kwargs):
    return SimpleSpreadVecEnv(n_copies=4, max_cycles=8, seed=0, **kwargs)


class StageEnv(CustomSpacesEnv):
    """
    Two agents that always see the same, and are paid for what they do together; each episode is one step.

    :param continuous: boxes from -1 to 1 instead of three choices
    """

    def __init__(self, continuous: bool) -> None:
        own = spaces.Box(-1.0, 1.0, (1,), np.float32) if continuous else spaces.Discrete(3)
        agents = ("left", "right")
        seen = {agent: np.full(2, 0.5, np.float32) for agent in agents}
        super().__init__(dict.fromkeys(agents, vector(2)), dict.fromkeys(agents, own), seen)

    def step(self, actions):
        result = super().step(actions)
        together = float(sum(np.sum(action) for action in self.actions.values()))
        return (result[0], dict.fromkeys(self.actions, together), *result[2:])


def _stage(continuous, **kwargs):
    env = ParallelVecEnv([lambda: StageEnv(continuous)] * 8)
    return WMATRPO("MlpPolicy", env, **{**SMALL, "n_critic_updates": 40, "learning_rate": 1e-2, "batch_size": 256, **kwargs})


# ---------------------------------------------------------------- critics
def test_joint_critics_are_fitted_to_the_returns_of_the_latest_rollouts(monkeypatch):
    model = _stage(False, replay_rollouts=2, learning_rate=2e-2)
    returns = []
    for _ in range(3):
        collect(model).train()
        returns.append(model.rollout_buffer.returns.flatten(0, 1).mean(1).clone())
        assert len(model._replay) == min(len(returns), 2)
        for (_, actions, kept), expected in zip(model._replay, returns[-2:], strict=True):
            th.testing.assert_close(kept, expected)
            assert actions.shape == (128, 2, 3)
    # Episodes of one step, whose reward is the sum of both actions.
    joint = th.eye(3)[th.cartesian_prod(th.arange(3), th.arange(3))]
    inputs = model._replay[-1][0][:1].expand(9, -1)
    for _ in range(2):
        collect(model).train()
    with th.no_grad():
        found = model.policy.joint_critics(inputs, joint).mean(0)
    expected = th.cartesian_prod(th.arange(3.0), th.arange(3.0)).sum(1)
    assert float((found - expected).abs().max()) < 0.4


@pytest.mark.parametrize("normalize_advantage", [False, True])
def test_absent_agents_add_nothing_to_the_value_that_advantages_are_measured_from(normalize_advantage, monkeypatch):
    env = ParallelVecEnv([WanderersEnv] * 4)
    model = WMATRPO("MlpPolicy", env, **{**SMALL, "normalize_advantage": normalize_advantage, "tau": 0.3})
    # After some rounds the target is another than what is being fitted.
    rounds(model, 2)
    collect(model)
    seen = {}

    def watch(problem):
        seen["values"], seen["judged"] = model._round.values, model._round.judged
        return update(problem)

    update = model._update_agent
    monkeypatch.setattr(model, "_update_agent", watch)
    buffer = model.rollout_buffer
    # The target moves only after the round, so that these are the values of the rollout itself.
    active, values = buffer.active.flatten(0, 1), buffer.values.flatten(0, 1)
    expected = (values * active).sum(1) / 3
    model.train()
    assert not bool(active.all())
    th.testing.assert_close(seen["values"], expected, atol=1e-5, rtol=1e-4)
    observations = buffer.observations.flatten(0, 1)
    with th.no_grad():
        inputs = model.policy.critic_inputs(observations, None)
        q = model.policy.joint_critics(inputs, model.policy.encode_actions(buffer.actions.flatten(0, 1))).squeeze(0)
        online = model.policy.online_values(observations)
    judged = q - expected
    assert float((values - online).abs().max()) > 1e-3
    if normalize_advantage:
        judged = judged / judged.std()
    th.testing.assert_close(seen["judged"], judged, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("continuous", [False, True])
def test_steps_at_which_an_agent_was_absent_are_no_part_of_its_transport(continuous, monkeypatch):
    env = ParallelVecEnv([lambda: WanderersEnv((2, 7, 5), continuous=continuous)] * 4)
    model = collect(WMATRPO("MlpPolicy", env, **SMALL))
    seen = {}

    def watch(problem, advantage, old):
        seen[problem.index] = (problem, solve(problem, advantage, old))
        return seen[problem.index][1]

    solve = model._transport
    monkeypatch.setattr(model, "_transport", watch)
    model.train()
    problem, transport = seen[0]
    absent = ~problem.active.squeeze(1)
    assert 0.5 < float(absent.float().mean()) < 0.9
    if continuous:
        # Nothing is weighed, so that it may go where it likes; of those who were there the budget is used up.
        played = problem.actions.clamp(*model.policy.box_bounds())
        cost = (transport.targets - played.unsqueeze(0)).abs().sum(-1)[:, :, 0]
        spent = float((transport.shares[:, None] * cost)[:, ~absent].sum() / (~absent).sum())
        assert spent == pytest.approx(problem.radius, rel=1e-3)
    else:
        assert bool((transport.targets[absent] == 0.0).all())
        assert float(transport.targets.sum()) == pytest.approx(1.0, rel=1e-5)


# ---------------------------------------------------------------- teams that see one state
@pytest.mark.parametrize("continuous", [False, True])
def test_in_one_state_every_joint_action_of_the_rollout_stands_for_the_team_mates(continuous, monkeypatch):
    monkeypatch.setattr("otbaselines.wmatrpo.wmatrpo.can_enumerate", lambda *_: False)
    model = collect(_stage(continuous, trust_radius=0.3))
    seen = []

    def watch(problem):
        seen.append((problem, model._round, advantage(problem)))
        return seen[-1][2]

    advantage = model._advantage
    monkeypatch.setattr(model, "_advantage", watch)
    model.train()
    assert [now.is_one_state for _, now, _ in seen] == [True, True]
    problem, now, judge = seen[1]
    candidates = th.eye(3) if not continuous else th.linspace(-1, 1, 5).unsqueeze(1)
    found = judge(candidates.unsqueeze(0))
    assert found.shape == (1, len(candidates))
    weights = problem.weights.squeeze(1)
    assert float(weights.std()) > 1e-3
    # With explicit loops over joint steps of the rollout, of which the first 64 stand for all.
    weights = weights[:64] / weights[:64].mean()
    with th.no_grad():
        for number, candidate in enumerate(candidates):
            total = 0.0
            for row in range(64):
                joint = now.actions[row : row + 1].clone()
                joint[0, problem.index] = candidate
                worth = model.policy.joint_critics(now.inputs[:1], joint).squeeze()
                total += float(weights[row] * (worth - now.values[0]) / now.scale)
            assert float(found[0, number]) == pytest.approx(total / 64, rel=1e-3, abs=1e-3)


def test_in_one_state_few_choices_are_all_tried(monkeypatch):
    """Against sums over the three actions of the other agent, with the policies as they are at each agent's turn."""
    model = collect(_stage(False, trust_radius=0.3))
    seen = []

    def watch(problem):
        judge, now = advantage(problem), model._round
        other = 1 - problem.index
        with th.no_grad():
            probs = model.policy.team_distribution(model.rollout_buffer.observations.flatten(0, 1)[:1]).probs[0, other]
            expected = []
            for action in range(3):
                joint = th.zeros(3, 2, 3)
                joint[:, problem.index, action] = 1.0
                joint[:, other] = th.eye(3)
                worth = model.policy.joint_critics(now.inputs[:1].expand(3, -1), joint).squeeze(0)
                expected.append(float((probs * (worth - now.values[0]) / now.scale).sum()))
        seen.append(probs)
        np.testing.assert_allclose(judge(th.eye(3).unsqueeze(0))[0], expected, atol=1e-5)
        return judge

    advantage = model._advantage
    monkeypatch.setattr(model, "_advantage", watch)
    model.train()
    assert len(seen) == 2


@pytest.mark.parametrize("n_joint", [None, 20])
def test_in_one_state_so_many_joint_actions_stand_for_all_as_is_said(n_joint, monkeypatch):
    model = collect(_stage(True, n_joint=n_joint))
    seen = []

    def watch(problem):
        seen.append(advantage(problem))
        return seen[-1]

    advantage = model._advantage
    monkeypatch.setattr(model, "_advantage", watch)
    model.train()
    for judge in seen:
        assert judge.joint.shape[1] == (n_joint or 64)
        assert float(judge.weights.mean()) == pytest.approx(1.0, rel=1e-5)


def test_a_repeated_state_whose_distances_exceed_the_machine_is_refused(monkeypatch):
    model = collect(_stage(True))
    monkeypatch.setattr("otbaselines.common.memory.machine_memory", lambda: 1e5)
    before = clone(model.policy.parameters())
    with pytest.raises(ValueError, match=r"the distances between 128 joint steps .* lower `n_steps` or the number of copies"):
        model.train()
    assert all(map(th.equal, model.policy.parameters(), before))


class NarrowEnv(CustomSpacesEnv):
    """Two agents that see noise; the second has a fifth of the first one's box, and pays for all that is played."""

    def __init__(self) -> None:
        agents = ("wide", "narrow")
        boxes = [spaces.Box(-width, width, (1,), np.float32) for width in (1.0, 0.2)]
        super().__init__(dict.fromkeys(agents, vector(2)), dict(zip(agents, boxes, strict=True)))
        self.rng = np.random.default_rng(0)

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        return super().reset(seed, options)

    def step(self, actions):
        result = super().step(actions)
        seen = {agent: self.rng.normal(size=2).astype(np.float32) for agent in self.possible_agents}
        reward = float(sum(np.sum(action) for action in self.actions.values()))
        return (seen, dict.fromkeys(self.actions, reward), *result[2:])


def test_an_agents_own_box_is_where_its_actions_end(monkeypatch):
    env = ParallelVecEnv([NarrowEnv] * 4)
    model = collect(WMATRPO("MlpPolicy", env, **SMALL, trust_radius=0.2))
    seen = {}

    def watch(problem, parameters, transport, old):
        seen[problem.index] = problem, transport
        return follow(problem, parameters, transport, old)

    follow = model._follow_transport
    monkeypatch.setattr(model, "_follow_transport", watch)
    beyond = th.tensor([[[0.1], [0.2]], [[0.1], [0.7]]])
    first, second = model._encode(beyond, slice(0, 2))
    assert th.equal(first, second)
    model.train()
    actions = model._replay[-1][1]
    assert float(actions[:, 0].abs().max()) > 0.9
    assert float(actions[:, 1].abs().max()) == pytest.approx(0.2)
    problem, transport = seen[1]
    assert float(problem.actions.abs().max()) > 0.5
    assert float(transport.targets.abs().max()) <= 0.2 + 1e-6


# ---------------------------------------------------------------- rounds that are undone
@pytest.mark.parametrize("where", ["_critic_values", "_log_round", "_update_agent"])
@pytest.mark.parametrize("kept", [1, 3])
def test_an_undone_round_leaves_the_replay_as_it_was(where, kept, monkeypatch):
    model = _stage(False, replay_rollouts=kept)
    for _ in range(3):
        collect(model).train()
    before = list(model._replay)
    collect(model)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.train()
    assert len(model._replay) == len(before)
    pairs = zip(model._replay, before, strict=True)
    assert all(a is b for one, other in pairs for a, b in zip(one, other, strict=True))
    assert model._replay.maxlen == kept
    model.train()
    assert "_replay_before" not in vars(model)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_lagrangian_is_centred_only_where_advantages_are_normalised(normalize, monkeypatch):
    """What is added to all advantages alike changes the update where they are taken as they are, and only there."""
    results = []
    for offset in (0.0, 3.0):
        model = collect(_stage(False, update="lagrangian", normalize_advantage=normalize, trust_radius=0.5))
        descend = model._descend_lagrangian

        def shifted(*args, model=model, descend=descend, offset=offset):
            if not hasattr(model, "is_shifted"):
                model.is_shifted = True
                model._round.judged = model._round.judged + offset
            return descend(*args)

        monkeypatch.setattr(model, "_descend_lagrangian", shifted)
        model.train()
        results.append(th.cat([p.detach().flatten() for p in model.policy.actor_parameters()]))
    apart = float((results[0] - results[1]).abs().max())
    assert apart < 1e-5 if normalize else apart > 1e-4


@pytest.mark.parametrize("kwargs", [{}, {"update": "lagrangian"}, {"leader": "best_response"}], ids=str)
@pytest.mark.parametrize("continuous", [False, True])
def test_a_game_of_one_state_is_learned(continuous, kwargs):
    settings = {"trust_radius": 0.3, "actor_learning_rate": 0.03, "n_steps": 8, "batch_size": 128}
    model = _stage(continuous, **settings, **kwargs)
    rounds(model, 6)
    played = model.predict(np.full((2, 2), 0.5, np.float32), deterministic=True)[0]
    # The most is paid for the highest actions of both, which begin at about zero.
    assert (played >= (0.15 if continuous else 2)).all()


def test_the_lagrangian_is_descended_and_its_multiplier_ascended(monkeypatch):
    # By plain gradient steps, so that they can be repeated.
    kwargs = {"policy_kwargs": {"net_arch": [8], "optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.0}}}
    model = WMATRPO("MlpPolicy", _spread(), **{**SMALL, **kwargs}, update="lagrangian", dual_learning_rate=3.0)
    model.n_actor_updates, model.actor_learning_rate = 4, 2.0
    collect(model)
    before, seen = copy.deepcopy(model.policy), []

    def watch(problem, parameters, multiplier, old):
        descend(problem, parameters, multiplier, old)
        seen.append((problem, model._round.judged, multiplier, clone(parameters)))

    descend = model._descend_lagrangian
    monkeypatch.setattr(model, "_descend_lagrangian", watch)
    model.train()
    for problem, judged, multiplier, reached in seen:
        view = before.agent(problem.index)
        parameters = view.actor_parameters()
        with th.no_grad():
            old = view.team_distribution(problem.observations).probs
        taken = problem.actions.unsqueeze(-1)
        price = multiplier
        for _ in range(4):
            probs = view.team_distribution(problem.observations).probs
            ratio = (probs.gather(-1, taken) / old.gather(-1, taken)).flatten()
            # Between choices that are one apart the distance is the total variation.
            distance = 0.5 * (probs - old).abs().sum(-1).mean()
            signal = (judged - judged.mean()) * problem.weights.flatten()
            loss = price * (distance - 0.1) - (ratio * signal).mean()
            for parameter, slope in zip(parameters, th.autograd.grad(loss, parameters), strict=True):
                parameter.data -= 2.0 * slope
            price = max(0.0, price + 3.0 * (float(distance.detach()) - 0.1))
        assert price != multiplier
        for expected, found in zip(parameters, reached, strict=True):
            th.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-3)


def test_two_states_are_not_one():
    model = collect(WMATRPO("MlpPolicy", _spread(), **SMALL))
    seen = []
    update = model._update_agent
    model._update_agent = lambda problem: seen.append(model._round.is_one_state) or update(problem)
    model.train()
    assert seen == [False] * 3


# ---------------------------------------------------------------- the fit of vectors
def test_vectors_are_fitted_to_the_weighted_mean_of_their_images(monkeypatch):
    settings = {"n_steps": 64, "batch_size": 512, "trust_radius": 50.0, "n_actor_updates": 400, "actor_learning_rate": 0.02}
    model = collect(_stage(True, **settings))
    images = th.tensor([0.8, -0.4]).view(2, 1, 1, 1).expand(2, 1, 512, 1)
    sent = Transport(0.0, 0.0, images, th.tensor([0.25, 0.75]))
    monkeypatch.setattr(model, "_transport", lambda *args: sent)
    model.train()
    observations = th.full((1, 2, 2), 0.5)
    with th.no_grad():
        policies = model.policy.team_distribution(observations)
    # 0.25 * 0.8 - 0.75 * 0.4, wherever an action came from.
    th.testing.assert_close(policies.mean, th.full((1, 2, 1), -0.1), atol=0.02, rtol=0.0)
    assert float(policies.std.detach().max()) < 0.2


@pytest.mark.parametrize("mean", [0.0, 1.0, 3.0])
def test_nothing_moves_where_no_action_is_better(mean, monkeypatch):
    model = _stage(True, policy_kwargs={"net_arch": [8], "log_std_init": 0.7, "mean_init": mean})
    monkeypatch.setattr(MarginalAdvantage, "__call__", lambda self, candidates: th.zeros(1, candidates.shape[1]))
    before = clone(model.policy.actor_parameters())
    log = rounds(model, 1)[0]
    # With a deviation of 2 most actions lie beyond the box, and count as those at its edge.
    beyond = (model.rollout_buffer.actions.abs() > 1.0).float().mean()
    assert float(beyond) > 0.4
    assert max(numbers(log, "fit")) < 1e-6
    for parameter, old in zip(model.policy.actor_parameters(), before, strict=True):
        th.testing.assert_close(parameter, old, atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------- whose actions there are
def test_every_agent_has_the_box_that_is_its_own():
    own = {
        "arm": spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32)),
        "leg": spaces.Box(np.array([-0.5], np.float32), np.array([0.5], np.float32)),
    }
    env = ParallelVecEnv([lambda: CustomSpacesEnv(dict.fromkeys(own, vector(2)), own)] * 4)
    model = WMATRPO("MlpPolicy", env, **SMALL)
    arm, leg = model.action_sets()
    assert isinstance(arm, Box)
    assert arm.low.tolist() == [-1.0, -1.0]
    assert arm.high.tolist() == [1.0, 1.0]
    # Its second dimension, which it lacks, is what a zero of the team's box is read as.
    low, high = model.action_space.low, model.action_space.high
    zero = 2 * (0.0 - low[1]) / (high[1] - low[1]) - 1
    np.testing.assert_allclose(leg.low, [2 * (-0.5 - low[0]) / (high[0] - low[0]) - 1, zero])
    np.testing.assert_allclose(leg.high, [2 * (0.5 - low[0]) / (high[0] - low[0]) - 1, zero])
    assert all(
        np.isfinite(list(log.values())).all() for log in rounds(model, 2) if log.pop("train/explained_variance", 0.0) or 1
    )


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize(
    "kwargs", [{"leader": "best_response", "n_critics": 3, "optimism": 1.0}, {"optimism": 0.5, "n_critics": 2}]
)
def test_leaders_and_optimists_train_and_are_saved(continuous, kwargs, tmp_path):
    model = WMATRPO("MlpPolicy", _spread(continuous_actions=continuous), **{**SMALL, "n_steps": 6}, **kwargs)
    logs = rounds(model, 2)
    assert sum(log["train/is_update_accepted"] for log in logs) > 0.0
    model.save(tmp_path / "model")
    loaded = WMATRPO.load(tmp_path / "model", env=_spread(continuous_actions=continuous))
    assert (loaded.leader, loaded.n_critics) == (model.leader, model.n_critics)
    assert loaded.schedule_value("optimism") == model.schedule_value("optimism") == kwargs["optimism"]
    assert numbers(rounds(loaded, 1)[0], "radius") == [0.1] * 3


def test_only_agents_that_move_later_answer(monkeypatch):
    for leader, expected in (("mean", [(), (), ()]), ("best_response", None)):
        model = collect(WMATRPO("MlpPolicy", _spread(), **SMALL, leader=leader))
        seen = []

        def watch(problem, model=model, seen=seen):
            found = WMATRPO._advantage(model, problem)
            seen.append((problem.index, found.later))
            return found

        monkeypatch.setattr(model, "_advantage", watch)
        model.train()
        order = [index for index, _ in seen]
        assert [later for _, later in seen] == (expected or [tuple(order[1:]), tuple(order[2:]), ()])


# ---------------------------------------------------------------- bad input
def test_optimism_asks_for_critics_that_can_disagree():
    with pytest.raises(ValueError, match=r"`optimism`=0.5 needs critics that can disagree; use `n_critics` of 2 or more"):
        WMATRPO("MlpPolicy", _spread(), optimism=0.5)


def test_leaders_are_refused_what_does_not_apply_to_them():
    with pytest.raises(ValueError, match=r"`leader`='best_response' .* `update`='lagrangian' does not follow"):
        WMATRPO("MlpPolicy", _spread(), leader="best_response", update="lagrangian")
    with pytest.raises(TypeError, match=r"`n_joint` applies to `leader='mean'` only, got 4; leave it out"):
        WMATRPO("MlpPolicy", _spread(), leader="best_response", n_joint=4)


def test_the_rate_of_a_multiplier_that_is_not_descended_is_refused():
    with pytest.raises(TypeError, match=r"`dual_learning_rate` applies to `update='lagrangian'` only, got 0.1; leave it out"):
        WMATRPO("MlpPolicy", _spread(), dual_learning_rate=0.1)
    assert WMATRPO("MlpPolicy", _spread(), dual_learning_rate=0.1, update="lagrangian").dual_learning_rate == 0.1


@pytest.mark.parametrize("name", ["n_candidates", "n_refinements"])
def test_settings_of_the_search_of_a_box_are_refused_for_choices(name):
    with pytest.raises(TypeError, match=f"`{name}` applies to Box actions only, got 8; leave it out"):
        WMATRPO("MlpPolicy", _spread(), **{name: 8})
    model = WMATRPO("MlpPolicy", _spread(continuous_actions=True), **SMALL, **{name: 8})
    assert len(rounds(model, 1)) == 1


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)], ids=lambda space: type(space).__name__
)
def test_actions_without_a_transport_are_refused(space):
    with pytest.raises(
        ValueError, match=r"WMATRPO moves Discrete or Box actions, but the action space is Multi.*; use HATRPO"
    ):
        WMATRPO("MlpPolicy", AnySpacesEnv(vector(3), space))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, 1.0, (2,), np.float32),
        spaces.Box(0.0, np.inf, (1,), np.float32),
        spaces.Box(0.5, 0.5, (2,), np.float32),
    ],
    ids=["below", "above", "flat"],
)
def test_boxes_that_cannot_be_searched_are_refused(space):
    with pytest.raises(
        ValueError,
        match=r"the action space Box.* (is not (supported|bounded on all sides)|has a dimension with a single)",
    ):
        WMATRPO("MlpPolicy", AnySpacesEnv(vector(3), space))


@pytest.mark.parametrize("policy", [MultiAgentActorCriticPolicy, ActorCriticPolicy])
@pytest.mark.parametrize("env", ["team", "CartPole-v1"])
def test_policies_without_joint_critics_are_refused(policy, env):
    said = f"WMATRPO needs a policy with critics of the joint action, but {policy.__name__} has none; use 'MlpPolicy'"
    with pytest.raises(ValueError, match=said):
        WMATRPO(policy, _spread() if env == "team" else env)


def test_policies_of_ones_own_that_have_joint_critics_are_taken():
    class Own(MlpPolicy):
        pass

    model = WMATRPO(Own, _spread(), **SMALL)
    before = clone(model.policy.actor_parameters())
    rounds(model, 1)
    assert not all(th.equal(a, b) for a, b in zip(before, model.policy.actor_parameters(), strict=True))


@pytest.mark.parametrize("update", ["transport", "lagrangian"])
@pytest.mark.parametrize("continuous", [False, True])
def test_a_fit_that_diverges_is_named_or_taken_back(continuous, update):
    model = WMATRPO("MlpPolicy", _spread(continuous_actions=continuous), **SMALL, actor_learning_rate=1e38, update=update)
    before = clone(model.policy.actor_parameters())
    with pytest.raises(ValueError, match=r"`trust_region/fit_[0-2]`.* became NaN or infinite .* were restored"):
        rounds(model, 2)
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.actor_parameters(), strict=True))


def test_constant_rewards_keep_training_whole():
    model = WMATRPO("MlpPolicy", rewarding(lambda a: np.full(2, 0.7)), **SMALL)
    for log in rounds(model, 3):
        assert all(np.isfinite(value) for name, value in log.items() if name.startswith("trust_region"))
        assert all(w1 <= 0.1 * 1.01 for w1 in numbers(log, "w1"))


def test_a_rollout_that_undid_its_round_does_not_stay_in_the_replay():
    model = collect(_stage(True, replay_rollouts=5))
    model.train()
    kept = [part.clone() for part in model._replay[0]]
    collect(model)
    model.rollout_buffer.returns.fill_(1e30)
    with pytest.raises(ValueError, match="became NaN or infinite"):
        model.train()
    assert len(model._replay) == 1
    assert all(th.equal(part, old) for part, old in zip(model._replay[0], kept, strict=True))
    collect(model).train()
    assert len(model._replay) == 2


def test_boxes_of_doubles_are_moved_in():
    env = AnySpacesEnv(spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float64))
    model = WMATRPO("MlpPolicy", env, **{**SMALL, "batch_size": 8}).learn(32)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


def test_settings_that_were_changed_count_at_the_next_learning():
    model = _stage(False, batch_size=16).learn(256)
    model.replay_rollouts, model.ground_metric = 3, [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    model.learn(256)
    assert model._replay.maxlen == 3
    assert float(model._metric.table(0)[0, 2]) == 2.0
    model.optimism = 1.0
    with pytest.raises(ValueError, match="`optimism`=1.0 needs critics that can disagree".replace(".", r"\.")):
        model.learn(256)


def test_many_joint_actions_of_one_state_do_not_multiply_with_each_other(monkeypatch):
    model = collect(_stage(True, n_steps=64))
    seen = []
    responses = model.policy.joint_critics.responses

    def watch(states, joint, agent, candidates):
        seen.append((joint.shape[1], candidates.shape[1]))
        return responses(states, joint, agent, candidates)

    monkeypatch.setattr(model.policy.joint_critics, "responses", watch)
    model.train()
    # Of 512 joint actions 64 stand for the team-mates, and 4 x 64 candidates join 512 sources and the grid of 64.
    assert {n_joint for n_joint, _ in seen} == {64}
    assert max(n for _, n in seen) == 512 + 64


@pytest.mark.parametrize("other", [HATRPO, IPPO])
def test_its_policies_are_for_it_alone(other):
    env = ParallelVecEnv([lambda: StageEnv(False)] * 2)
    with pytest.raises(ValueError, match="`policy` JointCriticPolicy is for WMATRPO only"):
        other(MlpPolicy, env, n_steps=8)
    with pytest.raises(ValueError, match="JointCriticMultiInputPolicy is for a Dict of observations"):
        WMATRPO("MultiInputPolicy", env, **SMALL)
    with pytest.raises(TypeError, match="'use_sde'"):
        WMATRPO("MlpPolicy", env, **{**SMALL, "policy_kwargs": {"use_sde": True}})


@pytest.mark.parametrize(
    ("metric", "error", "said"),
    [
        (np.zeros((3, 3)), ValueError, "zero everywhere"),
        ([["0", "1", "1"]] * 3, TypeError, "table of real numbers"),
        ([np.ones((3, 3)), np.ones((5, 5))], TypeError, "padded to the team's largest number"),
        (np.ones((3, 3)) * 1j, TypeError, "table of real numbers"),
    ],
)
def test_tables_that_bound_nothing_or_are_no_numbers_are_refused(metric, error, said):
    with pytest.raises(error, match=f"`ground_metric`.*{said}"):
        _stage(False, ground_metric=metric)


def test_tables_that_are_tensors_with_gradients_are_read():
    table = (1.0 - th.eye(3)).requires_grad_()
    assert th.equal(_stage(False, ground_metric=table)._metric.table(1), table.detach())
