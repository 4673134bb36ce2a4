"""
Make offline data: ``python -m zoo.datasets.make --env Hopper-v5 --kinds medium medium-replay --out data/hopper``.

SAC is trained with checkpoints; the data are what it did on the way, and what two of its checkpoints do. A command that was
interrupted goes on when it is given again.
"""

import argparse
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from otbaselines import OfflineDataset
from otbaselines.common.saving.archive import atomic_write, versions
from zoo.config import command
from zoo.datasets.behaviour import MAX_STEPS, Keeping, read_checkpoints, train_behaviour, unusual_settings
from zoo.datasets.export import export_minari
from zoo.datasets.kinds import KINDS, MEDIUM_SHARE, Choice, choose, make_kind, random_return, recording_settings, spread
from zoo.datasets.provenance import check_made_with, made_with
from zoo.datasets.references import reference


@dataclass(frozen=True)
class Defaults:
    """
    How a task is trained and recorded when the command line does not say.

    :param steps: of training
    :param checkpoint_every: steps between checkpoints
    :param size: transitions of a recording
    :param settings: of SAC, where they are not SB3's
    """

    steps: int
    checkpoint_every: int
    size: int
    settings: dict[str, Any]


_LOCOMOTION = Defaults(1_000_000, 10_000, 1_000_000, {"learning_starts": 10_000})
_DEFAULTS = {"Pendulum-v1": Defaults(10_000, 250, 50_000, {"learning_starts": 500, "learning_rate": 1e-3})}


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = command.make_parser("zoo.datasets.make", "Make offline data from a training of SAC.")
    add = parser.add_argument
    add("--env", default="Hopper-v5", help="environment id, of Gymnasium, with boxes for observations and actions")
    add("--kinds", nargs="*", default=list(KINDS), choices=KINDS, help="what to make; all kinds when omitted")
    steps = command.number(1, MAX_STEPS, unset=(-1,))
    add("--steps", type=steps, default=-1, help="environment steps of the training; usual for the task when -1")
    add("--size", type=command.count_or_default, default=-1, help="transitions of each recorded agent, at least")
    add("--checkpoint-every", type=command.count_or_default, default=-1, help="environment steps between checkpoints")
    add("--eval-episodes", type=command.count, default=10, help="episodes by which each checkpoint is judged")
    add("--out", type=Path, required=True, help="folder of everything about this task")
    add("--seed", type=command.seed, default=0, help="seed of everything random")
    add("--max-minutes", type=float, default=float("inf"), help="end the training early; the cards say so")
    add("--no-minari", action="store_true", help="write .npz only")
    return parser


def dataset_id(env_id: str, kind: str) -> str:
    """
    :param env_id: such as ``Hopper-v5``
    :param kind: such as ``medium``
    :return: Minari's id, such as ``otbaselines/hopper/medium-v0``
    """
    return f"otbaselines/{env_id.rsplit('-v', 1)[0].lower()}/{kind}-v0"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``, that of the process when omitted."""
    parser = make_parser()
    args = parser.parse_args(argv)
    usual = _DEFAULTS.get(args.env, _LOCOMOTION)
    for name in ("steps", "checkpoint_every", "size"):
        if getattr(args, name) == -1:
            setattr(args, name, getattr(usual, name))
    with command.mistakes(parser):
        if not args.max_minutes >= 0:
            raise ValueError(f"--max-minutes must not be negative, got {args.max_minutes}")
        args.out.mkdir(parents=True, exist_ok=True)
        trained = train_behaviour(
            args.env,
            args.steps,
            args.out / "behaviour",
            seed=args.seed,
            report=_say,
            keeping=Keeping(args.checkpoint_every, 5 * args.checkpoint_every, args.eval_episodes, args.max_minutes),
            **usual.settings,
        )
        check_made_with(args.out / "recordings", recording_settings(args.env, args.out / "behaviour", args.seed))
        checkpoints = [each for each in read_checkpoints(args.out / "behaviour") if each.timesteps <= args.steps]
        choice = choose(checkpoints, random_return(args.env), reference(args.env))
    _say(
        f"medium: {choice.medium.timesteps:,} steps, {spread(np.array(choice.medium.returns))}; "
        f"expert: {choice.expert.timesteps:,} steps, {spread(np.array(choice.expert.returns))}"
    )
    for kind in args.kinds:
        if (args.out / f"{kind}.md").is_file():
            _say(f"{kind} is there already; remove {args.out / f'{kind}.md'} to make it anew")
            continue
        data = make_kind(kind, args.env, choice, args.out, size=args.size, seed=args.seed)
        data.save(args.out / f"{kind}.npz")
        text = card(args, kind, data, choice, trained)
        if not args.no_minari:
            sentence = f"What SAC does in {args.env}: {kind}, in D4RL's sense."
            export_minari(data, dataset_id(args.env, kind), args.out / "minari", args.env, sentence, reference(args.env))
        # Last of all: it says that the kind is finished.
        with atomic_write(args.out / f"{kind}.md") as file:
            file.write(text.encode())
        _say(f"\n{data.describe()}\n")


def card(args: argparse.Namespace, kind: str, data: OfflineDataset, choice: Choice, trained: int) -> str:
    """
    :param args: of the command line
    :param kind: of the data
    :param data: what was made
    :param choice: of the agents
    :param trained: environment steps that the training has taken
    :return: what there is to know about the data, as Markdown
    """
    scale, returns = reference(args.env), data.episode_returns()
    earned = "no whole episode"
    if len(returns):
        earned = f"mean return {returns.mean():.1f} over {len(returns):,} whole episodes"
        earned += "" if scale is None else f", normalised {scale.normalized(returns.mean()):.1f} ({scale.source})"
    standard, share = choice.standard, choice.standard.normalized(choice.medium.mean_return)
    agents = [("medium agent", choice.medium)] if kind.startswith("medium") else []
    if kind.endswith("expert"):
        level = "" if scale is None else f" ({scale.normalized(choice.expert.mean_return):.0f} % of the scale)"
        agents.append((f"expert agent, the best that there was{level}", choice.expert))
    notes = [f"Shortened: training ended after {trained:,} of {args.steps:,} steps."] if trained < args.steps else []
    # A training may have gone on for longer, in an earlier call; its later checkpoints were not looked at.
    used = min(trained, args.steps)
    unusual = unusual_settings(_DEFAULTS.get(args.env, _LOCOMOTION).settings)
    notes += _unknown(args.out, kind)
    lines = [
        f"# {args.env}, {kind}",
        "",
        _HOW[kind],
        "",
        f"- {earned}",
        f"- the medium agent is the first checkpoint beyond {MEDIUM_SHARE:.0%} of the way from {standard.random:.1f} to "
        f"{standard.expert:.1f} ({standard.source}), at {share:.1f} %",
        *(
            f"- {name}: checkpoint at {each.timesteps:,} steps, evaluated at {spread(np.array(each.returns))} over "
            f"{len(each.returns)} episodes of its most probable actions"
            for name, each in agents
        ),
        f"- trained by SB3's SAC for {used:,} environment steps, seed {args.seed}, a checkpoint every "
        f"{args.checkpoint_every:,} steps",
        "- settings of SAC that are not SB3's defaults: "
        + ", ".join(f"{name} {_number(own)} ({_number(theirs)} in SB3)" for name, (own, theirs) in unusual.items()),
        *(f"- {line}" for line in notes),
        "- versions: " + ", ".join(f"{name} {version}" for name, version in _versions().items()),
        "",
        "```text",
        data.describe(),
        "```",
        "",
        "Made by",
        "",
        "```bash",
        f"python -m zoo.datasets.make {shlex.join(_public(args, kind))}",
        "```",
        "",
    ]
    return "\n".join(lines)


_HOW = {
    "medium": "Sampled actions of SAC as it was when it first came about a third of the way from random actions to an expert.",
    "medium-replay": "Everything that SAC saw until it first came about a third of the way from random actions to an expert.",
    "expert": "Sampled actions of the best checkpoint of SAC.",
    "medium-expert": "The medium and the expert recordings, one behind the other.",
}


def _public(args: argparse.Namespace, kind: str) -> list[str]:
    """The command line for one kind, without the folder, which is the user's business."""
    options = {
        "--env": args.env,
        "--steps": args.steps,
        "--checkpoint-every": args.checkpoint_every,
        "--eval-episodes": args.eval_episodes,
        "--size": args.size,
        "--seed": args.seed,
        **({"--max-minutes": args.max_minutes} if math.isfinite(args.max_minutes) else {}),
        "--kinds": kind,
        "--out": "data",
    }
    return [str(part) for option in options.items() for part in option]


def _unknown(folder: Path, kind: str) -> list[str]:
    """What is taken from the command line and could not be compared with what is in the folder."""
    parts = {"training": folder / "behaviour"}
    if kind != "medium-replay":
        parts["recordings"] = folder / "recordings"
    return [
        f"Unverified: the {name} in this folder, of an earlier version, did not keep seed and settings; those here are the "
        "command's."
        for name, part in parts.items()
        if made_with(part) is None
    ]


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _versions() -> dict[str, str]:
    try:
        return {**versions(), "mujoco": metadata.version("mujoco")}
    except metadata.PackageNotFoundError:
        return versions()


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
