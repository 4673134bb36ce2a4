"""Environments that bend PettingZoo's rules: agents that linger, odd ids, spaces that start elsewhere, wrong values."""

import math
import warnings

import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv, WanderersEnv
from gymnasium import spaces
from toy_teams import CustomSpacesEnv, DiceEnv, RelayEnv, vector

from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.common.vec_env.subproc import SubprocParallelVecEnv
from otbaselines.ippo import IPPO

SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0}


# ---------------------------------------------------------------------- agents that are done and stay


class LingeringEnv(RelayEnv):
    """The relay, except that nobody is ever taken out of ``agents``; ``c`` is there from the start."""

    def reset(self, **kwargs):
        result = super().reset(**kwargs)
        self.playing, self.agents = ["a", "b"], ["a", "b"]
        return result

    def step(self, actions):
        self.agents = [agent for agent in self.playing if agent in actions]
        listed = list(self.playing)
        result = super().step({agent: actions[agent] for agent in self.agents})
        self.playing = [*listed, "c"] if self.t == 3 else listed
        for agent in set(self.playing) - result[0].keys():
            result[0][agent] = np.full(self.observation_space(agent).shape, -1, np.float32)
        self.agents = list(self.playing)
        return result


def test_agents_who_are_done_and_stay_listed_are_taken_to_have_left_with_one_warning():
    lingering, proper = ParallelVecEnv(LingeringEnv()), ParallelVecEnv(RelayEnv())
    np.testing.assert_array_equal(lingering.reset(), proper.reset())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(15):
            ours, theirs = lingering.step(np.array([1, 2, 3])), proper.step(np.array([1, 2, 3]))
            for actual, expected in zip(ours[:3], theirs[:3], strict=True):
                np.testing.assert_array_equal(actual, expected)
            np.testing.assert_array_equal(lingering.agent_active, proper.agent_active)
            lengths = [[info["episode"]["l"] for info in infos if "episode" in info] for infos in (ours[3], theirs[3])]
            assert lengths[0] == lengths[1]
    (only,) = caught
    assert "agent 'a' was terminated or truncated but is still in `agents`" in str(only.message)


class ReturningEnv(DiceEnv):
    """``left`` is done at step 2 and listed until step 3; it comes back at step 5 of episodes of eight steps."""

    def __init__(self):
        super().__init__(horizon=8)

    def step(self, actions):
        observations, _, _, truncations, _ = super().step(dict.fromkeys(self.possible_agents, np.zeros(2)))
        present = {"right"} | ({"left"} if self.t < 3 or self.t >= 5 else set())
        terminations = {agent: agent == "left" and self.t == 2 for agent in actions}
        self.agents = [agent for agent in self.possible_agents if agent in present and self.t < self.horizon]
        return observations, dict.fromkeys(actions, 1.0), terminations, {a: truncations[a] for a in actions}, {}


def test_an_agent_who_was_away_may_come_back_for_an_episode_of_its_own():
    venv = ParallelVecEnv(ReturningEnv())
    venv.reset()
    active, lengths = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(8):
            infos = venv.step(np.zeros((2, 2)))[3]
            active.append(bool(venv.agent_active[0, 0]))
            lengths += [info["episode"]["l"] for info in infos[:1] if "episode" in info]
    assert active == [True, False, False, False, True, True, True, True]
    assert lengths == [2, 3]


# ---------------------------------------------------------------------- flags, rewards, infos


def twisted(twist, env=None):
    """An environment of dice whose fourth step, as a list of five dicts, is changed by ``twist``."""
    env = DiceEnv(horizon=10) if env is None else env
    step = env.step

    def changed(actions):
        result = list(step(actions))
        return twist(result) or tuple(result) if env.t == 4 else tuple(result)

    env.step = changed
    return env


def put(position, value, agent="left"):
    def twist(result):
        result[position] = {**result[position], agent: value}

    return twist


def drop(position):
    def twist(result):
        result[position] = {"right": result[position]["right"]}

    return twist


@pytest.mark.parametrize("flag", [1, 1.0, np.True_, np.array(True), np.array([1], np.int8), th.tensor(True)])
def test_numbers_that_mean_true_are_flags(flag):
    venv = ParallelVecEnv(twisted(put(2, flag)))
    venv.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dones = [venv.step(np.zeros((2, 2)))[2].tolist() for _ in range(4)]
    assert dones == [[False, False]] * 3 + [[True, False]]


@pytest.mark.parametrize("make", [ParallelVecEnv, lambda env: SubprocParallelVecEnv(env, start_method="fork")])
@pytest.mark.parametrize(
    ("twist", "message"),
    [
        (put(2, "False"), "termination 'False' for agent 'left'; return True or False"),
        (put(3, math.nan), "truncation nan for agent 'left'"),
        (put(3, 2), "truncation 2 for agent 'left'"),
        (put(2, np.zeros(3, bool)), "termination .* for agent 'left'"),
        (put(2, None), "termination None for agent 'left'"),
        (drop(2), "termination None for agent 'left'"),
        (drop(1), "no reward for agent 'left', which is listed"),
        (put(1, "3.0"), "reward of agent 'left' is '3.0'; return a number"),
        (put(1, 1j), "reward of agent 'left' is 1j"),
        (put(1, None), "reward of agent 'left' is None"),
        (put(1, [1.0, 2.0]), "reward of agent 'left' is"),
        (put(0, np.zeros(3, complex)), "agent 'left' observed an array of shape .* dtype complex128"),
        (put(0, "hello"), "agent 'left' observed an array of .* dtype <U5"),
        (put(0, [[1.0], [1.0, 2.0]]), "agent 'left' observed .* no array can be made"),
        (put(0, None), "agent 'left' observed an array of shape .* dtype object"),
        (drop(0), "no observation for agent 'left'"),
        (put(4, 3), "info of agent 'left' is 3; return a dict"),
        (lambda result: tuple(result[:4]), "`step` of the environment returned 4 values; return observations, rewards"),
        (lambda result: result[0], "`step` of the environment returned a value of type dict"),
        (lambda result: (*result[:4], [1]), "returned 1 values among .*; return a dict of agents"),
    ],
)
def test_what_an_environment_returns_wrongly_is_named_in_the_step_that_returned_it(twist, message, make):
    venv = make(twisted(twist))
    venv.reset()
    for _ in range(3):
        venv.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=message):
        venv.step(np.zeros((2, 2)))
    venv.close()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda env: {"left": 1, "right": 2}, "`reset` of the environment returned a value of type dict"),
        (lambda env: ([], {}), "`reset` of the environment returned 0 values among observations and infos"),
        (lambda env: (env._observe(), {"left": 7}), "info of agent 'left' is 7"),
        (lambda env: setattr(env, "agents", None) or (env._observe(), {}), "`agents` of .* is None; make it a list"),
    ],
)
def test_what_a_reset_returns_wrongly_is_named(broken, message):
    env = DiceEnv()
    reset = env.reset
    env.reset = lambda **kwargs: reset(**kwargs) and broken(env)
    with pytest.raises(ValueError, match=message):
        ParallelVecEnv(env).reset()


# ---------------------------------------------------------------------- NaN where only the critic looks


@pytest.mark.parametrize("continuous", [False, True])
def test_nan_in_a_terminal_observation_is_named_before_the_critic_sees_it(continuous):
    # Agent w0 leaves at the third step, whose observation is poisoned, in the second of two copies.
    makers = [
        lambda: WanderersEnv(truncates=True, continuous=continuous),
        lambda: WanderersEnv(truncates=True, continuous=continuous, poison=("observation", "w0", 3)),
    ]
    model = IPPO("MlpPolicy", ParallelVecEnv(makers, seed=0), **{**SMALL, "batch_size": 24})
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(ValueError, match=r"`terminal_observation` of agent 'w0' in copy 1 .* at step 2 of the rollout"):
        model.learn(96)
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


# ---------------------------------------------------------------------- names of agents


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([1, "1"], r"holds 1 and '1', which .*have one name"),
        (["a", "a"], r"holds 'a' and 'a', which .*have one name"),
        ([[1], "a"], r"holds \[1\], which cannot be the key of a dict"),
    ],
)
def test_agents_that_cannot_be_told_apart_are_refused(names, message):
    env = DiceEnv()
    env.possible_agents = names
    with pytest.raises(ValueError, match=f"`possible_agents` {message}"):
        ParallelVecEnv(env)


@pytest.mark.parametrize("names", [[0, 1], [("red", 0), ("red", 1)]])
def test_the_environments_own_dict_is_taken_whatever_its_keys(names):
    pair = [spaces.Discrete(2, start=3), spaces.Discrete(4)]
    env = CustomSpacesEnv(dict(zip(names, [vector(2), vector(3)], strict=True)), dict(zip(names, pair, strict=True)))
    model = IPPO("MlpPolicy", ParallelVecEnv(env, seed=0), **SMALL).learn(32)
    observations, _ = env.reset()
    actions, _ = model.predict(observations, deterministic=True)
    assert list(actions) == names
    assert all(space.contains(action) for space, action in zip(pair, actions.values(), strict=True))
    rows = np.zeros((2, 3), np.float32)
    rows[0, :2], rows[1] = observations.values()
    assert [int(actions[names[0]]) - 3, int(actions[names[1]])] == model.predict(rows, deterministic=True)[0].tolist()
    only, _ = model.predict({names[1]: observations[names[1]]}, deterministic=True)
    assert only == {names[1]: actions[names[1]]}
    with pytest.raises(ValueError, match="`observation` names the agents"):
        model.predict({"nobody": rows[0]})
    with pytest.raises(ValueError, match="`observation` names the agents"):
        model.predict({names[0]: rows[0, :2], str(names[0]): rows[0, :2]})


# ---------------------------------------------------------------------- spaces that start elsewhere


@pytest.mark.parametrize(
    ("space", "values"),
    [
        (spaces.Discrete(3, start=5), [5, 6, 7]),
        (spaces.Discrete(3, start=-2), [-2, -1, 0]),
        (spaces.MultiDiscrete([2, 3], start=[1, -1]), [[1, -1], [2, 0], [2, 1]]),
    ],
)
def test_observations_are_numbered_from_zero_and_rare_values_train(space, values):
    observed = dict.fromkeys("xy", np.array(values[0]))
    env = CustomSpacesEnv(dict.fromkeys("xy", space), dict.fromkeys("xy", spaces.Discrete(2)), observed)
    venv = ParallelVecEnv(env)
    start = np.array(space.start)
    seen = [venv.reset()]
    for value in values[1:]:
        observed["y"] = np.array(value)
        seen.append(venv.step(np.zeros(2, int))[0])
    for rows, value in zip(seen, values, strict=True):
        np.testing.assert_array_equal(rows, [values[0] - start, value - start])
        assert all(venv.observation_space.contains(row) for row in rows)
    assert venv.agent_observation_spaces == {"x": space, "y": space}
    model = IPPO("MlpPolicy", venv, **SMALL).learn(32)
    # One agent's own dict, and the rows that the vector environment makes of it, are the same to the policy.
    by_agent, _ = model.predict(observed, deterministic=True)
    assert list(by_agent.values()) == model.predict(seen[-1], deterministic=True)[0].tolist()


@pytest.mark.parametrize(
    ("space", "value"),
    [(spaces.Discrete(3, start=5), 4), (spaces.Discrete(3), 3), (spaces.MultiDiscrete([2, 3]), [1, 3])],
)
def test_values_outside_of_their_space_are_errors_when_they_come(space, value):
    observed = {"x": np.array(space.sample())}
    venv = ParallelVecEnv(CustomSpacesEnv({"x": space}, {"x": spaces.Discrete(2)}, observed))
    venv.reset()
    observed["x"] = np.array(value)
    with pytest.raises(ValueError, match=r"agent 'x' observed .*, which is not in its observation space"):
        venv.step(np.zeros(1, int))


def test_choices_of_several_kinds_are_counted_from_their_starts_too():
    space = spaces.MultiDiscrete([2, 3], start=[4, -1])
    env = CustomSpacesEnv({"x": vector(1)}, {"x": space})
    model = IPPO("MlpPolicy", ParallelVecEnv(env), **SMALL).learn(16)
    assert space.contains(np.array(env.actions["x"]))
    venv = model.get_env()
    venv.reset(), venv.step(np.array([[1, 2]]))
    assert env.actions["x"].tolist() == [5, 1]
    action, _ = model.predict({"x": np.zeros(1, np.float32)}, deterministic=True)
    assert space.contains(action["x"])


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Box(0, 1, ()), spaces.Discrete(2), r"observation space .* shape \(1,\) instead of \(\)"),
        (vector(1), spaces.Box(0, 1, (0,)), r"action space .* needs something to choose"),
        (spaces.Box(0, 1, (0,)), spaces.Discrete(2), r"observation space .* needs at least one number"),
        (spaces.Dict({"a": spaces.Box(0, 1, ())}), spaces.Discrete(2), r"observation space .* shape \(1,\) instead of \(\)"),
    ],
)
@pytest.mark.parametrize("team", [True, False])
def test_spaces_without_dimensions_are_refused_before_anything_is_built(team, observation, action, message):
    env = CustomSpacesEnv({"x": observation}, {"x": action}) if team else AnySpacesEnv(observation, action)
    with pytest.raises(ValueError, match=message):
        IPPO("MlpPolicy" if not isinstance(observation, spaces.Dict) else "MultiInputPolicy", env, **SMALL)


def test_an_agent_that_observes_nothing_may_be_in_a_team_that_does():
    observation = {"blind": spaces.Box(0, 1, (0,)), "seer": vector(2)}
    IPPO("MlpPolicy", CustomSpacesEnv(observation, dict.fromkeys(observation, spaces.Discrete(2))), **SMALL).learn(32)


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 2], start=[0, 1])])
def test_single_agents_whose_observations_start_elsewhere_are_refused_with_a_remedy(space):
    with pytest.raises(ValueError, match=r"observation space .* count its values from zero .*TransformObservation"):
        IPPO("MlpPolicy", AnySpacesEnv(space, spaces.Discrete(2)), **SMALL)
