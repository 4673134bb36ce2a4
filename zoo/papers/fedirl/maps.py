"""Figure 1 of the FedIRL paper: rewards that were recovered, as maps of a grid world."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch as th
from matplotlib.figure import Figure

from otbaselines import Client, FedIRL
from otbaselines.common.tabular import TabularModel
from otbaselines.envs import gridworld
from otbaselines.fedirl.fusion import FUSIONS
from zoo.config.entries import read_entry
from zoo.drawing.curves import STYLE

SIZE, N_CLIENTS, N_EPISODES = 10, 10, 50


def reward_maps(
    seed: int, *, size: int = SIZE, n_clients: int = N_CLIENTS
) -> tuple[gridworld.GridWorldEnv, dict[str, th.Tensor]]:
    """
    Recover the reward of one federation in every way.

    :param seed: of the worlds and demonstrations
    :param size: cells along an edge
    :param n_clients: how many worlds take part
    :return: the server's world, and its rewards by the name of who found them, each in [0, 1], shape ``(size, size)``
    """
    entry = read_entry("fedirl", "otbaselines/GridWorld-v0")
    seeds = np.random.SeedSequence([seed, size]).generate_state(n_clients + 1).tolist()
    worlds = [gridworld.make(size, each) for each in seeds[:-1]]
    clients = [Client(world, gridworld.expert(world, N_EPISODES, seed=number)) for number, world in enumerate(worlds)]
    probe = gridworld.make(size, seeds[-1])
    maps: dict[str, th.Tensor] = {}
    for fusion in FUSIONS:
        model = FedIRL("MlpPolicy", probe, clients=clients, fusion=fusion, **entry).learn(1)
        if not maps:
            maps["one client alone"] = _scaled(probe.tabular_model, model.client_thetas[0], size)
        maps[fusion] = _scaled(probe.tabular_model, model.theta, size)
    return probe, maps


def _scaled(model: TabularModel, theta: np.ndarray, size: int) -> th.Tensor:
    """The reward of every cell, mean over the actions, from 0 to 1."""
    rewards = (model.features @ th.as_tensor(theta)).mean(-1)
    low, high = th.aminmax(rewards)
    return ((rewards - low) / (high - low)).reshape(size, size)


def draw_maps(path: Path, *, seed: int = 0) -> None:
    """
    :param path: the PNG
    :param seed: of the federation
    """
    probe, maps = reward_maps(seed)
    rows, columns = np.nonzero(probe.obstacles)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.0 * len(maps), 2.4), layout="constrained")
        axes = figure.subplots(1, len(maps))
        for ax, (name, found) in zip(axes, maps.items(), strict=True):
            image = ax.imshow(found.numpy(), cmap="viridis", vmin=0, vmax=1)
            ax.plot(columns, rows, "x", color="#D55E00", markersize=4)
            ax.plot(SIZE - 1, SIZE - 1, "*", color="white", markersize=8)
            ax.set_title(name)
            ax.set_xticks([])
            ax.set_yticks([])
        figure.colorbar(image, ax=axes, shrink=0.8, label="reward, lowest to highest")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
