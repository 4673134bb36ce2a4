"""Which actions WMATRPO can move, what the search among them needs, and each agent's own as the joint critics read them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from otbaselines.common.memory import check_fits
from otbaselines.wmatrpo.advantages import ActionSet, Box, Choices


def check_actions(space: spaces.Space[Any]) -> None:
    """
    :param space: the team's actions
    :raises ValueError: if they are neither choices nor vectors of a bounded box
    """
    if isinstance(space, spaces.Discrete):
        return
    if not isinstance(space, spaces.Box):
        raise ValueError(f"WMATRPO moves Discrete or Box actions, but the action space is {space}; use HATRPO or IPPO")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"WMATRPO looks for the best action of a whole box, but the action space {space} is not bounded on all sides; "
            "bound it, for example with gymnasium.wrappers.RescaleAction, or use HATRPO"
        )
    if not (space.low < space.high).all():
        raise ValueError(
            f"WMATRPO moves actions within their box, but the action space {space} has a dimension with a single value; "
            "leave that dimension out with a wrapper, or use HATRPO"
        )


def check_search_size(
    n_rows: int, n_candidates: int, n_joint: int, n_agents: int, space: spaces.Space[Any], device: th.device
) -> None:
    """
    :param n_rows: joint steps of a rollout
    :param n_candidates: actions among which the inner maximum is looked for in each
    :param n_joint: joint actions of the team-mates in each
    :param n_agents: agents in the team
    :param space: the team's actions
    :param device: where all that is kept
    :raises ValueError: if it does not fit there
    """
    check_fits(
        # Values and distances in single precision, and again in double.
        24 * n_rows * n_candidates,
        f"`n_candidates`={n_candidates} for every joint step of a rollout of {n_rows:,} (`n_steps` times the copies)",
        "lower either",
        device,
    )
    width = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))
    check_fits(
        4 * n_rows * n_joint * n_agents * width,
        f"`n_joint`={n_joint} joint actions for every joint step of a rollout of {n_rows:,} (`n_steps` times the copies)",
        "lower either",
        device,
    )


def check_repeated_state(n_rows: int, n_candidates: int, device: th.device) -> None:
    """
    :param n_rows: joint steps of a rollout in which every state is the same, so that every action may go where any other is
    :param n_candidates: actions that cover the box besides
    :param device: where all their distances are kept
    :raises ValueError: if they do not fit there
    """
    check_fits(
        # Distances and scores in single precision, and again in double.
        24 * n_rows * (n_rows + n_candidates),
        f"the distances between {n_rows:,} joint steps (`n_steps` times the copies) that all show the same state",
        "lower `n_steps` or the number of copies",
        device,
    )


def own_bounds(own: Sequence[spaces.Space[Any]], space: spaces.Space[Any], device: th.device) -> th.Tensor:
    """
    The ends of each agent's own box, beyond which every action does what its nearest one inside does.

    :param own: the box of each agent
    :param space: the team's, which holds them all
    :param device: where tensors live
    :return: shape ``(2, n_agents, action_dim)``; zero in dimensions that an agent lacks, as is what it does there
    """
    ends = th.zeros(2, len(own), int(np.prod(space.shape or ())), device=device)
    for agent, each in enumerate(own):
        assert isinstance(each, spaces.Box)
        bounds = np.stack([each.low.reshape(-1), each.high.reshape(-1)])
        ends[:, agent, : bounds.shape[1]] = th.as_tensor(bounds).to(ends)
    return ends


def action_sets(
    own: Sequence[spaces.Space[Any]],
    space: spaces.Space[Any],
    encode: Callable[[th.Tensor], th.Tensor],
    device: th.device,
) -> list[ActionSet]:
    """
    :param own: the actions of each agent
    :param space: the team's, which holds them all
    :param encode: turns actions into what the critics read
    :param device: where tensors live
    :return: each agent's set
    """
    if isinstance(space, spaces.Discrete):
        return [Choices(int(each.n), int(space.n), device) for each in own]  # type: ignore[attr-defined]
    return [Box(low, high) for low, high in encode(own_bounds(own, space, device)).unbind(1)]
