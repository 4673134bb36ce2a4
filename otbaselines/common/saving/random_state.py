"""Where the random streams of a learner stand, so that training without an environment resumes to the bit."""

import random
from typing import Any

import numpy as np
import torch as th


def _generators(model: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(model).items() if isinstance(value, (np.random.Generator, th.Generator))}


def random_state(model: Any) -> dict[str, Any]:
    """
    :param model: a learner
    :return: the states of Python's, NumPy's and torch's global streams and of the generators among its attributes
    """
    state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state()}  # noqa: NPY002
    if model.device.type == "cuda":
        state["cuda"] = th.cuda.get_rng_state(model.device)
    return state | {
        "own": {
            name: generator.get_state() if isinstance(generator, th.Generator) else generator.bit_generator.state
            for name, generator in _generators(model).items()
        }
    }


def set_random_state(model: Any, state: dict[str, Any]) -> None:
    """
    The inverse of :func:`random_state`. A stream of CUDA is left alone where the model is on another device.

    :param model: the learner
    :param state: what that returned
    :raises ValueError: if it is of no such form; no stream has been touched then
    """
    generators = _generators(model)
    try:
        if set(state["own"]) != set(generators):
            raise ValueError(f"it has the generators {sorted(state['own'])}, expected {sorted(generators)}")
        # Twins first: they refuse what is damaged.
        random.Random().setstate(state["python"])
        np.random.RandomState().set_state(state["numpy"])
        th.Generator().set_state(state["torch"])
        for name, generator in generators.items():
            if isinstance(generator, th.Generator):
                th.Generator(generator.device).set_state(state["own"][name])
            else:
                type(generator.bit_generator)().state = state["own"][name]
    except Exception as error:
        raise ValueError(f"`_random_state` cannot be restored: {error}") from error
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    th.set_rng_state(state["torch"])
    if "cuda" in state and model.device.type == "cuda":
        th.cuda.set_rng_state(state["cuda"], model.device)
    for name, generator in generators.items():
        if isinstance(generator, th.Generator):
            generator.set_state(state["own"][name])
        else:
            generator.bit_generator.state = state["own"][name]
