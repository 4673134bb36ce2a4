"""
Hyperparameters as plain values, read from YAML with ``safe_load``.

rl_zoo3 calls ``eval`` on several strings of its YAML files and of the command line, and reads saved configurations with
``yaml.UnsafeLoader``. Nothing here is ever evaluated.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from otbaselines.common.saving.classes import class_from_name

HYPERPARAMS = Path(__file__).parent.parent / "hyperparams"
# More than any entry holds, and few enough that a file whose anchors multiply or contain themselves is refused at once.
MAX_VALUES = 10_000
# Arguments of the constructors that have options of their own on the command line.
NOT_HYPERPARAMETERS = ("seed", "device", "env", "verbose", "tensorboard_log")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """
    One entry of a hyperparameter file, divided by who needs it.

    :param n_timesteps: agent-steps of training
    :param n_envs: copies of the team
    :param env_kwargs: for the environment's constructor
    :param normalize: keyword arguments of ``VecNormalize``; ``None`` for no normalisation
    :param model_kwargs: for the algorithm's constructor, the policy's name included
    """

    n_timesteps: int
    n_envs: int
    env_kwargs: dict[str, Any]
    normalize: dict[str, Any] | None
    model_kwargs: dict[str, Any]


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    :param values: nested dictionaries
    :param prefix: of the names
    :return: the values by dotted names, ``{"a": {"b": 1}}`` as ``{"a.b": 1}``
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping) and value
        found |= dotted(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """
    Apply changes to nested dictionaries without touching either argument.

    :param base: what to start from
    :param changes: values that take precedence; dictionaries are merged, everything else is replaced
    :return: a new dictionary
    """
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def read_entry(
    algo: str,
    env_id: str,
    *,
    variants: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    path: str | Path | None = None,
) -> dict[str, Any]:
    """
    Read the hyperparameters of an algorithm for an environment.

    :param algo: names the file ``zoo/hyperparams/<algo>.yml``
    :param env_id: names the entry; where there is none, ``default`` is taken
    :param variants: names below the entry's ``variants``, merged over it in this order
    :param overrides: merged over the result
    :param path: another file to read
    :return: the entry as it can be written to YAML again
    :raises ValueError: if there is no entry, the variant is unknown, or a number was written as text
    """
    entries = read_yaml(Path(path) if path is not None else HYPERPARAMS / f"{algo}.yml")
    file = Path(path or f"{algo}.yml").name
    entry = next((entries[name] for name in (env_id, canonical(env_id), "default") if name in entries), None)
    if not isinstance(entry, Mapping):
        raise ValueError(f"{file} has no entry of values for {env_id!r} and no 'default'; it has {sorted(entries)}")
    known = entry.get("variants") or {}
    entry = {name: value for name, value in entry.items() if name != "variants"}
    for variant in variants:
        if not isinstance(known, Mapping) or not isinstance(known.get(variant), Mapping):
            raise ValueError(f"the variant {variant!r} of {env_id!r} is unknown in {file}; it has {sorted(known)}")
        entry = merge(entry, known[variant])
    entry = merge(entry, overrides or {})
    for name, value in _leaves(entry):
        _refuse_number_as_text(name, value)
    return entry


def canonical(env_id: str) -> str:
    """
    :param env_id: an id
    :return: MPE's tasks are known as ``_v3`` and ``-v3``; entries and folders have the dash
    """
    return "-v".join(env_id.rsplit("_v", 1))


def read_yaml(path: Path) -> dict[str, Any]:
    """
    Read a file of plain values.

    :param path: a ``.yml`` or ``.yaml`` file that holds a dictionary
    :return: the dictionary
    :raises ValueError: if there is no such file, or its content is anything else
    """
    if path.suffix not in (".yml", ".yaml") or not path.is_file():
        raise ValueError(f"values are read from a YAML file, but {str(path)!r} is none")
    state = path.stat()
    return copy.deepcopy(_parsed(path, path.resolve(), state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=64)
def _parsed(path: Path, where: Path, changed: int, size: int) -> dict[str, Any]:
    """A study of thousands of runs asks for the same few files again and again."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise ValueError("it must be a dictionary with text as keys")
        for _ in _leaves(values):
            pass
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as YAML of plain values: {error}") from error
    return values


def split_entry(entry: Mapping[str, Any]) -> RunConfig:
    """
    Divide an entry by who needs its values.

    :param entry: as :func:`read_entry` returns it
    :return: the parts
    :raises ValueError: if the number of steps is missing, or a value is not of the kind that it must be
    """
    rest = dict(entry)
    if "n_timesteps" not in rest:
        raise ValueError("the hyperparameters lack `n_timesteps`, the agent-steps of training")
    n_timesteps, n_envs = (_count(name, rest.pop(name, 8)) for name in ("n_timesteps", "n_envs"))
    env_kwargs, normalize = rest.pop("env_kwargs", None) or {}, rest.pop("normalize", None)
    normalize = {} if normalize is True else None if normalize is False else normalize
    policy_kwargs = rest.get("policy_kwargs")
    for name, value in (("env_kwargs", env_kwargs), ("normalize", normalize), ("policy_kwargs", policy_kwargs)):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"`{name}` must be a dictionary of plain values, got {value!r}; nothing is evaluated")
    for name in NOT_HYPERPARAMETERS:
        if name in rest:
            raise ValueError(f"`{name}` is no hyperparameter; it has an option of its own on the command line")
    if normalize is not None and "gamma" in rest:
        # The scale of the returns must be measured with the discount that the critic uses.
        normalize = {**normalize, "gamma": rest["gamma"]}
    if policy_kwargs:
        rest["policy_kwargs"] = {key: _named_class(value) for key, value in policy_kwargs.items()}
    rest.setdefault("policy", "MlpPolicy")
    return RunConfig(
        n_timesteps=n_timesteps, n_envs=n_envs, env_kwargs=dict(env_kwargs), normalize=normalize, model_kwargs=rest
    )


def _count(name: str, value: Any) -> int:
    # YAML reads 1.0e6 as a float, which is a number of steps all the same.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1 or not 1 <= value < 2**53:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}")
    return int(value)


def _named_class(value: Any) -> Any:
    """A class where the value is a dotted name such as ``torch.nn.ReLU``; only inside the packages that saving trusts."""
    return class_from_name(value) if isinstance(value, str) and "." in value else value


def _leaves(values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Every value that is neither dictionary nor list, with its dotted name."""
    waiting: list[tuple[str, Any]] = [("", values)]
    for _ in range(MAX_VALUES):
        if not waiting:
            return
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{key}".lstrip("."), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in value]
        else:
            yield name, value
    raise ValueError(f"it has more than {MAX_VALUES:,} values, or contains itself")


def _refuse_number_as_text(name: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return
        wants = "a point and a sign in an exponent: write 3.0e-4"
        if not math.isfinite(number):
            wants = "a point before it: write .inf or .nan"
        raise ValueError(f"`{name}` is the text {value!r}, because YAML wants {wants}")
