"""What is inside a data set, for people."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines.common.datasets.transitions import Transitions

# Share of the action range that counts as its edge.
_EDGE = 1e-3


def describe_dataset(data: Transitions) -> str:
    """
    :param data: any data set
    :return: several lines of text
    """
    returns, lengths = data.episode_returns(), data.episode_lengths()
    partial = int((data.episodes < 0).sum())
    lines = [
        f"data set        {data.name}",
        f"transitions     {len(data):,} on {data.device}, {data.n_bytes / 2**20:.1f} MiB",
        f"episodes        {len(returns):,} whole" + (f", and {partial:,} rows of parts" if partial else ""),
    ]
    if len(returns):
        quantiles = " ".join(f"{value:.1f}" for value in np.quantile(returns, (0.1, 0.25, 0.5, 0.75, 0.9)))
        spread = f"mean {returns.mean():.1f}, std {returns.std():.1f}, {returns.min():.1f} to {returns.max():.1f}"
        lines += [
            f"returns         {spread}",
            f"  quantiles     10/25/50/75/90 %: {quantiles}",
            f"lengths         mean {lengths.mean():.1f}, {lengths.min()} to {lengths.max()} steps",
        ]
    rewards, actions = data.rewards, data.actions
    truncated_alone = data.truncations & ~data.terminations
    edge = f"{share_at_edge(actions, data.action_space):.1%} of entries at the edge of the space"
    return "\n".join(
        [
            *lines,
            f"ends            {int(data.terminations.sum()):,} terminations, {int(truncated_alone.sum()):,} truncations",
            f"rewards         mean {rewards.mean():.3f}, {rewards.min():.3f} to {rewards.max():.3f}",
            f"actions         {actions.min():.3f} to {actions.max():.3f}, {edge}",
            f"action space    {_one_line(data.action_space)}",
            f"observations    {_one_line(data.observation_space)}",
        ]
    )


def share_at_edge(actions: th.Tensor, space: spaces.Box[Any]) -> float:
    """
    :param actions: shape ``(n, *action_shape)``
    :param space: of the actions
    :return: share of the entries that lie within a thousandth of the range from its edge
    """
    low, high = (th.as_tensor(bound, dtype=th.float32, device=actions.device) for bound in (space.low, space.high))
    margin = _EDGE * (high - low)
    return float(((actions <= low + margin) | (actions >= high - margin)).float().mean())


def _one_line(space: spaces.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 100 else f"{text[:100]}..."
