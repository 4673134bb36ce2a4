"""What surrounds a gradient step: clearing, and clipping set by set."""

import pytest
import torch as th

from otbaselines.common.networks.optimizers import clear_gradients, scale_gradients


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
