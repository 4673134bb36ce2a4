"""Results of the FedIRL paper's parts as they are kept: one JSON file a seed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def read_result(kind: Callable[..., Result], path: Path, entries: dict[str, tuple[str, ...]]) -> Result:
    """
    :param kind: what the file holds the fields of
    :param path: the file
    :param entries: what the fields that are dictionaries have entries for
    :return: the result
    :raises ValueError: if the file is damaged
    """
    try:
        values = json.loads(path.read_text(), parse_constant=_no_number)
        missing = [f"{field}[{name!r}]" for field, names in entries.items() for name in names if name not in values[field]]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        return kind(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"the result {str(path)!r} is damaged ({error}); delete it, and compute it again with --train"
        ) from error


def _no_number(name: str) -> float:
    raise ValueError(f"it holds {name}")
