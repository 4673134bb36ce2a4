"""Which replay buffer an algorithm fills, and whether its settings are the algorithm's own."""

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm


def check_buffer_settings(cls: type | None, settings: Mapping[str, Any], n_steps: int, gamma: float | None) -> None:
    """
    :param cls: of the replay buffer that the user asks for
    :param settings: its settings
    :param n_steps: of the algorithm
    :param gamma: of the algorithm
    :raises ValueError: if a buffer of returns would count other steps, or with another discount, than the algorithm
    """
    if cls is None or not issubclass(cls, NStepReplayBuffer):
        return
    for name, own in (("n_steps", n_steps), ("gamma", gamma)):
        if name in settings and settings[name] != own:
            raise ValueError(
                f"`replay_buffer_kwargs[{name!r}]`={settings[name]!r} contradicts the algorithm, whose `{name}` is {own!r}; "
                f"leave it out, and set `{name}` of the algorithm"
            )


def buffer_choice(model: OffPolicyAlgorithm) -> tuple[type[ReplayBuffer], dict[str, Any]]:
    """
    :param model: whose attributes say what its user asked for
    :return: the class of its replay buffer, and what that is made with beside sizes and spaces
    """
    cls, settings = model.replay_buffer_class, dict(model.replay_buffer_kwargs)
    if cls is None and isinstance(model.observation_space, spaces.Dict):
        cls = DictReplayBuffer
    elif cls is None or cls is NStepReplayBuffer:
        cls = NStepReplayBuffer if model.n_steps > 1 else ReplayBuffer
    own = {"n_steps": model.n_steps, "gamma": model.gamma}
    if cls is ReplayBuffer:
        settings = {name: value for name, value in settings.items() if name not in own}
    return cls, {**settings, **own} if issubclass(cls, NStepReplayBuffer) else settings


def new_buffer(model: OffPolicyAlgorithm) -> ReplayBuffer:
    """
    :param model: as in :func:`buffer_choice`
    :return: an empty replay buffer for it
    """
    cls, settings = buffer_choice(model)
    return cls(
        model.buffer_size,
        model.observation_space,
        model.action_space,
        device=model.device,
        n_envs=model.n_envs,
        optimize_memory_usage=model.optimize_memory_usage,
        **settings,
    )
