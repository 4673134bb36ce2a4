"""What a setting may be: a table entry for every parameter of every algorithm, and errors that name what is not in it."""

import inspect
import math
import numbers
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import FloatSchedule
from torch import nn

from otbaselines.common.schedules import parse_schedule

_WORDS = {
    "number": "a number",
    "integer": "an integer",
    "flag": "True or False",
    "schedule": "a number, or a schedule of numbers,",
    "text": "a string",
}
# Of steps, epochs and the like: what a 32-bit counter holds.
MANY = 2**31 - 1


@dataclass(frozen=True)
class Setting:
    """
    The values that a parameter takes.

    :param kind: ``"number"``, ``"integer"``, ``"flag"``, ``"text"``, ``"schedule"`` (a number, a string such as
        ``"lin_3e-4"``, or a function of the remaining progress), or the classes of which the value must be an instance
    :param low: smallest value
    :param high: largest value
    :param above: whether ``low`` itself is excluded, for constants only (``"start"``: a schedule may arrive there) or
        ``"always"``; empty where it is a value
    :param choices: the only values, where there are few
    :param fits: whether a value of the right class is a good one
    :param what: the good values in words, where ``kind`` and the range do not say it
    :param entries: for a dict: what its entries may be
    :param together: for a dict: checks what only the entries together say, and raises
    :param optional: whether None is a value
    :param endless: whether infinity is a value
    :param remedy: what to do instead, in a few words
    """

    kind: str | tuple[type, ...]
    low: float = -math.inf
    high: float = math.inf
    above: str = ""
    choices: tuple[Any, ...] = ()
    fits: Callable[[Any], bool] | None = None
    what: str = ""
    entries: Mapping[str, "Setting"] = field(default_factory=dict)
    together: Callable[[Any], None] | None = None
    optional: bool = False
    endless: bool = False
    remedy: str = ""

    def check(self, name: str, value: Any) -> None:
        """
        :param name: the parameter
        :param value: what it was set to
        :raises TypeError: if it is of the wrong type; strings, bools and None are no numbers, and floats are no integers
        :raises ValueError: if it is of the right type, but out of range
        """
        if value is None and self.optional:
            return
        subject = f"`{name}`"
        if self.kind == "schedule" and (callable(value) or isinstance(value, str)):
            self._check_schedule(name, value)
            return
        if not self._is_of_kind(value):
            raise TypeError(self._message(subject, value))
        if self.kind in ("number", "integer", "schedule"):
            self._check_range(subject, value, is_open=bool(self.above))
        if (self.choices and value not in self.choices) or (self.fits is not None and not self.fits(value)):
            raise ValueError(self._message(subject, value))
        for entry in self.entries:
            if entry in value:
                self.entries[entry].check(f"{name}[{entry!r}]", value[entry])
        if self.together is not None:
            self.together(value)

    def reading(self, name: str, schedule: Any, progress: float) -> float:
        """
        The value of a schedule, checked whenever it is read.

        :param name: the parameter
        :param schedule: a number, or a function of the remaining progress
        :param progress: the remaining progress, from 1 to 0
        :return: a number within the range
        :raises TypeError: if the schedule returns something else
        :raises ValueError: if the number is out of range
        """
        return self._read(name, schedule, progress)

    def _read(self, name: str, schedule: Any, progress: float, source: str = "") -> float:
        while isinstance(schedule, FloatSchedule):
            # It calls `float`, whose errors would not name the parameter.
            schedule = schedule.value_schedule
        value = schedule(progress) if callable(schedule) else schedule
        if getattr(value, "ndim", None) == 0:
            value = value.item()
        subject = f"`{name}` at the remaining progress {progress:g}"
        if not _is_number(value):
            raise TypeError(self._message(subject, value, source))
        self._check_range(subject, value, is_open=self.above == "always", source=source)
        return float(value)

    def _is_of_kind(self, value: Any) -> bool:
        if isinstance(self.kind, tuple):
            return isinstance(value, self.kind)
        if self.kind == "text":
            return isinstance(value, str)
        if self.kind == "flag":
            return isinstance(value, bool | np.bool_)
        return _is_number(value) and (self.kind != "integer" or isinstance(value, numbers.Integral))

    def _check_schedule(self, name: str, value: Any) -> None:
        try:
            schedule = parse_schedule(value)
        except ValueError as error:
            raise ValueError(f"`{name}`: {error}") from None
        # A schedule that leaves its range at an end of the run is refused before the run.
        for progress in (1.0, 0.0):
            self._read(name, schedule, progress, f" from {value!r}" if isinstance(value, str) else "")

    def _check_range(self, subject: str, value: Any, *, is_open: bool, source: str = "") -> None:
        # Comparisons with NaN are false.
        inside = (self.low < value if is_open else self.low <= value) and value <= self.high
        if not (inside and (self.endless or -_LARGEST <= value <= _LARGEST)):
            # The bound on counts is told to those who meet it.
            beyond = f"; at most {MANY:,} are possible" if value > self.high == MANY else ""
            raise ValueError(self._message(subject, value, source) + beyond)
        if isinstance(value, numbers.Integral) and not -(2**63) <= int(value) < 2**63:
            raise ValueError(f"{subject} is an integer beyond 64 bits, {_short(value)}; write a float within its range")

    def _message(self, subject: str, value: Any, source: str = "") -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{subject} must be {self._describe()}, got {_short(value)}{source}{remedy}"

    def _describe(self) -> str:
        if self.what or self.choices:
            words = self.what or f"one of {', '.join(map(repr, self.choices))}"
        elif isinstance(self.kind, tuple):
            words = "of the type " + " or ".join(cls.__name__ for cls in self.kind)
        else:
            words = _WORDS[self.kind]
        if self.low > -math.inf and self.high < math.inf and self.high != MANY:
            words += f" in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"
        elif self.low > -math.inf:
            words += f" {'above' if self.above else 'of at least'} {self.low:g}"
        elif self.kind in ("number", "schedule"):
            words += " that is finite"
        return words + (" or None" if self.optional else "")


_LARGEST = float(np.finfo(np.float32).max)


#: Of Python and of NumPy: torch does not compute with fractions.
NUMBERS = (int, float, np.integer, np.floating)


def _is_number(value: Any) -> bool:
    return isinstance(value, NUMBERS) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


@cache
def settings_of(cls: type) -> dict[str, Setting]:
    """
    The table of an algorithm: the entries ``setting_ranges`` of its class, above those of the ancestors.

    :param cls: the algorithm
    :return: the entries by parameter
    """
    table: dict[str, Setting] = {}
    for base in reversed(cls.__mro__):
        table |= vars(base).get("setting_ranges", {})
    return table


def check_settings(table: Mapping[str, Setting], values: Mapping[str, Any]) -> None:
    """
    :param table: what each parameter may be
    :param values: what they are; others than those of the table are not looked at
    :raises TypeError: if one is of the wrong type
    :raises ValueError: if one is out of range
    """
    for name, setting in table.items():
        if name in values:
            setting.check(name, values[name])


def arguments_of(constructor: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """
    What an overriding constructor passes on to the one that it overrides.

    :param constructor: the one that is overridden, bound
    :param given: the ``locals()`` of the overriding one
    :return: the arguments that both have, by name
    """
    return {name: given[name] for name in inspect.signature(constructor).parameters if name in given}


def inherit_parameters(cls: type) -> None:
    """
    Complete the documentation of a class by the parameters that its ancestors explain, in the order of its constructor.

    :param cls: the class, whose ``__doc__`` is rewritten
    """
    explained: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        prose, *fields = re.split(r"\n(?=:(?:param|raises) )", inspect.cleandoc(vars(base).get("__doc__") or ""))
        explained |= {entry.split(":")[1].removeprefix("param "): entry.rstrip() for entry in fields}
    names = list(inspect.signature(cls).parameters)
    shown = [explained[name] for name in (*names, "raises TypeError", "raises ValueError") if name in explained]
    cls.__doc__ = "\n".join([prose.rstrip(), "", *shown, ""])


def is_device(value: Any) -> bool:
    """
    :param value: a string or a device
    :return: whether torch can compute on it, or SB3 falls back to the CPU
    """
    if value == "auto":
        return True
    try:
        device = th.device(value)
        if device.type != "cuda" or th.cuda.is_available():
            th.zeros(1, device=device).item()
    except Exception:
        # torch has RuntimeError, AssertionError, NotImplementedError and ImportError for devices that are not there.
        return False
    return True


def _is_activation(value: type) -> bool:
    """Whether it is made without arguments, and keeps the shape of what it is applied to."""
    if not issubclass(value, nn.Module):
        return False
    x = th.zeros(2, 3, 4)
    try:
        # What it may draw or warn of is the business of the network that uses it.
        with warnings.catch_warnings(), th.random.fork_rng(devices=[]), th.no_grad():
            warnings.simplefilter("ignore")
            y = value()(x)
    except Exception:
        return False
    return isinstance(y, th.Tensor) and y.shape == x.shape


def check_optimizer(policy_kwargs: Mapping[str, Any]) -> None:
    """
    Let the optimizer take a step, so that one which could not train is refused before training.

    :param policy_kwargs: what the policy is to be made with
    :raises ValueError: if ``optimizer_class`` and ``optimizer_kwargs`` make no optimizer that steps down the gradient it is
        given
    """
    options = policy_kwargs.get("optimizer_kwargs") or {}
    if not options and "optimizer_class" not in policy_kwargs:
        return
    name, value = ("optimizer_kwargs", options) if options else ("optimizer_class", policy_kwargs["optimizer_class"])
    subject = f"`policy_kwargs[{name!r}]`"
    if options.get("maximize"):
        raise ValueError(f"{subject} must not ask to maximize the loss, which trains uphill, got {_short(value)}")
    if "lr" in options:
        raise ValueError(f"{subject} must not have 'lr', which is `learning_rate`, got {_short(value)}")
    on_gpu = bool(options.get("capturable")) and th.cuda.is_available()
    parameter = nn.Parameter(th.zeros(2, 2, 2, device="cuda" if on_gpu else "cpu"))
    parameter.grad = th.ones_like(parameter)
    optimizer_class: Any = policy_kwargs.get("optimizer_class", th.optim.Adam)
    try:
        with th.random.fork_rng(devices=[]):
            optimizer_class([parameter], lr=1e-3, **options).step()
        if not parameter.isfinite().all():
            raise ValueError("its first step leads to NaN or infinity")
    except Exception as error:
        raise ValueError(
            f"{subject} must make an optimizer that steps by dense gradients alone, such as torch.optim.Adam, got "
            f"{_short(value)}: {error}"
        ) from error


def _is_net_arch(value: Any) -> bool:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]
    parts = list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(part, list | tuple) and all(map(_is_width, part)) for part in parts)


def with_plain_widths(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param policy_kwargs: of a policy, checked
    :return: the same with the widths of networks as lists of Python's integers, which are saved as they are; anything else is
        left to the policy
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(part) for key, part in value.items()}
        are_widths = isinstance(value, list | tuple) and all(map(_is_width, value))
        return [int(width) for width in value] if are_widths else value

    return {name: plain(value) if name in ("net_arch", "map_arch") else value for name, value in policy_kwargs.items()}


def _is_width(value: Any) -> bool:
    return _is_number(value) and isinstance(value, numbers.Integral) and 1 <= int(value) <= MANY


# What the arguments of every `learn` may be.
# Of copies, agents, steps: whatever there must be one of.
COUNT = Setting("integer", low=1, high=MANY)
LEARN_SETTINGS = {
    "total_timesteps": Setting(
        "number", low=1, high=2**62, fits=lambda steps: steps == int(steps), what="a whole number", remedy="as in 100_000"
    ),
    "callback": Setting(
        (BaseCallback, list, Callable),  # type: ignore[arg-type]
        fits=lambda callback: (
            not isinstance(callback, list) or all(isinstance(c, BaseCallback) or callable(c) for c in callback)
        ),
        what="a callback, a function, or a list of these",
        optional=True,
    ),
    "log_interval": Setting("integer", low=1, high=MANY, optional=True),
    "tb_log_name": Setting("text", optional=True),
    "reset_num_timesteps": Setting("flag"),
    "progress_bar": Setting("flag"),
}

# What the keyword arguments of SB3's and our policies may be; a policy of the user's own may have others.
POLICY_SETTINGS = {
    "net_arch": Setting(
        (list, tuple, dict),
        fits=_is_net_arch,
        what="widths such as [64, 64], or a dictionary of such lists, one a network",
        optional=True,
    ),
    "map_arch": Setting(
        (list, tuple),
        fits=lambda value: len(value) > 0 and all(map(_is_width, value)),
        what="at least one width, as in [64, 64],",
        optional=True,
        remedy="leave it out for [64, 64]",
    ),
    "activation_fn": Setting((type,), fits=_is_activation, what="a class such as torch.nn.Tanh"),
    "ortho_init": Setting("flag"),
    "use_sde": Setting("flag"),
    "log_std_init": Setting("number", low=-20.0, high=20.0),
    "mean_init": Setting("number"),
    "full_std": Setting("flag"),
    "use_expln": Setting("flag"),
    "squash_output": Setting("flag"),
    "features_extractor_class": Setting(
        (type,), fits=lambda cls: issubclass(cls, BaseFeaturesExtractor), what="a class of features extractors"
    ),
    "features_extractor_kwargs": Setting((dict,), optional=True),
    "share_features_extractor": Setting("flag"),
    "normalize_images": Setting("flag"),
    "optimizer_class": Setting(
        (type,), fits=lambda cls: issubclass(cls, th.optim.Optimizer), what="a class such as torch.optim.Adam"
    ),
    "optimizer_kwargs": Setting((dict,), optional=True),
    "append_agent_id": Setting("flag"),
}
