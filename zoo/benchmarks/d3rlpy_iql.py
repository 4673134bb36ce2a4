"""
d3rlpy's IQL on a file of recorded data, told as one line of JSON.

It runs in an environment of its own, which d3rlpy's pins ask for, so it imports nothing of this package:
``<python with d3rlpy> zoo/benchmarks/d3rlpy_iql.py --dataset medium.npz --steps 1000``.
"""

import argparse
import json
import time
from typing import Any

import numpy as np


def read(path: str) -> dict[str, np.ndarray]:
    """
    :param path: a ``.npz`` of this package's data sets
    :return: its columns
    """
    with np.load(path, allow_pickle=False) as stored:
        names = ("observations", "actions", "rewards", "terminations", "truncations")
        return {name: stored[name] for name in names}


def scaled(columns: dict[str, np.ndarray], low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
    """
    :param columns: of the data
    :param low: of the actions' box
    :param high: of the actions' box
    :return: the same with actions from -1 to 1
    """
    return {**columns, "actions": 2.0 * (columns["actions"] - low) / (high - low) - 1.0}


def normalized(columns: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """
    :param columns: of the data
    :return: with normalised observations and rewards scaled by the range of returns, as this package's IQL sees them; the
        mean, and the standard deviation
    """
    mean, std = columns["observations"].mean(0), columns["observations"].std(0).clip(min=1e-3)
    ends = np.flatnonzero(columns["terminations"] | columns["truncations"])
    sums = np.diff(np.concatenate([[0.0], columns["rewards"].cumsum()[ends]]))
    rewards = columns["rewards"] * 1000.0 / max(sums.max() - sums.min(), 1e-6)
    return {**columns, "observations": (columns["observations"] - mean) / std, "rewards": rewards}, mean, std


def learner(columns: dict[str, np.ndarray], seed: int, layers: list[int], decay: int) -> tuple[Any, Any]:
    """
    :param columns: what to learn from
    :param seed: of everything random
    :param layers: widths of all networks
    :param decay: gradient steps after which the actor's rate has gone down to zero, as half a cosine
    :return: d3rlpy's IQL with the settings of this package's, and its data set
    """
    import d3rlpy

    d3rlpy.seed(seed)
    last = columns["truncations"].copy()
    # Its last step belongs to no episode otherwise.
    last[-1] |= not columns["terminations"][-1]
    dataset = d3rlpy.dataset.MDPDataset(
        observations=columns["observations"].astype(np.float32),
        actions=columns["actions"].astype(np.float32),
        rewards=columns["rewards"].astype(np.float32).reshape(-1, 1),
        terminals=columns["terminations"].astype(np.float32),
        timeouts=(last & ~columns["terminations"]).astype(np.float32),
    )
    settings: dict[str, Any] = {
        "actor_learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
        "batch_size": 256,
        "gamma": 0.99,
        "tau": 0.005,
    }
    falling = d3rlpy.optimizers.lr_schedulers.CosineAnnealingLRFactory(T_max=decay)
    settings["actor_optim_factory"] = d3rlpy.optimizers.AdamFactory(lr_scheduler_factory=falling)
    for network in ("actor", "critic", "value"):
        settings[f"{network}_encoder_factory"] = d3rlpy.models.VectorEncoderFactory(layers)
    config = d3rlpy.algos.IQLConfig(**settings)
    return config.create(device="cpu:0"), dataset


def play(algo: Any, env: Any, mean: np.ndarray, std: np.ndarray, episodes: int) -> list[float]:
    """
    :param algo: a trained learner
    :param env: the task
    :param mean: of the observations
    :param std: of the observations
    :param episodes: how many
    :return: their returns
    """
    low, high, returns = env.action_space.low, env.action_space.high, []
    for episode in range(episodes):
        observation, _ = env.reset(seed=1000 + episode)
        total, over = 0.0, False
        while not over:
            action = algo.predict(((observation - mean) / std).astype(np.float32)[None])[0]
            inside = low + (np.clip(action, -1.0, 1.0) + 1.0) * (high - low) / 2.0
            observation, reward, terminated, truncated, _ = env.step(inside)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def main() -> None:
    """Train, and print what came out of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="a .npz of this package's")
    parser.add_argument("--steps", type=int, default=1000, help="gradient steps that are timed")
    parser.add_argument("--warm-up", type=int, default=100, help="gradient steps before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, nargs="+", default=[256, 256], help="widths of all networks")
    parser.add_argument("--env", default=None, help="play there after training, and take the box of the actions from it")
    parser.add_argument("--episodes", type=int, default=20)
    args = parser.parse_args()
    import d3rlpy
    import torch

    torch.set_num_threads(1)
    columns, env = read(args.dataset), None
    box: Any
    if args.env is not None:
        import gymnasium as gym

        env = gym.make(args.env)
        box = env.action_space
        columns = scaled(columns, box.low, box.high)
    columns, mean, std = normalized(columns)
    algo, dataset = learner(columns, args.seed, args.layers, args.warm_up + args.steps)
    algo.build_with_dataset(dataset)
    buffer = dataset
    for _ in range(args.warm_up):
        algo.update(buffer.sample_transition_batch(256))
    start, wall = time.process_time(), time.perf_counter()
    for _ in range(args.steps):
        algo.update(buffer.sample_transition_batch(256))
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    found: dict[str, Any] = {"version": d3rlpy.__version__, "torch": torch.__version__, "steps": args.steps}
    found |= {"cpu_seconds": seconds, "wall_seconds": wall, "steps_per_cpu_second": args.steps / seconds}
    if env is not None:
        found["returns"] = play(algo, env, mean, std, args.episodes)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
