"""Classes by their dotted names, from an allow-list: a file's words must not choose what is imported and called."""

import importlib
import re
from typing import Final

import torch as th
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.distributions import Distribution

_PACKAGES: Final = ("torch.nn", "torch.optim", "stable_baselines3", "otbaselines")
# A class of these packages is instantiated with arguments from the file, so only kinds whose constructors merely
# build networks, optimizers and buffers are let through (the packages also hold loggers that open files).
_STORABLE_BASES: Final = (th.nn.Module, th.optim.Optimizer, BaseBuffer, Distribution)


def _in_packages(module: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in _PACKAGES)


def class_to_name(cls: type) -> str | None:
    """
    The dotted name under which a class is stored.

    :param cls: a network, optimizer, buffer or distribution class
    :return: its name, in the short public form for torch's own (``torch.nn.Tanh``); None if the class is not one that
        :func:`class_from_name` would give back
    """
    for package in (th.nn, th.optim):
        if vars(package).get(cls.__name__) is cls:
            return f"{package.__name__}.{cls.__name__}"
    name = f"{cls.__module__}.{cls.__qualname__}"
    try:
        return name if class_from_name(name) is cls else None
    except ValueError:
        return None


def class_from_name(name: str) -> type:
    """
    Look up a class by its dotted name, only inside torch.nn, torch.optim, stable_baselines3 and otbaselines.

    :param name: the dotted name, e.g. ``torch.nn.Tanh``
    :return: the class
    :raises ValueError: if the name leaves those packages, does not exist, or is not a network, optimizer, buffer or
        distribution class that was defined there
    """
    refusal = (
        f"The class name {str(name)[:100]!r} is refused: only network, optimizer, buffer and distribution classes of "
        f"{', '.join(_PACKAGES)} are loaded by name; give your own through `custom_objects`"
    )
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name, flags=re.ASCII):
        raise ValueError(refusal)
    module_name, _, class_name = name.rpartition(".")
    if not _in_packages(module_name):
        raise ValueError(refusal)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        raise ValueError(refusal) from error
    found = vars(module).get(class_name)
    # The module of the class itself counts: a module's namespace also holds whatever it has imported.
    if (
        not isinstance(found, type)
        or found.__name__ != class_name
        or not _in_packages(found.__module__)
        or not issubclass(found, _STORABLE_BASES)
    ):
        raise ValueError(refusal)
    return found
