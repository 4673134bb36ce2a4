"""Optimizer steps of some of the agents whose parameters are stacked, as if each agent had an optimizer of its own."""

from collections.abc import Mapping
from typing import Any

import torch as th

MISSED = "missed_steps"


def missed_steps(optimizer: th.optim.Optimizer, n_sets: int) -> list[int]:
    """
    :param optimizer: of stacked parameters
    :param n_sets: number of parameter sets
    :return: the steps of the optimizer that each set has sat out
    :raises ValueError: if it holds counts of another number of sets
    """
    missed = optimizer.param_groups[0].get(MISSED, [0] * n_sets)
    if not isinstance(missed, list) or len(missed) != n_sets:
        raise ValueError(f"`{MISSED}` must count the steps of {n_sets} parameter sets, got {str(missed)[:100]}")
    return missed


def steps_made(state: Mapping[Any, Mapping[str, Any]], default: int = 2**31 - 1) -> int:
    """
    :param state: of an optimizer, by parameter
    :param default: where none of its entries counts steps
    :return: the steps that the optimizer has made
    """
    return max((int(entry["step"]) for entry in state.values() if "step" in entry), default=default)


def check_missed_steps(missed: Any, made: int, name: str) -> None:
    """
    :param missed: the steps that each set has sat out, as a file may give them
    :param made: the steps of the optimizer
    :param name: what to call it in messages
    :raises ValueError: if they are no counts, or a set has sat out more steps than there were
    """
    if not isinstance(missed, list) or not all(type(count) is int and 0 <= count <= made for count in missed):
        raise ValueError(f"`{name}` must be a list of whole numbers from 0 to {made}, the steps made, got {str(missed)[:100]}")


class RunningSets:
    """
    Which parameter sets still take steps in an update, and how many steps each has sat out in its life.

    Optimizers count steps per tensor, and Adam's correction of its young moments depends on the count. A set that sits out
    therefore keeps a count of its own: that of the tensor less what it has missed.

    These counts lie with the steps that they are compared with, in the optimizer's first group of parameters, so that they are
    saved, restored and started afresh together.

    :param optimizer: of all the parameters
    :param n_sets: number of parameter sets
    :raises ValueError: if the optimizer holds counts of another number of sets
    """

    def __init__(self, optimizer: th.optim.Optimizer, n_sets: int) -> None:
        missed = missed_steps(optimizer, n_sets)
        if any(missed):
            check_missed_steps(missed, steps_made(optimizer.state), MISSED)
        self.missed = missed
        self.running = [True] * n_sets

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
        missed = list(self.missed)
        for k in own:
            for parameter, saved in zip(stacked, before[k], strict=True):
                for name, entry in _entries(optimizer, parameter, k, copy=False).items():
                    # A state that the first step has made was zero before it.
                    entry.copy_(saved[name]) if name in saved else entry.zero_()
            if self.running[k]:
                _step_alone(optimizer, stacked, k, self.missed[k] + 1)
            else:
                missed[k] += 1
        # A new list, because a state that was taken before holds the old one.
        self.missed = optimizer.param_groups[0][MISSED] = missed


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
