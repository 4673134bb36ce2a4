"""Evaluate and draw what ``zoo.train`` left: ``python -m zoo.enjoy --algo wbc --env otbaselines/Navigation-v0``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_sb3 import EnvironmentName
from PIL import Image
from rl_zoo3.utils import get_model_path
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.evaluation.team import TeamEvaluation, evaluate_team
from otbaselines.common.saving.normalizer import FILE_NAME, load_normalizer
from otbaselines.common.vec_env.make import make_vec_env
from zoo.config.entries import StoreAssignments, merge
from zoo.config.registry import ALGOS


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """
    One run of ``zoo.train``.

    :param model_path: the agent
    :param entry: its hyperparameters, environment arguments included
    :param normalizer: statistics of ``VecNormalize``, where it was used
    """

    model_path: Path
    entry: dict[str, Any]
    normalizer: Path | None


def find_run(args: argparse.Namespace) -> SavedRun:
    """
    Look up a run by the grammar ``<folder>/<algo>/<env>_<run>/``.

    :param args: the command line
    :return: its files
    :raises ValueError: if there is no such run
    """
    name = EnvironmentName(args.env)
    folder = Path(args.folder) / args.algo
    runs = sorted(path.name for path in folder.glob(f"{name}_*") if path.is_dir())
    wanted = f"{name}_{args.exp_id}"
    if not runs or (args.exp_id > 0 and wanted not in runs):
        raise ValueError(
            f"no run {wanted if args.exp_id > 0 else f'of {args.env}'} in {str(folder)!r}; it has {runs or 'none'}: "
            f"train one with `python -m zoo.train --algo {args.algo} --env {args.env} -f {args.folder}`"
        )
    _, model_path, log_path = get_model_path(
        args.exp_id,
        str(args.folder),
        args.algo,
        name,
        args.load_best,
        args.load_checkpoint,
        args.load_last_checkpoint,
    )
    parameters = Path(log_path) / str(name)
    config, statistics = parameters / "config.yml", parameters / FILE_NAME
    entry = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return SavedRun(model_path=Path(model_path), entry=dict(entry), normalizer=statistics if statistics.is_file() else None)


def make_env(args: argparse.Namespace, run: SavedRun, *, n_copies: int, render: bool = False) -> VecEnv:
    """
    Build the environment that a run was trained on.

    :param args: the command line
    :param run: the run
    :param n_copies: copies of the team
    :param render: with pictures
    :return: the environment, normalised as in training
    """
    env_kwargs = merge(run.entry.get("env_kwargs") or {}, args.env_kwargs or {})
    if render:
        env_kwargs["render_mode"] = "rgb_array"
    venv = make_vec_env(args.env, n_copies=n_copies, seed=args.seed, device=get_device(args.device), env_kwargs=env_kwargs)
    return venv if run.normalizer is None else load_normalizer(venv, run.normalizer, training=False)


def render_episode(model: BaseAlgorithm, env: VecEnv, *, deterministic: bool, max_steps: int) -> list[Any]:
    """
    Play one episode of one copy and take a picture after each step.

    :param model: the agent
    :param env: one copy, with ``render_mode="rgb_array"``
    :param deterministic: the most probable actions instead of samples
    :param max_steps: stop there at the latest
    :return: RGB pictures
    """
    observations: Any = env.reset()
    frames = [env.render()]
    for _ in range(max_steps):
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, _, dones, _ = env.step(actions)
        # The environment restarts by itself, so the picture after the last step shows the next episode.
        if dones.all():
            break
        frames.append(env.render())
    return frames


def write_frames(frames: Sequence[Any], folder: Path) -> None:
    """
    Write pictures as numbered PNG files and as one GIF of ten a second.

    :param frames: RGB pictures
    :param folder: where they go; it is made
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(np.asarray(frame, dtype=np.uint8)) for frame in frames]
    for number, image in enumerate(images):
        image.save(folder / f"frame_{number:03d}.png")
    images[0].save(folder / "episode.gif", save_all=True, append_images=images[1:], duration=100, loop=0)


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="python -m zoo.enjoy", description="Evaluate and draw a trained agent or team.")
    add = parser.add_argument
    add("--algo", default="wbc", choices=sorted(ALGOS), help="algorithm")
    add("--env", default="otbaselines/Navigation-v0", help="environment id")
    add("-f", "--folder", default="logs", help="folder in which runs are collected")
    add("--exp-id", type=int, default=0, help="number of the run; the latest when 0")
    add("--load-best", action="store_true", help="the best agent of the evaluations instead of the last")
    add("--load-checkpoint", type=int, default=None, help="the checkpoint after so many agent-steps")
    add("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    add("-n", "--n-eval-episodes", type=int, default=100, help="episodes of the evaluation")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--deterministic", action="store_true", help="the most probable actions (the default)")
    actions.add_argument("--stochastic", action="store_true", help="sampled actions, as in training")
    add("--render-dir", default=None, help="folder for pictures of one episode, PNG and GIF")
    add("--max-frames", type=int, default=500, help="at most so many pictures")
    add("--seed", type=int, default=0, help="seed of the evaluation")
    add("--device", default="auto", help="cpu, cuda or auto")
    add("--env-kwargs", nargs="+", action=StoreAssignments, metavar="KEY:VALUE", help="changed arguments of the environment")
    return parser


def enjoy(argv: Sequence[str] | None = None) -> TeamEvaluation:
    """
    Run the command line.

    :param argv: the arguments; those of the process when omitted
    :return: the evaluation
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        run = find_run(args)
        env = make_env(args, run, n_copies=min(10, max(1, args.n_eval_episodes)))
        # Without an environment: this one has fewer copies than the training, to which the rollout was fitted.
        model = ALGOS[args.algo].load(str(run.model_path), device=args.device, verbose=0)
        result = evaluate_team(
            model, env, n_eval_episodes=args.n_eval_episodes, deterministic=not args.stochastic, seed=args.seed
        )
    except (ValueError, TypeError, ImportError) as error:
        parser.error(str(error))
    print(f"{run.model_path}, {result.n_episodes} episodes, {'sampled' if args.stochastic else 'most probable'} actions")
    print(f"team return  {result.team_return:10.3f} +/- {result.std:.3f} (standard deviation over episodes)")
    for agent, value in result.agent_returns.items():
        print(f"{agent:<12} {value:10.3f}")
    print(f"length       {result.lengths.mean():10.1f} steps")
    if args.render_dir is not None:
        stage = make_env(args, run, n_copies=1, render=True)
        frames = render_episode(model, stage, deterministic=not args.stochastic, max_steps=args.max_frames)
        write_frames(frames, Path(args.render_dir))
        stage.close()
        print(f"{len(frames)} pictures and episode.gif are in {args.render_dir}")
    env.close()
    return result


if __name__ == "__main__":
    enjoy()
