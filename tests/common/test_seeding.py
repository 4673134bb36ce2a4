"""Random streams: different from one another, the same for the same seed, and not begun anew by `load`."""

import itertools

import numpy as np
import pytest
import torch as th
from core_toys import WanderersEnv

from otbaselines import IPPO, WBC, ParallelVecEnv
from otbaselines.common.seeding import STREAMS, child_seeds
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv

SMALL = {"n_steps": 8, "batch_size": 24, "n_epochs": 1}
TEAMS = {
    "parallel": lambda: ParallelVecEnv([lambda: WanderersEnv((20, 20, 20))] * 2),
    "tensor": lambda: SimpleSpreadVecEnv(n_copies=2, max_cycles=5),
}


def test_the_streams_are_children_of_one_sequence_in_their_order():
    children = np.random.SeedSequence(7).spawn(len(STREAMS))
    expected = [int(child.generate_state(1)[0]) >> 1 for child in children]
    assert list(child_seeds(7).values()) == expected
    assert tuple(child_seeds(7)) == STREAMS


def test_no_two_streams_begin_at_the_same_number():
    drawn = [number for seed in range(200) for steps in (0, 96) for number in child_seeds(seed, steps).values()]

    assert len(set(drawn)) == len(drawn)


def test_the_generators_of_a_learner_differ():
    model = WBC("MlpPolicy", TEAMS["tensor"](), seed=0, **SMALL)
    streams = (th.default_generator, model._streams.states, model._streams.directions, model.env.generator)
    seeds = [stream.initial_seed() for stream in streams]
    assert seeds == [child_seeds(0)[name] for name in ("learner", "consensus", "slicing", "environment")]
    first_draws = [th.rand(8, generator=th.Generator().manual_seed(seed)) for seed in seeds]
    assert not any(th.equal(a, b) for a, b in itertools.combinations(first_draws, 2))


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("algorithm", [IPPO, WBC], ids=lambda cls: cls.__name__)
def test_a_loaded_model_does_not_live_through_its_first_rollout_again(algorithm, team, tmp_path):
    model = algorithm("MlpPolicy", TEAMS[team](), seed=3, **SMALL).learn(48)
    first = model.rollout_buffer.observations.clone()
    model.save(tmp_path / "model")
    continued = []
    for _ in range(2):
        loaded = algorithm.load(tmp_path / "model", env=TEAMS[team]())
        loaded.learn(48, reset_num_timesteps=False)
        continued.append((loaded.rollout_buffer.observations.clone(), loaded.policy.action_net.weight.detach().clone()))
    assert not bool((continued[0][0][0] == first[0]).all(-1).any())
    # Twice the same, because the streams depend on the seed and the steps alone.
    assert all(th.equal(a, b) for a, b in zip(*continued, strict=True))


def test_a_loaded_model_goes_on_in_a_running_tensor_environment(tmp_path):
    env = TEAMS["tensor"]()
    model = IPPO("MlpPolicy", env, seed=0, **SMALL).learn(48)
    running = env.observe().clone()
    model.save(tmp_path / "model")
    loaded = IPPO.load(tmp_path / "model", env=env, force_reset=False)
    loaded.learn(48, reset_num_timesteps=False)
    assert loaded.num_timesteps == 96
    assert th.equal(loaded.rollout_buffer.observations[0], running)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="`seed` must be an integer"):
        IPPO("MlpPolicy", TEAMS["tensor"](), seed=-1, **SMALL)
