"""A policy saved by itself comes back to the bit, and its file executes nothing."""

import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from otbaselines import IPPO
from otbaselines.common.saving.policy import JsonPolicyMixin
from otbaselines.envs.navigation_tensor import NavigationVecEnv

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)


class OwnPolicy(JsonPolicyMixin, ActorCriticPolicy):
    """The mixin before a policy of SB3's."""


def same(first: th.nn.Module, second: th.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(th.equal(value, other[name]) for name, value in one.items())


CASES: dict[str, Any] = {
    "discrete": ("MlpPolicy", lambda: NavigationVecEnv(n_copies=2, n_agents=3), {}),
    "shared": ("MlpPolicy", lambda: NavigationVecEnv(n_copies=2, n_agents=3), {"share_parameters": True}),
    "noise": ("MlpPolicy", lambda: AnySpacesEnv(BOX, BOX), {"use_sde": True}),
    "activation": ("MlpPolicy", lambda: AnySpacesEnv(BOX, BOX), {"policy_kwargs": {"activation_fn": th.nn.ReLU}}),
    "dictionary": ("MultiInputPolicy", lambda: AnySpacesEnv(spaces.Dict({"z": BOX, "a": BOX}), BOX), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_saved_policy_acts_the_same(case: str, tmp_path: pathlib.Path) -> None:
    name, env, kwargs = CASES[case]
    model = IPPO(name, env(), n_steps=24, batch_size=24, seed=0, **kwargs)
    path = tmp_path / "policy.pkl"
    model.policy.save(path)
    # Exactly the path given, as SB3 does.
    assert [file.name for file in tmp_path.iterdir()] == ["policy.pkl"]
    loaded = type(model.policy).load(path)
    assert same(model.policy, loaded)
    assert loaded.layout.possible_agents == model.layout.possible_agents
    assert loaded.layout.agent_action_spaces == model.layout.agent_action_spaces
    space = model.observation_space
    rows = [space.sample() for _ in range(2 * model.layout.n_agents)]
    batch = {key: np.stack([row[key] for row in rows]) for key in space} if case == "dictionary" else np.stack(rows)
    np.testing.assert_array_equal(
        model.policy.predict(batch, deterministic=True)[0], loaded.predict(batch, deterministic=True)[0]
    )


def test_the_mixin_serves_policies_of_sb3(tmp_path: pathlib.Path) -> None:
    policy = OwnPolicy(BOX, spaces.Discrete(2), lambda progress: 1e-3, net_arch=[4])
    policy.save(tmp_path / "policy")
    assert same(policy, OwnPolicy.load(tmp_path / "policy"))
    with pytest.raises(ValueError, match="holds a OwnPolicy, not a MultiAgentActorCriticPolicy"):
        IPPO.policy_aliases["MlpPolicy"].load(tmp_path / "policy")


def test_a_users_own_network_is_refused_at_save_with_the_remedy(tmp_path: pathlib.Path) -> None:
    class Own(th.nn.Tanh):
        pass

    policy = OwnPolicy(BOX, spaces.Discrete(2), lambda progress: 1e-3, net_arch=[4], activation_fn=Own)
    with pytest.raises(TypeError, match=r"activation_fn .*state_dict\(\)"):
        policy.save(tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_does_not_exist_is_the_callers_mistake(tmp_path: pathlib.Path) -> None:
    OwnPolicy(BOX, spaces.Discrete(2), lambda progress: 1e-3, net_arch=[4]).save(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"^`device` must be a device of torch"):
        OwnPolicy.load(tmp_path / "policy", device="foo")
