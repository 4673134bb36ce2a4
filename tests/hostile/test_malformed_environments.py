"""
Hundreds of malformed PettingZoo environments: each ends in an error that says what is wrong, or in rows that are sound.

An environment that works is bent in one place (or, at random, in several), and driven through a vector environment. An
exception of the environment's own comes through as it is; everything else has to be a ``ValueError``, ``TypeError`` or
``RuntimeError`` that names an agent, an argument or a method, and nothing may hang.
"""

import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from pettingzoo import ParallelEnv

from otbaselines.common.multi_agent.collect import check_rows
from otbaselines.common.vec_env.layout import team_layout
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.common.vec_env.subproc import SubprocParallelVecEnv
from otbaselines.ippo import IPPO

NAMED = re.compile(r"`[\w.]+|agent '|agents? |copies \d")
PARTS = ("observations", "rewards", "terminations", "truncations", "infos")


class Sabotage(Exception):
    """The environment's own exception."""


class BentEnv(ParallelEnv):
    """
    Three agents with boxes or numbers to observe; ``a`` leaves at step 2, the others stay for five steps.

    :param bend: changes the environment itself, before anybody looks at it
    :param bend_result: gets the name of the method, the number of the call and its result, and returns another result
    """

    metadata = {"name": "bent"}  # noqa: RUF012
    render_mode = None

    def __init__(
        self,
        bend: Callable[["BentEnv"], Any] | None = None,
        bend_result: Callable[["BentEnv", str, int, Any], Any] | None = None,
        observation: Any = None,
        action: Any = None,
    ) -> None:
        self.possible_agents: Any = ["a", "b", "c"]
        self.agents: Any = []
        self.observation: Any = spaces.Box(-1.0, 1.0, (2,), np.float32) if observation is None else observation
        self.action: Any = spaces.Discrete(3) if action is None else action
        self.state_space: Any = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.bend_result = bend_result
        self.n_calls = {"reset": 0, "step": 0, "state": 0}
        if bend is not None:
            bend(self)

    def observation_space(self, agent: Any) -> Any:
        return self.observation(agent) if callable(self.observation) else self.observation

    def action_space(self, agent: Any) -> Any:
        return self.action(agent) if callable(self.action) else self.action

    def _observed(self, agents: Any) -> dict:
        return {agent: self.observation_space(agent).sample() for agent in agents}

    def _bent(self, method: str, result: Any) -> Any:
        self.n_calls[method] += 1
        return result if self.bend_result is None else self.bend_result(self, method, self.n_calls[method], result)

    def reset(self, seed: int | None = None, options: dict | None = None) -> Any:
        self.t = 0
        self.agents = list(self.possible_agents)
        return self._bent("reset", (self._observed(self.agents), {agent: {} for agent in self.agents}))

    def step(self, actions: dict) -> Any:
        self.t += 1
        acting = list(actions)
        over = {agent: self.t >= 5 or (self.t >= 2 and agent == "a") for agent in acting}
        never = dict.fromkeys(acting, False)
        self.agents = [agent for agent in acting if not over[agent]]
        ends = (never, over) if self.t >= 5 else (over, never)
        result = (self._observed(acting), dict.fromkeys(acting, 1.0), *ends, {agent: {} for agent in acting})
        return self._bent("step", result)

    def state(self) -> Any:
        return self._bent("state", np.zeros(2, np.float32))


@dataclass(frozen=True)
class Case:
    """
    :param name: what is bent, for the report of a failure
    :param make: makes the environment
    :param outcome: ``"error"`` or ``"sound"`` where only that will do; ``"own"`` for the environment's own exception
    """

    name: str
    make: Callable[[], Any]
    outcome: str | None = None


def play(venv: Any, n_steps: int = 12) -> None:
    """Drive a vector environment as a learner does, and demand that its rows are sound."""
    layout = team_layout(venv)
    rows = venv.reset()
    for step in range(n_steps):
        assert_rows(venv, rows)
        check_rows(rows, step, layout, 0)
        if venv.state_space is not None:
            states = venv.team_states()
            assert states.shape == (venv.n_copies, *venv.state_space.shape)
            assert np.isfinite(states).all()
        actions = np.zeros((venv.num_envs, *venv.action_space.shape), venv.action_space.dtype)
        for slot, space in enumerate(list(layout.agent_action_spaces.values()) * venv.n_copies):
            native = space.sample() - getattr(space, "start", 0)
            actions[slot, *(slice(0, size) for size in space.shape)] = native
        rows, rewards, dones, infos = venv.step(actions)
        assert (rewards.dtype, rewards.shape) == (np.float32, (venv.num_envs,))
        assert (dones.dtype, dones.shape) == (np.bool_, (venv.num_envs,))
        assert all(info["TimeLimit.truncated"] in (True, False) for info in infos)
        assert all(("terminal_observation" in info and info["episode"]["l"] >= 1) for info in np.array(infos)[dones])


def assert_rows(venv: Any, rows: Any) -> None:
    space = venv.observation_space
    pairs = [(rows[key], part) for key, part in space.items()] if isinstance(space, spaces.Dict) else [(rows, space)]
    for array, part in pairs:
        assert (array.shape, array.dtype) == ((venv.num_envs, *part.shape), part.dtype)


def verdict(case: Case, build: Callable[[Any], Any] = ParallelVecEnv) -> str | None:
    """Play one case; what is wrong with how it ended, if anything is."""
    venv = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            venv = build(case.make)
            play(venv)
    except Sabotage:
        return None if case.outcome == "own" else f"{case.name}: the environment's exception, though it raised none"
    except (ValueError, TypeError, RuntimeError) as error:
        if case.outcome in ("sound", "own"):
            return f"{case.name}: {error!r} instead of {case.outcome}"
        return None if NAMED.search(str(error)) else f"{case.name}: the message names nothing: {error!r}"
    except Exception as error:
        return f"{case.name}: {error!r} is of the wrong kind"
    finally:
        if venv is not None:
            venv.close()
    return f"{case.name}: nothing was noticed" if case.outcome in ("error", "own") else None


def assert_all_end_well(cases: Iterator[Case], at_least: int) -> None:
    verdicts = [verdict(case) for case in cases]
    assert len(verdicts) >= at_least
    wrong = [problem for problem in verdicts if problem is not None]
    assert not wrong, "\n".join(wrong)


# ---------------------------------------------------------------------- what methods return

GOOD_OBSERVATIONS = [[0.5, 0.5], (0, 1), np.zeros(2), np.ones(2, bool), np.zeros(2, np.float16), np.array([1, 0]), th.zeros(2)]
BAD_OBSERVATIONS = [
    *(None, "text", b"bytes", 0.5, 1j, {}, {"x": 1}, {1, 2}, object(), iter([1, 2]), lambda: 0, [], [[]], [0.5], [0.5] * 3),
    *([[0.5], [0.5, 0.5]], ["a", "b"], [None, None], [1j, 0]),
    *(np.zeros(()), np.zeros(0), np.zeros(1), np.zeros(3), np.zeros((1, 2)), np.zeros((2, 1)), np.zeros((2, 2))),
    *(np.zeros(2, complex), np.zeros(2, object), np.array(["a", "b"]), np.zeros(2, "M8[s]"), np.zeros(2, "V4")),
    *(np.full(2, np.nan), np.array([0.0, np.inf]), np.array([-np.inf, 0.0]), th.zeros(3), th.zeros(2, requires_grad=True)),
]
GOOD_REWARDS = [0, -3, True, np.float16(1), np.float64(2), np.array(1.0), np.array([1.0]), th.tensor(1.0), [1.0]]
BAD_REWARDS = [None, "1.0", b"1", 1j, [], [1.0, 2.0], {}, {1.0}, object(), 10**400, np.zeros(2), np.array("1"), [[1], [1, 2]]]
GOOD_FLAGS = [0, 0.0, np.False_, np.array(False), np.array([0]), th.tensor(False), [False]]
BAD_FLAGS = [None, "False", "", b"", np.nan, 2, -1, 0.5, 1j, [], {}, [False, False], object(), np.zeros(2), np.array("x")]
GOOD_INFOS = [None, {}, {"TimeLimit.truncated": "yes"}, {"episode": 3}, {"terminal_observation": 1}, {"x": print}, {1: 2}]
BAD_INFOS = [3, "text", [1], [("x", 1)], object(), np.ones(2)]
VALUES = {
    "observations": (GOOD_OBSERVATIONS, BAD_OBSERVATIONS),
    "rewards": (GOOD_REWARDS, BAD_REWARDS),
    "terminations": (GOOD_FLAGS, BAD_FLAGS),
    "truncations": (GOOD_FLAGS, BAD_FLAGS),
    "infos": (GOOD_INFOS, BAD_INFOS),
}


def position(method: str, part: str) -> int:
    return {"observations": 0, "infos": 1}[part] if method == "reset" else PARTS.index(part)


def with_entry(method: str, part: str, call: int, value: Any, agent: str = "b") -> Callable[[], BentEnv]:
    """One agent's entry of one dict is replaced, once."""

    def bend_result(env: BentEnv, name: str, number: int, result: Any) -> Any:
        if name == method and number == call:
            where = position(method, part)
            result[where][agent] = value
        return result

    return lambda: BentEnv(bend_result=bend_result)


def with_result(method: str, call: int, change: Callable[[BentEnv, Any], Any]) -> Callable[[], BentEnv]:
    """The result of one call is replaced."""

    def bend_result(env: BentEnv, name: str, number: int, result: Any) -> Any:
        return change(env, result) if (name, number) == (method, call) else result

    return lambda: BentEnv(bend_result=bend_result)


# The second reset is an automatic one; at step 5 everybody leaves, so that the observation is a terminal one.
CALLS = (("reset", 1), ("reset", 2), ("step", 1), ("step", 4), ("step", 5))


def entry_cases() -> Iterator[Case]:
    for (method, call), part in itertools.product(CALLS, PARTS):
        if method == "reset" and part not in ("observations", "infos"):
            continue
        for outcome, values in zip(("sound", "error"), VALUES[part], strict=True):
            for value in values:
                # The learners look at terminal observations; and of those who leave, a flag may be missing.
                is_flag = part in ("terminations", "truncations")
                numbers = part == "observations" and getattr(value, "dtype", None) == np.float64 and value.shape == (2,)
                is_left_alone = call == 5 and (numbers or (is_flag and value is None))
                expected = "sound" if is_left_alone else outcome
                yield Case(f"{part}={value!r} at {method} {call}", with_entry(method, part, call, value), expected)


def test_wrong_values_in_any_dict_are_errors_and_odd_ones_are_understood():
    assert_all_end_well(entry_cases(), at_least=350)


def dict_cases() -> Iterator[Case]:
    def replaced(where: int, value: Any) -> Callable[[BentEnv, Any], Any]:
        return lambda env, result: (*result[:where], value, *result[where + 1 :])

    def without(where: int) -> Callable[[BentEnv, Any], Any]:
        return lambda env, result: replaced(where, {k: v for k, v in result[where].items() if k != "b"})(env, result)

    for method, call in CALLS:
        n_parts = 2 if method == "reset" else 5
        for value in (None, 3, "text", (), {}, [1] * n_parts, (None,) * n_parts, ({},) * (n_parts + 1), iter(()), object()):
            yield Case(f"{method} {call} returns {value!r}", with_result(method, call, lambda env, _, v=value: v), "error")
        for where in range(n_parts):
            for value in (None, 3, "text", [], [1, 2, 3], {1, 2}, object()):
                name = f"{method} {call} returns {value!r} at {where}"
                yield Case(name, with_result(method, call, replaced(where, value)), "error")
            # An agent who is leaving may be missing anywhere; one who stays only among the infos.
            outcome = "sound" if where == n_parts - 1 else None if call == 5 else "error"
            yield Case(f"{method} {call}: b is missing at {where}", with_result(method, call, without(where)), outcome)
            yield Case(f"{method} {call}: nobody at {where}", with_result(method, call, replaced(where, {})), outcome)

            def invite(env: BentEnv, result: Any, where: int = where) -> Any:
                return replaced(where, {**result[where], "z": 0.0})(env, result)

            yield Case(f"{method} {call}: a stranger at {where}", with_result(method, call, invite), "sound")


def test_dicts_that_are_none_or_lack_somebody_are_errors():
    assert_all_end_well(dict_cases(), at_least=180)


def exception_cases() -> Iterator[Case]:
    def fail(env: BentEnv, result: Any) -> Any:
        raise Sabotage

    def fail_early(env: BentEnv) -> None:
        raise Sabotage

    for method, call in (*CALLS, ("state", 1), ("state", 3), ("state", 7)):
        yield Case(f"{method} {call} raises", with_result(method, call, fail), "own")
    yield Case("the constructor raises", lambda: BentEnv(fail_early), "own")
    for role in ("observation", "action"):
        yield Case(f"the {role} space raises", lambda r=role: BentEnv(lambda env: setattr(env, r, fail_early)), "own")


def test_the_environments_own_exceptions_come_through():
    assert_all_end_well(exception_cases(), at_least=11)


# ---------------------------------------------------------------------- agents, spaces, states

ODD_TEAMS = [[1, 2], [(0, "x"), (1, "x")], ("a", "b"), "ab", [None, "a"], [0.5, 1.5], [True, "b"], ["", "b"], [b"a", "b"]]
BAD_TEAMS = [None, [], (), 3, ["a", "a"], [1, "1"], [None, "None"], [["a"]], [{}, "b"], [True, "True"], object(), {}]
AGENTS = [None, 3, object(), [["a"]], ["a", "z"], ["z"], [1], ["a", "b", "c", "d"]]
UNUSUAL_AGENTS = [("a", "b"), {"b", "c"}, {"a": 1}, ["a", "a", "b"], "abc", ["c"]]


def having(**attributes: Any) -> Callable[[], BentEnv]:
    """The environment with other attributes."""
    return lambda: BentEnv(lambda env: vars(env).update(attributes))


def team_cases() -> Iterator[Case]:
    for outcome, teams in (("sound", ODD_TEAMS), ("error", BAD_TEAMS)):
        for team in teams:
            yield Case(f"possible_agents={team!r}", having(possible_agents=team), outcome)
    yield Case("no possible_agents", lambda: BentEnv(lambda env: delattr(env, "possible_agents")), "error")
    for method, call in CALLS:
        for outcome, listed in (("error", AGENTS), (None, UNUSUAL_AGENTS)):
            for agents in listed:
                change = with_result(method, call, lambda env, result, a=agents: setattr(env, "agents", a) or result)
                yield Case(f"agents={agents!r} after {method} {call}", change, outcome)
        nobody = with_result(method, call, lambda env, result: setattr(env, "agents", []) or result)
        yield Case(f"nobody after {method} {call}", nobody, "error" if method == "reset" else "sound")


def test_teams_that_cannot_be_told_apart_or_change_their_members_are_errors():
    assert_all_end_well(team_cases(), at_least=90)


BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
ODD_SPACES = [
    *(spaces.Discrete(4), spaces.Discrete(2, start=-7), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)),
    *(spaces.MultiDiscrete([2, 3], start=[5, -5]), spaces.Box(0, 255, (3, 3, 1), np.uint8)),
    *(spaces.Box(-1, 1, (2,), np.float64), spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-5, 5, (2, 2), np.int32)),
]
MIXED = spaces.Dict({"x": BOX, "n": spaces.Discrete(3, start=2)})
BAD_MIXED = [
    *(None, {}, [1, 2], {"x": np.zeros(2)}, {"x": np.zeros(2), "n": 9}, {"x": np.zeros(3), "n": 2}),
    *({"x": 1, "n": 2}, {"x": np.zeros(2), "n": 2, "z": 3}, {"x": np.zeros(2), "n": 2.0}, {"x": "text", "n": 2}),
]
BAD_SPACES = [
    *(None, "Box", 3, spaces.Box, spaces.Tuple([BOX]), spaces.Text(3), spaces.Sequence(BOX), spaces.Graph(BOX, None)),
    *(spaces.OneOf([BOX]), spaces.Dict(), spaces.Dict({"x": spaces.Dict({"y": BOX})})),
    *(spaces.Dict({"x": spaces.Tuple([BOX])}), spaces.Box(0, 1, ()), spaces.Dict({"x": spaces.Box(0, 1, ())})),
]


def space_cases() -> Iterator[Case]:
    for role, space in itertools.product(("observation", "action"), ODD_SPACES):
        if role == "action" and isinstance(space, spaces.Box) and space.dtype.kind in "iu":
            continue
        yield Case(f"{role} {space}", lambda r=role, s=space: BentEnv(**{r: s}), "sound")
        # The others have a box: only boxes of one dimension can be padded to a common one.
        mixed = lambda r=role, s=space: BentEnv(**{r: lambda agent: s if agent == "b" else BOX})  # noqa: E731
        fits = isinstance(space, spaces.Box) and len(space.shape) == 1
        yield Case(f"{role} of b alone {space}", mixed, "sound" if fits else "error")
    for role, space in itertools.product(("observation", "action"), BAD_SPACES):
        if role == "action" and isinstance(space, spaces.Box):
            continue
        yield Case(f"{role} {space}", lambda r=role, s=space: BentEnv(**{r: lambda agent: s}), "error")
        alone = lambda r=role, s=space: BentEnv(**{r: lambda agent: s if agent == "b" else BOX})  # noqa: E731
        yield Case(f"{role} of b alone {space}", alone, "error")
    yield Case("a dict of observations", lambda: BentEnv(observation=MIXED), "sound")
    for value in BAD_MIXED:
        bend = with_entry("step", "observations", 3, value)().bend_result
        yield Case(f"a dict that is {value!r}", lambda b=bend: BentEnv(bend_result=b, observation=MIXED), "error")
    for late in ODD_SPACES:
        # The space changes after the environment has been looked at, and the observations with it.
        change = with_result("step", 3, lambda env, result, s=late: setattr(env, "observation", s) or result)
        yield Case(f"observations become {late}", change, None)


def test_spaces_that_are_not_supported_or_change_are_errors():
    assert_all_end_well(space_cases(), at_least=90)


def state_cases() -> Iterator[Case]:
    numbers = ([], [0.0], [0.0] * 3, [[0.0], [0.0, 1.0]], [1j, 0], np.full(2, np.nan), [np.inf, 0], 3.0)
    for value in (None, "text", {}, object(), *numbers):
        for call in (1, 3, 8):
            yield Case(f"state {call} is {value!r}", with_result("state", call, lambda env, _, v=value: v), "error")
    for value in ([0, 1], (0.0, 1.0), np.zeros((1, 2)), np.zeros((2, 1), np.float16), np.ones(2, bool), th.zeros(2)):
        yield Case(f"state is {value!r}", with_result("state", 3, lambda env, _, v=value: v), "sound")
    for space in (None, 3, "Box", spaces.Discrete(2), spaces.Dict(), spaces.Box(0, 1, (0,)), spaces.Tuple([BOX])):
        yield Case(f"state_space={space!r}", having(state_space=space), "sound")
    yield Case("no state_space", lambda: BentEnv(lambda env: delattr(env, "state_space")), "sound")


def test_states_that_contradict_their_space_are_errors():
    assert_all_end_well(state_cases(), at_least=45)


# ---------------------------------------------------------------------- several faults at once, processes, learning


def random_cases(n_cases: int) -> Iterator[Case]:
    rng = np.random.default_rng(0)

    def pick(options: Any) -> Any:
        return options[rng.integers(len(options))]

    for number in range(n_cases):
        faults = []
        for _ in range(rng.integers(1, 4)):
            part = pick(PARTS)
            value = pick([*VALUES[part][0], *VALUES[part][1]])
            faults.append((part, pick(["a", "b", "c", "z"]), int(rng.integers(1, 11)), value, rng.random() < 0.2))

        def bend_result(env: BentEnv, name: str, call: int, result: Any, faults: Any = faults) -> Any:
            for part, agent, when, value, drops in faults:
                if name == "step" and call == when:
                    if drops:
                        result[PARTS.index(part)].pop(agent, None)
                    else:
                        result[PARTS.index(part)][agent] = value
            return result

        yield Case(f"random {number}: {faults}", lambda b=bend_result: BentEnv(bend_result=b))


def test_random_combinations_of_faults_end_in_an_error_or_in_sound_rows():
    assert_all_end_well(random_cases(300), at_least=300)


def test_worker_processes_report_the_same_faults():
    everything = [*entry_cases(), *dict_cases(), *exception_cases(), *team_cases(), *state_cases()]
    order = np.random.default_rng(0).permutation(len(everything))[:40]

    def build(make: Any) -> Any:
        return SubprocParallelVecEnv([make], start_method="fork", patience=1.0)

    wrong = [verdict(everything[index], build) for index in order]
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("agent", ["a", "b"])
@pytest.mark.parametrize(
    ("method", "call", "part", "quantity"),
    [
        ("reset", 1, "observations", "observations"),
        ("reset", 2, "observations", "observations"),
        ("step", 1, "observations", "observations"),
        ("step", 5, "observations", "terminal_observation"),
        ("step", 1, "rewards", "rewards"),
        ("step", 6, "rewards", "rewards"),
    ],
)
def test_numbers_that_are_not_finite_stop_training_by_name(method, call, part, quantity, agent, value):
    agent = "b" if call == 5 else agent
    entry = np.full(2, value, np.float32) if part == "observations" else value
    env = with_entry(method, part, call, entry, agent)()
    model = IPPO("MlpPolicy", env, n_steps=16, batch_size=24, n_epochs=1, seed=0, policy_kwargs={"net_arch": [4]})
    with pytest.raises(ValueError, match=f"`{quantity}` of agent '{agent}' in copy 0 became NaN or infinite"):
        model.learn(48)
