"""A gradient step without bookkeeping: each parameter set's own norm, and Adam's fused kernel called directly."""

from typing import Any

import torch as th
from torch.optim import optimizer as torch_optimizer

# What one call of the fused kernel needs of a parameter's state.
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


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


def scale_gradients(groups: list[list[th.Tensor]], n_sets: int, max_norm: float) -> None:
    """
    Scale each set's gradients in place so that their joint norm is at most ``max_norm``.

    :param groups: tensors with one leading entry per set, then lists of one tensor per set
    :param n_sets: number of parameter sets
    :param max_norm: the bound
    """
    stacked, agent_wise = groups[0], [group for group in groups[1:] if group]
    if not stacked:
        return
    norms = th.linalg.vector_norm(th.cat([grad.reshape(n_sets, -1) for grad in stacked], 1), dim=1)
    for group in agent_wise:
        norms = th.hypot(norms, th.stack([th.linalg.vector_norm(grad) for grad in group]))
    # The small constant is that of `torch.nn.utils.clip_grad_norm_`.
    scale = (max_norm / (norms + 1e-6)).clamp_(max=1.0)
    if n_sets == 1:
        th._foreach_mul_(stacked, scale[0])
    else:
        shapes = {ndim: scale.view(-1, *[1] * (ndim - 1)) for ndim in {grad.ndim for grad in stacked}}
        th._foreach_mul_(stacked, [shapes[grad.ndim] for grad in stacked])
    for group in agent_wise:
        for grad, factor in zip(group, scale, strict=False):
            grad.mul_(factor)


def take_step(optimizer: th.optim.Optimizer) -> None:
    """
    ``optimizer.step()``, at a fifth of its price where that is torch's own fused Adam on one kind of tensor.

    The state is Adam's, so that it is saved, loaded and inspected as ever. Hooks, learning-rate schedulers, several
    parameter groups and every other setting take the ordinary way.

    :param optimizer: gradients are those of its parameters
    """
    group = optimizer.param_groups[0]
    params = [p for p in group["params"] if p.grad is not None]
    if not _is_plain_adam(optimizer, group, params):
        optimizer.step()
        return
    averages, squares, steps = ([optimizer.state[p][name] for p in params] for name in _MOMENTS)
    beta1, beta2 = group["betas"]
    with th.no_grad():
        th._foreach_add_(steps, 1)
        th._fused_adam_(
            params,
            [p.grad for p in params],
            averages,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
        )


def _is_plain_adam(optimizer: th.optim.Optimizer, group: dict[str, Any], params: list[th.Tensor]) -> bool:
    """Whether one kernel call does all that ``step`` would do; the first step, which makes the state, never is."""
    return (
        type(optimizer) is th.optim.Adam
        and len(optimizer.param_groups) == 1
        and bool(group.get("fused"))
        and not (group["amsgrad"] or group["differentiable"] or group.get("decoupled_weight_decay"))
        and isinstance(group["lr"], float)
        and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
        and not (torch_optimizer._global_optimizer_pre_hooks or torch_optimizer._global_optimizer_post_hooks)
        # A scheduler counts calls by replacing the method of the instance.
        and "step" not in vars(optimizer)
        and len({(p.device, p.dtype) for p in params}) == 1
        and all("exp_avg" in optimizer.state.get(p, ()) for p in params)
    )


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
