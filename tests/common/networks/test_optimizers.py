"""What surrounds a gradient step: bit for bit torch's own, its ordinary way where that matters; clipping set by set."""

import copy

import pytest
import torch as th
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from otbaselines.common.networks.optimizers import clear_gradients, scale_gradients, take_step

ADAM = {"lr": 1e-2, "eps": 1e-5, "fused": True}


def _parameters() -> list[th.nn.Parameter]:
    generator = th.Generator().manual_seed(0)
    return [th.nn.Parameter(th.randn(shape, generator=generator)) for shape in ((3, 4, 5), (3, 1, 5), (2,))]


def _train(make, step, clear, n_steps=6, without=(), tamper=None):
    """A few steps on a quadratic; ``without`` leaves out the gradient of the last parameter in those steps."""
    parameters = _parameters()
    optimizer = make(parameters)
    for number in range(n_steps):
        if tamper is not None:
            tamper(optimizer, number)
        clear(optimizer)
        used = parameters[:-1] if number in without else parameters
        sum(((p - number) ** 2).sum() for p in used).backward()
        step(optimizer)
    return parameters, optimizer


def _assert_same(make, **kwargs) -> None:
    ours, mine = _train(make, take_step, clear_gradients, **kwargs)
    theirs, its = _train(make, lambda o: o.step(), lambda o: o.zero_grad(), **kwargs)
    for a, b in zip(ours, theirs, strict=True):
        assert th.equal(a, b)
    for a, b in zip(mine.state.values(), its.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(th.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: th.optim.Adam(ps, **ADAM),
        lambda ps: th.optim.Adam(ps, **ADAM, weight_decay=0.1, betas=(0.8, 0.9)),
        lambda ps: th.optim.Adam(ps, **ADAM, maximize=True),
        lambda ps: th.optim.Adam(ps, **ADAM, amsgrad=True),
        lambda ps: th.optim.Adam(ps, lr=1e-2),
        lambda ps: th.optim.AdamW(ps, **ADAM, weight_decay=0.1),
        lambda ps: th.optim.Adam(ps, **ADAM, decoupled_weight_decay=True, weight_decay=0.1),
        lambda ps: th.optim.Adam([{"params": ps[:1], "lr": 1e-3}, {"params": ps[1:]}], **ADAM),
        lambda ps: th.optim.SGD(ps, lr=1e-2, momentum=0.9),
        lambda ps: th.optim.RMSprop(ps, lr=1e-2),
    ],
    ids=["adam", "decay", "maximize", "amsgrad", "unfused", "adamw", "decoupled", "groups", "sgd", "rmsprop"],
)
def test_a_step_is_torchs_own(make):
    _assert_same(make)


def test_parameters_of_two_precisions_and_tensors_for_betas_are_torchs_own_too():
    def mixed(parameters):
        parameters[-1].data = parameters[-1].data.double()
        return th.optim.Adam(parameters, **ADAM)

    _assert_same(mixed)
    _assert_same(lambda ps: th.optim.Adam(ps, **ADAM, betas=(th.tensor(0.8), th.tensor(0.9))))


def test_a_parameter_without_gradient_is_left_alone():
    _assert_same(lambda ps: th.optim.Adam(ps, **ADAM), without=(0, 3))


def test_a_new_learning_rate_and_a_reset_state_are_seen():
    def tamper(optimizer, number):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)
        if number == 3:
            optimizer.state.clear()

    _assert_same(lambda ps: th.optim.Adam(ps, **ADAM), tamper=tamper)


def test_a_loaded_state_is_continued():
    parameters, optimizer = _train(lambda ps: th.optim.Adam(ps, **ADAM), take_step, clear_gradients)
    twins = [th.nn.Parameter(p.detach().clone()) for p in parameters]
    twin = th.optim.Adam(twins, **ADAM)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for ps, step in ((parameters, lambda: take_step(optimizer)), (twins, twin.step)):
        for p in ps:
            p.grad = th.ones_like(p)
        step()
    assert all(th.equal(a, b) for a, b in zip(parameters, twins, strict=True))


def test_hooks_and_schedulers_are_served():
    called = []
    _, optimizer = _train(lambda ps: th.optim.Adam(ps, **ADAM), take_step, clear_gradients)
    handle = optimizer.register_step_post_hook(lambda *_: called.append("hook"))
    take_step(optimizer)
    handle.remove()
    take_step(optimizer)
    assert called == ["hook"]
    scheduler = th.optim.lr_scheduler.StepLR(optimizer, 1)
    # A scheduler that saw no step of the optimizer would warn.
    take_step(optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_bookkeeping_is_left_out(monkeypatch):
    _, optimizer = _train(lambda ps: th.optim.Adam(ps, **ADAM), take_step, clear_gradients)
    monkeypatch.setattr(th.optim.Adam, "step", lambda self, closure=None: pytest.fail("the ordinary way was taken"))
    take_step(optimizer)


def test_an_optimizers_own_way_of_clearing_is_kept():
    class Own(th.optim.SGD):
        cleared = 0

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.cleared += 1
            super().zero_grad(set_to_none)

    optimizer = Own([th.nn.Parameter(th.ones(2))], lr=0.1)
    clear_gradients(optimizer)
    assert optimizer.cleared == 1


def test_clearing_drops_every_gradient():
    parameters = [th.nn.Parameter(th.ones(2)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = th.ones(2)
    clear_gradients(th.optim.Adam([{"params": parameters[:1]}, {"params": parameters[1:]}]))
    assert all(parameter.grad is None for parameter in parameters)


def _clipped_one_by_one(sets, max_norm):
    """Each set's gradients, clipped by torch as if it were alone."""
    for grads in sets:
        own = [th.nn.Parameter(th.zeros_like(grad)) for grad in grads]
        for parameter, grad in zip(own, grads, strict=True):
            parameter.grad = grad.clone()
        th.nn.utils.clip_grad_norm_(own, max_norm)
        yield [parameter.grad for parameter in own]


@pytest.mark.parametrize("missing", [None, 0, 2])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_every_set_has_its_own_norm(max_norm, missing):
    generator = th.Generator().manual_seed(1)
    stacked = [th.randn(shape, generator=generator) for shape in ((3, 4, 5), (3, 1, 5), (3, 2))]
    # An extractor may leave a parameter without gradient for some agents only.
    apart = [None if agent == missing else th.randn(6, generator=generator) for agent in range(3)]

    def of_set(agent):
        return [*(grad[agent] for grad in stacked), *([] if apart[agent] is None else [apart[agent]])]

    expected = list(_clipped_one_by_one([of_set(agent) for agent in range(3)], max_norm))
    scale_gradients(stacked, [apart, [None] * 3], 3, max_norm)
    for agent in range(3):
        for ours, theirs in zip(of_set(agent), expected[agent], strict=True):
            th.testing.assert_close(ours, theirs)


def test_gradients_of_extractors_alone_are_clipped_too():
    apart = [th.tensor([3.0, 4.0]), th.tensor([0.3, 0.4])]
    scale_gradients([], [apart], 2, 1.0)
    th.testing.assert_close(apart[0], th.tensor([0.6, 0.8]))
    th.testing.assert_close(apart[1], th.tensor([0.3, 0.4]))
    scale_gradients([], [[None, None]], 2, 1.0)


def test_global_hooks_are_served():
    called = []
    _, optimizer = _train(lambda ps: th.optim.Adam(ps, **ADAM), take_step, clear_gradients)
    for register in (register_optimizer_step_pre_hook, register_optimizer_step_post_hook):
        handle = register(lambda *_: called.append("hook"))
        take_step(optimizer)
        handle.remove()
    assert called == ["hook", "hook"]


def test_a_differentiable_optimizer_takes_its_own_step(monkeypatch):
    _, optimizer = _train(lambda ps: th.optim.Adam(ps, **ADAM), take_step, clear_gradients)
    called = []
    optimizer.param_groups[0]["differentiable"] = True
    monkeypatch.setattr(th.optim.Adam, "step", lambda self, closure=None: called.append("step"))
    take_step(optimizer)
    assert called == ["step"]
