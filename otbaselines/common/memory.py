"""Whether what a model is to hold fits into the machine: told before anything is built, not by the system's killer."""

import math
import os
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim

# Of a number in float32: its parameter, its gradient, and Adam's two moments.
_BYTES_PER_PARAMETER = 4 * 4


@cache
def machine_memory() -> float:
    """:return: the machine's memory in bytes; infinite where the system does not tell"""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def check_fits(n_bytes: int, subject: str, remedy: str, device: th.device | None = None) -> None:
    """
    :param n_bytes: what is needed
    :param subject: for what, naming the settings that ask for it
    :param remedy: what to change
    :param device: where it is needed; in the machine's own memory when omitted
    :raises ValueError: if there is less altogether
    """
    on_gpu = device is not None and device.type == "cuda"
    there = float(th.cuda.get_device_properties(device).total_memory) if on_gpu else machine_memory()
    if n_bytes > there:
        place = f"{device} has" if on_gpu else "this machine has"
        raise ValueError(
            f"{subject} would take {n_bytes / 2**30:,.1f} GiB of memory, but {place} {there / 2**30:,.1f} GiB; {remedy}"
        )


def check_networks(networks: Iterable[tuple[int, Sequence[int]]], net_arch: Any, space: spaces.Space[Any]) -> None:
    """
    :param networks: number of copies and widths, from the input to the output, of every fully connected network
    :param net_arch: the setting that their hidden widths come from
    :param space: of the observations, of which the input widths come
    :raises ValueError: if their parameters and what training adds to them do not fit into the machine
    """
    numbers = sum(n * (width + 1) * after for n, widths in networks for width, after in pairwise(map(int, widths)))
    check_fits(
        numbers * _BYTES_PER_PARAMETER,
        f"training {numbers:,} parameters (`net_arch`={net_arch} on observations {_short(space)})",
        "use narrower layers, smaller observations, or `share_parameters=True`",
    )


def check_rollout_size(n_steps: int, n_slots: int, space: spaces.Space[Any], *, rows_at_once: int, device: th.device) -> None:
    """
    :param n_steps: environment steps per rollout
    :param n_slots: copies times agents
    :param space: of the observations
    :param rows_at_once: observations that the critics are shown at once, at most
    :param device: where the rollout is kept
    :raises ValueError: if the rollout's observations, and what the networks are shown of them, do not fit there
    """
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    stored = sum(math.prod(part.shape or ()) * np.dtype(part.dtype).itemsize for part in parts)
    # Choices become ones among zeros, and images floats, when they are shown to a network.
    shown = 4 * sum(get_flattened_obs_dim(part) for part in parts)
    rows = int(n_steps) * n_slots
    check_fits(
        rows * stored + min(rows, rows_at_once) * shown,
        f"a rollout of `n_steps`={n_steps} for {n_slots} agents in all copies, with observations {_short(space)},",
        "lower `n_steps` or the number of copies, or give the agents smaller observations",
        device,
    )


def _short(space: spaces.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 100 else f"{text[:100]}..."
