"""Whole updates of WassersteinFlowPG beside the same ones written out by hand."""

import numpy as np
import pytest
import torch as th
from core_toys import AnySpacesEnv
from flow_by_hand import FlowByHand
from gymnasium import spaces

from otbaselines import WassersteinFlowPG
from otbaselines.wfpg.replay import ReplayBatch

BOX, ACTIONS = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)
FORMS = {
    "defaults": {},
    "every state moves": {"policy_batch_size": 6},
    "two states move": {"policy_batch_size": 2, "solver": "cg", "ent_coef": 0.25},
    "a gaussian": {"policy_form": "gaussian", "target_entropy": 0.5, "n_inner_steps": 1},
    "a fixed temperature": {"ent_coef": 0.25, "n_inner_steps": 3, "step_size": 0.5},
    "no entropy": {"ent_coef": 0.0},
    "langevin": {"entropy": "langevin", "ent_coef": 0.125},
    "first order": {"solver": "first_order"},
    "natural": {"solver": "cg", "ent_coef": 0.25},
    "natural gaussian, few steps": {"solver": "cg", "policy_form": "gaussian", "cg_max_steps": 2, "cg_damping": 0.5},
    "natural, undamped, langevin": {
        "solver": "cg",
        "cg_damping": 0.0,
        "cg_max_steps": 3,
        "entropy": "langevin",
        "ent_coef": 0.125,
    },
    "average": {"objective": "average", "ent_coef": 0.25},
    "average, first order": {"objective": "average", "solver": "first_order", "ent_coef": 0.0, "policy_form": "gaussian"},
}
DEFAULTS = {
    "solver": "regression",
    "n_inner_steps": 2,
    "cg_max_steps": 5,
    "cg_damping": 0.1,
    "objective": "discounted",
    "policy_form": "pushforward",
    "entropy": "bonus",
    "ent_coef": "auto",
    "target_entropy": -2.0,
}


def build(**form):
    model = WassersteinFlowPG(
        "MlpPolicy",
        AnySpacesEnv(BOX, ACTIONS, 5),
        learning_rate=1e-2,
        tau=0.125,
        buffer_size=50,
        learning_starts=4,
        policy_kwargs={"net_arch": [6], "bend_width": 4, "activation_fn": th.nn.Tanh},
        seed=0,
        device="cpu",
        **{"batch_size": 6, **form},
    )
    with th.no_grad():
        # The slow copies and the critics differ from the start, and critics have slopes to speak of.
        for target in model.policy.critic_target.parameters():
            target.add_(0.3 * th.randn_like(target))
        for parameter in model.policy.critic.parameters():
            parameter.add_(0.5 * th.randn_like(parameter))
    model.policy.double()
    if model._fixed_ent_coef is not None:
        model._fixed_ent_coef = model._fixed_ent_coef.double()
    return model


def draw(generator, n=6):
    """A minibatch in double precision, in which some episodes end and rewards are of one to three steps."""

    def normal(*shape):
        return th.randn(*shape, dtype=th.float64, generator=generator)

    return ReplayBatch(
        seen=normal(n, 3),
        actions=normal(n, 2).tanh(),
        rewards=normal(n),
        continues=th.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=th.float64)[:n],
        discounts=th.tensor([0.9, 0.9, 0.81, 0.729, 0.81, 0.9], dtype=th.float64)[:n],
        next_seen=normal(n, 3),
        noise=normal(2, n, 2),
        kicks=normal(2, n, 2),
    )


def test_the_larger_half_of_an_odd_minibatch_moves():
    model = build(batch_size=5)
    model._setup_learn(1, None)
    hand, batch = (
        FlowByHand(model, **DEFAULTS, learning_rate=1e-2, tau=0.125, step_size=1.0),
        draw(th.Generator().manual_seed(1), n=5),
    )
    model._take(batch)
    told = dict(zip(model.metric_names, model._gradient_step().tolist(), strict=True))
    hand.update(batch)
    assert told["speed"] == pytest.approx(hand.told["speed"], rel=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_updates_are_those_written_by_hand(form):
    model = build(**form)
    settings = {**DEFAULTS, "learning_rate": 1e-2, "tau": 0.125, **form}
    settings.setdefault("step_size", 1.0 if settings["solver"] == "regression" else 0.1)
    hand, generator = FlowByHand(model, **settings), th.Generator().manual_seed(1)
    model._setup_learn(1, None)
    for _ in range(3):
        batch = draw(generator)
        model._take(batch)
        told = dict(zip(model.metric_names, model._gradient_step().tolist(), strict=True))
        hand.update(batch)
        for name, value in hand.told.items():
            assert told[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    policy = model.policy
    pairs = [(policy.actor, hand.actor), (policy.critic, hand.critic), (policy.critic_target, hand.slow)]
    for module, expected in pairs:
        for name, parameter in module.named_parameters():
            np.testing.assert_allclose(parameter.detach(), expected[name], rtol=1e-6, atol=1e-9, err_msg=name)
    assert float(policy.log_ent_coef.detach()) == pytest.approx(float(hand.log_temperature[""]), abs=1e-9)
    assert float(policy.average_reward) == pytest.approx(float(hand.average), abs=1e-9)
    assert float(policy.velocity_scale) == pytest.approx(float(hand.scale), rel=1e-9)
    assert float(policy.kick_std) == pytest.approx(float(hand.kick), rel=1e-9)


def test_a_natural_step_moves_its_particles_by_the_step_size_at_most_wherever_it_starts():
    # A warm start that points elsewhere leaves a direction whose product with the gradient says little of where it leads.
    model = build(solver="cg", cg_max_steps=1, ent_coef=0.0, step_size=1e-3, policy_batch_size=6)
    policy, generator = model.policy, th.Generator().manual_seed(2)
    model._setup_learn(1, None)
    for _ in range(12):
        batch = draw(generator)
        with th.no_grad():
            policy.last_direction.copy_(3.0 * th.randn(policy.last_direction.shape, dtype=th.float64, generator=generator))
            before = policy.actor(batch.seen, batch.noise[0])
        model._take(batch)
        model._gradient_step()
        with th.no_grad():
            moved = (policy.actor(batch.seen, batch.noise[0]) - before).square().sum(1).mean().sqrt()
        # To first order in the step, which is small.
        assert float(moved) < 1.02e-3
