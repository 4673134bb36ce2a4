"""
Does parameter-sharing IPPO learn what SB3's PPO learns? Both on mpe2's simple_spread: ``python -m zoo.compare_sb3``.

One environment, one entry of hyperparameters, one evaluation. SB3's PPO sees every agent of every copy as an environment of
its own, which is how its users train teams with shared parameters.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from otbaselines import IPPO, evaluate_team, make_vec_env
from otbaselines.common.schedules import parse_schedule
from zoo.config.entries import RunConfig, read_entry, split_entry
from zoo.drawing.tables import Table, write_tables

SPREAD = "mpe2/simple_spread-v3"
LEARNERS = {"IPPO": "`IPPO(share_parameters=True)`", "PPO": "SB3's `PPO`"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """
    One training run.

    :param learner: a name in :data:`LEARNERS`
    :param seed: of everything random
    :param n_timesteps: agent-steps instead of the entry's
    :param n_eval_episodes: episodes of each evaluation
    """

    learner: str
    seed: int
    n_timesteps: int | None = None
    n_eval_episodes: int = 200


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """
    :param learner: a name in :data:`LEARNERS`
    :param seed: of the run
    :param most_probable: mean return per agent and episode of the most probable actions
    :param sampled: the same of sampled actions
    :param cpu_seconds: processor time of the training
    """

    learner: str
    seed: int
    most_probable: float
    sampled: float
    cpu_seconds: float


def build(learner: str, seed: int, config: RunConfig) -> BaseAlgorithm:
    """
    :param learner: a name in :data:`LEARNERS`
    :param seed: of everything random
    :param config: hyperparameters of shared IPPO
    :return: the untrained model
    """
    env = make_vec_env(SPREAD, n_copies=config.n_envs, seed=seed, env_kwargs=config.env_kwargs)
    if learner == "IPPO":
        return IPPO(env=env, seed=seed, device="cpu", **config.model_kwargs)
    settings: dict[str, Any] = {k: v for k, v in config.model_kwargs.items() if k != "share_parameters"}
    settings["learning_rate"] = parse_schedule(settings["learning_rate"])
    return PPO(env=env, seed=seed, device="cpu", **settings)


def run(job: Job) -> Outcome:
    """
    Train and evaluate.

    :param job: what to train
    :return: the results
    """
    th.set_num_threads(1)
    config = split_entry(read_entry("ippo", SPREAD, variants=("sharing",)))
    model = build(job.learner, job.seed, config)
    start = time.process_time()
    model.learn(job.n_timesteps or config.n_timesteps)
    seconds = time.process_time() - start
    returns = {}
    for deterministic in (True, False):
        # The same starts for both learners, and none that training has seen.
        env = make_vec_env(SPREAD, n_copies=8, seed=1000 + job.seed, env_kwargs=config.env_kwargs)
        result = evaluate_team(model, env, n_eval_episodes=job.n_eval_episodes, deterministic=deterministic)
        returns[deterministic] = float(result.mean_agent_return)
        env.close()
    return Outcome(
        learner=job.learner, seed=job.seed, most_probable=returns[True], sampled=returns[False], cpu_seconds=seconds
    )


def compare(outcomes: Sequence[Outcome]) -> Table:
    """
    :param outcomes: of all runs
    :return: mean and range over the seeds
    """
    table = Table(
        "mpe2 simple_spread, three agents, mean return per agent and episode, mean (range) over the seeds",
        ("learner", "seeds", "most probable actions", "sampled actions", "CPU s per run"),
    )
    for learner, label in LEARNERS.items():
        own = [outcome for outcome in outcomes if outcome.learner == learner]
        if own:
            seconds = np.median([outcome.cpu_seconds for outcome in own])
            cells = (_range([o.most_probable for o in own]), _range([o.sampled for o in own]), f"{seconds:.0f}")
            table.rows.append((label, str(len(own)), *cells))
    return table


def _range(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    :param argv: the arguments; those of the process when omitted
    """
    parser = argparse.ArgumentParser(prog="python -m zoo.compare_sb3", description="Shared IPPO against SB3's PPO.")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 .. SEEDS - 1 of both")
    parser.add_argument("-n", "--n-timesteps", type=int, default=None, help="agent-steps instead of the YAML entry's")
    parser.add_argument("--n-eval-episodes", type=int, default=200, help="episodes of each evaluation")
    parser.add_argument("--jobs", type=int, default=1, help="training processes, one thread each")
    parser.add_argument("--out", type=Path, default=None, help="write the table to this file as well")
    args = parser.parse_args(argv)
    for name in ("seeds", "jobs", "n_eval_episodes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    jobs = [
        Job(learner=learner, seed=seed, n_timesteps=args.n_timesteps, n_eval_episodes=args.n_eval_episodes)
        for seed in range(args.seeds)
        for learner in LEARNERS
    ]
    outcomes = []
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for outcome in pool.map(run, jobs):
            outcomes.append(outcome)
            print(
                f"{outcome.learner} seed {outcome.seed}: {outcome.most_probable:.3f}, sampled {outcome.sampled:.3f}, "
                f"{outcome.cpu_seconds:.0f} CPU s",
                flush=True,
            )
    text = f"`python -m zoo.compare_sb3 --seeds {args.seeds}`\n\n{compare(outcomes).markdown()}\n"
    print(text)
    write_tables(text, args.out)


if __name__ == "__main__":
    main()
