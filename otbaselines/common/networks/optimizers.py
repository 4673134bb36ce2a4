"""What surrounds a gradient step: the optimizer's settings, and a norm for each parameter set."""

from typing import Any

import torch as th


def default_optimizer_kwargs(
    optimizer_class: type[th.optim.Optimizer], optimizer_kwargs: dict[str, Any] | None
) -> dict[str, Any]:
    """
    :param optimizer_class: the optimizer
    :param optimizer_kwargs: what the user asked for
    :return: that, or else what suits the class
    """
    if optimizer_kwargs is not None:
        return dict(optimizer_kwargs)
    # The small epsilon is PPO's (SB3); the fused kernel does the same arithmetic in one pass.
    return {"eps": 1e-5, "fused": True} if optimizer_class is th.optim.Adam else {}


def scale_gradients(stacked: list[th.Tensor], apart: list[list[th.Tensor | None]], n_sets: int, max_norm: float) -> None:
    """
    Scale each set's gradients in place so that their joint norm is at most ``max_norm``.

    :param stacked: gradients with one leading entry per set
    :param apart: lists of one gradient per set, ``None`` where a set's parameter has none
    :param n_sets: number of parameter sets
    :param max_norm: the bound
    """
    apart = [group for group in apart if any(grad is not None for grad in group)]
    if not stacked and not apart:
        return
    flat = [grad.reshape(n_sets, -1) for grad in stacked]
    for group in apart:
        norms = [grad if grad is None else th.linalg.vector_norm(grad) for grad in group]
        zero = next(norm for norm in norms if norm is not None).new_zeros(())
        flat.append(th.stack([zero if norm is None else norm for norm in norms]).unsqueeze(1))
    # The small constant is that of `torch.nn.utils.clip_grad_norm_`.
    scale = (max_norm / (th.linalg.vector_norm(th.cat(flat, 1), dim=1) + 1e-6)).clamp_(max=1.0)
    if n_sets == 1 and stacked:
        th._foreach_mul_(stacked, scale[0])
    elif stacked:
        shapes = {ndim: scale.view(-1, *[1] * (ndim - 1)) for ndim in {grad.ndim for grad in stacked}}
        th._foreach_mul_(stacked, [shapes[grad.ndim] for grad in stacked])
    for group in apart:
        for grad, factor in zip(group, scale, strict=True):
            if grad is not None:
                grad.mul_(factor)


def clear_gradients(optimizer: th.optim.Optimizer) -> None:
    """
    ``optimizer.zero_grad()``, without its bookkeeping.

    :param optimizer: whose parameters' gradients are dropped
    """
    if type(optimizer).zero_grad is not th.optim.Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
