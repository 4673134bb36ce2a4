"""What the comparisons on recorded data take on their command lines, and what of it cannot be meant."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from otbaselines import OfflineDataset
from otbaselines.common.saving.description import constructor_parameters
from otbaselines.common.settings import Setting
from otbaselines.qdot.qdot import LARGEST_PRICE
from zoo.config.command import StoreAssignments, check_distinct, check_seeds, n_seeds, refuse_params, seed
from zoo.config.registry import LEARNERS

PRICE = Setting("number", low=0.0, above="always", high=LARGEST_PRICE)
# Beside the arguments of the constructors.
_OF_ENTRIES = ("policy", "env_kwargs")


def add_data(parser: argparse.ArgumentParser, *, alphas: Sequence[float]) -> None:
    """
    :param parser: of a command
    :param alphas: usual prices
    """
    add = parser.add_argument
    add("--seeds", type=n_seeds, default=3, help="seeds FIRST_SEED .. FIRST_SEED + SEEDS - 1")
    add("--first-seed", type=seed, default=0, help="the first of them")
    add("--datasets", type=Path, nargs="+", required=True, help="files of recorded data")
    add("--env", default=None, help="where agents are evaluated; said by the data when omitted")
    add("--alphas", type=float, nargs="+", default=[*alphas], help="prices of moving actions")
    params = "changed hyperparameters, such as policy_kwargs.net_arch:[128,128]"
    add("-params", "--hyperparams", nargs="+", action=StoreAssignments, default={}, metavar="KEY:VALUE", help=params)


def check_options(args: argparse.Namespace, *, learners: Mapping[str, str], elsewhere: Mapping[str, str]) -> None:
    """
    :param args: of :func:`add_data`
    :param learners: names in :data:`~zoo.config.registry.LEARNERS` by what they are called on the command line
    :param elsewhere: further hyperparameters that have an option, and which
    :raises ValueError: if an option is out of its range, or says what another one does
    :raises TypeError: if a price is no number
    """
    for alpha in args.alphas:
        PRICE.check("--alphas", alpha)
    check_distinct("--alphas", args.alphas)
    check_seeds(args.first_seed, args.seeds)
    options = {"dataset": "--datasets", "alpha": "--alphas", "n_timesteps": "-n", "seed": "--seeds", **elsewhere}
    refuse_params(args.hyperparams, options)
    for method, learner in learners.items():
        constructor: Any = LEARNERS[learner]
        known = {*constructor_parameters(constructor), *_OF_ENTRIES}
        if unknown := sorted(set(args.hyperparams) - known):
            remedy = "choose the methods that have it by --methods" if len(learners) > 1 else "leave it out"
            raise ValueError(f"-params {', '.join(unknown)}: {method} has no such setting; {remedy}")


def with_tasks(paths: Sequence[Path], env_id: str | None = None) -> list[tuple[Path, str]]:
    """
    :param paths: of recorded data
    :param env_id: the task of all of them; what each says when omitted
    :return: every path with its task
    :raises ValueError: if one cannot be read or says no task, or two would be told apart by nothing
    """
    check_distinct("--datasets", [path.resolve() for path in paths])
    found: dict[tuple[str, str], Path] = {}
    for path in paths:
        if path.is_dir():
            raise ValueError(f"--datasets must be files of recorded data, got the folder {str(path)!r}")
        name = (env_id or task_of(path), path.stem)
        if name in found:
            raise ValueError(
                f"--datasets {found[name]} and {path} would both be called {', '.join(name)}; rename one of the files, or "
                "compare them apart, each with an --out of its own"
            )
        found[name] = path
    return [(path, task) for (task, _), path in found.items()]


def task_of(path: Path) -> str:
    """
    :param path: of recorded data
    :return: the environment that their name says
    :raises ValueError: if it says none
    """
    name = OfflineDataset.load(str(path)).name
    task = name.split(" ")[0]
    if task not in gym.registry:
        raise ValueError(f"{str(path)!r} holds the data {name!r}, whose first word is no environment; pass --env")
    return task


def price_text(price: float) -> str:
    """
    :param price: of moving actions
    :return: all of its digits, and as few as will do: 0.3, 1, 1e-05
    """
    short = f"{price:g}"
    return short if float(short) == price else repr(float(price))
