"""Evaluation of teams against hand computation, SB3's `evaluate_policy` and the environments' own sums."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv, WanderersEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from toy_teams import CustomSpacesEnv, DiceEnv, RelayEnv

from otbaselines.common.evaluation import team as evaluation
from otbaselines.common.evaluation.team import TeamEvalCallback, evaluate_team
from otbaselines.common.vec_env.make import make_vec_env
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv
from otbaselines.ippo import IPPO

pytestmark = pytest.mark.filterwarnings("ignore:the rollout of")
SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0}


def _ones(observations):
    return np.ones(len(observations), dtype=np.int64)


def _dice(n_copies=2, **kwargs):
    return ParallelVecEnv([lambda: DiceEnv(**kwargs)] * n_copies, seed=0)


def _pushes(observations):
    return np.full((len(observations), 2), 0.25, dtype=np.float32)


# ---------------------------------------------------------------- what is counted
def test_agents_that_leave_and_join_are_summed_over_the_copys_whole_episode():
    # Choosing 1 earns 10 * number + 1 a step: a acts twice, b five times, c (who joins at step 3) twice.
    result = evaluate_team(_ones, ParallelVecEnv([RelayEnv, RelayEnv]), n_eval_episodes=3)
    assert result.agent_returns == {"a": 2.0, "b": 55.0, "c": 42.0}
    assert result.team_return == 99.0
    assert result.mean_agent_return == 33.0
    assert result.std == 0.0
    assert result.lengths.tolist() == [5, 5, 5]
    assert result.n_episodes == 3
    assert result.episode_team_returns.tolist() == [99.0] * 3
    assert result.episode_agent_returns.tolist() == [[2.0, 55.0, 42.0]] * 3


def test_copies_with_short_episodes_supply_no_more_than_their_share():
    env = ParallelVecEnv([lambda: DiceEnv(horizon=2), lambda: DiceEnv(horizon=20)], seed=0)
    result = evaluate_team(_pushes, env, n_eval_episodes=6)
    assert sorted(result.lengths.tolist()) == [2, 2, 2, 20, 20, 20]
    # An agent earns .5 (its two pushes) + .5 t at step t: 2 and 20 steps give 1 + 1.5 = 2.5 and 10 + 105 = 115.
    assert result.agent_returns["left"] == pytest.approx((2.5 + 115) / 2)
    assert result.std == pytest.approx(115 - 2.5)


def test_episodes_are_divided_as_evenly_as_possible():
    result = evaluate_team(_pushes, _dice(3), n_eval_episodes=4)
    assert result.n_episodes == len(result.lengths) == 4


def test_agents_that_left_earn_nothing_until_the_copy_restarts():
    # Wanderer k's reward is its action plus the step: with action 0 and lives 3, 7 and 5 that is 6, 28 and 15.
    env = ParallelVecEnv([WanderersEnv, WanderersEnv], seed=0)
    result = evaluate_team(lambda obs: np.zeros(len(obs), dtype=np.int64), env, n_eval_episodes=5)
    assert result.agent_returns == {"w0": 6.0, "w1": 28.0, "w2": 15.0}
    assert result.lengths.tolist() == [7] * 5


# ---------------------------------------------------------------- agreement with SB3
class _Sign:
    """Pushes the cart towards the side to which the pole falls, which keeps it up for some 40 steps."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return (observation[:, 2] > 0).astype(np.int64), state


@pytest.mark.parametrize("kind", ["monitored", "bare", "copies", "normalised", "reward_wrapper"])
def test_a_gymnasium_environment_is_evaluated_as_by_sb3(kind):
    model = _Sign()
    makers = {
        "monitored": lambda: Monitor(gym.make("CartPole-v1")),
        "bare": lambda: gym.make("CartPole-v1"),
        "copies": lambda: sb3_make_vec_env("CartPole-v1", 3),
        "normalised": lambda: VecNormalize(sb3_make_vec_env("CartPole-v1", 2), training=False),
        # The monitor sits below the wrapper, and its word counts.
        "reward_wrapper": lambda: gym.wrappers.TransformReward(Monitor(gym.make("CartPole-v1")), lambda r: -7 * r),
    }
    results = []
    for evaluate in ("theirs", "ours"):
        env = makers[kind]()
        venv = env if hasattr(env, "num_envs") else DummyVecEnv([lambda env=env: env])
        if evaluate == "theirs":
            venv.seed(4)
            rewards, lengths = evaluate_policy(model, venv, 7, return_episode_rewards=True, warn=False)
            results.append((rewards, lengths))
        else:
            result = evaluate_team(model, env, n_eval_episodes=7, seed=4)
            results.append((result.episode_team_returns.tolist(), result.lengths.tolist()))
            assert result.team_return == result.mean_agent_return == pytest.approx(np.mean(rewards))
            assert result.std == pytest.approx(np.std(rewards))
    assert results[0] == results[1]


def test_an_id_is_evaluated_too():
    assert evaluate_team(_Sign(), "CartPole-v1", n_eval_episodes=2).n_episodes == 2


def test_a_loss_of_life_is_no_episode_for_the_monitor():
    class Lives(gym.Wrapper):
        """Ends every third step, while the episode below goes on, as Atari's wrapper does."""

        def step(self, action):
            self.count += 1
            obs, reward, terminated, truncated, info = self.env.step(action)
            return obs, reward, terminated or self.count % 3 == 0, truncated, info

        def reset(self, **kwargs):
            if getattr(self, "count", 6) % 6 == 0:
                self.count = 0
                return self.env.reset(**kwargs)
            return self.observation_space.sample(), {}

    env = Lives(Monitor(AnySpacesEnv(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), horizon=6)))
    result = evaluate_team(_ones, env, n_eval_episodes=2)
    assert result.lengths.tolist() == [6, 6]
    assert result.episode_team_returns.tolist() == [6.0, 6.0]


@pytest.mark.parametrize("terminate_on_success", [False, True])
def test_a_tensor_environment_gives_on_its_device_what_sb3_finds_slot_by_slot(terminate_on_success):
    def make():
        return SimpleSpreadVecEnv(n_copies=6, max_cycles=9, terminate_on_success=terminate_on_success)

    model = IPPO("MlpPolicy", make(), **SMALL)
    result = evaluate_team(model, make(), n_eval_episodes=6, seed=3)
    env = VecMonitor(make())
    env.seed(3)
    rewards, lengths = evaluate_policy(model, env, 18, return_episode_rewards=True)
    np.testing.assert_allclose(result.episode_agent_returns.flatten(), rewards, rtol=1e-5)
    assert np.repeat(result.lengths, 3).tolist() == lengths


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", ["discrete", "continuous", "squashed"])
def test_the_device_and_the_row_loop_agree(kind, deterministic):
    env = SimpleSpreadVecEnv(n_copies=5, continuous_actions=kind != "discrete")
    squashed = kind == "squashed"
    model = IPPO("MlpPolicy", env, **SMALL, use_sde=squashed, policy_kwargs={"squash_output": squashed})
    kwargs = {"n_eval_episodes": 8, "seed": 1, "deterministic": deterministic}
    on_device, in_rows = evaluate_team(model, env, **kwargs), evaluate_team(model, env, callback=lambda *_: None, **kwargs)
    np.testing.assert_allclose(on_device.episode_agent_returns, in_rows.episode_agent_returns, rtol=1e-5)
    assert (on_device.lengths == in_rows.lengths).all()


def test_sb3s_ppo_on_slots_is_evaluated_as_a_team():
    env = make_vec_env("mpe2/simple_spread_v3", 2, seed=0, env_kwargs={"max_cycles": 6})
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
    result = evaluate_team(model, env, n_eval_episodes=2, seed=5)
    env.seed(5)
    rewards, _ = evaluate_policy(model, env, 6, return_episode_rewards=True)
    np.testing.assert_allclose(result.episode_agent_returns.flatten(), rewards, atol=1e-4)
    assert result.team_return == pytest.approx(np.sum(rewards) / 2, abs=1e-3)


# ---------------------------------------------------------------- normalisation, seeds, hooks
def test_rewards_are_unnormalised_and_the_statistics_stay():
    env = VecNormalize(_dice())
    model = IPPO("MlpPolicy", env, **SMALL).learn(64)
    before = env.obs_rms.mean.copy(), env.ret_rms.var.copy(), env.obs_rms.count
    result = evaluate_team(_pushes, env, n_eval_episodes=2)
    # Four steps of .5 + .5 t each: 2 + 5 = 7 for both agents.
    assert result.agent_returns == pytest.approx({"left": 7.0, "right": 7.0})
    assert (env.obs_rms.mean == before[0]).all()
    assert env.ret_rms.var == before[1]
    assert env.obs_rms.count == before[2]
    assert env.training
    assert evaluate_team(model, env, n_eval_episodes=2).n_episodes == 2


@pytest.mark.parametrize("make", [lambda: _dice(), lambda: SimpleSpreadVecEnv(n_copies=2, continuous_actions=True)])
def test_a_seed_fixes_episodes_and_samples_and_leaves_the_callers_stream_alone(make):
    env = make()
    model = IPPO("MlpPolicy", env, **SMALL)
    stream = th.get_rng_state()
    results = [evaluate_team(model, env, n_eval_episodes=2, deterministic=False, seed=seed) for seed in (7, 7, 8)]
    assert (th.get_rng_state() == stream).all()
    assert (results[0].episode_agent_returns == results[1].episode_agent_returns).all()
    assert (results[0].episode_agent_returns != results[2].episode_agent_returns).any()


def test_the_hook_sees_every_acting_slot_of_the_copies_that_still_count():
    calls = []
    env = ParallelVecEnv([WanderersEnv, WanderersEnv], seed=0)
    evaluate_team(lambda obs: np.zeros(len(obs), dtype=np.int64), env, 1, callback=lambda local, _: calls.append(local))
    # One episode, from the second copy (the first has no quota), with lives of 3, 7 and 5 steps.
    assert [sum(call["i"] == slot for call in calls) for slot in range(6)] == [0, 0, 0, 3, 7, 5]
    assert sum(call["done"] for call in calls) == 3
    assert calls[0]["reward"] == 1.0
    assert {"model", "env", "info", "observations", "new_observations", "actions", "n_envs"} <= set(calls[0])


def test_recurrent_policies_get_their_states_and_episode_starts():
    class Counter:
        """Its state is the number of steps since each slot's episode began."""

        seen: list = []  # noqa: RUF012

        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            state = np.zeros(len(observation)) if state is None else np.where(episode_start, 0, state + 1)
            self.seen.append(state)
            return _pushes(observation), state

    evaluate_team(Counter(), _dice(1), n_eval_episodes=2)
    assert [state.tolist() for state in Counter.seen] == [[t, t] for t in (0, 1, 2, 3)] * 2


def test_rendering_is_asked_for_after_each_step():
    env = _dice(1)
    frames = []
    env.render = lambda mode=None: frames.append(1)
    evaluate_team(_pushes, env, n_eval_episodes=1, render=True)
    assert len(frames) == 4


# ---------------------------------------------------------------- errors
def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="`n_eval_episodes` must be an integer of at least 1, got 0"):
        evaluate_team(_pushes, _dice(), n_eval_episodes=0)
    with pytest.raises(TypeError, match="`model` must have `predict` or be a function"):
        evaluate_team(3, _dice())


def test_another_team_is_an_error():
    model = IPPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=1), **SMALL)
    with pytest.raises(ValueError, match=r"4 agents .* trained for the 3 agents"):
        evaluate_team(model, SimpleSpreadVecEnv(n_copies=1, N=4))
    with pytest.raises(ValueError, match=r"gives agent 'agent_0' the action space .* trained for"):
        evaluate_team(model, SimpleSpreadVecEnv(n_copies=1, continuous_actions=True))


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"a": (3, 5), "b": (3, 2)}, "'b' the action space"),
        ({"b": (3, 5), "a": (3, 2)}, r"the agents \['b', 'a'\]"),
        ({"a": (3, 2), "c": (3, 5)}, r"the agents \['a', 'c'\]"),
        ({"a": (2, 2), "b": (3, 5)}, "'a' the observation space"),
        ({"a": (3, 2), "b": (3, 4)}, "'b' the action space"),
    ],
)
def test_agents_who_are_others_under_the_same_padding_are_an_error(others, named):
    def make(agents):
        own = {name: spaces.Box(-1.0, 1.0, (width,), np.float32) for name, (width, _) in agents.items()}
        actions = {name: spaces.Discrete(n) for name, (_, n) in agents.items()}
        return ParallelVecEnv([lambda: CustomSpacesEnv(own, actions)])

    team = {"a": (3, 2), "b": (3, 5)}
    model = IPPO("MlpPolicy", make(team), **SMALL)
    with pytest.raises(ValueError, match=f"{named}.* trained for"):
        evaluate_team(model, make(others))
    assert evaluate_team(model, make(team), n_eval_episodes=2).n_episodes == 2
    # Padded to the team's own spaces, as by SuperSuit: what the policy saw in training.
    assert evaluate_team(model, make({"a": (3, 5), "b": (3, 5)}), n_eval_episodes=2).n_episodes == 2


def test_bounds_and_number_types_of_observations_may_differ():
    def make(low, dtype):
        own = dict.fromkeys("ab", spaces.Box(low, 1.0, (3,), dtype))
        return ParallelVecEnv([lambda: CustomSpacesEnv(own, dict.fromkeys("ab", spaces.Discrete(2)))])

    model = IPPO("MlpPolicy", make(-1.0, np.float32), **SMALL)
    for other in (make(-7.0, np.float32), make(-1.0, np.float64)):
        assert evaluate_team(model, other, n_eval_episodes=2).n_episodes == 2


def test_images_are_evaluated_as_they_were_trained():
    image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    parts = spaces.Dict({"image": image, "count": spaces.Discrete(3)})
    env = AnySpacesEnv(parts, spaces.Discrete(2))
    model = IPPO("MultiInputPolicy", env, **SMALL)
    assert evaluate_team(model, AnySpacesEnv(parts, spaces.Discrete(2)), n_eval_episodes=2).n_episodes == 2
    model.learn(
        16, callback=TeamEvalCallback(AnySpacesEnv(parts, spaces.Discrete(2)), eval_freq=8, n_eval_episodes=1, verbose=0)
    )
    plain = IPPO("CnnPolicy", AnySpacesEnv(image, spaces.Discrete(2)), **SMALL)
    assert evaluate_team(plain, AnySpacesEnv(image, spaces.Discrete(2)), n_eval_episodes=2).n_episodes == 2


# ---------------------------------------------------------------- the callback
def _train(model, callback, n_steps, tmp_path=None):
    if tmp_path is not None:
        model.set_logger(configure(str(tmp_path), ["csv"]))
    return model.learn(n_steps * model.n_envs, callback=callback)


@pytest.mark.parametrize("intake", ["tensor", "parallel"])
def test_the_callback_evaluates_logs_and_saves_every_so_many_steps(intake, tmp_path):
    make = {"tensor": lambda: SimpleSpreadVecEnv(n_copies=2, seed=0, max_cycles=5), "parallel": _dice}[intake]
    model = IPPO("MlpPolicy", make(), **SMALL)
    after = _Calls()
    callback = TeamEvalCallback(
        make(),
        callback_after_eval=after,
        n_eval_episodes=4,
        eval_freq=8,
        log_path=str(tmp_path / "logs"),
        best_model_save_path=str(tmp_path / "best"),
        verbose=0,
        seed=9,
    )
    _train(model, callback, 32, tmp_path)
    log = np.load(tmp_path / "logs" / "evaluations.npz")
    n_agents = model.layout.n_agents
    assert log["timesteps"].tolist() == [8 * k * model.n_envs for k in (1, 2, 3, 4)]
    assert log["results"].shape == log["ep_lengths"].shape == log["team_returns"].shape == (4, 4)
    assert log["agent_returns"].shape == (4, 4, n_agents)
    assert log["agents"].tolist() == list(model.layout.possible_agents)
    np.testing.assert_allclose(log["agent_returns"].sum(-1), log["team_returns"])
    np.testing.assert_allclose(log["team_returns"], n_agents * log["results"])
    assert after.n_calls == 4
    # The first two evaluations are of the untrained policy, and the same seed gives the same episodes.
    assert (log["results"][0] == log["results"][1]).all()
    again = evaluate_team(model, make(), n_eval_episodes=4, seed=9)
    assert callback.last_evaluation is not None
    assert callback.best_mean_reward == pytest.approx(log["results"].mean(1).max())
    best = IPPO.load(tmp_path / "best" / "best_model")
    reached = evaluate_team(best, make(), n_eval_episodes=4, seed=9)
    assert reached.mean_agent_return == pytest.approx(callback.best_mean_reward, rel=1e-6)
    assert again.n_episodes == 4
    rows = np.genfromtxt(tmp_path / "progress.csv", delimiter=",", names=True)
    logged = rows["evalmean_reward"][~np.isnan(rows["evalmean_reward"])]
    np.testing.assert_allclose(logged, log["results"].mean(1), rtol=1e-6)
    assert {"evalteam_return", "evalmean_ep_length"} <= set(rows.dtype.names)


class _Calls(BaseCallback):
    def _on_step(self):
        return True


def test_a_threshold_on_the_mean_reward_stops_training():
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1e9)
    callback = TeamEvalCallback(_dice(), callback_on_new_best=stop, n_eval_episodes=2, eval_freq=3, verbose=0)
    model = _train(IPPO("MlpPolicy", _dice(), **SMALL), callback, 100)
    assert model.num_timesteps == 3 * model.n_envs


def test_evaluation_does_not_change_training():
    models = []
    for eval_env in (None, SimpleSpreadVecEnv(n_copies=2, seed=1)):
        model = IPPO("MlpPolicy", SimpleSpreadVecEnv(n_copies=2, seed=0), **SMALL)
        kwargs = {"n_eval_episodes": 2, "eval_freq": 5, "verbose": 0, "seed": 3, "deterministic": False}
        callback = None if eval_env is None else TeamEvalCallback(eval_env, **kwargs)
        models.append(_train(model, callback, 32))
    first, second = (list(model.policy.parameters()) for model in models)
    assert all(th.equal(a, b) for a, b in zip(first, second, strict=True))


def test_normalisation_is_synchronised_before_each_evaluation():
    eval_env = VecNormalize(_dice(), training=False, norm_reward=False)
    callback = TeamEvalCallback(eval_env, n_eval_episodes=2, eval_freq=16, verbose=0)
    env = VecNormalize(_dice())
    _train(IPPO("MlpPolicy", env, **SMALL), callback, 16)
    np.testing.assert_array_equal(eval_env.obs_rms.mean, env.obs_rms.mean)


def _normalised(**kwargs):
    return VecNormalize(_dice(), **kwargs)


RAW_MODEL, NORMALISED_MODEL = "`{}` is wrapped in VecNormalize and", "wrap `{}` in VecNormalize"
MISMATCHES = [(_dice, _normalised, RAW_MODEL), (_normalised, _dice, NORMALISED_MODEL)]


@pytest.mark.parametrize(("train", "evaluate", "message"), MISMATCHES)
def test_observations_normalised_on_one_side_only_are_an_error_before_training(train, evaluate, message):
    model = IPPO("MlpPolicy", train(), **SMALL)
    with pytest.raises(ValueError, match=message.format("eval_env")):
        model.learn(64, callback=TeamEvalCallback(evaluate(), verbose=0))
    assert model.num_timesteps == 0


@pytest.mark.parametrize("algorithm", [IPPO, PPO])
@pytest.mark.parametrize(("train", "evaluate", "message"), MISMATCHES)
def test_evaluating_with_observations_normalised_otherwise_is_an_error(train, evaluate, message, algorithm):
    model = algorithm("MlpPolicy", train(), **SMALL)
    for _ in range(2):
        with pytest.raises(ValueError, match=message.format("env")):
            evaluate_team(model, evaluate(), n_eval_episodes=1)
        assert evaluate_team(model, train(), n_eval_episodes=1).n_episodes == 1
        model.learn(64)


@pytest.mark.parametrize(("train", "evaluate", "message"), MISMATCHES)
def test_a_loaded_model_remembers_whether_its_observations_were_normalised(train, evaluate, message, tmp_path):
    IPPO("MlpPolicy", train(), **SMALL).learn(64).save(tmp_path / "model")
    for loaded in (IPPO.load(tmp_path / "model"), IPPO.load(tmp_path / "model", env=evaluate())):
        with pytest.raises(ValueError, match=message.format("env")):
            evaluate_team(loaded, evaluate(), n_eval_episodes=1)
        assert evaluate_team(loaded, train(), n_eval_episodes=1).n_episodes == 1


def test_normalised_rewards_alone_are_no_mismatch():
    model = IPPO("MlpPolicy", _normalised(norm_obs=False), **SMALL)
    model.learn(64, callback=TeamEvalCallback(_dice(), n_eval_episodes=2, eval_freq=8, verbose=0))
    assert evaluate_team(model, _dice(), n_eval_episodes=2).n_episodes == 2


@pytest.mark.parametrize("intake", ["rows", "device"])
def test_endless_episodes_are_an_error_with_a_remedy(intake):
    if intake == "rows":
        env, model = _dice(horizon=10**9), _pushes
    else:
        env = SimpleSpreadVecEnv(n_copies=2, max_cycles=10**9)
        model = IPPO("MlpPolicy", env, **SMALL)
    with pytest.raises(RuntimeError, match=r"no episode of copy 0 has ended in `max_steps`=50 steps; .* raise `max_steps`"):
        evaluate_team(model, env, n_eval_episodes=2, max_steps=50)
    with pytest.raises(RuntimeError, match="`max_steps`=7 steps"):
        _train(IPPO("MlpPolicy", _dice(), **SMALL), TeamEvalCallback(_dice(horizon=8), eval_freq=1, max_steps=7), 8)
    assert evaluate_team(_pushes, _dice(horizon=50), n_eval_episodes=4, max_steps=50).lengths.tolist() == [50] * 4
    with pytest.raises(ValueError, match="`max_steps` must be an integer of at least 1, got 0"):
        evaluate_team(_pushes, _dice(), max_steps=0)


def test_evaluating_another_team_is_an_error_before_training():
    model = IPPO("MlpPolicy", _dice(), **SMALL)
    with pytest.raises(ValueError, match="trained for the 2 agents"):
        model.learn(64, callback=TeamEvalCallback(ParallelVecEnv(WanderersEnv), verbose=0))


def test_success_is_logged_where_the_environment_reports_it(tmp_path):
    class Succeeds(DiceEnv):
        def step(self, actions):
            *rest, infos = super().step(actions)
            return *rest, {agent: {"is_success": agent == "left"} for agent in infos}

    eval_env = ParallelVecEnv(Succeeds, seed=0)
    callback = TeamEvalCallback(eval_env, n_eval_episodes=2, eval_freq=8, log_path=str(tmp_path), verbose=0)
    _train(IPPO("MlpPolicy", _dice(), **SMALL), callback, 8, tmp_path)
    assert np.load(tmp_path / "evaluations.npz")["successes"].mean() == 0.5
    assert "eval/success_rate" in (tmp_path / "progress.csv").read_text()


def test_a_failure_while_writing_leaves_the_old_file_whole(tmp_path, monkeypatch):
    def fail(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    callback = TeamEvalCallback(_dice(), n_eval_episodes=2, eval_freq=8, log_path=str(tmp_path), verbose=0)
    model = IPPO("MlpPolicy", _dice(), **SMALL)
    _train(model, callback, 16)
    old = (tmp_path / "evaluations.npz").read_bytes()
    monkeypatch.setattr(evaluation.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        _train(model, callback, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["evaluations.npz"]
    assert (tmp_path / "evaluations.npz").read_bytes() == old


def test_a_frequency_that_is_not_positive_never_evaluates():
    callback = TeamEvalCallback(_dice(), eval_freq=-1, verbose=0)
    _train(IPPO("MlpPolicy", _dice(), **SMALL), callback, 16)
    assert callback.last_evaluation is None
    with pytest.raises(ValueError, match="`n_eval_episodes` must be an integer of at least 1"):
        TeamEvalCallback(_dice(), n_eval_episodes=0)


def test_the_callback_prints_what_it_found(capsys):
    callback = TeamEvalCallback(_dice(), n_eval_episodes=2, eval_freq=8, verbose=1)
    _train(IPPO("MlpPolicy", _dice(), **SMALL), callback, 8)
    printed = capsys.readouterr().out
    assert "Eval num_timesteps=32" in printed
    assert "team_return=" in printed


@pytest.mark.parametrize(
    ("name", "value"), [("n_eval_episodes", "a"), ("n_eval_episodes", 1.5), ("deterministic", "x"), ("seed", "a")]
)
def test_arguments_of_the_wrong_type_are_named(name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be"):
        evaluate_team(_pushes, _dice(), **{name: value})


@pytest.mark.parametrize("name", ["eval_freq", "best_model_save_path", "log_path", "callback_on_new_best"])
def test_arguments_of_the_callback_of_the_wrong_type_are_named(name):
    with pytest.raises(TypeError, match=f"`{name}` must be"):
        TeamEvalCallback(_dice(), **{name: 3.5})


def test_rewards_are_those_below_every_normalisation():
    plain = evaluate_team(_pushes, _dice(), n_eval_episodes=2)
    env = VecNormalize(VecNormalize(_dice()))
    layered = evaluate_team(_pushes, env, n_eval_episodes=2)
    assert layered.agent_returns == pytest.approx(plain.agent_returns)
    assert env.training
    assert env.venv.training
    assert env.venv.obs_rms.count < 1
