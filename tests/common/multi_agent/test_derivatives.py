"""Policies in single precision on a CPU, as users have them, under every way in which torch differentiates and exports."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap

from otbaselines.common.multi_agent.policies import (
    MultiAgentActorCriticCnnPolicy,
    MultiAgentActorCriticPolicy,
    MultiAgentMultiInputPolicy,
)
from otbaselines.common.vec_env.layout import TeamLayout

# Forward-mode differentiation in torch itself says this too.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

N_AGENTS, BATCH = 2, 3
OBS = spaces.Box(-2, 2, (4,), np.float32)
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
DISCRETE = spaces.Discrete(3)
POLICIES = {
    "box": (OBS, spaces.Box(-1, 1, (2,), np.float32), MultiAgentActorCriticPolicy, {}),
    "discrete": (OBS, DISCRETE, MultiAgentActorCriticPolicy, {}),
    "multi_discrete": (OBS, spaces.MultiDiscrete([3, 2]), MultiAgentActorCriticPolicy, {}),
    "multi_binary": (OBS, spaces.MultiBinary(2), MultiAgentActorCriticPolicy, {}),
    "gsde": (OBS, spaces.Box(-1, 1, (2,), np.float32), MultiAgentActorCriticPolicy, {"use_sde": True}),
    "shared": (OBS, DISCRETE, MultiAgentActorCriticPolicy, {"share_parameters": True, "append_agent_id": True}),
    "cnn": (IMAGE, DISCRETE, MultiAgentActorCriticCnnPolicy, {"features_extractor_kwargs": {"features_dim": 8}}),
    "multi_input": (spaces.Dict(v=OBS, n=DISCRETE), DISCRETE, MultiAgentMultiInputPolicy, {}),
}
VECTORS = [kind for kind, (obs, *_) in POLICIES.items() if obs is OBS]


def _policy(kind):
    th.manual_seed(0)
    obs, action, cls, kwargs = POLICIES[kind]
    agents = tuple(f"agent_{k}" for k in range(N_AGENTS))
    layout = TeamLayout(agents, 1, dict.fromkeys(agents, obs), dict.fromkeys(agents, action))
    if obs is not IMAGE:
        kwargs = {"net_arch": [5, 4], **kwargs}
    policy = cls(obs, action, lambda _: 3e-4, layout=layout, **kwargs)
    with th.no_grad():
        # SB3's gain of 0.01 would leave second derivatives of the hidden layers near zero.
        policy.action_net.weight.mul_(100.0)
    return policy.eval()


def _rows(space, n):
    space.seed(1)
    if isinstance(space, spaces.Dict):
        return {key: _rows(part, n) for key, part in space.items()}
    return th.as_tensor(np.stack([space.sample() for _ in range(n)]))


def _case(kind):
    policy = _policy(kind)
    obs = policy.split_rows(_rows(policy.observation_space, BATCH * N_AGENTS))
    with th.no_grad():
        actions = policy.team_distribution(obs).sample()
    parameters = {name: p.detach() for name, p in policy.named_parameters()}
    return policy, obs, actions, parameters


class _Loss(th.nn.Module):
    """A scalar that actors and critics enter, for ``functional_call``."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, obs, actions):
        result = self.policy.evaluate_team_actions(obs, actions)
        return (result.log_prob.square() + result.values.square() + 0.1 * result.entropy).sum()


def _function(policy, obs, actions):
    loss = _Loss(policy)
    return lambda p: functional_call(loss, {f"policy.{name}": value for name, value in p.items()}, (obs, actions))


def _direction(parameters):
    generator = th.Generator().manual_seed(3)
    return {name: th.randn(p.shape, generator=generator) for name, p in parameters.items()}


def _dot(a, b):
    return sum((a[name] * b[name]).sum() for name in a)


# State-dependent noise holds the hidden layer constant in the deviation, so that its gradients are those of no function.
@pytest.mark.parametrize("kind", [kind for kind in VECTORS if kind != "gsde"])
def test_second_derivatives_in_single_precision_equal_finite_differences_in_double(kind):
    policy, obs, actions, parameters = _case(kind)
    direction = _direction(parameters)
    leaves = list(policy.parameters())
    first = th.autograd.grad(_Loss(policy)(obs, actions), leaves, create_graph=True, allow_unused=True)
    second = th.autograd.grad(sum((g * d).sum() for g, d in zip(first, direction.values(), strict=True)), leaves)
    # `torch.tanh` itself in double precision: central differences of its gradient along the direction.
    double = copy.deepcopy(policy).double()
    function = _function(double, obs, actions if actions.dtype == th.int64 else actions.double())
    eps = 1e-5
    moved = [{k: p.double() + sign * eps * direction[k].double() for k, p in parameters.items()} for sign in (1, -1)]
    ahead, behind = (grad(function)(p) for p in moved)
    for name, ours in zip(parameters, second, strict=True):
        expected = (ahead[name] - behind[name]) / (2 * eps)
        th.testing.assert_close(ours.double(), expected, atol=2e-4 * float(expected.abs().max() + 1.0), rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", POLICIES)
def test_torch_func_agrees_with_autograd_for_every_policy(kind):
    policy, obs, actions, parameters = _case(kind)
    function, direction = _function(policy, obs, actions), _direction(parameters)
    value = _Loss(policy)(obs, actions)
    expected = dict(zip(parameters, th.autograd.grad(value, list(policy.parameters())), strict=True))
    by_grad = grad(function)(parameters)
    outcome, pull = vjp(function, parameters)
    _, slope = jvp(function, (parameters,), (direction,))
    # Forward over reverse, the Hessian-vector product, against the slope of the gradient along the direction.
    _, curved = jvp(grad(function), (parameters,), (direction,))
    ours = grad(lambda p: _dot(grad(function)(p), direction))(parameters)
    th.testing.assert_close(outcome, value.detach(), atol=1e-4, rtol=1e-5)
    th.testing.assert_close(slope, _dot(expected, direction), atol=1e-3, rtol=1e-4)
    for name in parameters:
        scale = float(curved[name].abs().max() + 1.0)
        th.testing.assert_close(by_grad[name], expected[name], atol=1e-4, rtol=1e-4)
        th.testing.assert_close(pull(th.tensor(1.0))[0][name], expected[name], atol=1e-4, rtol=1e-4)
        th.testing.assert_close(curved[name], ours[name], atol=2e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("kind", POLICIES)
def test_an_ensemble_of_parameters_is_evaluated_by_vmap(kind):
    policy, obs, actions, parameters = _case(kind)
    function = _function(policy, obs, actions)
    members = [parameters, {name: p + 0.1 * _direction(parameters)[name] for name, p in parameters.items()}]
    stacked = {name: th.stack([member[name] for member in members]) for name in parameters}
    together = vmap(grad(function))(stacked)
    for k, member in enumerate(members):
        alone = grad(function)(member)
        for name in parameters:
            th.testing.assert_close(together[name][k], alone[name], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", [*VECTORS, "cnn"])
def test_gradients_of_single_samples_come_from_vmap(kind):
    policy, obs, actions, parameters = _case(kind)

    def one(p, row, action):
        return _function(policy, row.unsqueeze(0), action.unsqueeze(0))(p)

    per_sample = vmap(grad(one), in_dims=(None, 0, 0))(parameters, obs, actions)
    total = grad(_function(policy, obs, actions))(parameters)
    for name in parameters:
        th.testing.assert_close(per_sample[name].sum(0), total[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", VECTORS)
def test_the_hessian_of_a_layer_is_symmetric_and_multiplies_as_reverse_mode_does(kind):
    policy, obs, actions, parameters = _case(kind)
    function, name = _function(policy, obs, actions), "pi_net.layers.0.bias"
    weight, others = parameters[name], {key: p for key, p in parameters.items() if key != name}
    of_layer = lambda w: function({**others, name: w})  # noqa: E731
    full = hessian(of_layer)(weight).view(weight.numel(), -1)
    scale = float(full.abs().max())
    assert scale > 1e-2
    th.testing.assert_close(full, full.T, atol=1e-5 * scale, rtol=1e-4)
    leaf = weight.clone().requires_grad_()
    (first,) = th.autograd.grad(of_layer(leaf), leaf, create_graph=True)
    rows = th.stack([th.autograd.grad(entry, leaf, retain_graph=True)[0].flatten() for entry in first.flatten()])
    th.testing.assert_close(full, rows, atol=1e-5 * scale, rtol=1e-4)


# ---------------------------------------------------------------- export, as SB3's page "Exporting models" shows it
class _Exportable(th.nn.Module):
    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, observation):
        return self.policy(observation, deterministic=True)


def _assert_same_outputs(exported, policy, rows):
    with th.no_grad():
        for ours, theirs in zip(exported(rows), policy(rows, deterministic=True), strict=True):
            th.testing.assert_close(ours, theirs)


# torch's own binary cross-entropy checks shapes while it is traced.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")
@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_is_traced_and_the_trace_is_saved_and_serves_other_batches(kind, tmp_path):
    policy = _policy(kind)
    example = _rows(policy.observation_space, N_AGENTS)
    traced = th.jit.trace(_Exportable(policy), (example,))
    th.jit.save(traced, tmp_path / "policy.pt")
    loaded = th.jit.load(tmp_path / "policy.pt")
    _assert_same_outputs(loaded, policy, _rows(policy.observation_space, 5 * N_AGENTS))


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_is_exported(kind):
    policy = _policy(kind)
    rows = _rows(policy.observation_space, N_AGENTS)
    program = th.export.export(_Exportable(policy), (rows,))
    _assert_same_outputs(program.module(), policy, _rows(policy.observation_space, N_AGENTS))
