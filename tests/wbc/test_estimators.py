"""The choice of an estimator: every option applies or is refused, and is named when its value cannot be meant."""

import inspect
import math
from dataclasses import fields

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from otbaselines import WBC
from otbaselines.envs.navigation_tensor import NavigationVecEnv
from otbaselines.wbc.estimators import ESTIMATORS, OPTION_RANGES, Streams, make_estimator
from otbaselines.wbc.metric import TeamSpaces

BOX = spaces.Box(-1.0, 1.0, (8,), np.float32)
DISCRETE = TeamSpaces(spaces.Discrete(5), BOX, 3, th.device("cpu"))
CONTINUOUS = TeamSpaces(spaces.Box(-1.0, 1.0, (2,), np.float32), BOX, 3, th.device("cpu"))
# What each estimator takes, by hand; and what of it is for discrete actions only.
GROUND = {"beta", "action_embedding", "action_metric"}
STATES = {"p", "metric_coordinates", "scale_observations"}
OPTIONS = {
    "conditional": GROUND | {"p", "debiased"},
    "pooled": GROUND | {"debiased"} | STATES,
    "own": GROUND | {"debiased"} | STATES,
    "sampled": GROUND | {"debiased", "support", "gradient"} | STATES,
    "sliced": GROUND | {"support", "gradient", "n_projections"} | STATES,
    "kl": {"action_embedding", "reverse"},
    "energy": GROUND,
}
OPTIONS = {name: options | {"n_support", "weights"} for name, options in OPTIONS.items()}
FOR_DISCRETE = {name: {"action_embedding", "action_metric"} & options for name, options in OPTIONS.items()}
FOR_DISCRETE["conditional"] |= {"p", "debiased"}
ALL = sorted(set().union(*OPTIONS.values()))
# Another value than the default, and what it must do to the consensus that is built.
CHANGED = {
    "n_support": (6, lambda built: built.n_support == 6),
    "weights": ("return", lambda built: True),
    "beta": (0.3, lambda built: getattr(built, "beta", None) == 0.3 or built.metric.beta == 0.3),
    "action_embedding": (
        [[0.0], [1.0], [2.0], [3.0], [3.0]],
        lambda built: built.placement.max() == 3 if hasattr(built, "placement") else built.metric.codebook.shape == (5, 1),
    ),
    "action_metric": ("zero_one", lambda built: built.metric.placement is None and built.metric.codebook.shape == (5, 5)),
    "reverse": (True, lambda built: built.reverse is True),
    "p": (1, lambda built: built.metric.p == 1.0),
    "debiased": (False, lambda built: built.debiased is False),
    "metric_coordinates": ([0, 3], lambda built: built.metric.coordinates == (0, 3)),
    "scale_observations": (False, lambda built: built.metric.scale_observations is False),
    "support": ("pooled", lambda built: built.pooled is True),
    "gradient": ("plan", lambda built: built.gradient == "plan"),
    "n_projections": (7, lambda built: built.n_projections == 7),
}


def _build(name, options, team=DISCRETE):
    streams = Streams(th.Generator(), th.Generator())
    return make_estimator(name, options, discrete=team.discrete).build(team, streams)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_option_changes_what_is_built_or_is_refused_by_name(name):
    for team in (DISCRETE, CONTINUOUS):
        taken = OPTIONS[name] - (set() if team.discrete else FOR_DISCRETE[name])
        where = "" if team.discrete else " with continuous actions"
        for option in ALL:
            value, shows = CHANGED[option]
            if option in taken:
                assert shows(_build(name, {option: value}, team)), option
                continue
            with pytest.raises(TypeError, match=rf"`{option}`, which `estimator='{name}'`{where} does not take; its") as error:
                _build(name, {option: value}, team)
            named = str(error.value).partition("its options are ")[2]
            assert {word.strip("`") for word in named.split(", ")} == taken


def test_own_and_pooled_differ_in_their_states_only():
    assert _build("own", None).pooled is False
    assert _build("pooled", None).pooled is True


def test_every_option_is_documented_where_it_is_declared():
    for kind in ESTIMATORS.values():
        documented = "".join(cls.__doc__ or "" for cls in inspect.getmro(kind))
        assert all(f":param {option.name}:" in documented for option in fields(kind))


def test_an_estimator_that_takes_no_strength_has_no_default():
    assert {name for name, kind in ESTIMATORS.items() if kind.default_reg is None} == {"kl", "sliced", "energy"}


# Values that no option of that name can mean, with the kind of error.
NOT_NUMBERS = [None, "2", [2], {}, True, 2 + 1j, np.array([2, 3])]
BAD = {
    "n_support": {TypeError: [*NOT_NUMBERS, 64.0, math.nan], ValueError: [1, 0, -5]},
    "n_projections": {TypeError: [*NOT_NUMBERS, 64.0, math.inf], ValueError: [0, -1]},
    "beta": {TypeError: NOT_NUMBERS, ValueError: [0.0, -0.8, math.nan, math.inf, -math.inf]},
    "p": {TypeError: [None, "2", [2], 2.0, True, math.nan], ValueError: [0, 3, -1]},
    "debiased": {TypeError: [None, "yes", 1, 0, 1.0, [True]], ValueError: []},
    "reverse": {TypeError: [None, "yes", 1, 0, 0.0, [True], {}], ValueError: []},
    "action_metric": {TypeError: [None, 1, ["euclidean"]], ValueError: ["one_hot", "", "zero-one"]},
    "scale_observations": {TypeError: [None, "no", 1, 0, []], ValueError: []},
    "weights": {TypeError: [None, 1, [1, 1, 1], True], ValueError: ["best", "", "UNIFORM"]},
    "support": {TypeError: [None, 1, ["own"]], ValueError: ["conditional", "both"]},
    "gradient": {TypeError: [None, 1, ["plan"]], ValueError: ["dual", ""]},
    "metric_coordinates": {
        TypeError: [[0.5], ["x"], [True], 3.5, "all"],
        ValueError: [[], [8], [-1], [[0, 1]], 3, np.array([[0], [1]])],
    },
    "action_embedding": {
        TypeError: [[["a"]], {}, [[1.0], [1.0, 2.0]], object()],
        ValueError: ["words", [[0.0], [1.0]], np.zeros((2, 5, 2)), [[math.nan]] * 5, [[]] * 5, 3.0, [[math.inf, 0.0]] * 5],
    },
}


@pytest.mark.parametrize("option", BAD)
def test_values_that_cannot_be_meant_are_refused_by_name_in_every_estimator(option):
    tried = 0
    for name, options in OPTIONS.items():
        for kind, values in BAD[option].items() if option in options else ():
            for value in values:
                with pytest.raises(kind, match=rf"`{option}`"):
                    _build(name, {option: value})
                tried += 1
    assert tried > 5


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"estimator": "wasserstein"},
            ValueError,
            r"`estimator` must be one of 'conditional', 'pooled', .* got 'wasserstein'",
        ),
        ({"estimator": None}, TypeError, r"`estimator` must be one of 'conditional', .* got None"),
        ({"estimator": ["kl"]}, TypeError, r"`estimator` must be one of .*got \['kl'\]"),
        (
            {"estimator_kwargs": [("p", 1)]},
            TypeError,
            r"`estimator_kwargs` must be a dict of options or None, got \[\('p', 1\)\]",
        ),
        ({"estimator_kwargs": "p=1"}, TypeError, r"`estimator_kwargs` must be a dict"),
        ({"estimator": "kl", "estimator_kwargs": {"beta": 0.8}}, TypeError, r"`beta`, which"),
        ({"estimator_kwargs": {"support": "own", 3: 4}}, TypeError, r"has `support`, `3`, which .*are `n_support`, `weights`"),
    ],
)
def test_a_choice_that_does_not_exist_is_named_before_an_environment_is_made(arguments, kind, message):
    with pytest.raises(kind, match=message):
        # An environment that cannot be made would be the second error.
        WBC("MlpPolicy", "no/such_environment", **arguments)


def test_options_for_discrete_actions_are_refused_with_continuous_ones():
    env = NavigationVecEnv(n_copies=2, continuous_actions=True)
    for option, value in (("p", 2), ("debiased", True), ("action_embedding", "one_hot")):
        with pytest.raises(TypeError, match=rf"`{option}`, which `estimator='conditional'` with continuous actions does not"):
            WBC("MlpPolicy", env, estimator_kwargs={option: value})
    assert WBC("MlpPolicy", env, estimator_kwargs={"beta": 0.5}).options.beta == 0.5


def test_the_callers_dictionary_is_left_alone():
    env, options = NavigationVecEnv(n_copies=2), {"action_embedding": "environment"}
    model = WBC("MlpPolicy", env, estimator_kwargs=options)
    assert options == {"action_embedding": "environment"}
    assert np.shape(model.estimator_kwargs["action_embedding"]) == (3, 5, 2)


def test_every_option_has_a_range():
    # The metric checks these two, against the spaces.
    checked = {*OPTION_RANGES, "action_embedding", "metric_coordinates"}
    assert {option.name for kind in ESTIMATORS.values() for option in fields(kind)} == checked


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, "n_support", 10**9) for name in OPTIONS),
        *((name, "n_support", 20_000) for name in ("own", "pooled", "sampled")),
        ("sliced", "n_projections", 10**8),
    ],
)
def test_sizes_that_no_machine_would_survive_are_refused_by_name(name, option, value):
    with pytest.raises(ValueError, match=rf"`{option}` must be an integer in \[[12], .*\].*{value}"):
        _build(name, {option: value})
