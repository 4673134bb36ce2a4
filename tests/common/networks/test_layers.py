"""Stacked layers against torch's own layers, one agent at a time."""

import pytest
import torch as th
from torch import nn

from otbaselines.common.networks.layers import NARROW, FastTanh, StackedLinear, StackedMLP


def test_every_set_is_an_affine_map_of_its_own():
    layer = StackedLinear(3, 4, 2).double()
    x = th.randn(3, 6, 4, dtype=th.float64)
    for k in range(3):
        expected = nn.functional.linear(x[k], layer.weight[k].T, layer.bias[k, 0])
        th.testing.assert_close(layer(x)[k], expected, atol=1e-13, rtol=0)


def test_a_stack_of_networks_equals_the_networks_one_by_one():
    stack = StackedMLP(2, 3, [5, 4], nn.Tanh).double()
    x = th.randn(2, 6, 3, dtype=th.float64)
    for k in range(2):
        hidden = x[k]
        for layer in (stack.layers[0], stack.layers[2]):
            hidden = th.tanh(hidden @ layer.weight[k] + layer.bias[k])
        th.testing.assert_close(stack(x)[k], hidden, atol=1e-13, rtol=0)


def test_a_stack_without_hidden_layers_is_the_identity():
    stack = StackedMLP(2, 3, [], nn.Tanh)
    x = th.randn(2, 6, 3)
    assert (stack(x) == x).all()
    assert stack.out_features == 3


@pytest.mark.parametrize(("rows", "columns"), [(8, 3), (3, 8)])
def test_orthogonal_initialisation_is_orthogonal_with_the_gain_and_differs_between_sets(rows, columns):
    layer = StackedLinear(2, rows, columns)
    layer.orthogonal_(2.0)
    for weight in layer.weight.detach():
        gram = weight.T @ weight if rows >= columns else weight @ weight.T
        th.testing.assert_close(gram, 4.0 * th.eye(min(rows, columns)), atol=1e-5, rtol=0)
    assert not th.allclose(layer.weight[0], layer.weight[1])
    assert (layer.bias == 0).all()


def test_default_initialisation_has_the_bounds_of_torchs_linear():
    layer = StackedLinear(2, 16, 50)
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= 0.25
        assert float(parameter.detach().std()) == pytest.approx(0.25 / 3**0.5, rel=0.15)


def test_fast_tanh_equals_tanh_and_so_does_its_derivative():
    x = th.cat([th.linspace(-12, 12, 2001), th.tensor([0.0, -100.0, 100.0])]).requires_grad_()
    y = FastTanh()(x)
    y.sum().backward()
    expected = th.tanh(x.detach().double())
    th.testing.assert_close(y.double(), expected, atol=3e-7, rtol=0)
    th.testing.assert_close(x.grad.double(), 1 - expected.square(), atol=1e-6, rtol=0)


def test_fast_tanh_is_tanh_itself_in_double_precision():
    x = th.linspace(-3, 3, 101, dtype=th.float64)
    assert (FastTanh()(x) == th.tanh(x)).all()


def test_a_tanh_in_place_has_the_same_bits_and_only_it_overwrites_its_input():
    start = th.randn(50, 7)
    results = []
    for inplace in (False, True):
        leaf = start.clone().requires_grad_()
        x = leaf + 0.0
        y = FastTanh(inplace=inplace)(x)
        (slope,) = th.autograd.grad(y.sin().sum(), leaf, create_graph=True)
        (curvature,) = th.autograd.grad(slope.square().sum(), leaf)
        results.append((y, slope, curvature))
        assert th.equal(x, start) != inplace
    assert all(th.equal(*pair) for pair in zip(*results, strict=True))


def test_second_derivatives_of_fast_tanh_are_those_of_tanh():
    x = th.linspace(-4, 4, 401).requires_grad_()
    (first,) = th.autograd.grad(FastTanh()(x).sum(), x, create_graph=True)
    (second,) = th.autograd.grad(first.sum(), x)
    y = th.tanh(x.detach().double())
    th.testing.assert_close(second.double(), -2 * y * (1 - y.square()), atol=2e-6, rtol=0)


def test_an_activation_with_parameters_is_refused_where_sets_would_share_them():
    with pytest.raises(ValueError, match="`activation_fn` PReLU has parameters, which 2 parameter sets would share"):
        StackedMLP(2, 3, [4], nn.PReLU)
    assert len(list(StackedMLP(1, 3, [4], nn.PReLU).parameters())) == 3


@pytest.mark.parametrize("n_outputs", [1, 5, NARROW - 1, NARROW])
def test_stacked_layers_of_every_width_are_one_affine_map_per_set(n_outputs):
    layer = StackedLinear(3, 7, n_outputs).double()
    x = th.randn(3, 11, 7, dtype=th.float64, requires_grad=True)
    expected = th.stack([x[k] @ layer.weight[k] + layer.bias[k] for k in range(3)])
    th.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)
    inputs, weights = (x, *layer.parameters()), th.randn_like(expected)
    for ours, theirs in zip(*(th.autograd.grad((y * weights).sum(), inputs) for y in (layer(x), expected)), strict=True):
        th.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
