"""Stopping before NaN or infinity reaches the networks."""

from typing import Any

import numpy as np
import torch as th

from otbaselines.common.multi_agent.buffers import AgentRolloutBuffer
from otbaselines.common.vec_env.layout import TeamLayout


def check_rollout(buffer: AgentRolloutBuffer, layout: TeamLayout, num_timesteps: int) -> None:
    """
    Check the rewards and observations of a rollout with one look at the device.

    :param buffer: the rollout
    :param layout: the team
    :param num_timesteps: agent-steps so far
    :raises ValueError: if one is NaN or infinite; names the quantity, the agent, its copy and the step
    """
    observations = buffer.observations if isinstance(buffer.observations, dict) else {"observations": buffer.observations}
    quantities = {"rewards": buffer.rewards, **{k: v for k, v in observations.items() if v.is_floating_point()}}
    # The sum of absolute values is finite exactly when every entry is (and is far from overflow): one number each.
    sums = th.stack([tensor.abs().sum(dtype=th.float64) for tensor in quantities.values()])
    if bool(th.isfinite(sums).all()):
        return
    for name, tensor in quantities.items():
        bad = (~th.isfinite(tensor)).flatten(3).any(-1) if tensor.ndim > 3 else ~th.isfinite(tensor)
        if bool(bad.any()):
            step, copy, agent = (int(index) for index in bad.nonzero()[0])
            raise _not_finite(name, step, copy, agent, layout, num_timesteps)


def check_rows(rows: Any, step: int, layout: TeamLayout, num_timesteps: int) -> None:
    """
    Check what a vector environment returned, before continuous actions, which would be NaN too, are blamed for it.

    :param rows: observations, one row per slot, or a dict of them
    :param step: step of the rollout
    :param layout: the team
    :param num_timesteps: agent-steps so far
    :raises ValueError: if one is NaN or infinite; names the quantity, the agent, its copy and the step
    """
    named = rows if isinstance(rows, dict) else {"observations": rows}
    for name, part in named.items():
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            slot = int(np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(1))[0])
            raise _not_finite(name, step, *divmod(slot, layout.n_agents), layout, num_timesteps)


def _not_finite(name: str, step: int, copy: int, agent: int, layout: TeamLayout, num_timesteps: int) -> ValueError:
    return ValueError(
        f"`{name}` of agent {layout.possible_agents[agent]!r} in copy {copy} became NaN or infinite at step {step} of the "
        f"rollout that reached {num_timesteps} agent-steps; the policy was left as it was. Check the environment, for example "
        "with stable_baselines3.common.vec_env.VecCheckNan"
    )
