"""An agent at work in an environment, recorded."""

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from otbaselines.common.datasets.columns import Columns, Recording, check_spaces, number_episodes
from otbaselines.common.settings import MANY, Setting, check_settings

_SETTINGS = {
    "n_steps": Setting("integer", low=1, high=MANY, optional=True),
    "n_episodes": Setting("integer", low=1, high=MANY, optional=True),
    "deterministic": Setting("flag"),
    "seed": Setting("integer", low=0, high=2**32 - 1, optional=True),
    "name": Setting("text", optional=True),
}


def roll_out(
    model: Any,
    env: gym.Env[Any, Any] | str,
    *,
    n_steps: int | None,
    n_episodes: int | None,
    deterministic: bool,
    seed: int | None,
    name: str | None,
) -> Recording:
    """
    Let an agent act and keep what happens.

    :param model: whatever has SB3's ``predict``
    :param env: one environment, or an id
    :param n_steps: steps to record; the last episode may be cut short by it
    :param n_episodes: whole episodes to record, instead
    :param deterministic: the most probable actions instead of samples
    :param seed: of the environment and of the samples; torch's own stream is left as it was
    :param name: of the data; from the agent and the environment when omitted
    :return: the content
    :raises TypeError: if the agent cannot predict, or the environment is none of Gymnasium's
    :raises ValueError: unless exactly one of ``n_steps`` and ``n_episodes`` is given, if the spaces are no boxes, or if the
        agent's actions are of another shape
    """
    check_settings(_SETTINGS, locals())
    if (n_steps is None) == (n_episodes is None):
        raise ValueError(f"give one of `n_steps` and `n_episodes`, got {n_steps} and {n_episodes}")
    if not hasattr(model, "predict"):
        raise TypeError(f"`model` must have SB3's `predict`, got {type(model).__name__}")
    own: Any = gym.make(env) if isinstance(env, str) else env
    if not isinstance(own, gym.Env):
        raise TypeError(f"`env` must be a Gymnasium environment or an id, got {type(env).__name__}")
    name = name or f"{type(model).__name__} in {own.spec.id if own.spec else type(own.unwrapped).__name__}"
    label = f"the recording {name!r}"
    try:
        check_spaces(own.observation_space, own.action_space, label)
        device = getattr(model, "device", None)
        on_gpu = isinstance(device, th.device) and device.type == "cuda"
        with th.random.fork_rng(devices=[device] if on_gpu else [], enabled=seed is not None):
            if seed is not None:
                th.manual_seed(seed)
            columns = _record(model, own, n_steps, n_episodes, deterministic, seed)
    finally:
        if isinstance(env, str):
            own.close()
    return Recording(
        columns=columns, label=label, name=name, observation_space=own.observation_space, action_space=own.action_space
    )


def _record(
    model: Any, env: gym.Env[Any, Any], n_steps: int | None, n_episodes: int | None, deterministic: bool, seed: int | None
) -> Columns:
    rows: list[tuple[Any, ...]] = []
    episodes = 0
    # Recurrent agents need what they remember, and are told where an episode begins.
    remembers = {"state", "episode_start"} <= inspect.signature(model.predict).parameters.keys()
    state, starts = None, True
    observation, _ = env.reset(seed=seed)
    while (n_steps is None or len(rows) < n_steps) and (n_episodes is None or episodes < n_episodes):
        memory = {"state": state, "episode_start": np.array([starts])} if remembers else {}
        action, state = model.predict(observation, **memory, deterministic=deterministic)
        if np.shape(action) != env.action_space.shape or np.asarray(action).dtype.kind not in "biuf":
            raise ValueError(
                f"`model` answers {str(action)[:100]!r}, which is no action of {env.action_space}; take an agent that was "
                "trained for this environment"
            )
        following, reward, terminated, truncated, _ = env.step(action)
        # Copies: an environment may hand out the same array again and again.
        rows.append((np.array(observation), np.array(action), float(reward), np.array(following), terminated, truncated))
        observation, starts = following, bool(terminated or truncated)
        if terminated or truncated:
            episodes += 1
            observation, _ = env.reset()
    names = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")
    arrays = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return Columns(**arrays, episodes=number_episodes(arrays["terminations"] | arrays["truncations"]))
