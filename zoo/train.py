"""
Train one agent or team: ``python -m zoo.train --algo wbc --env otbaselines/Navigation-v0``.

The options are rl_zoo3's; steps are agent-steps, as in Stable-Baselines3 under SuperSuit.
"""

import argparse
import importlib
import secrets
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch as th
from stable_baselines3.common.utils import set_random_seed

from zoo.config.entries import StoreAssignments
from zoo.config.registry import ALGOS
from zoo.runs.experiment import TeamExperimentManager


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m zoo.train", description="Train an agent or a team and keep the run.")
    add = parser.add_argument
    add("--algo", default="wbc", choices=sorted(ALGOS), help="algorithm")
    add("--env", default="otbaselines/Navigation-v0", help="environment id, as make_vec_env takes it")
    add("--variant", nargs="+", default=[], help="variants of the hyperparameter entry, such as `sharing` or `kl`")
    add("-n", "--n-timesteps", type=int, default=-1, help="agent-steps of training instead of the entry's")
    add("--seed", type=int, default=-1, help="seed of everything random; drawn when negative")
    add("-f", "--log-folder", default="logs", help="folder in which runs are collected")
    add("-tb", "--tensorboard-log", default="", help="folder of the TensorBoard log")
    add("-i", "--trained-agent", default="", help="saved agent (.zip) to go on with")
    add("--eval-freq", type=int, default=25_000, help="agent-steps between evaluations; none when negative")
    add("--eval-episodes", type=int, default=20, help="episodes of each evaluation")
    add("--n-eval-envs", type=int, default=10, help="copies that play them")
    add("--save-freq", type=int, default=-1, help="agent-steps between checkpoints; none when negative")
    add("--log-interval", type=int, default=-1, help="iterations between log entries; -2 for no log")
    add("--device", default="auto", help="cpu, cuda or auto")
    add("--vec-env", default="auto", choices=["auto", "tensor", "parallel", "subproc"], help="backend of the environments")
    add("--num-threads", type=int, default=-1, help="threads of PyTorch; small networks run best on 1")
    add("--verbose", type=int, default=1, help="0 silent, 1 information")
    add("--env-kwargs", nargs="+", action=StoreAssignments, metavar="KEY:VALUE", help="arguments of the environment")
    add("--eval-env-kwargs", nargs="+", action=StoreAssignments, metavar="KEY:VALUE", help="other ones for evaluations")
    add(
        "-params",
        "--hyperparams",
        nargs="+",
        action=StoreAssignments,
        metavar="KEY:VALUE",
        help="changed hyperparameters, such as learning_rate:0.001 policy_kwargs.net_arch:[32,32]",
    )
    add("-conf", "--conf-file", default=None, help="another YAML file of hyperparameters")
    add("--gym-packages", nargs="+", default=[], help="packages to import first, because they register environments")
    add("-uuid", "--uuid", action="store_true", help="make the run's folder unique among parallel runs")
    add("-P", "--progress", action="store_true", help="show a progress bar")
    return parser


def train(argv: Sequence[str] | None = None) -> Path:
    """
    Run the command line.

    :param argv: the arguments; those of the process when omitted
    :return: the folder of the run
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    for package in args.gym_packages:
        importlib.import_module(package)
    if args.seed < 0:
        args.seed = secrets.randbelow(2**31)
    set_random_seed(args.seed)
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    try:
        manager = TeamExperimentManager(
            args,
            args.algo,
            args.env,
            args.log_folder,
            variants=args.variant,
            backend=args.vec_env,
            tensorboard_log=args.tensorboard_log,
            n_timesteps=args.n_timesteps,
            eval_freq=args.eval_freq,
            n_eval_episodes=args.eval_episodes,
            save_freq=args.save_freq,
            hyperparams=args.hyperparams,
            env_kwargs=args.env_kwargs,
            eval_env_kwargs=args.eval_env_kwargs,
            trained_agent=args.trained_agent,
            uuid_str=f"_{uuid.uuid4()}" if args.uuid else "",
            seed=args.seed,
            log_interval=args.log_interval,
            verbose=args.verbose,
            n_eval_envs=args.n_eval_envs,
            device=args.device,
            config=args.conf_file,
            show_progress=args.progress,
        )
        setup = manager.setup_experiment()
    except (ValueError, TypeError, ImportError) as error:
        # Before training starts, these are the caller's mistakes: the message says what to change, a traceback does not.
        parser.error(str(error))
    assert setup is not None
    model, _ = setup
    manager.learn(model)
    manager.save_trained_model(model)
    return Path(manager.save_path)


if __name__ == "__main__":
    train()
