"""SB3's action noises as strict JSON, with where their processes stand."""

from typing import Any

import numpy as np
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise

from otbaselines.common.saving.arrays import ARRAY_DTYPES, array_from_json, array_to_json

# A subclass may draw otherwise.
_MODULE = NormalActionNoise.__module__


def noise_to_json(noise: ActionNoise) -> dict[str, Any] | None:
    """
    :param noise: an action noise
    :return: a dictionary with ``type`` and all that the next draw depends on; None for a class of the user's own
    """
    if type(noise) is VectorizedActionNoise:
        parts = [noise_to_json(part) for part in (noise.base_noise, *noise.noises)]
        return None if None in parts else {"type": "vectorized", "base": parts[0], "noises": parts[1:]}
    if not isinstance(noise, (NormalActionNoise, OrnsteinUhlenbeckActionNoise)) or type(noise).__module__ != _MODULE:
        return None
    stored: dict[str, Any] = {"type": "normal", "dtype": np.dtype(noise._dtype).name}
    values: dict[str, Any] = {"mean": noise._mu, "sigma": noise._sigma}
    if isinstance(noise, OrnsteinUhlenbeckActionNoise):
        stored["type"] = "ornstein_uhlenbeck"
        values |= {"theta": noise._theta, "dt": noise._dt, "previous": noise.noise_prev}
        values["initial"] = [] if noise.initial_noise is None else noise.initial_noise
    return stored | {name: array_to_json(np.asarray(value)) for name, value in values.items()}


def noise_from_json(stored: dict[str, Any]) -> ActionNoise:
    """
    The inverse of :func:`noise_to_json`.

    :param stored: the dictionary
    :return: the noise
    :raises ValueError: if the type is unknown, or a number is impossible
    """
    if stored["type"] == "vectorized":
        noises = [noise_from_json(part) for part in stored["noises"]]
        previous: list[Any] = [getattr(noise, "noise_prev", None) for noise in noises]
        vectorized = VectorizedActionNoise(noise_from_json(stored["base"]), len(noises))
        # This starts every process anew.
        vectorized.noises = noises
        for noise, value in zip(noises, previous, strict=True):
            if isinstance(noise, OrnsteinUhlenbeckActionNoise):
                noise.noise_prev = value
        return vectorized
    if stored["dtype"] not in ARRAY_DTYPES:
        raise ValueError(f"The dtype {stored['dtype']!r} is unknown")
    arrays: dict[str, Any] = {name: array_from_json(value) for name, value in stored.items() if name not in ("type", "dtype")}
    if not all(np.isfinite(array).all() for array in arrays.values()) or (arrays["sigma"] < 0).any():
        raise ValueError("an action noise needs finite numbers and a `sigma` that is not negative")
    shape = np.broadcast_shapes(arrays["mean"].shape, arrays["sigma"].shape)
    dtype = np.dtype(stored["dtype"])
    if stored["type"] == "normal":
        return NormalActionNoise(arrays["mean"], arrays["sigma"], dtype)
    if stored["type"] != "ornstein_uhlenbeck":
        raise ValueError(f"The noise {stored['type']!r} is unknown; update otbaselines")
    initial = arrays["initial"] if arrays["initial"].size else None
    process = OrnsteinUhlenbeckActionNoise(
        arrays["mean"], arrays["sigma"], float(arrays["theta"]), float(arrays["dt"]), initial, dtype
    )
    if any(array.shape not in (shape, arrays["mean"].shape) for array in (arrays["previous"], process.noise_prev)):
        raise ValueError(f"the state of the noise must have the shape {shape}")
    process.noise_prev = arrays["previous"]
    return process
