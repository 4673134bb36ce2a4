"""The regulators: dynamics by hand, linear optima against a Riccati iteration and simulation, and agreement of all forms."""

import math
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env
from scipy.linalg import solve_discrete_lyapunov
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from torch.utils._python_dispatch import TorchDispatchMode

from otbaselines import TensorVecEnv, make_vec_env
from otbaselines.envs import (
    CoupledOscillators,
    PendulumRegulator,
    Regulator,
    ScalarRegulator,
    make_parallel,
    make_tensor,
    register,
)

SCALAR, PENDULUM = "otbaselines/ScalarRegulator-v0", "otbaselines/PendulumRegulator-v0"
OSCILLATORS = "otbaselines/CoupledOscillators-v0"
CASES: list[tuple[str, dict[str, Any]]] = [
    (SCALAR, {}),
    (SCALAR, {"bend": 0.0}),
    (PENDULUM, {}),
    (OSCILLATORS, {}),
    (OSCILLATORS, {"n": 5, "cubic": 1.5}),
]
every_case = pytest.mark.parametrize(("env_id", "config"), CASES, ids=str)
LINEAR = [ScalarRegulator(bend=0.0), CoupledOscillators(n=1), CoupledOscillators(n=4)]
every_linear = pytest.mark.parametrize("system", LINEAR, ids=repr)


def random_actions(env: TensorVecEnv, n_steps: int, seed: int = 0) -> th.Tensor:
    shape = (n_steps, env.n_copies, 1, *env.action_space.shape)
    return 2.0 * th.rand(shape, generator=th.Generator().manual_seed(seed)) - 1.0


# ---------------------------------------------------------------- the systems
def test_the_steps_of_the_three_systems_are_those_of_their_formulas() -> None:
    system: Regulator = ScalarRegulator()
    state, action = th.tensor([[1.5]], dtype=th.float64), th.tensor([[-2.0]], dtype=th.float64)
    assert system.drift(state, action).item() == pytest.approx(0.9 * 1.5 + 0.5 * math.sin(1.5) - 1.0, rel=1e-15)
    assert system.cost(state, action).item() == pytest.approx(1.5**2 + 0.1 * 4.0, rel=1e-15)

    system = PendulumRegulator()
    speed = 0.5 + 0.1 * (5.0 * math.sin(2.0) - 0.1 * 0.5 + 3.0)
    state, action = th.tensor([2.0, 0.5], dtype=th.float64), th.tensor([3.0], dtype=th.float64)
    assert system.drift(state, action).tolist() == pytest.approx([2.0 + 0.1 * speed, speed], rel=1e-15)
    cost = 2.0 * (1.0 - math.cos(2.0)) + 0.1 * 0.25 + 0.02 * 9.0
    assert system.cost(state, action).item() == pytest.approx(cost, rel=1e-15)
    assert system.observe(state).tolist() == pytest.approx([math.cos(2.0), math.sin(2.0), 0.5])

    system = CoupledOscillators(n=3, cubic=0.5)
    x, v, a = [0.3, -0.2, 0.5], [1.0, 0.0, -1.0], [0.1, 0.2, 0.3]
    neighbours = [0.0, *x, 0.0]
    force = [2.0 * (neighbours[i] - 2.0 * x[i] + neighbours[i + 2]) - 0.5 * x[i] ** 3 - 0.1 * v[i] + a[i] for i in range(3)]
    speeds = [v[i] + 0.1 * force[i] for i in range(3)]
    state, action = th.tensor(x + v, dtype=th.float64), th.tensor(a, dtype=th.float64)
    assert system.drift(state, action).tolist() == pytest.approx(
        [x[i] + 0.1 * speeds[i] for i in range(3)] + speeds, rel=1e-14
    )
    cost = sum(x[i] ** 2 + 0.1 * v[i] ** 2 + 0.1 * a[i] ** 2 for i in range(3)) / 3
    assert system.cost(state, action).item() == pytest.approx(cost, rel=1e-14)


def test_the_chain_is_the_same_read_from_either_end() -> None:
    system = CoupledOscillators(n=4, cubic=1.0)
    generator = th.Generator().manual_seed(0)
    state = th.randn(10, 8, dtype=th.float64, generator=generator)
    action = th.randn(10, 4, dtype=th.float64, generator=generator)

    def turned(vectors: th.Tensor) -> th.Tensor:
        return vectors.unflatten(-1, (-1, 4)).flip(-1).flatten(-2)

    th.testing.assert_close(system.drift(turned(state), turned(action)), turned(system.drift(state, action)))
    th.testing.assert_close(system.cost(turned(state), turned(action)), system.cost(state, action))


def test_angles_go_round_and_everything_else_meets_a_wall() -> None:
    step = PendulumRegulator().transition(th.float64)
    states = th.tensor([[math.pi - 0.01, 7.9], [-math.pi + 0.01, -7.9]], dtype=th.float64)
    arrived, _ = step(states, th.tensor([[1.0], [-1.0]], dtype=th.float64), th.zeros(2, 2, dtype=th.float64))
    assert arrived[:, 1].tolist() == [8.0, -8.0]
    # sin(pi - .01) = sin(.01), and the torque is ten: the speed before the wall, which the angle still feels.
    speed = 7.9 + 0.1 * (5.0 * math.sin(0.01) - 0.79 + 10.0)
    turned = math.pi - 0.01 + 0.1 * speed - 2.0 * math.pi
    assert arrived[:, 0].tolist() == pytest.approx([turned, -turned])
    scalar = ScalarRegulator(max_state=2.0).transition(th.float64)
    assert scalar(*(th.tensor([[x]], dtype=th.float64) for x in (1.9, 1.0, 0.0)))[0].item() == 2.0


# ---------------------------------------------------------------- linear optima
def test_the_scalar_linear_regulator_has_the_known_optimum() -> None:
    solution = ScalarRegulator(bend=0.0).lqr()
    assert solution.is_exact
    assert solution.average_cost == pytest.approx(0.11207, abs=5e-6)
    assert solution.gain.item() == pytest.approx(-1.3624, abs=5e-5)
    # The Riccati equation of one state, A = .9, B = .5, Q = 1, R = .1.
    p = solution.value.item()
    assert p == pytest.approx(1.0 + 0.81 * p - (0.45 * p) ** 2 / (0.1 + 0.25 * p), rel=1e-12)


@every_linear
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_linear_optimum_is_the_fixed_point_of_value_iteration(system: Regulator, discount: float) -> None:
    a, b = system.linearised()
    n = getattr(system, "n", 1)
    q = np.diag([1.0] * n + [0.1] * n)[: system.state_dim, : system.state_dim] / n
    r = 0.1 * np.eye(system.action_dim) / n
    value = np.zeros_like(q)
    for _ in range(3000):
        gain = -np.linalg.solve(r + discount * b.T @ value @ b, discount * b.T @ value @ a)
        value = q + discount * a.T @ value @ (a + b @ gain)
    solution = system.lqr(discount)
    np.testing.assert_allclose(solution.gain, gain, atol=1e-9)
    np.testing.assert_allclose(solution.value, value, atol=1e-9)


@dataclass(frozen=True, kw_only=True)
class Mixed(ScalarRegulator):
    """A cost in which state and action meet."""

    def cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return super().cost(states, actions) + 0.4 * (states * actions).squeeze(-1)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_linear_optimum_knows_of_costs_in_which_state_and_action_meet(discount: float) -> None:
    # s' = .9 s + .5 a at s^2 + .1 a^2 + .4 s a: value iteration, minimising over the action by hand.
    value = 0.0
    for _ in range(3000):
        gain = -(0.2 + discount * 0.45 * value) / (0.1 + discount * 0.25 * value)
        value = 1.0 + 0.1 * gain**2 + 0.4 * gain + discount * value * (0.9 + 0.5 * gain) ** 2
    solution = Mixed(bend=0.0).lqr(discount)
    assert solution.gain.item() == pytest.approx(gain, rel=1e-9)
    assert solution.value.item() == pytest.approx(value, rel=1e-9)


def test_first_states_are_uniform_over_the_whole_box_of_starts() -> None:
    step = CoupledOscillators(n=2, max_start=0.7).transition(th.float64)
    draws = th.tensor([0.0, 0.25, 0.5, 1.0], dtype=th.float64)
    assert step.start(draws).tolist() == pytest.approx([-0.7, -0.35, 0.0, 0.7])


@every_linear
def test_the_average_cost_is_the_stationary_one_and_no_other_gain_is_cheaper(system: Regulator) -> None:
    a, b = system.linearised()
    n = getattr(system, "n", 1)
    q = np.diag([1.0] * n + [0.1] * n)[: system.state_dim, : system.state_dim] / n
    noise = np.diag(np.square(system.noise_std))

    def stationary_cost(gain: np.ndarray) -> float:
        covariance = solve_discrete_lyapunov(a + b @ gain, noise)
        return float(np.trace((q + 0.1 / n * gain.T @ gain) @ covariance))

    solution = system.lqr()
    assert solution.average_cost == pytest.approx(stationary_cost(solution.gain), rel=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = solution.gain + 0.05 * rng.standard_normal(solution.gain.shape)
        assert stationary_cost(other) > solution.average_cost


def test_the_discounted_cost_is_what_episodes_cost() -> None:
    system, discount = ScalarRegulator(bend=0.0), 0.9
    solution = system.lqr(discount)
    # E c_t = (q + r K^2) E s_t^2, with E s_{t+1}^2 = (A + B K)^2 E s_t^2 + .09, added up.
    gain, second, total = solution.gain.item(), 1.5**2, 0.0
    for t in range(400):
        total += (1.0 - discount) * discount**t * (1.0 + 0.1 * gain**2) * second
        second = (0.9 + 0.5 * gain) ** 2 * second + 0.09
    assert solution.cost_from([1.5]) == pytest.approx(total, rel=1e-9)
    assert system.lqr().cost_from([[0.0], [9.0]]).tolist() == pytest.approx([system.lqr().average_cost] * 2)


@pytest.mark.parametrize(("env_id", "config"), [(SCALAR, {"bend": 0.0}), (OSCILLATORS, {"n": 3})], ids=str)
def test_the_linear_optimum_costs_in_the_environment_what_it_says(env_id: str, config: dict[str, Any]) -> None:
    env = make_tensor(env_id, 4000, seed=0, max_episode_steps=10_000, **config)
    system, solution = env.regulator, env.regulator.lqr()
    obs, costs = env.reset(), []
    for t in range(200):
        obs, rewards, _, _ = env.step(system.shares(obs @ solution.gain.T))
        if t >= 100:
            costs.append(-rewards.mean())
    # Averages over 4000 independent copies, and 100 steps of each: a standard error of less than half a percent.
    assert np.mean(costs) == pytest.approx(solution.average_cost, rel=0.015)


def test_the_pendulums_linear_regulator_is_that_of_its_linearisation_and_says_so() -> None:
    solution = PendulumRegulator().lqr()
    assert not solution.is_exact
    assert not ScalarRegulator().lqr().is_exact
    assert not CoupledOscillators(cubic=1.0).lqr().is_exact
    a, b = PendulumRegulator().linearised()
    np.testing.assert_allclose(a, [[1.0 + 0.1 * 0.5, 0.1 * 0.99], [0.5, 0.99]], atol=1e-12)
    np.testing.assert_allclose(b, [[0.01], [0.1]], atol=1e-12)


# ---------------------------------------------------------------- the environments
@every_case
def test_gymnasiums_checker_has_no_complaint(env_id: str, config: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, render_mode="rgb_array", **config)
        check_env(env.unwrapped)
    assert env.spec.max_episode_steps == 200


@every_case
def test_episodes_are_truncated_and_never_terminate(env_id: str, config: dict[str, Any]) -> None:
    env = gym.make(env_id, max_episode_steps=7, **config)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[2:4] for _ in range(7)] == [(False, False)] * 6 + [(False, True)]
    batched = make_tensor(env_id, 3, seed=0, max_episode_steps=7, **config)
    batched.reset()
    for t in range(7):
        _, _, dones, infos = batched.step(np.zeros((3, *batched.action_space.shape)))
        assert dones.tolist() == [t == 6] * 3
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert infos[0]["terminal_observation"].shape == batched.observation_space.shape


@every_case
def test_both_forms_make_the_same_steps_from_the_same_noise(env_id: str, config: dict[str, Any], monkeypatch: Any) -> None:
    single = gym.make(env_id, **config).unwrapped
    batched = make_tensor(env_id, 3, seed=0, double_precision=True, **config)
    assert single.observation_space == batched.observation_space
    assert single.action_space == batched.action_space
    noises = np.random.default_rng(0).standard_normal((30, 3, single.regulator.state_dim))
    batched.reset_tensor()
    starts = batched.get_state()["states"].numpy()
    actions = 1.3 * random_actions(batched, 30)
    rows = []
    for copy in range(3):
        single.reset(seed=0, options={"state": starts[copy]})
        row = []
        for t in range(30):
            monkeypatch.setattr(single, "_noise", lambda t=t, copy=copy: noises[t, copy])
            row.append(single.step(actions[t, copy, 0].numpy())[:2])
        rows.append(row)
    for t in range(30):
        monkeypatch.setattr(batched, "_noise", lambda t=t: th.from_numpy(noises[t]))
        step = batched.step_tensor(actions[t])
        for copy in range(3):
            np.testing.assert_allclose(step.obs[copy, 0].numpy(), rows[copy][t][0], atol=1e-6)
            np.testing.assert_allclose(step.rewards[copy, 0].item(), rows[copy][t][1], rtol=1e-6)


@every_case
def test_observations_stay_in_their_space_whatever_is_done(env_id: str, config: dict[str, Any]) -> None:
    env = make_tensor(env_id, 50, seed=0, **config)
    env.reset()
    push = np.ones((50, *env.action_space.shape), np.float32)
    for _ in range(150):
        obs, rewards = env.step(push)[:2]
        assert all(env.observation_space.contains(row) for row in obs)
        assert np.isfinite(rewards).all()


@every_case
def test_the_same_seed_gives_the_same_bits_and_a_saved_state_resumes(env_id: str, config: dict[str, Any]) -> None:
    first, again, other = (make_tensor(env_id, 8, seed=seed, **config) for seed in (3, 3, 4))
    assert th.equal(first.reset_tensor(), again.reset_tensor())
    other.reset_tensor()
    for actions in random_actions(first, 10):
        step = first.step_tensor(actions)
        assert th.equal(step.obs, again.step_tensor(actions).obs)
    kept = step.obs.clone()
    other.set_state(first.get_state())
    for actions in random_actions(first, 200, seed=1):
        assert th.equal(first.step_tensor(actions).obs, other.step_tensor(actions).obs)
    assert th.equal(step.obs, kept)


class _RefuseHostSync(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for forbidden in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "aten::equal", "unique"):
            assert forbidden not in func.name(), f"{func.name()} waits for the device"
        return func(*args, **(kwargs or {}))


@every_case
def test_an_episode_never_asks_the_device_for_a_number(env_id: str, config: dict[str, Any]) -> None:
    env = make_tensor(env_id, 4, seed=0, max_episode_steps=20, **config)
    env.reset_tensor()
    actions = random_actions(env, 30)
    with _RefuseHostSync():
        for row in actions:
            env.step_tensor(row)


@pytest.mark.gpu
@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
@every_case
def test_a_cuda_device_gives_the_numbers_of_the_cpu_without_a_host_sync(env_id: str, config: dict[str, Any]) -> None:
    cpu, cuda = (make_tensor(env_id, 64, device, 0, **config) for device in ("cpu", "cuda"))
    for env in (cpu, cuda):
        env._step = type(env._step)(
            env._step.regulator,
            th.zeros_like(env._step.noise_std),
            env._step.bounds,
            env._step.start_bounds,
            env._step.is_angle,
        )
        env.reset_tensor()
    cuda.set_state({"states": cpu.get_state()["states"]})
    actions = random_actions(cpu, 20)
    cuda_actions = actions.cuda()
    th.cuda.set_sync_debug_mode("error")
    try:
        steps = [cuda.step_tensor(row) for row in cuda_actions]
    finally:
        th.cuda.set_sync_debug_mode("default")
    for row, step in zip(actions, steps, strict=True):
        expected = cpu.step_tensor(row)
        th.testing.assert_close(step.obs.cpu(), expected.obs, atol=1e-3, rtol=1e-4)
        th.testing.assert_close(step.rewards.cpu(), expected.rewards, atol=1e-3, rtol=1e-4)


@every_case
def test_make_vec_env_takes_the_batched_form_unless_told_otherwise(env_id: str, config: dict[str, Any]) -> None:
    assert isinstance(make_vec_env(env_id, 4, seed=0, env_kwargs=config), TensorVecEnv)
    single = make_vec_env(env_id, 2, seed=0, backend="parallel", env_kwargs=config)
    assert not isinstance(single, TensorVecEnv)
    assert single.reset().shape == (2, *single.observation_space.shape)
    assert sb3_make_vec_env(env_id, 2, env_kwargs=config).num_envs == 2
    with pytest.raises(ValueError, match=r"is a single agent's; use `gymnasium.make`"):
        make_parallel(env_id)


@pytest.mark.parametrize("env_id", [SCALAR, PENDULUM, OSCILLATORS])
def test_sac_of_stable_baselines_trains_on_either_form(env_id: str) -> None:
    for env in (env_id, make_tensor(env_id, 4, seed=0)):
        model = SAC("MlpPolicy", env, learning_starts=20, batch_size=16, policy_kwargs={"net_arch": [8]}, seed=0)
        model.learn(40)
        assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


@every_case
def test_pictures_show_the_masses_moving(env_id: str, config: dict[str, Any]) -> None:
    env = gym.make(env_id, render_mode="rgb_array", **config).unwrapped
    env.reset(seed=0)
    first = env.render()
    for _ in range(3):
        env.step(np.ones(env.action_space.shape, np.float32))
    assert (env.render() != first).any()
    batched = make_tensor(env_id, 2, seed=0, render_mode="rgb_array", double_precision=True, **config)
    batched.reset_tensor()
    batched.set_state({"states": th.from_numpy(env.state).expand(2, -1)})
    assert np.array_equal(batched.get_images()[0], env.render())
    assert gym.make(env_id, **config).unwrapped.render() is None


def test_an_environment_survives_pickling() -> None:
    env = gym.make(PENDULUM).unwrapped
    env.reset(seed=0)
    copy, action = pickle.loads(pickle.dumps(env)), np.ones(1, np.float32)
    assert np.array_equal(env.step(action)[0], copy.step(action)[0])


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("system", "settings", "message"),
    [
        (ScalarRegulator, {"gain": 0.0}, "`gain` must be a number other than 0"),
        (ScalarRegulator, {"noise": -0.1}, "`noise` must be a number of at least 0"),
        (ScalarRegulator, {"decay": math.nan}, "`decay` must be a number that is finite"),
        (ScalarRegulator, {"max_action": 0.0}, "`max_action` must be a number above 0"),
        (ScalarRegulator, {"max_start": 11.0}, "`max_start` must be at most `max_state` = 10.0, got 11.0"),
        (PendulumRegulator, {"max_start_angle": 4.0}, "`max_start_angle` must be a number in"),
        (PendulumRegulator, {"max_start_speed": 9.0}, "`max_start_speed` must be at most `max_speed` = 8.0"),
        (PendulumRegulator, {"dt": 0.0}, "`dt` must be a number above 0"),
        (CoupledOscillators, {"n": 0}, "`n` must be an integer in"),
        (CoupledOscillators, {"control_weight": 0.0}, "`control_weight` must be a number above 0"),
        (CoupledOscillators, {"max_start": 6.0}, "`max_start` must be at most 5.0"),
        (CoupledOscillators, {"stiffness": math.inf}, "`stiffness` must be a number of at least 0"),
    ],
)
def test_a_parameter_out_of_range_is_named(system: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        system(**settings)


@pytest.mark.parametrize("name", ["n", "dt", "max_action", "cubic"])
@pytest.mark.parametrize("value", ["1", None, [1.0], True, 1j])
def test_a_parameter_of_another_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"`{name}` must be"):
        CoupledOscillators(**{name: value})
    with pytest.raises(TypeError, match=f"`{name}` must be"):
        gym.make(OSCILLATORS, **{name: value})


@pytest.mark.parametrize(("discount", "error"), [(0.0, ValueError), (1.1, ValueError), ("1", TypeError)])
def test_a_discount_that_is_none_is_named(discount: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="`discount` must be"):
        ScalarRegulator().lqr(discount)


def test_a_regulator_without_a_linear_optimum_is_named() -> None:
    with pytest.raises(ValueError, match=r"PendulumRegulator\(.*without a solution in double precision"):
        PendulumRegulator(gravity=1e30).lqr()
    with pytest.raises(ValueError, match="cube of the state variables, of which it takes 2048 at most, got 8192"):
        CoupledOscillators(n=4096).lqr()


def test_a_device_that_is_not_there_and_too_many_copies_are_named() -> None:
    if not th.cuda.is_available():
        with pytest.raises(ValueError, match="`device` is 'cuda', but torch finds no CUDA device"):
            make_tensor(PENDULUM, n_copies=2, device="cuda")
    with pytest.raises(ValueError, match=r"`n_copies`=1000000000 of PendulumRegulator would take"):
        make_tensor(PENDULUM, n_copies=10**9)


def test_misuse_of_an_environment_is_named() -> None:
    env = gym.make(PENDULUM).unwrapped
    with pytest.raises(RuntimeError, match="never reset"):
        env.step(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="`options` may have the entry 'state' only"):
        env.reset(options={"speed": 1.0})
    for options in (5, ["state"], "state"):
        with pytest.raises(TypeError, match="`options` must be a dictionary or None"):
            env.reset(options=options)
    for state in ([0.0], [0.0, 9.0], [math.nan, 0.0], [[0.0, 0.0]], "ab", {}, [1j, 1j]):
        with pytest.raises(ValueError, match=r"`options\['state'\]` must have shape"):
            env.reset(options={"state": state})
    env.reset(seed=0)
    for action in (np.zeros(2), np.array([np.nan]), np.zeros((1, 1)), "x", {}):
        with pytest.raises(ValueError, match="`action` must be finite numbers of shape"):
            env.step(action)
    with pytest.raises(ValueError, match="`render_mode` must be 'rgb_array' or None"):
        type(env)(render_mode="human")
    with pytest.raises(ValueError, match="are both None"):
        register("mine/Nothing-v0", None, None)
