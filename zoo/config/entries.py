"""
Hyperparameters as plain values: read from YAML with ``safe_load`` and from the command line with ``literal_eval``.

rl_zoo3 calls ``eval`` on several strings of its YAML files and of the command line, and reads saved configurations with
``yaml.UnsafeLoader``. Nothing here is ever evaluated.
"""

import argparse
import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from otbaselines.common.saving.classes import class_from_name

HYPERPARAMS = Path(__file__).parent.parent / "hyperparams"


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


def parse_value(text: str) -> Any:
    """
    Read one value of the command line: a Python literal, or else text.

    :param text: such as ``0.5``, ``None``, ``[64, 64]``, ``{'n_agents': 5}`` or ``lin_0.5``
    :return: the value
    :raises ValueError: if the text looks like code
    """
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if any(character in text for character in "()[]{}=;"):
        raise ValueError(f"{text!r} is not a plain value; write a number, text, a list or a dict of these")
    return text


class StoreAssignments(argparse.Action):
    """Collect ``key:value`` arguments into a dictionary; a key with dots reaches into nested ones."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Parse the values of one option."""
        stored: dict[str, Any] = {}
        for assignment in values or ():
            key, separator, text = str(assignment).partition(":")
            if not separator or not key:
                parser.error(f"argument {option_string}: expected key:value, got {assignment!r}")
            try:
                value = parse_value(text)
            except ValueError as error:
                parser.error(f"argument {option_string}: {error}")
            *outer, last = key.split(".")
            target = stored
            for name in outer:
                target = target.setdefault(name, {})
            target[last] = value
        setattr(namespace, self.dest, stored)


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
    file = Path(path) if path is not None else HYPERPARAMS / f"{algo}.yml"
    if file.suffix not in (".yml", ".yaml") or not file.is_file():
        raise ValueError(f"hyperparameters are read from a YAML file, but {str(file)!r} is none")
    entries = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    # MPE tasks are known under both spellings; file names are easier with the dash.
    spellings = (env_id, "-v".join(env_id.rsplit("_v", 1)), "default")
    entry = next((dict(entries[name]) for name in spellings if name in entries), None)
    if entry is None:
        raise ValueError(f"{file.name} has no entry for {env_id!r} and no 'default'; it has {sorted(entries)}")
    known = entry.pop("variants", None) or {}
    for variant in variants:
        if variant not in known:
            raise ValueError(f"the variant {variant!r} of {env_id!r} is unknown in {file.name}; it has {sorted(known)}")
        entry = merge(entry, known[variant])
    entry = merge(entry, overrides or {})
    _refuse_numbers_as_text(entry)
    return entry


def split_entry(entry: Mapping[str, Any]) -> RunConfig:
    """
    Divide an entry by who needs its values.

    :param entry: as :func:`read_entry` returns it
    :return: the parts
    :raises ValueError: if the number of steps is missing, or a part that must be a dictionary is not
    """
    rest = dict(entry)
    if "n_timesteps" not in rest:
        raise ValueError("the hyperparameters lack `n_timesteps`, the agent-steps of training")
    n_timesteps, n_envs = int(rest.pop("n_timesteps")), int(rest.pop("n_envs", 8))
    env_kwargs, normalize = rest.pop("env_kwargs", None) or {}, rest.pop("normalize", None)
    if normalize is True:
        normalize = {}
    elif not normalize and not isinstance(normalize, Mapping):
        normalize = None
    policy_kwargs = rest.get("policy_kwargs")
    for name, value in (("env_kwargs", env_kwargs), ("normalize", normalize), ("policy_kwargs", policy_kwargs)):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"`{name}` must be a dictionary of plain values, got {value!r}; nothing is evaluated")
    if normalize is not None and "gamma" in rest:
        # The scale of the returns must be measured with the discount that the critic uses.
        normalize = {**normalize, "gamma": rest["gamma"]}
    if policy_kwargs:
        rest["policy_kwargs"] = {key: _named_class(value) for key, value in policy_kwargs.items()}
    rest.setdefault("policy", "MlpPolicy")
    return RunConfig(
        n_timesteps=n_timesteps, n_envs=n_envs, env_kwargs=dict(env_kwargs), normalize=normalize, model_kwargs=rest
    )


def _named_class(value: Any) -> Any:
    """A class where the value is a dotted name such as ``torch.nn.ReLU``; only inside the packages that saving trusts."""
    return class_from_name(value) if isinstance(value, str) and "." in value else value


def _refuse_numbers_as_text(values: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _refuse_numbers_as_text(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            try:
                float(value)
            except ValueError:
                continue
            raise ValueError(
                f"`{prefix}{key}` is the text {value!r}, because YAML wants a point and a sign in an exponent: write 3.0e-4"
            )
