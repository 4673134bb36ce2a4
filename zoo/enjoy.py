"""Evaluate and draw what ``zoo.train`` left: ``python -m zoo.enjoy --algo wbc --env otbaselines/Navigation-v0``."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.evaluation.team import TeamEvaluation, evaluate_team
from otbaselines.common.saving.normalizer import load_normalizer
from zoo.config import command
from zoo.config.command import StoreAssignments, count
from zoo.config.entries import merge, read_yaml
from zoo.config.registry import ALGOS
from zoo.datasets.references import reference
from zoo.runs.folders import describe_run, numbered_runs, run_name
from zoo.runs.job import Job


def find_agent(args: argparse.Namespace) -> Path:
    """The file of the agent: of the run that is asked for, or of the last run that has one."""
    name, folder = run_name(args.env), Path(args.folder) / args.algo
    runs = numbered_runs(folder, name)
    if args.exp_id not in (0, *runs):
        raise ValueError(f"no run {args.exp_id} of {args.env} in {str(folder)!r}; it has {[*runs] or 'none'}: {_remedy(args)}")
    missing: list[str] = []
    for number in [args.exp_id] if args.exp_id else reversed(runs):
        agent, ending = _agent_of(runs[number], name, args), describe_run(runs[number] / name)
        if agent is not None:
            passed = f"; passed over {', '.join(missing)}" if missing else ""
            print(f"run {number} of {len(runs)} in {folder}, {ending}{passed}")
            return agent
        missing.append(f"run {number} ({ending})")
    wanted = "no such agent in " + ", ".join(missing) if missing else f"no run of {args.env} in {str(folder)!r}"
    raise ValueError(f"{wanted}: {_remedy(args)}")


def _agent_of(run: Path, name: str, args: argparse.Namespace) -> Path | None:
    if args.load_last_checkpoint:
        steps = [int(found[1]) for path in run.iterdir() if (found := re.fullmatch(r"rl_model_(\d+)_steps\.zip", path.name))]
        file = f"rl_model_{max(steps, default=0)}_steps.zip"
    elif args.load_checkpoint is not None:
        file = f"rl_model_{args.load_checkpoint}_steps.zip"
    else:
        file = "best_model.zip" if args.load_best else f"{name}.zip"
    return run / file if (run / file).is_file() else None


def _remedy(args: argparse.Namespace) -> str:
    return f"train one with `python -m zoo.train --algo {args.algo} --env {args.env} -f {args.folder}`"


def read_run(args: argparse.Namespace, run: Path) -> Job:
    """What was trained in a run's folder, on the environment that the command line asks for."""
    config = run / run_name(args.env) / "config.yml"
    entry: dict[str, Any] = read_yaml(config) if config.is_file() else {"n_timesteps": 1}
    if args.env_kwargs:
        entry = merge(entry, {"env_kwargs": merge(entry.get("env_kwargs") or {}, args.env_kwargs)})
    # The statistics are those of the run, and not new ones.
    entry = {**entry, "normalize": None}
    name = run_name(args.env)
    return Job(algo=args.algo, env_id=args.env, entry=entry, seed=args.seed, folder=run, name=name, device=args.device)


def make_env(job: Job, n_copies: int, **env_kwargs: Any) -> VecEnv:
    """Copies of the environment that the run was trained on, normalised as in training."""
    venv = job.make_env(n_copies, **env_kwargs)
    return load_normalizer(venv, job.normalizer, training=False) if job.normalizer.is_file() else venv


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
        # The environment restarts by itself, so the picture after the last step shows the next episode, unless it says not.
        if not dones.all() or env.has_attr("draws_last_step"):
            frames.append(env.render())
        if dones.all():
            break
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
    parser = command.make_parser("zoo.enjoy", "Evaluate and draw a trained agent or team.")
    add = parser.add_argument
    add("--algo", default="wbc", choices=sorted(ALGOS), help="algorithm")
    add("--env", default="otbaselines/Navigation-v0", help="environment id")
    add("-f", "--folder", default="logs", help="folder in which runs are collected")
    add("--exp-id", type=command.number(0), default=0, help="number of the run; the latest that has an agent when 0")
    agents = parser.add_mutually_exclusive_group()
    agents.add_argument("--load-best", action="store_true", help="the best agent of the evaluations instead of the last")
    agents.add_argument("--load-checkpoint", type=count, default=None, help="the checkpoint after so many agent-steps")
    agents.add_argument("--load-last-checkpoint", action="store_true", help="the last checkpoint")
    add("-n", "--n-eval-episodes", type=count, default=100, help="episodes of the evaluation")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--deterministic", action="store_true", help="the most probable actions (the default)")
    actions.add_argument("--stochastic", action="store_true", help="sampled actions, as in training")
    add("--render-dir", type=Path, default=None, help="folder for pictures of one episode, PNG and GIF")
    add("--max-frames", type=count, default=500, help="at most so many pictures")
    add("--seed", type=command.seed, default=0, help="seed of the evaluation")
    add("--device", type=command.device, default="auto", help="cpu, cuda or auto")
    kwargs_help = "changed arguments of the environment"
    add("--env-kwargs", nargs="+", action=StoreAssignments, default={}, metavar="KEY:VALUE", help=kwargs_help)
    return parser


def enjoy(argv: Sequence[str] | None = None) -> TeamEvaluation:
    """Run the command line ``argv``, that of the process when omitted, and return the evaluation."""
    parser = make_parser()
    args = parser.parse_args(argv)
    stage = None
    with command.mistakes(parser):
        agent = find_agent(args)
        job = read_run(args, agent.parent)
        # Without an environment: this one has fewer copies than the training, to which the rollout was fitted.
        model = ALGOS[args.algo].load(str(agent), device=args.device, verbose=0)
        env = make_env(job, min(10, args.n_eval_episodes))
        if args.render_dir is not None:
            args.render_dir.mkdir(parents=True, exist_ok=True)
            stage = make_env(job, 1, render_mode="rgb_array")
        result = evaluate_team(
            model, env, n_eval_episodes=args.n_eval_episodes, deterministic=not args.stochastic, seed=args.seed
        )
    env.close()
    print(f"{agent}, {result.n_episodes} episodes, {'sampled' if args.stochastic else 'most probable'} actions")
    print(f"team return  {result.team_return:10.3f} +/- {result.std:.3f} (standard deviation over episodes)")
    for name, value in result.agent_returns.items():
        print(f"{name:<12} {value:10.3f}")
    print(f"length       {result.lengths.mean():10.1f} steps")
    scale = reference(args.env)
    if scale is not None:
        print(f"normalised   {scale.normalized(result.team_return):10.1f} ({scale.source})")
    if stage is not None:
        frames = render_episode(model, stage, deterministic=not args.stochastic, max_steps=args.max_frames)
        write_frames(frames, args.render_dir)
        stage.close()
        print(f"{len(frames)} pictures and episode.gif are in {args.render_dir}")
    return result


if __name__ == "__main__":
    enjoy()
