"""What `predict` and the policy's SB3 methods refuse."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from toy_teams import CustomSpacesEnv

from otbaselines.common.vec_env.make import make_vec_env
from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.ippo import IPPO
from otbaselines.mappo import MAPPO


@pytest.fixture(scope="module")
def model():
    return IPPO("MlpPolicy", make_vec_env("otbaselines/Navigation-v0", 2, seed=0), n_steps=8, seed=0, device="cpu")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_predict_names_the_row_or_agent_that_is_not_finite(model, number):
    rows = model.env.reset()
    agents = model.policy.layout.possible_agents
    rows[1, 0] = number
    with pytest.raises(ValueError, match="row 1 of `observation` holds NaN or infinity"):
        model.predict(rows)
    with pytest.raises(ValueError, match=f"{agents[1]!r}.*holds NaN or infinity"):
        model.predict(dict(zip(agents, rows, strict=False)))


@pytest.mark.parametrize(
    ("space", "wrong"),
    [
        (spaces.Discrete(3, start=4), np.array([2, 3])),
        (spaces.Discrete(3), np.array([-1, 0])),
        (spaces.Discrete(3), np.array([3, 0], dtype=np.uint8)),
        (spaces.Discrete(3), np.array([0.0, 5.0])),
        (spaces.Discrete(3), th.tensor([0, 3])),
        (spaces.Discrete(3), np.array([0.0, 1.5])),
        (spaces.MultiDiscrete([2, 3]), np.array([[0, 2], [0.5, 1]])),
        (spaces.MultiBinary(2), np.array([[0, 1], [2, 0]])),
        (spaces.MultiDiscrete([2, 3], start=[4, -1]), np.array([[0, 2], [2, 0]])),
        (spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,))}), {"a": np.array([0, 3]), "b": np.zeros((2, 2))}),
    ],
)
def test_predict_names_values_that_a_discrete_observation_cannot_have(space, wrong):
    actions = dict.fromkeys("xy", spaces.Discrete(2))
    env = ParallelVecEnv([lambda: CustomSpacesEnv(dict.fromkeys("xy", space), actions)])
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    model = IPPO(policy, env, n_steps=8, batch_size=16, seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"`observation.* is no value of .*rows count them from zero"):
        model.predict(wrong)
    # The agents' own observations count as their spaces do.
    own = {agent: space.sample() for agent in "xy"}
    assert set(model.predict(own)[0]) == {"x", "y"}
    if isinstance(space, spaces.Discrete):
        with pytest.raises(ValueError, match=r"`observation\['y'\]` has 7, which is no value of"):
            model.predict({**own, "y": 7})
    if isinstance(space, spaces.MultiDiscrete):
        with pytest.raises(ValueError, match="Unexpected observation shape"):
            model.predict(np.zeros((2, 3), dtype=int))
    assert len(model.predict(env.reset())[0]) == 2


@pytest.mark.parametrize("kind", [str, object])
def test_predict_takes_numbers_only(model, kind):
    rows = model.env.reset().astype(kind)
    with pytest.raises(TypeError, match="must hold numbers"):
        model.predict(rows)
    with pytest.raises(TypeError, match="must hold numbers"):
        model.predict({model.policy.layout.possible_agents[0]: rows[0]})


def test_a_critic_of_states_says_what_needs_none():
    env = make_vec_env("otbaselines/SimpleSpread-v0", 2, seed=0)
    policy = MAPPO("MlpPolicy", env, n_steps=8, seed=0, device="cpu").policy
    rows = th.as_tensor(env.reset())
    for call in (policy, policy.predict_values):
        with pytest.raises(ValueError, match="`predict` or `get_distribution`"):
            call(rows)
    assert policy.predict_values(rows, th.as_tensor(env.team_states())).shape == (len(rows), 1)
    policy.get_distribution(rows)
