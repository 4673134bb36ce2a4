"""
Train one agent or team: ``python -m zoo.train --algo wbc --env otbaselines/Navigation-v0``, or an agent on recorded data:
``python -m zoo.train --algo qdot --env Hopper-v5 --dataset data/hopper/medium.npz``.

The options are rl_zoo3's; steps are agent-steps, as in Stable-Baselines3 under SuperSuit, and gradient steps on data.
"""

import argparse
import importlib
import secrets
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as th
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.evaluation.team import TeamEvalCallback
from otbaselines.common.saving.normalizer import SaveNormalizer
from zoo.config import command
from zoo.config.command import StoreAssignments, count, count_or_default
from zoo.config.entries import merge
from zoo.config.registry import ALGOS
from zoo.runs.folders import new_folder, run_name, write_yaml
from zoo.runs.job import Job
from zoo.runs.keeping import learn_and_keep
from zoo.runs.recorded import check_dataset, describe_data, draw_and_sum_up


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = command.make_parser("zoo.train", "Train an agent or a team and keep the run.")
    add = parser.add_argument
    seed = command.number(0, command.MAX_SEED, unset=(-1,))
    assignments: dict[str, Any] = {"nargs": "+", "action": StoreAssignments, "default": {}, "metavar": "KEY:VALUE"}
    add("--algo", default="wbc", choices=sorted(ALGOS), help="algorithm")
    add("--env", default="otbaselines/Navigation-v0", help="environment id, as make_vec_env takes it")
    add("--variant", nargs="+", default=[], help="variants of the hyperparameter entry, such as `sharing` or `kl`")
    add("--dataset", default=None, help="for qdot, iql and bc: a .npz or HDF5 file, or the id of a Minari data set")
    add("-n", "--n-timesteps", type=count_or_default, default=-1, help="agent-steps of training instead of the entry's")
    add("--seed", type=seed, default=-1, help="seed of everything random; drawn when -1")
    add("-f", "--log-folder", default="logs", help="folder in which runs are collected")
    add("-tb", "--tensorboard-log", default="", help="folder of the TensorBoard log")
    add("-i", "--trained-agent", default="", help="saved agent (.zip) to go on with")
    add("--eval-freq", type=count_or_default, default=25_000, help="agent-steps between evaluations; none when -1")
    add("--eval-episodes", type=count, default=20, help="episodes of each evaluation")
    add("--n-eval-envs", type=count, default=10, help="copies that play them")
    add("--save-freq", type=count_or_default, default=-1, help="agent-steps between checkpoints; none when -1")
    log_interval = command.number(1, unset=(-1, -2))
    add("--log-interval", type=log_interval, default=-1, help="iterations between log entries; -2 for no log")
    add("--device", type=command.device, default="auto", help="cpu, cuda or auto")
    add("--vec-env", default="auto", choices=["auto", "tensor", "parallel", "subproc"], help="backend of the environments")
    threads = command.number(1, 1024, unset=(-1,))
    add("--num-threads", type=threads, default=-1, help="threads of PyTorch; small networks run best on 1")
    add("--verbose", type=int, choices=[0, 1, 2], default=1, help="0 silent, 1 information, 2 where mistakes were found")
    add("--env-kwargs", **assignments, help="arguments of the environment")
    add("--eval-env-kwargs", **assignments, help="other ones for evaluations")
    params = "changed hyperparameters, such as learning_rate:0.001 policy_kwargs.net_arch:[32,32]"
    add("-params", "--hyperparams", **assignments, help=params)
    add("-conf", "--conf-file", default=None, help="another YAML file of hyperparameters")
    add("--gym-packages", nargs="+", default=[], help="packages to import first, because they register environments")
    add("-P", "--progress", action="store_true", help="show a progress bar")
    return parser


def read_job(args: argparse.Namespace) -> Job:
    """The training that the command line asks for, in the folder of its algorithm."""
    if args.trained_agent and not (args.trained_agent.endswith(".zip") and Path(args.trained_agent).is_file()):
        raise ValueError(f"--trained-agent must name an existing .zip file, got {args.trained_agent!r}")
    command.refuse_params(args.hyperparams, {"dataset": "--dataset"})
    if args.n_timesteps != -1:
        command.refuse_params(args.hyperparams, {"n_timesteps": "-n"})
    overrides = merge(args.hyperparams, {"env_kwargs": args.env_kwargs} if args.env_kwargs else {})
    if args.n_timesteps != -1:
        overrides["n_timesteps"] = args.n_timesteps
    if args.dataset is not None:
        overrides["dataset"] = args.dataset
    job = Job.read(
        args.algo,
        args.env,
        variants=args.variant,
        overrides=overrides,
        path=args.conf_file,
        seed=args.seed,
        folder=Path(args.log_folder, args.algo),
        name=run_name(args.env),
        trained_agent=Path(args.trained_agent) if args.trained_agent else None,
        eval_env_kwargs=args.eval_env_kwargs,
        device=args.device,
        backend=args.vec_env,
    )
    check_dataset(job)
    return job


def make_callbacks(args: argparse.Namespace, job: Job, model: BaseAlgorithm, eval_env: VecEnv | None) -> list[BaseCallback]:
    """Checkpoints and evaluations, with frequencies given in the steps that are counted; the job's folder exists."""
    callbacks: list[BaseCallback] = []
    # A callback is called once for a step of all copies, or for a gradient step.
    steps_per_call = 1 if job.is_offline else model.n_envs
    if args.save_freq > 0:
        frequency = max(args.save_freq // steps_per_call, 1)
        callbacks.append(CheckpointCallback(frequency, str(job.folder), name_prefix="rl_model", verbose=args.verbose))
    if eval_env is not None:
        callbacks.append(
            TeamEvalCallback(
                eval_env,
                callback_on_new_best=SaveNormalizer(job.parameters),
                best_model_save_path=str(job.folder),
                n_eval_episodes=args.eval_episodes,
                log_path=str(job.folder),
                eval_freq=max(args.eval_freq // steps_per_call, 1),
                verbose=args.verbose,
            )
        )
    return callbacks


def record(args: argparse.Namespace, job: Job) -> None:
    """Write the command and the hyperparameters beside the run."""
    write_yaml(job.parameters / "config.yml", dict(job.entry))
    write_yaml(job.parameters / "args.yml", vars(args))
    command_line = f"python -m zoo.train {shlex.join(sys.argv[1:])}\n"
    (job.parameters / "command.txt").write_text(command_line, encoding="utf-8")


def train(argv: Sequence[str] | None = None) -> Path:
    """Run the command line ``argv``, that of the process when omitted, and return the folder of the run."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.seed == -1:
        args.seed = secrets.randbelow(2**31)
    set_random_seed(args.seed)
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    eval_env = None
    # A run that fails in its set-up leaves no folder.
    with command.mistakes(parser, traceback=args.verbose > 1):
        for package in args.gym_packages:
            importlib.import_module(package)
        job = read_job(args)
        if args.verbose > 0:
            print(yaml.safe_dump(dict(job.entry), sort_keys=True).rstrip())
        tensorboard_log = str(Path(args.tensorboard_log, job.name)) if args.tensorboard_log else None
        model = job.build(verbose=args.verbose, tensorboard_log=tensorboard_log)
        if args.eval_freq > 0:
            eval_env = job.make_env(args.n_eval_envs, evaluation=True)
        if tensorboard_log:
            Path(tensorboard_log).mkdir(parents=True, exist_ok=True)
        job = replace(job, folder=new_folder(job.folder, job.name))
        record(args, job)
    if args.verbose > 0:
        if job.is_offline:
            print(describe_data(model))
        print(f"Log path: {job.folder}", flush=True)
    log: dict[str, Any] = {} if args.log_interval == -1 else {"log_interval": args.log_interval}
    if args.log_interval == -2:
        log["log_interval"] = None
    try:
        learn_and_keep(job, model, callback=make_callbacks(args, job, model, eval_env), progress_bar=args.progress, **log)
    finally:
        for env in (model.env, eval_env):
            if env is not None:
                env.close()
    result = draw_and_sum_up(job) if job.is_offline else ""
    if args.verbose > 0:
        print(f"{result}Saved to {job.folder}")
    return job.folder


if __name__ == "__main__":
    train()
