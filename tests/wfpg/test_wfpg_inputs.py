"""What WassersteinFlowPG is given and could not use: named before it does harm. And what prediction makes of observations."""

import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor

from otbaselines import WassersteinFlowPG

BOX, ACTIONS = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)
SMALL = {"net_arch": [8], "bend_width": 4}


def build(env=None, **kwargs):
    given = {"learning_starts": 8, "batch_size": 8, "buffer_size": 200, "seed": 0, "device": "cpu", "policy_kwargs": SMALL}
    policy = kwargs.pop("policy", "MlpPolicy")
    return WassersteinFlowPG(policy, AnySpacesEnv(BOX, ACTIONS, 6) if env is None else env, **{**given, **kwargs})


class Poisoned(AnySpacesEnv):
    """NaN in what is seen last in an episode, or in the first observation of all."""

    def __init__(self, where):
        super().__init__(BOX, ACTIONS, 6)
        self.where = where

    def reset(self, *, seed=None, options=None):
        seen, info = super().reset(seed=seed, options=options)
        return (seen * np.nan if self.where == "first" else seen), info

    def step(self, action):
        seen, reward, terminated, truncated, info = super().step(action)
        return (
            (seen * np.nan if self.where == "last" and (terminated or truncated) else seen),
            reward,
            terminated,
            truncated,
            info,
        )


def test_nan_around_a_reset_is_named_and_does_not_reach_the_buffer():
    model = build(make_vec_env(lambda: Poisoned("last"), n_envs=2))
    with pytest.raises(ValueError, match=r"`terminal_observation` became NaN or infinite at step 12, in the copies \[0\]"):
        model.learn(40)
    assert np.isfinite(model.replay_buffer.next_observations[: model.replay_buffer.pos]).all()
    with pytest.raises(ValueError, match=r"`observations` became NaN or infinite at step 0, in the copies \[0\]"):
        build(Poisoned("first")).learn(10)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (AnySpacesEnv(BOX, spaces.Box(0, 5, (2,), np.int64)), "actions have to be floats"),
        (AnySpacesEnv(BOX, spaces.Box(-3e38, 3e38, (2,), np.float32)), "whose width is no finite number"),
        (AnySpacesEnv(spaces.Discrete(5, start=2), ACTIONS), "choices that count from 0"),
        (AnySpacesEnv(spaces.Box(-1.0, 1.0, ()), ACTIONS), "holds no vector"),
        (AnySpacesEnv(spaces.Box(-1.0, 1.0, (0,)), ACTIONS), "holds no vector"),
        (AnySpacesEnv(spaces.Tuple((BOX, BOX)), ACTIONS), "only Box, Discrete"),
        (AnySpacesEnv(spaces.Dict(a=spaces.Dict(b=BOX)), ACTIONS), "the part 'a' of the observation space"),
    ],
    ids=["integers", "too wide", "choices from 2", "a number", "nothing", "a tuple", "nested"],
)
def test_spaces_that_cannot_be_used_are_named(env, message):
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    with pytest.raises(ValueError, match=message):
        build(env, policy=policy)


@pytest.mark.parametrize(
    "net_arch", [{"pi": [8]}, {"pi": [8], "vf": [8]}, [{"pi": [8], "qf": [8]}], [[8]], {"pi": 8, "qf": 8}]
)
def test_networks_of_another_form_are_refused_with_the_right_one(net_arch):
    with pytest.raises((ValueError, TypeError), match=r"net_arch'\]` must be widths such as \[64, 64\], or a dictionary"):
        build(policy_kwargs={"net_arch": net_arch})


def test_widths_may_be_a_tuple():
    assert build(policy_kwargs={"net_arch": (8,)}).learn(10).num_timesteps == 10


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"buffer_size": 2**31 - 1}, "replay buffer of `buffer_size`=2147483647 transitions would take"),
        ({"policy_kwargs": {"bend_width": 10**9}}, "`bend_width`=1000000000.* would take"),
        ({"policy_kwargs": {"net_arch": [10**7, 10**7]}}, "`net_arch`=.* would take"),
        ({"policy_kwargs": {"features_extractor_class": th.nn.Linear}}, "a class of features extractors"),
        ({"policy_kwargs": {"optimizer_kwargs": {"weight_decay": float("inf")}}}, "leads to NaN or infinity"),
        ({"ent_coef": 1e30}, "`ent_coef` must be"),
        (
            {"action_noise": NormalActionNoise(np.zeros(3), np.ones(3))},
            r"`action_noise` must have the shape of an action, \(2,\)",
        ),
        (
            {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.99}},
            r"`replay_buffer_kwargs\['n_steps'\]`=3 contradicts the algorithm, whose `n_steps` is 1",
        ),
    ],
)
def test_sizes_and_settings_that_cannot_work_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_what_is_no_environment_is_named():
    with pytest.raises(TypeError, match="`env` must be a Gymnasium environment, its id, or a vector environment, got 5"):
        build(5)


def test_episodes_are_counted_in_one_environment_only():
    with pytest.raises(ValueError, match="`train_freq` in episodes works with one environment, and there are 2"):
        build(make_vec_env(lambda: AnySpacesEnv(BOX, ACTIONS, 6), n_envs=2), train_freq=(1, "episode"))
    model = build(train_freq=np.int64(2), stats_window_size=np.int64(5)).learn(16)
    assert model._n_updates == 4
    # As SB3's learners leave it behind.
    assert model.logger.name_to_value["train/n_updates"] == 4


def test_another_default_precision_is_named():
    th.set_default_dtype(th.float64)
    try:
        with pytest.raises(ValueError, match=r"replay buffers hold float32, but torch's default dtype is torch\.float64"):
            build()
    finally:
        th.set_default_dtype(th.float32)


def test_returns_of_several_steps_are_discounted_and_end_where_episodes_end():
    # Rewards 1, 2, 4, ... of one episode that ends by itself after four steps, and of one that is cut off there.
    for is_cut in (False, True):
        model = build(n_steps=3, gamma=0.5, tau=0.5)
        zero = np.zeros((1, 2), np.float32)
        for t in range(4):
            seen, after = np.full((1, 3), float(t), np.float32), np.full((1, 3), t + 1.0, np.float32)
            info = [{"TimeLimit.truncated": is_cut and t == 3}]
            model.replay_buffer.add(seen, after, zero, np.array([2.0**t]), np.array([t == 3]), info)
        batch = model._draw(200)
        for t, n in enumerate((3, 3, 2, 1)):
            rows = batch.seen[:, 0] == t
            assert rows.any()
            expected = sum(0.5**k * 2.0 ** (t + k) for k in range(n))
            np.testing.assert_allclose(batch.rewards[rows], expected)
            np.testing.assert_allclose(batch.next_seen[rows, 0], t + n)
            np.testing.assert_allclose(batch.continues[rows], 0.0 if t + n == 4 and not is_cut else 1.0)
            if t + n < 4 or is_cut:
                np.testing.assert_allclose(batch.discounts[rows], 0.5**n)


def test_a_buffer_of_returns_has_the_algorithms_steps():
    model = build(replay_buffer_class=NStepReplayBuffer, n_steps=4, gamma=0.9)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (4, 0.9)


@pytest.mark.parametrize("name", ["dones", "timeouts", "actions"])
def test_a_buffers_file_with_impossible_entries_is_refused(name, tmp_path):
    model = build().learn(20)
    getattr(model.replay_buffer, name)[3] = 1.7
    model.save_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=f"entries in `{name}`"):
        build().load_replay_buffer(tmp_path / "buffer")


@pytest.mark.parametrize("kwargs", [{}, {"n_steps": 3}], ids=["one step", "several steps"])
def test_a_model_without_a_buffer_gets_the_stored_one(kwargs, tmp_path):
    model = build(**kwargs).learn(20)
    model.save_replay_buffer(tmp_path / "buffer")
    before, model.replay_buffer = model.replay_buffer, None
    model.load_replay_buffer(tmp_path / "buffer")
    assert type(model.replay_buffer) is type(before)
    np.testing.assert_array_equal(model.replay_buffer.observations, before.observations)
    assert model.learn(4, reset_num_timesteps=False).num_timesteps == 24


def test_what_an_update_undoes_is_not_counted():
    model = build().learn(12)
    n_updates = model._n_updates
    model.replay_buffer.rewards[:] = np.nan
    with pytest.raises(ValueError, match="became NaN or infinite in the update after"):
        model.learn(6, reset_num_timesteps=False)
    assert model._n_updates == n_updates


def test_another_objective_at_load_says_what_to_leave_out(tmp_path):
    build().save(tmp_path / "model")
    with pytest.raises((TypeError, ValueError), match=r"`gamma`=None to `load`"):
        WassersteinFlowPG.load(tmp_path / "model", objective="average", device="cpu")
    loaded = WassersteinFlowPG.load(tmp_path / "model", objective="average", gamma=None, device="cpu")
    assert loaded.objective == "average"


# ---------------------------------------------------------------- prediction
class Counting(FlattenExtractor):
    """Counts the rows that it is shown."""

    rows = 0

    def forward(self, observations):
        Counting.rows += len(observations)
        return super().forward(observations)


def test_an_observation_is_read_once_by_each_network_however_many_candidates_there_are():
    model = build(policy_kwargs={**SMALL, "features_extractor_class": Counting})
    Counting.rows = 0
    model.predict(np.zeros((5, 3), np.float32), deterministic=True)
    assert Counting.rows == 2 * 5


def test_the_deterministic_action_is_best_by_the_smaller_critic():
    # Critics that disagree: the first likes actions to the right, the second, lower by 0.5, those to the left.
    model = build()
    policy = model.policy

    def values(features, actions):
        return th.stack([actions[:, 0], -0.5 - actions[:, 0]])

    policy.critic.values = values
    noise = policy.candidate_noise
    with th.no_grad():
        policy.actor.heads.weight.zero_()
        candidates = policy.actor(th.zeros(len(noise), 3), noise).tanh()
    smaller = th.minimum(candidates[:, 0], -0.5 - candidates[:, 0])
    found = model.predict(np.zeros((1, 3), np.float32), deterministic=True)[0]
    np.testing.assert_allclose(found[0], candidates[smaller.argmax()], atol=1e-6)
    assert int(smaller.argmax()) != int(candidates[:, 0].argmax())


@pytest.mark.parametrize("deterministic", [False, True])
def test_no_observations_have_no_actions_and_nan_is_named(deterministic):
    model = build()
    assert model.predict(np.zeros((0, 3), np.float32), deterministic=deterministic)[0].shape == (0, 2)
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match="`observation` is NaN or infinite"):
            model.predict(np.full(3, bad), deterministic=deterministic)


def test_widths_given_as_tuples_load_again(tmp_path):
    build(policy_kwargs={**SMALL, "net_arch": (8, 8)}).save(tmp_path / "model")
    assert WassersteinFlowPG.load(tmp_path / "model").policy_kwargs["net_arch"] == [8, 8]
