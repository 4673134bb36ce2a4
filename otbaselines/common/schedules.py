"""Schedules that have a name, so that a saved model can hold them: numbers, linear forms, and strings for YAML files."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

Schedule = Callable[[float], float]

_REMEDY = (
    "give a number, a callable of the remaining progress, or one of 'lin_<start>', 'linear_<start>_<end>', "
    "'linear_<start>_<end>_<end_fraction>' and 'cosine_<start>'"
)


@dataclass(frozen=True)
class ProportionalSchedule:
    """
    ``value * progress_remaining``: from ``value`` down to zero over the whole run.

    This is what rl_zoo3 makes of ``"lin_<value>"``. :class:`~stable_baselines3.common.utils.LinearSchedule` with
    ``end=0`` is the same line, but rounds differently, and a resumed run must be equal to the last bit.

    :param value: what the schedule starts from, in the unit of the scheduled parameter
    """

    value: float

    def __call__(self, progress_remaining: float) -> float:
        return progress_remaining * self.value


@dataclass(frozen=True)
class CosineSchedule:
    """
    ``value * (1 + cos(pi * (1 - progress_remaining))) / 2``: from ``value`` down to zero, flat at both ends.

    :param value: what the schedule starts from, in the unit of the scheduled parameter
    """

    value: float

    def __call__(self, progress_remaining: float) -> float:
        return 0.5 * self.value * (1.0 + math.cos(math.pi * (1.0 - progress_remaining)))


def _parse_number(text: str, source: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"The schedule {source!r} holds {text!r} where a number belongs; {_REMEDY}") from None
    if not math.isfinite(number):
        raise ValueError(f"The schedule {source!r} must be finite, got {text!r}; {_REMEDY}")
    return number


def _parse_text(text: str) -> Schedule:
    form, *fields = text.strip().split("_")
    if not fields:
        # YAML reads "3e-4" as text, which must not surprise anybody.
        return ConstantSchedule(_parse_number(form, text))
    numbers = [_parse_number(field, text) for field in fields]
    if form in ("lin", "linear") and len(numbers) == 1:
        return ProportionalSchedule(numbers[0])
    if form in ("lin", "linear") and len(numbers) in (2, 3):
        end_fraction = numbers[2] if len(numbers) == 3 else 1.0
        if not 0.0 < end_fraction <= 1.0:
            raise ValueError(f"The end fraction of the schedule {text!r} must be in (0, 1], got {end_fraction}; {_REMEDY}")
        return LinearSchedule(numbers[0], numbers[1], end_fraction)
    if form == "cosine" and len(numbers) == 1:
        return CosineSchedule(numbers[0])
    if form in ("const", "constant") and len(numbers) == 1:
        return ConstantSchedule(numbers[0])
    raise ValueError(f"The schedule {text!r} is of no known form; {_REMEDY}")


def parse_schedule(value: float | str | Schedule) -> FloatSchedule:
    """
    Turn a number, a string or a callable into a schedule.

    :param value: a constant; or a callable of the remaining progress, which goes from 1 to 0; or a string:
        ``"lin_<start>"`` (to zero, as in rl_zoo3), ``"linear_<start>_<end>"``, ``"linear_<start>_<end>_<end_fraction>"``,
        which arrives at ``end`` after that fraction of the run, or ``"cosine_<start>"`` (half a cosine down to zero)
    :return: the schedule, returning Python floats
    :raises ValueError: if the string is of no known form, or a number is not finite
    :raises TypeError: if the value is neither a number, a string nor a callable
    """
    given: Any = value
    if isinstance(given, str):
        return FloatSchedule(_parse_text(given))
    if callable(given):
        return FloatSchedule(given)
    if isinstance(given, bool):
        raise TypeError(f"A schedule cannot be made of {given!r}; {_REMEDY}")
    try:
        number = float(given)
    except (TypeError, ValueError):
        raise TypeError(f"A schedule cannot be made of {given!r}; {_REMEDY}") from None
    if not math.isfinite(number):
        raise ValueError(f"A schedule must be finite, got {number}; {_REMEDY}")
    return FloatSchedule(number)


def schedule_to_json(schedule: Any) -> float | dict[str, Any] | None:
    """
    The JSON form of a schedule.

    :param schedule: a callable
    :return: a number for a constant; a dictionary with ``form`` and its numbers for a line; None for any other callable
    """
    while isinstance(schedule, FloatSchedule):
        schedule = schedule.value_schedule
    # Exact types: a subclass may compute something else under the same name.
    if type(schedule) is ConstantSchedule:
        return float(schedule.val)
    if type(schedule) is LinearSchedule:
        return {
            "form": "linear",
            "start": float(schedule.start),
            "end": float(schedule.end),
            "end_fraction": float(schedule.end_fraction),
        }
    if type(schedule) is ProportionalSchedule:
        return {"form": "proportional", "value": float(schedule.value)}
    if type(schedule) is CosineSchedule:
        return {"form": "cosine", "value": float(schedule.value)}
    # rl_zoo3 is an optional extra, so its class is known by name only.
    if (type(schedule).__module__, type(schedule).__name__) == ("rl_zoo3.utils", "SimpleLinearSchedule"):
        return {"form": "proportional", "value": float(schedule.initial_value)}
    return None


def schedule_from_json(stored: dict[str, Any]) -> Schedule:
    """
    The inverse of :func:`schedule_to_json` for the forms that are not plain numbers.

    :param stored: the dictionary with ``form`` and its numbers
    :return: the schedule
    :raises ValueError: if the form is unknown
    """
    if stored["form"] == "linear":
        return LinearSchedule(float(stored["start"]), float(stored["end"]), float(stored["end_fraction"]))
    if stored["form"] == "proportional":
        return ProportionalSchedule(float(stored["value"]))
    if stored["form"] == "cosine":
        return CosineSchedule(float(stored["value"]))
    raise ValueError(f"The schedule form {stored['form']!r} is unknown; update otbaselines")
