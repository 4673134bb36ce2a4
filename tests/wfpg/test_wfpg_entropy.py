"""The entropy that a policy reports: by a density on a grid, and in a policy of many actions."""

import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

from otbaselines import WassersteinFlowPG
from otbaselines.wfpg.log_det import squash_log_det
from otbaselines.wfpg.losses import noise_entropy
from otbaselines.wfpg.maps import MapActor

DOUBLE = th.float64


def test_the_entropy_of_a_pushforward_in_the_plane_is_that_of_its_density():
    # Of an injective map: the symmetric part of its Jacobian matrix is positive definite everywhere. The density is found
    # from the inverse map, by Newton's method at every point of a grid and differences between the points, without the
    # determinant of the map itself.
    th.manual_seed(3)
    box = spaces.Box(-1.0, 1.0, (3,), np.float32)
    settings = {"policy_form": "pushforward", "latent_dim": 2, "bend_width": 8}
    actor = MapActor(FlattenExtractor(box), 2, [16], th.nn.Tanh, **settings).double()
    with th.no_grad():
        actor.heads.bias[2:4] = 0.5
        actor.bend_out.weight *= 2.0
        hidden = actor.hidden(th.randn(1, 3, dtype=DOUBLE))

    def images(noise):
        return actor.bend(hidden.expand(len(noise), -1), noise)

    def jacobians(noise):
        noise = noise.detach().requires_grad_()
        u = images(noise)
        rows = [th.autograd.grad(u[:, j].sum(), noise, retain_graph=True)[0] for j in range(2)]
        return u.detach(), th.stack(rows, 1)

    n, reach = 321, 14.0
    axis = th.linspace(-reach, reach, n, dtype=DOUBLE)
    points, step = th.cartesian_prod(axis, axis), float(axis[1] - axis[0])
    noise = points / 1.6
    for _ in range(12):
        u, jacobian = jacobians(noise)
        noise = noise + th.linalg.solve(jacobian, points - u)
    assert float((images(noise).detach() - points).abs().max()) < 1e-9
    assert float(th.linalg.eigvalsh(0.5 * (jacobian + jacobian.mT)).min()) > 0.3
    z = noise.view(n, n, 2)
    by_first, by_second = (z[2:, 1:-1] - z[:-2, 1:-1]) / (2.0 * step), (z[1:-1, 2:] - z[1:-1, :-2]) / (2.0 * step)
    shrunk = (by_first[..., 0] * by_second[..., 1] - by_first[..., 1] * by_second[..., 0]).abs()
    density = (th.exp(-0.5 * z[1:-1, 1:-1].square().sum(-1)) / (2.0 * math.pi) * shrunk).flatten()
    u = points.view(n, n, 2)[1:-1, 1:-1].reshape(-1, 2)
    # Of the actions tanh(u), whose density is that of u over the product of 1 - tanh^2 u = 1 / cosh^2 u.
    logarithm = (density + 1e-300).log() + 2.0 * u.cosh().log().sum(1)
    assert float(density.sum()) * step**2 == pytest.approx(1.0, abs=1e-3)
    expected = -float((density * logarithm).sum()) * step**2
    # Ours, over a grid of noises: the formula without the draws.
    nodes = th.linspace(-7.0, 7.0, 201, dtype=DOUBLE)
    drawn = th.cartesian_prod(nodes, nodes)
    weights = th.softmax(-0.5 * drawn.square().sum(1), 0)
    with th.no_grad():
        u, log_det = actor.with_log_det(hidden.expand(len(drawn), -1), drawn)
    assert noise_entropy(2) + float(weights @ (log_det + squash_log_det(u))) == pytest.approx(expected, abs=2e-3)


class ManyActions(gym.Env):
    """One step at a cost of the mean square of 17 actions."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (17,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), -float(np.mean(action**2)), True, False, {}


def true_entropy(actor, n=400):
    """Of the actions in a state of zeros, by automatic differentiation in double precision."""
    actor = copy.deepcopy(actor).double()
    seen, noise = th.zeros(n, 2, dtype=DOUBLE), th.randn(n, 17, dtype=DOUBLE, generator=th.Generator().manual_seed(0))
    jacobian = th.func.vmap(th.func.jacrev(lambda s, z: actor(s[None], z[None])[0], argnums=1))(seen, noise)
    with th.no_grad():
        u = actor(seen, noise)
        stretch = th.linalg.slogdet(jacobian).logabsdet + (1.0 - u.tanh() ** 2).log().sum(1)
    return 8.5 * (1.0 + math.log(2.0 * math.pi)) + float(stretch.mean())


def many_actions(policy_form, **kwargs):
    settings = {"batch_size": 64, "policy_kwargs": {"net_arch": [32, 32]}, "seed": 0, "device": "cpu", **kwargs}
    return WassersteinFlowPG("MlpPolicy", ManyActions(), policy_form=policy_form, learning_rate=3e-3, **settings).learn(100)


def logged_entropy(model, n):
    model._scalars.clear()
    model.train(n, 64)
    return float(th.stack(model._scalars)[:, model.metric_names.index("entropy")].mean())


@pytest.mark.parametrize("policy_form", ["pushforward", "gaussian"])
def test_a_narrow_policy_of_many_actions_is_told_its_entropy_and_widens_where_that_pays(policy_form):
    model = many_actions(policy_form, ent_coef=1.0)
    actor = model.policy.actor
    with th.no_grad():
        # About -30 nats, where 17 narrow stretches multiply to 1e-20.
        actor.heads.bias[17:34] = -3.0
        if policy_form == "pushforward":
            actor.bend_out.weight *= 0.01
    before = true_entropy(actor)
    assert before < -25.0
    assert logged_entropy(model, 1) == pytest.approx(before, abs=0.5)
    model.train(25, 64)
    assert true_entropy(actor) > before + 1.0


@pytest.mark.slow
@pytest.mark.parametrize("policy_form", ["pushforward", "gaussian"])
def test_a_policy_of_many_actions_keeps_the_entropy_that_it_is_asked_for(policy_form):
    model = many_actions(policy_form, ent_coef="auto_0.01")
    model.train(2000, 64)
    logged = logged_entropy(model, 50)
    assert logged == pytest.approx(true_entropy(model.policy.actor), abs=1.0)
    assert logged == pytest.approx(-17.0, abs=2.0)
