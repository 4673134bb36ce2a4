"""Optimizer steps of some of the agents whose parameters are stacked, as if each agent had an optimizer of its own."""

from typing import Any

import torch as th


class RunningSets:
    """
    Which parameter sets still take steps in an update, and how many steps each has sat out in its life.

    Optimizers count steps per tensor, and Adam's correction of its young moments depends on the count. A set that sits out
    therefore keeps a count of its own: that of the tensor less what it has missed.

    :param missed: steps that each set has sat out before
    """

    def __init__(self, missed: list[int]) -> None:
        self.missed = list(missed)
        self.running = [True] * len(missed)

    def stop(self, exceeded: list[bool]) -> list[int]:
        """
        :param exceeded: which sets are to take no further step
        :return: those of them that were still running
        """
        stopped = [k for k, (runs, is_over) in enumerate(zip(self.running, exceeded, strict=True)) if runs and is_over]
        for k in stopped:
            self.running[k] = False
        return stopped

    @property
    def in_step(self) -> bool:
        """Whether the optimizer's own ``step`` is right for every set."""
        return all(self.running) and not any(self.missed)

    @th.no_grad()
    def step(self, optimizer: th.optim.Optimizer, stacked: list[Any], apart: list[list[Any]]) -> None:
        """
        Step the sets that run; the parameters and the optimizer's state of the others keep every bit.

        :param optimizer: of all the parameters, whose gradients are there
        :param stacked: tensors with one leading entry per set
        :param apart: lists of one tensor per set
        """
        for group in apart:
            for parameter, runs in zip(group, self.running, strict=True):
                if not runs:
                    parameter.grad = None
        own = [k for k, (runs, missed) in enumerate(zip(self.running, self.missed, strict=True)) if missed or not runs]
        before = {k: [_entries(optimizer, parameter, k, copy=True) for parameter in stacked] for k in own}
        optimizer.step()
        for k in own:
            for parameter, saved in zip(stacked, before[k], strict=True):
                for name, entry in _entries(optimizer, parameter, k, copy=False).items():
                    # A state that the first step has made was zero before it.
                    entry.copy_(saved[name]) if name in saved else entry.zero_()
            if self.running[k]:
                _step_alone(optimizer, stacked, k, self.missed[k] + 1)
            else:
                self.missed[k] += 1


def _entries(optimizer: th.optim.Optimizer, parameter: Any, k: int, *, copy: bool) -> dict[str, th.Tensor]:
    """One set's part of a stacked parameter and of the state that has its shape."""
    state = {name: v for name, v in optimizer.state[parameter].items() if getattr(v, "shape", None) == parameter.shape}
    parts = {"parameter": parameter.detach()[k], **{name: value[k] for name, value in state.items()}}
    return {name: part.clone() for name, part in parts.items()} if copy else parts


def _step_alone(optimizer: th.optim.Optimizer, stacked: list[Any], k: int, behind: int) -> None:
    """One set's step by an optimizer of the same kind, on the memory of the stack."""
    groups = []
    states = {}
    known = {id(parameter) for parameter in stacked}
    for group in optimizer.param_groups:
        entries = []
        for parameter in group["params"]:
            if id(parameter) in known and parameter.grad is not None:
                entry = parameter.detach()[k]
                entry.grad = parameter.grad[k]
                entries.append(entry)
                states[entry] = {
                    name: value[k] if getattr(value, "shape", None) == parameter.shape else _count(name, value, behind)
                    for name, value in optimizer.state[parameter].items()
                }
        groups.append({**group, "params": entries})
    kind: Any = type(optimizer)
    alone = kind([group for group in groups if group["params"]])
    alone.state.update(states)
    alone.step()


def _count(name: str, value: Any, behind: int) -> Any:
    """What is no tensor of the parameter's shape: above all the count of steps."""
    return value - behind if name == "step" else value
