"""The algorithm: random streams, saving, schedules, logs, errors, and that its agents agree in the end."""

import functools
import math

import numpy as np
import pytest
import torch as th
from core_toys import WanderersEnv
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from toy_teams import CustomSpacesEnv, DiceEnv, RelayEnv, vector

from otbaselines import IPPO, WBC, ParallelVecEnv, make_vec_env, ot
from otbaselines.common.seeding import child_seeds
from otbaselines.envs.navigation_tensor import NavigationVecEnv
from otbaselines.wbc.metric import TeamSpaces, make_metric, normalised_table

pytestmark = pytest.mark.filterwarnings("ignore:the rollout of")
SMALL = {"n_steps": 6, "batch_size": 18, "n_epochs": 2, "seed": 0}
FORMS = {
    "conditional": ("conditional", {}),
    "conditional_biased": ("conditional", {"debiased": False}),
    "kl": ("kl", {}),
    "kl_reverse": ("kl", {"reverse": True}),
    "energy": ("energy", {}),
    "pooled": ("pooled", {"p": 1}),
    "own": ("own", {"p": 1, "debiased": False}),
    "sampled_pooled_potential": ("sampled", {"support": "pooled", "p": 1}),
    "sampled_pooled_plan": ("sampled", {"support": "pooled", "p": 1, "gradient": "plan"}),
    "sampled_own_potential": ("sampled", {"p": 1}),
    "sampled_own_plan": ("sampled", {"p": 1, "gradient": "plan", "debiased": False}),
    "sliced_pooled": ("sliced", {"support": "pooled", "gradient": "plan"}),
    "sliced_own": ("sliced", {}),
}
# Without debiasing the barycenter of equal normals has their variance plus half the strength; that is not implemented.
COMBINATIONS = [
    (form, continuous) for form in FORMS for continuous in (False, True) if (form, continuous) != ("conditional_biased", True)
]


def _wbc(env, form="conditional", policy="MlpPolicy", *, options=None, **settings):
    """A small support; ``form`` is one of :data:`FORMS` or an estimator's name."""
    estimator, own = FORMS.get(form, (form, {}))
    estimator_kwargs = {"n_support": 8, **own, **(options or {})}
    return WBC(policy, env, **{**SMALL, "estimator": estimator, "estimator_kwargs": estimator_kwargs, **settings})


def _navigation(continuous=False, **kwargs):
    return NavigationVecEnv(n_copies=2, continuous_actions=continuous, max_episode_steps=5, seed=0, **kwargs)


def _learn(model, rollouts=3):
    return model.learn(rollouts * model.n_steps * model.n_envs)


def _bits(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def _same(first, second):
    ours, theirs = _bits(first), _bits(second)
    return ours.keys() == theirs.keys() and all(th.equal(value, theirs[name]) for name, value in ours.items())


def _logged(model, rollouts=3):
    """Learn, and return what was recorded in each update; SB3 writes the last one only when learning goes on."""
    rows, train = [], model.train

    def recorded() -> None:
        train()
        rows.append(dict(model.logger.name_to_value))

    model.train = recorded
    model.set_logger(configure(None, []))
    _learn(model, rollouts)
    return rows


# ---------------------------------------------------------------- the learner's random numbers
@pytest.fixture(scope="module")
def independent():
    return {continuous: _learn(IPPO("MlpPolicy", _navigation(continuous), **SMALL)) for continuous in (False, True)}


@pytest.mark.parametrize(("form", "continuous"), COMBINATIONS)
def test_every_form_without_weight_is_ippo_to_the_bit(form, continuous, independent):
    model = _learn(_wbc(_navigation(continuous), form, consensus_coef=0.0))
    assert _same(model, independent[continuous])


@pytest.mark.parametrize(("form", "continuous"), COMBINATIONS)
def test_every_form_is_reproducible_and_matters(form, continuous, independent):
    def run(seed):
        return _learn(_wbc(_navigation(continuous), form, consensus_coef=1.0, seed=seed), 2)

    first = run(0)
    assert _same(first, run(0))
    assert not _same(first, run(1))
    for parameter in first.policy.parameters():
        assert bool(parameter.isfinite().all())


def test_one_agent_has_nobody_to_agree_with():
    alone = _learn(IPPO("MlpPolicy", _navigation(n_agents=1), **{**SMALL, "batch_size": 6}))
    assert _same(_learn(_wbc(_navigation(n_agents=1), batch_size=6)), alone)


def test_consensus_and_slicing_have_streams_of_their_own():
    model, seeds = _wbc(_navigation(), "sliced", seed=3), child_seeds(3)
    assert [stream.initial_seed() for stream in _streams(model)] == [seeds["consensus"], seeds["slicing"]]
    assert len(set(seeds.values())) == len(seeds)
    _learn(model, 1)
    model.set_random_seed(5)
    later = child_seeds(5, model.num_timesteps)
    assert [stream.initial_seed() for stream in _streams(model)] == [later["consensus"], later["slicing"]]


def _streams(model):
    return model._streams.states, model._streams.directions


# ---------------------------------------------------------------- saving
TABLE = [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
SAVED = {
    "schedules": {"consensus_coef": "lin_1.0", "reg": "linear_0.5_0.2"},
    "kl": {"form": "kl", "consensus_coef": 0.3},
    "kl_placed": {"form": "kl", "options": {"action_embedding": "environment", "reverse": True}},
    "energy": {"form": "energy"},
    "table": {"options": {"action_embedding": TABLE, "p": 1}},
    "array": {"options": {"action_embedding": np.asarray(TABLE)}},
    "environment": {"options": {"action_embedding": "environment"}},
    "pooled": {"form": "pooled", "options": {"metric_coordinates": [0, 1], "weights": "return"}},
    "sliced": {"form": "sliced_pooled", "options": {"n_projections": 5}},
}


@pytest.mark.parametrize("settings", SAVED)
def test_training_after_load_equals_training_without_saving(settings, tmp_path):
    def go_on(model):
        # Saving does not keep random streams or environments, so both start alike.
        model.set_env(_navigation(heterogeneous="roles"))
        model.set_random_seed(5)
        return model.learn(2 * 6 * model.n_envs, reset_num_timesteps=False)

    model = _wbc(_navigation(heterogeneous="roles"), **SAVED[settings])
    _learn(model, 2).save(tmp_path / "model")
    loaded = WBC.load(tmp_path / "model", env=_navigation(heterogeneous="roles"))
    for progress in (1.0, 0.4, 0.0):
        assert loaded.consensus_coef(progress) == model.consensus_coef(progress)
        assert model.reg is loaded.reg is None or loaded.reg(progress) == model.reg(progress)
    assert loaded.estimator == model.estimator
    assert loaded.estimator_kwargs.keys() == model.estimator_kwargs.keys()
    for name, value in model.estimator_kwargs.items():
        assert np.array_equal(loaded.estimator_kwargs[name], value), name
    assert _same(go_on(model), go_on(loaded))


@pytest.mark.parametrize("options", [{"action_embedding": "environment"}, {"action_embedding": None}, {}], ids=str)
def test_the_environments_embedding_is_loaded_without_the_environment(tmp_path, options):
    model = _wbc(_navigation(heterogeneous="roles"), options=options)
    model.save(tmp_path / "model")
    loaded = WBC.load(tmp_path / "model")
    assert np.shape(loaded.options.action_embedding) == (3, 5, 2)
    assert np.array_equal(loaded.options.action_embedding, model.options.action_embedding)
    observations = np.zeros((6, 8), np.float32)
    assert np.array_equal(*(each.predict(observations, deterministic=True)[0] for each in (model, loaded)))


# ---------------------------------------------------------------- logs and schedules
@pytest.mark.parametrize("form", ["conditional", "pooled", "kl", "sliced_own"])
def test_the_log_tells_how_far_apart_the_agents_are(form):
    has_reg = form in ("conditional", "pooled")
    settings = {"reg": "linear_0.5_0.2"} if has_reg else {}
    model = _wbc(_navigation(), form, consensus_coef="lin_0.6", **settings)
    rows = _logged(model)
    assert len(rows) == 3
    keys = {"consensus/max_divergence", *(f"consensus/divergence_{agent}" for agent in range(3))}
    for row in rows:
        assert keys <= row.keys()
        assert all(math.isfinite(row[key]) and row[key] >= -1e-5 for key in keys)
        assert 0.0 < row["time/transport_share"] < 1.0
    # Training after a rollout sees the progress that the rollout made.
    assert [row["consensus/coef"] for row in rows] == pytest.approx([0.4, 0.2, 0.0])
    if has_reg:
        assert [row["consensus/reg"] for row in rows] == pytest.approx([0.4, 0.3, 0.2])
        assert all(0.0 < row["consensus/solver_error"] < 1e-3 for row in rows)
    else:
        # Closed forms have neither.
        assert not any({"consensus/reg", "consensus/solver_error"} & row.keys() for row in rows)


def test_the_weight_never_becomes_negative_in_a_rollout_that_is_finished():
    model = _wbc(_navigation(), consensus_coef="lin_1.0")
    model.learn(3 * 6 * model.n_envs // 2)
    # Whole rollouts are finished, so the last one overshoots; the remaining progress stops at zero.
    assert model.num_timesteps > model._total_timesteps
    assert model._current_progress_remaining == 0.0
    assert model._coef == 0.0


def test_a_regularisation_that_falls_to_nothing_in_between_is_an_error():
    model = _wbc(_navigation(), reg=lambda progress: 0.0 if 0.2 < progress < 0.9 else 0.5)
    before = _bits(model)
    with pytest.raises(ValueError, match=r"`reg` at the remaining progress \S+ must be .* above 0.*, got 0\.0"):
        _learn(model)
    assert all(th.equal(value, before[name]) for name, value in _bits(model).items())


def test_agents_with_higher_rewards_weigh_more_in_the_barycenter():
    model = _wbc(_navigation(), options={"weights": "return"})
    model.rollout_buffer.rewards.copy_(th.tensor([1.0, 2.0, 3.0]))
    # Standardised: -1, 0 and 1.
    expected = np.exp([-1.0, 0.0, 1.0]) / np.exp([-1.0, 0.0, 1.0]).sum()
    np.testing.assert_allclose(model._barycenter_weights(), expected, rtol=1e-5)
    np.testing.assert_allclose(_wbc(_navigation())._barycenter_weights(), [1 / 3] * 3, rtol=1e-6)


def test_steps_after_an_agents_departure_do_not_count_against_it():
    model = _wbc(_navigation(), options={"weights": "return"})
    buffer = model.rollout_buffer
    buffer.rewards.copy_(th.tensor([1.0, 2.0, 3.0]))
    # The third agent leaves half-way; its rows are zero from then on.
    half = buffer.rewards.shape[0] // 2
    buffer.rewards[half:, :, 2] = 0.0
    buffer.active[half:, :, 2] = False
    buffer.all_active = False
    expected = np.exp([-1.0, 0.0, 1.0]) / np.exp([-1.0, 0.0, 1.0]).sum()
    np.testing.assert_allclose(model._barycenter_weights(), expected, rtol=1e-5)


@pytest.mark.parametrize("form", ["conditional", "pooled"])
def test_a_solver_that_stops_early_is_logged_and_warned_of_once_in_a_run(form, monkeypatch):
    # No solver gets there in its one round, or its two iterations.
    monkeypatch.setattr("otbaselines.wbc.conditional.COLD_ERROR", 1e-12)
    monkeypatch.setattr("otbaselines.wbc.conditional.MAX_COLD_ROUNDS", 1)
    monkeypatch.setattr("otbaselines.wbc.visitation.TOLERANCE", 1e-12)
    for solver in ("barycenter", "self_transport", "pairwise_sinkhorn"):
        monkeypatch.setattr(ot, solver, functools.partial(getattr(ot, solver), max_iter=2))
    model = _quarrel(_wbc(_navigation(), form, reg=0.3))
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=r"stopped early.*off by .*raise `reg`.*`consensus/solver_error`") as caught:
            rows = _logged(model)
        assert len([warning for warning in caught if warning.category is RuntimeWarning]) == 1
        assert all(row["consensus/solver_error"] > 0.0 for row in rows)


# ---------------------------------------------------------------- agreement (Theorem 3.1)
class SilentNavigation(NavigationVecEnv):
    """Nothing is rewarded."""

    def _transition(self, actions):
        rewards, terminated = super()._transition(actions)
        return th.zeros_like(rewards), terminated


def _quarrel(model):
    """Policies that differ much, and critics that say nothing, so that only consensus has a gradient."""
    with th.no_grad():
        model.policy.action_net.weight.mul_(100.0)
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.zero_()
    return model


AGREEING = {
    "conditional": ("conditional", {}),
    "conditional_p1": ("conditional", {"p": 1}),
    "gaussian": ("conditional", {}),
    "kl": ("kl", {}),
    "kl_gaussian": ("kl", {}),
    "kl_reverse": ("kl", {"reverse": True}),
    "energy": ("energy", {}),
    "energy_gaussian": ("energy", {}),
    "pooled": ("pooled", {"p": 1}),
    "reparametrised_pooled": ("pooled", {}),
}


@pytest.mark.parametrize("form", AGREEING)
def test_without_rewards_the_agents_come_to_agree(form):
    env = SilentNavigation(n_copies=8, max_episode_steps=10, seed=0, continuous_actions="gaussian" in form or "repar" in form)
    settings = {"n_steps": 10, "batch_size": 120, "n_epochs": 3, "learning_rate": 3e-3, "consensus_coef": 1.0}
    estimator, options = AGREEING[form]
    reg = {} if estimator in ("kl", "energy") else {"reg": 0.5}
    model = _quarrel(_wbc(env, estimator, options={"n_support": 24, **options}, **settings, **reg))
    divergences = [row["consensus/max_divergence"] for row in _logged(model, 15)]
    assert divergences[0] > 0.01
    assert divergences[-1] < 0.35 * max(divergences[:3])
    # Geometric decay is a straight line in the logarithm.
    assert np.polyfit(range(15), np.log(divergences), 1)[0] < -0.05


def test_without_rewards_and_without_consensus_nothing_moves():
    env = SilentNavigation(n_copies=2, max_episode_steps=10, seed=0)
    model = _quarrel(_wbc(env, consensus_coef=0.0))
    before = _bits(model)
    _learn(model)
    assert all(th.equal(value, before[name]) for name, value in _bits(model).items())


# ---------------------------------------------------------------- what actions do
def _go_right(model, env):
    """Let everybody mostly go right, whatever the number of that move is."""
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        moves = th.as_tensor(env.agent_action_vectors, dtype=th.float32)
        model.policy.action_net.bias[:, 0] = 3.0 * moves[..., 0] / moves.norm(dim=-1).max()


@pytest.mark.parametrize("estimator", ["conditional", "pooled"])
def test_teams_with_roles_are_compared_by_what_their_actions_do(estimator):
    # Everybody mostly goes right, which is another action for each, because their moves are turned.
    results = {}
    for embedding in ("one_hot", "environment"):
        env = _navigation(heterogeneous="roles")
        model = _wbc(env, estimator, options={"action_embedding": embedding, "p": 1}, learning_rate=0.0)
        _go_right(model, env)
        results[embedding] = _logged(model, 1)[0]["consensus/max_divergence"]
    assert results["one_hot"] > 0.3
    assert results["environment"] == pytest.approx(0.0, abs=1e-4)


def test_the_metric_between_actions_is_the_environments_where_it_has_one():
    # Left is twice as far from right as staying is, in units in which the median distance is that of one-hot.
    def cost(model):
        return model._consensus.parts[0].metric.action_cost()

    silent = cost(WBC("MlpPolicy", _navigation(), **SMALL))
    named = cost(_wbc(_navigation(), options={"action_embedding": "environment"}))
    one_hot = cost(_wbc(_navigation(), options={"action_embedding": "one_hot"}))
    th.testing.assert_close(silent, named)
    expected = {0.0: 5, 0.64: 8, 1.28: 8, 2.56: 4}
    assert {value: int((silent - value).abs().lt(1e-4).sum()) for value in expected} == expected
    assert {value: int((one_hot - value).abs().lt(1e-4).sum()) for value in (0.0, 1.28)} == {0.0: 5, 1.28: 20}
    # Elsewhere the metric is that of one-hot, and divergences without a metric know no place unless they are told.
    elsewhere = _wbc(ParallelVecEnv([WanderersEnv] * 2, seed=0))
    assert elsewhere.options.action_embedding == elsewhere.estimator_kwargs["action_embedding"] == "one_hot"
    assert _wbc(_navigation(), "kl").options.action_embedding == "one_hot"
    assert "action_embedding" not in _wbc(_navigation(continuous=True)).estimator_kwargs


@pytest.mark.filterwarnings("ignore:agents of a group have actions that lead where")
@pytest.mark.parametrize("turn", [90, 30])
def test_placed_kl_pulls_together_what_shares_a_direction(turn):
    # Everybody goes the same way under other numbers: of quarter turns the labels say so, of other angles they cannot.
    divergences = {}
    for embedding in ("one_hot", "environment"):
        env = _navigation(turn=turn)
        model = _wbc(env, "kl", options={"action_embedding": embedding}, learning_rate=0.0)
        _go_right(model, env)
        divergences[embedding] = _logged(model, 1)[0]["consensus/divergence_0"]
    assert divergences["one_hot"] > 0.1
    if turn == 90:
        assert divergences["environment"] == pytest.approx(0.0, abs=1e-5)
    else:
        # Nothing but staying is common, so that nearly all of log 3 is left however alike they are.
        assert divergences["environment"] > 0.9 * math.log(3.0)


def test_a_table_for_every_agent_is_put_on_one_codebook():
    table = [[[0.0], [1.0]], [[1.0], [0.0]]]
    metric = make_metric(TeamSpaces(spaces.Discrete(2), vector(2), 2, th.device("cpu")), beta=0.8, p=2, action_embedding=table)
    probs = th.tensor([[[0.9, 0.1], [0.1, 0.9]]])
    placed = metric.place(probs)
    assert metric.codebook.tolist() == [[0.0], [1.0]]
    th.testing.assert_close(placed, th.tensor([[[0.9, 0.1], [0.9, 0.1]]]))
    points = metric.action_points(th.tensor([0, 0, 1]), th.tensor([0, 1, 1]))
    assert points.flatten().tolist() == pytest.approx([0.0, 0.8, 0.0])


def test_the_environments_displacements_get_the_median_distance_of_one_hot():
    table = np.asarray(normalised_table([[0.0, 0.0], [0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]]))
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    assert np.median(distances[distances > 0]) == pytest.approx(math.sqrt(2.0))
    assert normalised_table([[0.0], [0.0]]) == [[0.0], [0.0]]


# ---------------------------------------------------------------- unusual teams
DIFFERENT = {
    "speaker_listener": lambda: make_vec_env("mpe2/simple_speaker_listener_v4", 2, seed=0),
    "relay": lambda: make_vec_env(RelayEnv, 2, seed=0),
    "leaving": lambda: ParallelVecEnv([WanderersEnv] * 2, seed=0),
    "leaving_continuous": lambda: ParallelVecEnv([lambda: WanderersEnv(continuous=True)] * 2, seed=0),
    "different_boxes": lambda: make_vec_env(_boxes, 2, seed=0),
}


def _boxes():
    actions = {"a": spaces.Box(-1, 1, (1,), np.float32), "b": spaces.Box(-1, 1, (3,), np.float32)}
    return CustomSpacesEnv({"a": vector(2), "b": vector(3)}, actions)


@pytest.mark.filterwarnings("ignore:agents of a group have different")
@pytest.mark.parametrize("form", ["conditional", "kl", "kl_reverse", "energy", "pooled", "sampled_own_potential"])
@pytest.mark.parametrize("team", DIFFERENT)
def test_padded_teams_and_teams_whose_members_leave_learn(team, form):
    env = DIFFERENT[team]()
    model = _wbc(env, form, n_steps=12, batch_size=24, consensus_groups=[env.possible_agents])
    before = _bits(model)
    rows = _logged(model, 1)
    # Nothing that a table of zeros in place of what an agent lacks could blow up.
    assert 0.0 <= rows[0]["consensus/max_divergence"] < 10.0
    after = _bits(model)
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert not th.equal(after["action_net.weight"], before["action_net.weight"])


def test_different_spaces_in_a_group_are_a_warning():
    env = make_vec_env(RelayEnv, 2, seed=0)
    with pytest.warns(UserWarning, match="different observation or action spaces"):
        _wbc(env, consensus_groups=[env.possible_agents])


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reg": 0.0}, r"`reg` must be a number, or a schedule of numbers, above 0 or None, got 0\.0"),
        ({"reg": -1}, "`reg` must be .* above 0 or None, got -1"),
        ({"reg": math.nan}, "`reg` must be .* above 0 or None, got nan"),
        ({"reg": "0"}, r"`reg` at the remaining progress 1 must be .* above 0 or None, got 0\.0"),
        ({"reg": "lin_0.5"}, r"`reg` at the remaining progress 0 must be .* above 0.*, got 0\.0.*'linear_0.5_0.1'"),
        ({"consensus_coef": -0.5}, r"`consensus_coef` must be .* of at least 0, got -0\.5; 0 switches consensus off"),
        (
            {"consensus_coef": "linear_1.0_-1.0"},
            r"`consensus_coef` at the remaining progress 0 must be .* of at least 0, got -1\.0",
        ),
        ({"consensus_coef": "falling"}, r"'falling'"),
    ],
)
def test_settings_out_of_range_are_named_before_training(settings, message):
    with pytest.raises(ValueError, match=message):
        _wbc(_navigation(), **settings)


@pytest.mark.parametrize("estimator", ["kl", "sliced", "energy"])
def test_an_entropic_strength_that_would_be_ignored_is_an_error(estimator):
    with pytest.raises(TypeError, match=rf"`reg` does not apply to `estimator='{estimator}'`, got 0\.6; leave it out"):
        _wbc(_navigation(), estimator, reg=0.6)


def test_an_environment_without_displacements_is_named():
    env = ParallelVecEnv([WanderersEnv] * 2)
    with pytest.raises(ValueError, match=r"`action_embedding='environment'` needs an environment with an attribute"):
        _wbc(env, options={"action_embedding": "environment"})


@pytest.mark.parametrize(
    "action", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)], ids=["multi_discrete", "multi_binary"]
)
def test_actions_that_cannot_be_compared_are_named(action):
    def make():
        return CustomSpacesEnv({"a": vector(3), "b": vector(3)}, {"a": action, "b": action})

    with pytest.raises(ValueError, match=r"Discrete or Box actions, but the action space is Multi.*or use IPPO"):
        _wbc(ParallelVecEnv(make, 2))


def test_states_that_cannot_be_compared_are_named():
    observation = spaces.Dict({"x": vector(2)})

    def make():
        return CustomSpacesEnv({"a": observation, "b": observation}, {"a": spaces.Discrete(2), "b": spaces.Discrete(2)})

    for estimator in ("pooled", "own", "sampled", "sliced"):
        with pytest.raises(ValueError, match=rf"`estimator='{estimator}'` compares observations.*Dict.*use `estimator='cond"):
            _wbc(ParallelVecEnv(make, 2), estimator, "MultiInputPolicy")
    _learn(_wbc(ParallelVecEnv(make, 2), policy="MultiInputPolicy"), 1)


def test_a_coordinate_that_never_changes_does_not_divide_by_zero():
    metric = make_metric(TeamSpaces(spaces.Discrete(2), vector(2), 3, th.device("cpu")), beta=0.8, p=2)
    spread = th.tensor([[1.0, 5.0], [3.0, 5.0]])
    points = metric.state_points(th.tensor([[2.0, 5.0]]), spread)
    assert points.tolist() == [[pytest.approx(2.0 / math.sqrt(2.0)), 5.0]]


def test_divergences_that_are_not_finite_stop_training_before_an_update():
    model = _wbc(ParallelVecEnv([DiceEnv] * 2))
    with th.no_grad():
        model.policy.action_net.bias[0] = 1e30
    before = _bits(model)
    with pytest.raises(ValueError, match=r"divergences became NaN or infinite after 24 agent-steps.*Raise `reg`"):
        _learn(model, 1)
    assert all(th.equal(value, before[name]) for name, value in _bits(model).items())


@pytest.mark.parametrize("form", ["conditional", "pooled", "own", "sampled", "sliced", "kl", "energy"])
def test_torchs_default_precision_may_be_double(form):
    th.set_default_dtype(th.float64)
    try:
        model = _learn(_wbc(_navigation(), form), rollouts=1)
    finally:
        th.set_default_dtype(th.float32)
    assert all(th.isfinite(value).all() for value in _bits(model).values())
