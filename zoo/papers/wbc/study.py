"""
Where transport should win, with every control beside it: ``python -m zoo.plots wbc-transport --train``.

Directions and lengths of step that team-mates do not have (turned moves, agents of different speed), many directions, and
continuous moves; the quarter turn and five directions are the null. Hyperparameters come from an equal search
(:mod:`zoo.papers.wbc.tuning`) where there is one.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from otbaselines.common.vec_env.make import make_vec_env
from zoo.config.command import add_training, mistakes, n_seeds
from zoo.config.entries import merge, read_yaml
from zoo.drawing.tables import Table, show_tables
from zoo.papers.wbc.evidence import evidence_tables
from zoo.papers.wbc.walker import mean_rewards, random_policy, walker
from zoo.runs.comparison import EVAL_EPISODES, Array, Method, RunResult, finished_runs, train_jobs, waiting_jobs
from zoo.runs.job import Job

NAVIGATION = "otbaselines/Navigation-v0"
FOLDER = "runs/wbc-transport"


@dataclass(frozen=True, kw_only=True)
class Contestant(Method):
    r"""
    A method of the study.

    :param unit: coefficient at which the pull near agreement is about as stiff for every method: 50 over the curvature of its
        divergence around the uniform policy over five one-hot actions (per squared Euclidean distance of probabilities);
        ``None`` where there is no coefficient
    :param discrete_only: whether it has no meaning for continuous actions
    :param placed: whether it sees where actions lead
    :param matched: whether it sees actions that are matched; where all agents' lead to the same places, it is left out, as it
        would be the one that is ``placed``
    """

    unit: float | None = None
    discrete_only: bool = False
    placed: bool = False
    matched: bool = False


def _consensus(label: str, unit: float, estimator: str = "conditional", **options: Any) -> Contestant:
    """A form of the consensus, by its estimator and the options of that; Kullback-Leibler and energy have no strength."""
    changes: dict[str, Any] = {"estimator_kwargs": options}
    if estimator != "conditional":
        changes |= {"estimator": estimator, "reg": None}
    embedding = options["action_embedding"]
    return Contestant(
        label=label,
        algo="wbc",
        changes=changes,
        unit=unit,
        discrete_only=embedding != "environment" or "action_metric" in options,
        placed=embedding == "environment",
        matched=embedding == "matched",
    )


TRANSPORT_UNIT, KL_UNIT, ENERGY_UNIT = 36.0, 20.0, 44.0
MATCHED, PLACED = {"action_embedding": "matched"}, {"action_embedding": "environment"}
# The first is what the others are compared with.
CONTESTANTS: dict[str, Contestant] = {
    "matched": _consensus("WBC, matched actions", TRANSPORT_UNIT, **MATCHED),
    "kl-matched": _consensus("KL, matched actions", KL_UNIT, "kl", **MATCHED),
    "energy-matched": _consensus("energy distance, matched actions", ENERGY_UNIT, "energy", **MATCHED),
    "wbc": _consensus("WBC", TRANSPORT_UNIT, **PLACED),
    "kl": _consensus("KL, placed labels", KL_UNIT, "kl", **PLACED),
    "reverse-kl": _consensus("reverse KL, placed labels", KL_UNIT, "kl", **PLACED, reverse=True),
    "kl-own": _consensus("KL, actions' own numbers", KL_UNIT, "kl", action_embedding="one_hot"),
    "energy": _consensus("energy distance, same embedding", ENERGY_UNIT, "energy", **PLACED),
    "one-hot": _consensus("WBC, one-hot", TRANSPORT_UNIT, action_embedding="one_hot"),
    "zero-one": _consensus("WBC, 0/1 metric on placed labels", TRANSPORT_UNIT, **PLACED, action_metric="zero_one"),
    "sharing": Contestant(label="sharing with identity", algo="ippo", variants=("sharing", "identity")),
    "ippo": Contestant(label="IPPO", algo="ippo"),
}

#: Name on the command line, and what is changed in every method's entry.
SETTINGS: dict[str, dict[str, Any]] = {
    "equal": {},
    **{f"turn{angle}": {"env_kwargs": {"turn": angle}} for angle in (30, 45, 90)},
    "dynamics": {"env_kwargs": {"heterogeneous": "dynamics"}},
    **{f"headings{number}": {"env_kwargs": {"headings": number}} for number in (5, 9, 17, 33, 65)},
    # Normals that start with these deviations, in units of a step; learning shrinks them.
    **{
        f"sigma{sigma:g}": {"env_kwargs": {"continuous_actions": True}, "policy_kwargs": {"log_std_init": log_std}}
        for sigma, log_std in ((1.0, 0.0), (0.3, -1.2), (0.1, -2.3))
    },
}
#: Where agents' actions lead to places that their team-mates' do not.
FEW_COMMON_PLACES = ("turn30", "turn45", "dynamics")
# Discrete actions have places and options that continuous ones do not.
DISCRETE_OPTIONS = ("action_embedding", "action_metric")


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyResult(RunResult):
    """
    One run; its evaluation is the mean reward per agent and step of the most probable actions.

    :param random: what uniformly random actions earn on the starts of the evaluation, shape ``(n_episodes,)``
    :param walker: the same of agents who walk straight to their targets
    """

    random: Array
    walker: Array

    @classmethod
    def measure(cls, job: Job, model: BaseAlgorithm, n_episodes: int) -> dict[str, Any]:
        """Play the same starts whoever learned."""
        env: Any = make_vec_env(job.env_id, n_copies=50, seed=0, device=model.device, env_kwargs=job.config.env_kwargs)
        policies = {"evaluation": model, "random": random_policy(env.config), "walker": walker(env.config)}
        found = {name: mean_rewards(policy, env, n_episodes) for name, policy in policies.items()}
        env.close()
        return found


def is_continuous(setting: str) -> bool:
    """:return: whether the actions of a setting are vectors"""
    return bool(SETTINGS[setting].get("env_kwargs", {}).get("continuous_actions", False))


def contestants(setting: str, chosen: Sequence[str]) -> list[str]:
    """
    :param setting: a name in :data:`SETTINGS`
    :param chosen: names in :data:`CONTESTANTS`
    :return: those that mean something there, in the usual order
    :raises ValueError: if none does
    """
    continuous, alike = is_continuous(setting), setting not in FEW_COMMON_PLACES
    without = {name for name, each in CONTESTANTS.items() if (continuous and each.discrete_only) or (alike and each.matched)}
    found = [name for name in CONTESTANTS if name in chosen and name not in without]
    if not found:
        raise ValueError(f"none of {', '.join(chosen)} means anything of its own in {setting!r}; take other --methods")
    return found


def study_job(
    setting: str, method: str, seed: int, folder: Path, *, name: str, overrides: Mapping[str, Any], device: str = "cpu"
) -> Job:
    """
    :param setting: a name in :data:`SETTINGS`
    :param method: a name in :data:`CONTESTANTS`
    :param seed: of everything random
    :param folder: where its files go
    :param name: of its files
    :param overrides: hyperparameters, merged over everything
    :param device: where environment and learner live
    :return: the run
    """
    chosen = CONTESTANTS[method]
    entry_changes = merge(merge(chosen.changes, SETTINGS[setting]), overrides)
    job = Job.read(
        chosen.algo,
        NAVIGATION,
        variants=chosen.variants,
        overrides=entry_changes,
        seed=seed,
        folder=folder,
        name=name,
        device=device,
    )
    if not is_continuous(setting) or chosen.algo != "wbc":
        return job
    # Options for discrete actions do not apply here.
    entry = dict(job.entry)
    entry["estimator_kwargs"] = {k: v for k, v in (entry.get("estimator_kwargs") or {}).items() if k not in DISCRETE_OPTIONS}
    return replace(job, entry=entry)


def tuned(path: Path | None, setting: str, method: str) -> dict[str, Any]:
    """
    :param path: what :mod:`zoo.papers.wbc.tuning` wrote; ``None`` for the zoo's entries
    :param setting: a name in :data:`SETTINGS`
    :param method: a name in :data:`CONTESTANTS`
    :return: the method's hyperparameters
    :raises ValueError: if the file lacks them
    """
    if path is None:
        return {}
    found = read_yaml(path).get(setting, {})
    if not isinstance(found, Mapping) or not isinstance(found.get(method), Mapping):
        raise ValueError(f"{str(path)!r} has no values of {method!r} for {setting!r}; run zoo.plots wbc-tuning first")
    return dict(found[method])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    add = parser.add_argument
    add("--settings", nargs="+", choices=[*SETTINGS], default=[*SETTINGS])
    add("--methods", nargs="+", choices=[*CONTESTANTS], default=[*CONTESTANTS])
    add("--seeds", type=n_seeds, default=10, help="seeds 0 .. SEEDS - 1 of every method")
    add("--tuned", type=Path, default=None, help="hyperparameters that wbc-tuning found; the zoo's entries when omitted")
    add(
        "--values-of",
        choices=[*SETTINGS],
        default=None,
        help="setting whose hyperparameters all take; each its own if omitted",
    )
    add_training(parser, eval_episodes=EVAL_EPISODES, folder=FOLDER, kept="runs")
    parser.set_defaults(draw=compare)


def compare(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Train if asked to, and tabulate every run that is finished."""
    steps = {} if args.n_timesteps == -1 else {"n_timesteps": args.n_timesteps}
    jobs: dict[str, list[tuple[str, Job]]] = {}
    with mistakes(parser):
        if args.values_of and args.tuned is None:
            raise ValueError(f"--values-of {args.values_of} names hyperparameters of a file; give the file as --tuned")
        for setting in args.settings:
            folder = Path(args.out) / "runs" / setting
            jobs[setting] = [
                (
                    CONTESTANTS[method].label,
                    study_job(
                        setting,
                        method,
                        seed,
                        folder,
                        name=f"{method}-seed{seed}",
                        overrides={**tuned(args.tuned, args.values_of or setting, method), **steps},
                        device=args.device,
                    ),
                )
                for seed in range(args.seeds)
                for method in contestants(setting, args.methods)
            ]
        every = [job for each in jobs.values() for _, job in each]
        waiting = waiting_jobs(every, StudyResult, args.eval_episodes) if args.train else []
    train_jobs(waiting, StudyResult, n_episodes=args.eval_episodes, n_processes=args.jobs)
    with mistakes(parser):
        runs = {setting: finished_runs(each, StudyResult, args.eval_episodes) for setting, each in jobs.items()}
    parts: list[str | Table] = []
    for setting, found in runs.items():
        parts += [f"**{setting}**", *evidence_tables(found, n_seeds=args.seeds)]
    show_tables(parts, args)
