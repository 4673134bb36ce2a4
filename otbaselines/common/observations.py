"""What policies look at before they act."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy


def check_is_observation(observation: Any) -> None:
    """
    :param observation: what ``predict`` was given
    :raises ValueError: if it is what ``reset`` of Gymnasium and PettingZoo returns, observation and infos
    """
    if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
        raise ValueError(
            "`observation` is a tuple of an observation and infos: you are mixing Gym API with SB3's VecEnv API; of a "
            "Gymnasium or PettingZoo environment take `obs, infos = env.reset()`, and pass `obs`"
        )


def as_array(name: str, observation: Any) -> np.ndarray[Any, Any]:
    """
    :param name: of the observation, for the message
    :param observation: one or several
    :return: as an array of whatever it holds
    :raises ValueError: if its rows differ in length
    """
    if isinstance(observation, th.Tensor):
        return observation.numpy(force=True)
    try:
        return np.asarray(observation)
    except (ValueError, RuntimeError):
        raise ValueError(f"{name} must hold rows of one length, got {str(observation)[:200]}") from None


def not_finite(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """
    :param values: numbers
    :return: where they are NaN or infinite, or will be in single precision; of the same shape
    """
    if values.dtype.kind != "f":
        return np.zeros(values.shape, bool)
    with np.errstate(over="ignore"):
        found: np.ndarray[Any, Any] = ~np.isfinite(values.astype(np.float32))
    return found


def on_host(observation: Any) -> Any:
    """
    :param observation: what ``predict`` was given
    :return: the same, with arrays in the place of tensors, wherever they are and whether or not they need gradients
    """
    if isinstance(observation, dict):
        return {key: on_host(part) for key, part in observation.items()}
    return observation.numpy(force=True) if isinstance(observation, th.Tensor) else observation


def check_observation(observation: Any) -> None:
    """
    :param observation: what ``predict`` was given
    :raises ValueError: if it is no observation, or holds NaN, an infinite number, or one that single precision cannot hold
    """
    check_is_observation(observation)
    parts = observation.values() if isinstance(observation, dict) else [observation]
    for part in parts:
        if not_finite(as_array("`observation`", part)).any():
            shown = str(observation)[:200]
            raise ValueError(f"`observation` is NaN or infinite: {shown}; look at the environment that made it")


class CheckedObservations(BasePolicy):
    """``predict`` of SB3's policies, which looks at observations first: ``class Own(CheckedObservations, BasePolicy)``."""

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray[Any, Any], ...] | None = None,
        episode_start: np.ndarray[Any, Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...] | None]:
        """
        As SB3's.

        :raises ValueError: if it is no observation, or numbers are NaN or infinite
        """
        observation = on_host(observation)
        check_observation(observation)
        return super().predict(observation, state, episode_start, deterministic)
