"""The rollout buffer against SB3's, hand computation, and its own promises."""

from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from otbaselines.common.multi_agent.buffers import AgentRolloutBuffer
from otbaselines.common.multi_agent.losses import normalize_advantages

OBS = spaces.Box(-10, 10, (2,), np.float32)
STEPS, COPIES, AGENTS = 9, 3, 2


def _buffer(n_steps=STEPS, n_copies=COPIES, n_agents=AGENTS, obs=OBS, action=None, gamma=0.9, gae_lambda=0.8):
    return AgentRolloutBuffer(
        n_steps,
        n_copies,
        n_agents,
        obs,
        action or spaces.Discrete(3),
        device=th.device("cpu"),
        gamma=gamma,
        gae_lambda=gae_lambda,
    )


def _filled(seed=0):
    """A full buffer whose entries name their step, copy and agent."""
    buffer, generator = _buffer(), np.random.default_rng(seed)
    for step in range(STEPS):
        index = th.arange(COPIES * AGENTS).view(COPIES, AGENTS) + 100 * step
        buffer.add(
            th.stack([index, -index], -1).float(),
            index % 3,
            index.float() / 7,
            th.as_tensor(generator.normal(size=(COPIES, AGENTS)), dtype=th.float32),
            th.as_tensor(generator.random((COPIES, AGENTS)) < 0.3),
        )
    return buffer, generator


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.9, 0.8), (1.0, 1.0), (0.99, 0.0), (0.0, 0.5)])
def test_advantages_and_returns_equal_sb3s_on_random_data_with_dones(gamma, gae_lambda):
    ours, generator = _filled()
    ours.gamma, ours.gae_lambda = gamma, gae_lambda
    values = generator.normal(size=(STEPS + 1, COPIES, AGENTS)).astype(np.float32)
    ours.compute_returns_and_advantages(th.as_tensor(values[:-1]), th.as_tensor(values[-1]))

    slots = COPIES * AGENTS
    theirs = RolloutBuffer(STEPS, OBS, spaces.Discrete(3), "cpu", gae_lambda, gamma, n_envs=slots)
    starts = np.zeros(slots)
    dones = ours.dones.reshape(STEPS, slots).numpy()
    for step in range(STEPS):
        theirs.add(
            np.zeros((slots, 2)),
            np.zeros((slots, 1)),
            ours.rewards[step].flatten().numpy(),
            starts,
            th.as_tensor(values[step]).flatten(),
            th.zeros(slots),
        )
        starts = dones[step]
    theirs.compute_returns_and_advantage(th.as_tensor(values[-1]).flatten(), dones[-1])
    np.testing.assert_allclose(ours.advantages.reshape(STEPS, slots), theirs.advantages, atol=2e-6)
    np.testing.assert_allclose(ours.returns.reshape(STEPS, slots), theirs.returns, atol=2e-6)


def test_a_truncated_episode_is_bootstrapped_with_the_value_of_its_last_observation():
    # Two steps, the first of which is cut off: delta_0 = 1 + .5 * 8 - 2 = 3 (no look past the end), and
    # delta_1 = 4 + .5 * 6 - 3 = 4; the advantages do not mix across the cut.
    buffer = _buffer(2, 1, 1, gamma=0.5, gae_lambda=0.9)
    for step, (reward, done) in enumerate([(1.0, True), (4.0, False)]):
        if step == 0:
            buffer.bootstrap[0] = 8.0
        buffer.add(th.zeros(1, 1, 2), th.zeros(1, 1), th.zeros(1, 1), th.full((1, 1), reward), th.tensor([[done]]))
    buffer.compute_returns_and_advantages(th.tensor([[[2.0]], [[3.0]]]), th.tensor([[6.0]]))
    assert buffer.advantages.flatten().tolist() == [3.0, 4.0]
    assert buffer.returns.flatten().tolist() == [5.0, 7.0]


def test_a_new_rollout_forgets_the_bootstrap_of_the_last_one():
    buffer, _ = _filled()
    buffer.bootstrap[3, 1, 1] = 5.0
    buffer.reset()
    assert buffer.pos == 0
    assert not buffer.full
    assert (buffer.bootstrap == 0).all()


def test_one_pass_delivers_every_joint_step_once_with_its_agents_together():
    buffer, _ = _filled()
    batches = list(buffer.get(4))
    assert [len(batch.actions) for batch in batches] == [4] * 6 + [3]
    observed = th.cat([batch.observations for batch in batches])
    first = observed[..., 0].long()
    expected = buffer.observations[..., 0].flatten(0, 1)[:, 0].long()
    assert sorted(first[:, 0].tolist()) == sorted(expected.tolist())
    assert (first[:, 1] == first[:, 0] + 1).all()
    for batch in batches:
        index = batch.observations[..., 0].long()
        assert (batch.actions == index % 3).all()
        assert (batch.old_log_prob == index.float() / 7).all()


def test_passes_are_shuffled_by_torchs_stream():
    buffer, _ = _filled()
    orders = []
    for seed in (0, 0, 1):
        th.manual_seed(seed)
        orders.append(th.cat([batch.observations for batch in buffer.get(5)]))
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != orders[2]).any()


def test_who_was_active_is_kept_only_where_somebody_was_not():
    buffer, _ = _filled()
    assert next(buffer.get(27)).active is None
    buffer.reset()
    row = (th.zeros(COPIES, AGENTS, 2), th.zeros(COPIES, AGENTS), *[th.zeros(COPIES, AGENTS)] * 2, False)
    active = th.tensor([[True, False]] * COPIES)
    for step in range(STEPS):
        buffer.add(*row, active if step == 4 else None)
    batch = next(buffer.get(27))
    assert int((~batch.active).sum()) == COPIES
    assert not batch.active[~batch.active[:, 1]][:, 1].any()


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("somebody_left", [False, True])
def test_advantages_are_scaled_minibatch_by_minibatch_also_the_last_and_smaller_one(pooled, somebody_left):
    buffer, _ = _filled()
    buffer.advantages.normal_()
    if somebody_left:
        buffer.active[1, :, 1], buffer.all_active = False, False
    th.manual_seed(5)
    plain = list(buffer.get(4))
    th.manual_seed(5)
    scaled = list(buffer.get(4, partial(normalize_advantages, pooled=pooled)))
    assert len(scaled) == len(plain) == 7
    for one, other in zip(plain, scaled, strict=True):
        th.testing.assert_close(other.advantages, normalize_advantages(one.advantages, one.active, pooled=pooled))
        assert th.equal(one.actions, other.actions)


def test_adding_to_a_full_buffer_is_an_error():
    buffer, _ = _filled()
    row = (th.zeros(COPIES, AGENTS, 2), *[th.zeros(COPIES, AGENTS)] * 3, False)
    with pytest.raises(ValueError, match="full after `n_steps`=9"):
        buffer.add(*row)


@pytest.mark.parametrize(
    ("obs", "shape", "dtype"),
    [
        (spaces.Discrete(5), (), th.int64),
        (spaces.MultiDiscrete([2, 3]), (2,), th.int64),
        (spaces.MultiBinary(4), (4,), th.int8),
        (spaces.Box(0, 255, (3, 8, 8), np.uint8), (3, 8, 8), th.uint8),
        (spaces.Box(-1, 1, (3,), np.float64), (3,), th.float32),
    ],
)
def test_observations_are_stored_in_the_smallest_type_that_holds_them(obs, shape, dtype):
    buffer = _buffer(obs=obs)
    assert buffer.observations.shape == (STEPS, COPIES, AGENTS, *shape)
    assert buffer.observations.dtype == dtype


def test_dict_observations_are_stored_and_shuffled_alike():
    buffer = _buffer(obs=spaces.Dict(a=OBS, b=spaces.Discrete(60)))
    for step in range(STEPS):
        index = th.arange(COPIES * AGENTS).view(COPIES, AGENTS) + 6 * step
        obs = {"a": th.stack([index, index], -1).float(), "b": index}
        buffer.add(obs, index % 3, *[th.zeros(COPIES, AGENTS)] * 2, False)
    for batch in buffer.get(5):
        assert (batch.observations["a"][..., 0].long() == batch.observations["b"]).all()
        assert (batch.actions == batch.observations["b"] % 3).all()


@pytest.mark.parametrize(
    ("action", "shape", "dtype"),
    [
        (spaces.Discrete(4), (), th.int64),
        (spaces.MultiDiscrete([2, 3]), (2,), th.int64),
        (spaces.MultiBinary(4), (4,), th.float32),
        (spaces.Box(-1, 1, (2, 3)), (6,), th.float32),
    ],
)
def test_actions_are_stored_flat(action, shape, dtype):
    buffer = _buffer(action=action)
    assert buffer.actions.shape == (STEPS, COPIES, AGENTS, *shape)
    assert buffer.actions.dtype == dtype
