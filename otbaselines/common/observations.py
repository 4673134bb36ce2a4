"""What policies look at before they act."""

from typing import Any

import numpy as np


def check_observation(observation: Any) -> None:
    """
    :param observation: what ``predict`` was given
    :raises ValueError: if it holds NaN, an infinite number, or one that single precision cannot hold
    """
    parts = observation.values() if isinstance(observation, dict) else [observation]
    for part in parts:
        array = np.asarray(part)
        with np.errstate(over="ignore"):
            if array.dtype.kind == "f" and not np.isfinite(array.astype(np.float32)).all():
                raise ValueError(
                    f"`observation` is NaN or infinite: {str(observation)[:200]}; look at the environment that made it"
                )
