"""What every learner needs around its updates: metrics that stay on the device, a guard against NaN, and the way back."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch as th
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from tqdm import tqdm

# Elements of the tensors of minibatches that wait to be summed up together.
_WAITING = 2**20


class Metrics:
    """
    Scalars of many minibatches, which the host reads once.

    :param summarize: makes scalars of the tensors that :meth:`add_rows` is given: from stacks of them, one entry a minibatch,
        to vectors of one scalar a minibatch, by name
    """

    def __init__(self, summarize: Callable[..., Mapping[str, th.Tensor]] | None = None) -> None:
        self._values: dict[str, list[th.Tensor]] = defaultdict(list)
        self._summarize = summarize
        self._waiting: list[tuple[th.Tensor, ...]] = []
        self._n_waiting = 0

    def add(self, name: str, value: th.Tensor) -> None:
        """
        :param name: under which the mean is logged
        :param value: a scalar on any device
        """
        self._values[name].append(value)

    def add_rows(self, *tensors: th.Tensor) -> None:
        """
        Leave what is to be known of a minibatch for later, when one operation does for many minibatches: next to a gradient
        step on small networks, a dozen operations for the log are no small thing.

        :param tensors: what ``summarize`` takes, without gradients, and not to be changed afterwards
        """
        if self._waiting and any(a.shape != b.shape for a, b in zip(tensors, self._waiting[0], strict=True)):
            self._flush()
        self._waiting.append(tensors)
        self._n_waiting += sum(tensor.numel() for tensor in tensors)
        if self._n_waiting > _WAITING:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        assert self._summarize is not None, "rows need somebody who makes scalars of them"
        stacks = [th.stack(tensors) for tensors in zip(*self._waiting, strict=True)]
        for name, values in self._summarize(*stacks).items():
            self._values[name].append(values)
        self._waiting, self._n_waiting = [], 0

    def means(self) -> dict[str, float]:
        """
        :return: the mean of every metric, read from the device at once
        """
        self._flush()
        if not self._values:
            return {}
        means = th.stack(
            [th.cat([value.view(-1) for value in values]).mean().to(th.float32) for values in self._values.values()]
        )
        return dict(zip(self._values, means.tolist(), strict=True))


class Stateful(Protocol):
    """A module, an optimizer, or whatever else can be taken back to an earlier state."""

    def state_dict(self) -> dict[str, Any]:
        """
        :return: the state, whose tensors may be those in use
        """

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """
        :param state_dict: a state of the same form
        """


class Snapshot:
    """
    Copies of states, to go back to bit for bit when an update turns out wrong.

    :param parts: modules and optimizers
    """

    def __init__(self, *parts: Stateful) -> None:
        self._parts = parts
        self._states = [_copy(part.state_dict()) for part in parts]

    def restore(self) -> None:
        """Put every part back to where it was; possible any number of times."""
        for part, state in zip(self._parts, self._states, strict=True):
            part.load_state_dict(_copy(state))


def _copy(value: Any) -> Any:
    if isinstance(value, th.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    return [_copy(entry) for entry in value] if isinstance(value, list) else value


def parameter_sum(module: th.nn.Module) -> th.Tensor:
    """
    The parameters themselves are the last word: a NaN gradient can follow a finite loss.

    :param module: a network
    :return: the sum of absolute values, finite exactly when every parameter is; shape ``()``
    """
    return th.stack([p.detach().abs().sum() for p in module.parameters()]).sum()


def largest_moment(optimizer: th.optim.Optimizer) -> th.Tensor:
    """
    Squares of large gradients are infinite before the gradients and the parameters are.

    :param optimizer: after a step or before any
    :return: the largest magnitude in its state, finite exactly when all of the state is; shape ``()``
    """
    # Counters are finite, and on the CPU whatever the device.
    entries = [(key, value) for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    tensors = [value.detach() for _, value in entries if isinstance(value, th.Tensor) and value.is_floating_point()]
    largest = [tensor.abs().amax().float() for tensor in tensors if tensor.numel() > 0]
    return th.stack(largest).amax() if largest else th.zeros(())


def check_finite(numbers: dict[str, float], snapshot: Snapshot, steps: str) -> None:
    """
    Undo an update that went wrong.

    :param numbers: what was computed in the update, by name
    :param snapshot: the state before it
    :param steps: how many there have been, with their unit
    :raises ValueError: if a number is NaN or infinite, after the state was restored; names the quantities
    """
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        snapshot.restore()
        raise ValueError(
            f"{', '.join(f'`{name}`' for name in bad)} became NaN or infinite in the update after {steps}; "
            "the parameters from before it were restored. Lower `learning_rate`, or scale rewards and "
            "observations"
        )


class ProgressBar(BaseCallback):
    """A bar that counts the learner's own steps, whatever they are, and needs no environment."""

    def _on_training_start(self) -> None:
        self._start = self.model.num_timesteps
        self._bar = tqdm(total=self.locals["total_timesteps"] - self._start)

    def _on_step(self) -> bool:
        self._bar.update(self.model.num_timesteps - self._start - self._bar.n)
        return True

    def _on_training_end(self) -> None:
        self._bar.close()


def as_callbacks(callback: MaybeCallback, *, progress_bar: bool) -> MaybeCallback:
    """
    :param callback: what the user passed to ``learn``
    :param progress_bar: whether to add a bar
    :return: that, with callbacks in place of a list's functions, and the bar
    """
    if not progress_bar and not isinstance(callback, list):
        return callback
    callbacks = callback if isinstance(callback, list) else [] if callback is None else [callback]
    converted = [c if isinstance(c, BaseCallback) else ConvertCallback(c) for c in callbacks]
    return [*converted, ProgressBar()] if progress_bar else converted
