"""State is compared with the model before anything is set, for files and for dictionaries alike."""

import copy
from typing import Any

import pytest
import torch as th

from otbaselines import IPPO
from otbaselines.common.saving.tensors import MemoryBudget, check_optimizer_state, restore
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv

OPTIMIZERS = {
    "adam": (th.optim.Adam, {"eps": 1e-5, "fused": True}),
    "adamw": (th.optim.AdamW, {"amsgrad": True}),
    "rmsprop": (th.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    "sgd": (th.optim.SGD, {"momentum": 0.9}),
    "plain sgd": (th.optim.SGD, {}),
    "nadam": (th.optim.NAdam, {}),
    "adagrad": (th.optim.Adagrad, {}),
    "adafactor": (th.optim.Adafactor, {}),
    "rprop": (th.optim.Rprop, {}),
}


def model(learned: int = 0, seed: int = 0) -> IPPO:
    env = SimpleSpreadVecEnv(n_copies=2, max_cycles=5)
    made = IPPO("MlpPolicy", env, n_steps=8, batch_size=24, n_epochs=1, seed=seed, policy_kwargs={"net_arch": [4]})
    return made.learn(learned) if learned else made


def text(state: Any) -> str:
    with th.no_grad():
        return repr(copy.deepcopy(state))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_optimizer_goes_on_to_the_bit(name: str) -> None:
    kind, options = OPTIMIZERS[name]
    networks = [th.nn.Sequential(th.nn.Linear(3, 4), th.nn.Linear(4, 2)) for _ in range(2)]
    first, second = (kind(network.parameters(), lr=1e-2, **options) for network in networks)
    inputs = th.randn(5, 3)

    def step(network: th.nn.Module, optimizer: th.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(inputs).square().sum().backward()
        optimizer.step()

    for _ in range(3):
        step(networks[0], first)
    restore(
        {"network": networks[0].state_dict(), "optimizer": first.state_dict()}, {"network": networks[1], "optimizer": second}
    )
    for network, optimizer in zip(networks, (first, second), strict=True):
        step(network, optimizer)
    assert all(th.equal(one, other) for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True))


def test_a_model_that_takes_anothers_state_does_not_share_its_memory() -> None:
    teacher, pupil = model(48), model()
    pupil.set_parameters(teacher.get_parameters())
    before = text(teacher.policy.optimizer.state_dict())
    pupil.learn(48)
    assert text(teacher.policy.optimizer.state_dict()) == before


def test_a_refused_state_leaves_the_whole_model_as_it_was() -> None:
    target, other = model(48), model(48, seed=1)
    before = text(target.get_parameters())
    parameters = other.get_parameters()
    # The policy fits; the optimizer, which comes after it, does not.
    wrong = copy.deepcopy(parameters)
    wrong["policy.optimizer"]["state"][1]["exp_avg"] = th.zeros(2)
    with pytest.raises(ValueError, match=r"`policy.optimizer\['state'\]\[1\]\['exp_avg'\]` must have the shape"):
        target.set_parameters(wrong)
    assert text(target.get_parameters()) == before
    target.set_parameters(parameters)
    assert text(target.get_parameters()) == text(other.get_parameters())


def test_entries_that_are_infinite_in_the_models_type_are_refused() -> None:
    target = model(48)
    before = text(target.get_parameters())

    def huge(own: th.Tensor) -> th.Tensor:
        return th.full(own.shape, 1e300, dtype=th.float64)

    wrong = copy.deepcopy(target.get_parameters())
    name, own = next(iter(wrong["policy"].items()))
    wrong["policy"][name] = huge(own)
    with pytest.raises(ValueError, match=rf"`policy.*{name}.*too large for torch.float32"):
        target.set_parameters(wrong)
    wrong = copy.deepcopy(target.get_parameters())
    moments = wrong["policy.optimizer"]["state"][0]
    moments["exp_avg"] = huge(moments["exp_avg"])
    with pytest.raises(ValueError, match=r"\['exp_avg'\]` .*too large for torch.float32"):
        target.set_parameters(wrong)
    assert text(target.get_parameters()) == before


def test_what_sb3_raises_for_a_missing_tensor_is_raised_too() -> None:
    target = model()
    parameters = target.get_parameters()
    less = {**parameters, "policy": dict(list(parameters["policy"].items())[:-1])}
    for kind in (RuntimeError, ValueError):
        with pytest.raises(kind, match="`policy` lacks"):
            target.set_parameters(less)
    target.set_parameters(less, exact_match=False)
    for wrong in ({**parameters, "nothing": {}}, {**parameters, "gamma": {}}):
        with pytest.raises(ValueError, match=r"Key (nothing|gamma)"):
            target.set_parameters(wrong, exact_match=False)
    with pytest.raises(ValueError, match="do not match"):
        target.set_parameters({"policy": parameters["policy"]})


def test_checking_an_optimizer_does_not_step_it() -> None:
    target = model(48)
    state, optimizer = target.policy.state_dict(), target.policy.optimizer
    before = text([state, optimizer.state_dict()])
    check_optimizer_state(optimizer.state_dict(), optimizer, "optimizer")
    assert text([target.policy.state_dict(), optimizer.state_dict()]) == before


def test_a_budget_counts_what_is_made_and_refuses_before_it_is() -> None:
    with MemoryBudget(10**6):
        th.nn.Linear(100, 100)
        th.zeros(2, 3).clone()
    for make in (
        lambda: th.nn.Linear(10**6, 10**6),
        lambda: th.zeros(10**9),
        lambda: th.empty((10**6, 10**3)),
        lambda: th.full((10**9,), 1.0),
        lambda: th.zeros(1).new_zeros(10**9),
        lambda: th.eye(10**5),
        lambda: th.arange(10**9),
        lambda: [th.zeros(1) for _ in range(1000)],
    ):
        with MemoryBudget(10**6), pytest.raises(ValueError, match="far larger than the tensors"):
            make()
