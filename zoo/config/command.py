"""What the commands share: options that are checked as they are read, and mistakes told in one line."""

import argparse
import ast
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch as th

# numpy's streams take seeds of 32 bits.
MAX_SEED = 2**32 - 1


def make_parser(command: str, description: str) -> argparse.ArgumentParser:
    """
    :param command: such as ``zoo.train``
    :param description: what it does
    :return: a parser that does not take ``--see`` for ``--seed``
    """
    return argparse.ArgumentParser(prog=f"python -m {command}", description=description, allow_abbrev=False)


#: Options that say where files go and how many processes there are, with one value each: no table depends on them.
_NOT_SHOWN = ("--out", "--tables", "--jobs")


def shown_command(command: str, argv: Sequence[str], *, trains: bool = False) -> str:
    """
    The command that makes the same tables wherever a reader's files are.

    :param command: such as ``zoo.plots``
    :param argv: what was typed after it
    :param trains: whether it makes runs that do not exist when told ``--train``
    :return: what was typed, but for where files go; of absolute paths their last part
    """
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        option, equals, value = word.partition("=")
        if option in _NOT_SHOWN:
            if not equals:
                next(rest, None)
        elif option.startswith("--") and equals:
            words.append(f"{option}={_portable(value)}")
        elif word != "--train":
            words.append(_portable(word))
    if trains:
        words.insert(1, "--train")
    return f"python -m {command} {shlex.join(words)}"


def _portable(word: str) -> str:
    name, colon, value = word.partition(":")
    if colon and value.startswith("/"):
        return f"{name}:{_portable(value)}"
    path = Path(word)
    return path.name or word if path.is_absolute() or ".." in path.parts else word


@contextmanager
def mistakes(parser: argparse.ArgumentParser, *, traceback: bool = False) -> Iterator[None]:
    """
    End the program with one line and exit status 2 if what happens inside fails.

    Before the work starts only the caller's values are looked at, so whatever fails says something about them.

    :param parser: whose command it is
    :param traceback: show where it happened instead
    """
    try:
        yield
    except Exception as error:
        if traceback:
            raise
        known = isinstance(error, (ValueError, TypeError, ImportError, OSError))
        parser.error(" ".join(f"{'' if known else f'{type(error).__name__}: '}{error}".split()))


def number(minimum: int, maximum: int = 2**53, *, unset: tuple[int, ...] = ()) -> Callable[[str], int]:
    """
    :param minimum: smallest value
    :param maximum: largest value
    :param unset: values that stand for "none" or "as usual"
    :return: the type of an integer option
    """

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
        if value not in unset and not minimum <= value <= maximum:
            others = f", or {' or '.join(map(str, unset))}" if unset else ""
            bound = f"at least {minimum}" if value < minimum else f"at most {maximum}"
            raise argparse.ArgumentTypeError(f"must be {bound}{others}, got {value}")
        return value

    return parse


#: Types of options that several commands have; -1 asks for what is usual, as in rl_zoo3.
count, count_or_default, seed = number(1), number(1, unset=(-1,)), number(0, MAX_SEED)
#: How many seeds: each is a run, and more of them than anybody can train would fill the memory with plans.
n_seeds = number(1, 10_000)


def device(text: str) -> str:
    """
    :param text: ``auto``, or a device that torch finds here
    :return: the same
    """
    try:
        if text != "auto":
            th.zeros(1, device=text).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"torch cannot use {text!r} here ({str(error).splitlines()[0]}); try cpu") from None
    return text


def parse_value(text: str) -> Any:
    """
    Read one value of the command line: a Python literal, or else text.

    :param text: such as ``0.5``, ``None``, ``[64, 64]``, ``{'n_agents': 5}`` or ``lin_0.5``
    :return: the value, with lists for tuples, which YAML does not have
    :raises ValueError: if the text looks like code, or is no number, text, list or dictionary
    """
    words: dict[str, bool | float | None] = {"true": True, "false": False, "null": None, "none": None}
    # As Python and as YAML write them.
    words |= {word: float(word.replace(".", "")) for word in ("inf", "-inf", ".inf", "-.inf", "nan", ".nan")}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return _plain(ast.literal_eval(text))
    except (SyntaxError, RecursionError, MemoryError, ValueError):
        if any(character in text for character in "()[]{}=;"):
            raise ValueError(f"{text!r} is not a plain value; write a number, text, a list or a dict of these") from None
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"{value!r} is not a plain value")
    return value


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
        stored: dict[str, Any] = dict(getattr(namespace, self.dest) or {})
        for assignment in values or ():
            try:
                _assign(stored, str(assignment))
            except ValueError as error:
                parser.error(f"argument {option_string}: {error}")
        setattr(namespace, self.dest, stored)


def _assign(stored: dict[str, Any], assignment: str) -> None:
    key, separator, text = assignment.partition(":")
    *outer, last = key.split(".")
    if not separator or not text or not all((*outer, last)):
        raise ValueError(f"expected key:value, got {assignment!r}")
    target = stored
    for name in outer:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise ValueError(f"{assignment!r} reaches into {name!r}, which was given a value before")
    if last in target:
        raise ValueError(f"{key!r} is given twice")
    target[last] = parse_value(text)


def check_seeds(first: int, number_of: int) -> None:
    """
    :param first: ``--first-seed``
    :param number_of: ``--seeds``
    :raises ValueError: if numpy's streams take no seed so large as the last of them
    """
    if first + number_of - 1 > MAX_SEED:
        raise ValueError(f"--first-seed {first} and --seeds {number_of} go beyond the largest seed, {MAX_SEED}")


def check_distinct(option: str, values: Sequence[Any]) -> None:
    """
    :param option: such as ``--alphas``
    :param values: what it was given
    :raises ValueError: if a value is there twice, whose runs would be counted twice
    """
    if len({*values}) < len(values):
        raise ValueError(f"{option} has the same value twice, got {' '.join(map(str, values))}; give each once")


def refuse_params(hyperparams: Mapping[str, Any], options: Mapping[str, str]) -> None:
    """
    :param hyperparams: of ``-params``
    :param options: the option that says the same, by name of the hyperparameter
    :raises ValueError: if one of them is among the hyperparameters
    """
    for name, option in options.items():
        if name in hyperparams:
            raise ValueError(f"-params {name}: is what {option} says; use that")


def check_outputs(*paths: Path | None) -> None:
    """
    Notice before hours of computing, and not after them, what cannot be written; folders are made.

    :param paths: files to be written; ``None`` is passed over
    :raises OSError: if one of them cannot be
    """
    for path in paths:
        if path is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{str(path)!r} is a folder, and no file to write")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(f"{str(path)!r} must not be written; choose another file")


def add_training(parser: argparse.ArgumentParser, *, eval_episodes: int, folder: str, kept: str = "runs and figures") -> None:
    """
    The options of every command that trains several runs, keeps them, and tells of those that are finished.

    :param parser: of the command
    :param eval_episodes: usual episodes of an evaluation
    :param folder: usual folder
    :param kept: what goes there
    """
    add = parser.add_argument
    add("--train", action="store_true", help="train the runs that do not exist yet")
    add("-n", "--n-timesteps", type=count_or_default, default=-1, help="agent-steps instead of the YAML entry's")
    add("--eval-episodes", type=count, default=eval_episodes, help="episodes of each evaluation")
    add("--jobs", type=count, default=2, help="training processes, one thread each")
    add("--device", type=device, default="cpu")
    add("--out", default=folder, help=f"folder for {kept}")
    add("--tables", type=Path, default=None, help="write the tables to this file as well")
