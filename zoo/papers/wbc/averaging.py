"""
Learners that average where parameter sharing does, for :mod:`zoo.papers.wbc.team_size`: experiments, and no algorithms to use.

A shared network averages the gradients of all agents before Adam divides them by their noise. Independent networks that start
from the same parameters can do nearly the same (each agent's gradient is clipped before they are averaged, where a shared
network clips the average), or share only the noise that they are divided by.
"""

from typing import Any

import torch as th

from otbaselines.ippo import IPPO

EPSILON = 1e-5


class TeamAdam(th.optim.Adam):
    """
    Adam on parameters with one leading entry per agent, whose moments look at the team's mean gradient.

    :param params: stacked parameters
    :param lr: learning rate
    :param average: ``"gradients"`` for the mean gradient in both moments, ``"scales"`` for the second moment only
    :raises ValueError: if ``average`` is neither
    """

    def __init__(self, params: Any, lr: float = 1e-3, *, average: str) -> None:
        if average not in ("gradients", "scales"):
            raise ValueError(f"`average` must be 'gradients' or 'scales', got {average!r}")
        super().__init__(params, lr=lr, eps=EPSILON)
        self.average = average

    @th.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(step=0, exp_avg=th.zeros_like(parameter), exp_avg_sq=th.zeros_like(parameter))
                state["step"] += 1
                mean = parameter.grad.mean(0, keepdim=True).expand_as(parameter)
                first, second = state["exp_avg"], state["exp_avg_sq"]
                first.lerp_(mean if self.average == "gradients" else parameter.grad, 1.0 - beta1)
                second.lerp_(mean.square(), 1.0 - beta2)
                corrected = first / (1.0 - beta1 ** state["step"])
                scale = (second / (1.0 - beta2 ** state["step"])).sqrt() + group["eps"]
                parameter.sub_(group["lr"] * corrected / scale)


def _with_equal_starts(model: IPPO) -> IPPO:
    with th.no_grad():
        for parameter in model.policy.parameters():
            if parameter.shape[:1] == (model.layout.n_agents,):
                parameter.copy_(parameter[:1].expand_as(parameter).clone())
    return model


def equal_starts(**settings: Any) -> IPPO:
    """
    :param settings: of :class:`IPPO`
    :return: independent learners whose networks start alike
    """
    return _with_equal_starts(IPPO(**settings))


def averaged(average: str, **settings: Any) -> IPPO:
    """
    :param average: as for :class:`TeamAdam`
    :param settings: of :class:`IPPO`
    :return: the same, under that optimizer
    """
    optimizer = {"optimizer_class": TeamAdam, "optimizer_kwargs": {"average": average}}
    return _with_equal_starts(IPPO(policy_kwargs={**(settings.pop("policy_kwargs", None) or {}), **optimizer}, **settings))
