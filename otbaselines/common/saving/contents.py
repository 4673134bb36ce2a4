"""What of a model goes into its file as plain JSON, and which hooks a class has to say so."""

import inspect
import re
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

from stable_baselines3.common.base_class import BaseAlgorithm

from otbaselines.common.saving.archive import versions
from otbaselines.common.saving.arrays import is_integer
from otbaselines.common.saving.description import (
    EPISODES,
    LAST_STEP,
    REQUIRED,
    constructor_parameters,
    encode_episodes,
    is_small,
    portable_log,
)
from otbaselines.common.saving.random_state import random_state
from otbaselines.common.saving.values import encode_value

# Raised by one whenever an older otbaselines could no longer read the file.
FORMAT = 1
# Stored beside the constructor's parameters and `_json_state`.
BESIDE = (*REQUIRED, *EPISODES, *LAST_STEP, "_extra_data")


def ask_again(missing: list[str]) -> str:
    """
    :param missing: what a file lacks
    :return: the ``custom_objects`` that would supply it
    """
    names = sorted({item.split(" ")[0].split("[")[0] for item in missing})
    return "custom_objects={" + ", ".join(f"'{name}': ..." for name in names) + "}"


def name_set(names: Any, argument: str) -> set[str]:
    """
    :param names: several names, or None
    :param argument: what holds them
    :return: the names
    :raises TypeError: if it is anything else, such as one text, whose letters would be taken for names
    """
    found = None if isinstance(names, str) or not isinstance(names, Iterable | None) else list(names or ())
    if found is None or not all(isinstance(name, str) for name in found):
        raise TypeError(f"`{argument}` must be a list of names, got {str(names)[:100]!r}")
    return set(found)


def writer(manifest: dict[str, Any]) -> str:
    """
    :param manifest: of a file
    :return: which otbaselines has written it, in comparison with this one
    """
    stored, own = manifest.get("versions"), versions()["otbaselines"]
    version = str(stored.get("otbaselines"))[:50] if isinstance(stored, dict) else "unknown"
    one, other = ([int(number) for number in re.findall(r"[0-9]+", text)[:3]] for text in (version, own))
    if version == own or not (one and other):
        return f"an older or a newer state of otbaselines (the file's is {version!r}, this is {own!r})"
    return f"{'an older' if one < other else 'a newer'} otbaselines (the file's is {version!r}, this is {own!r})"


def check_manifest(manifest: dict[str, Any], cls: type, label: str) -> None:
    """
    :param manifest: of a file
    :param cls: the class that is to be loaded
    :param label: the file
    :raises ValueError: if the file is of a newer format, or holds something else
    """
    if not is_integer(manifest.get("format")) or manifest["format"] > FORMAT:
        raise ValueError(
            f"`path` {label} has the format {str(manifest.get('format'))[:50]!r}, this otbaselines reads up to {FORMAT}; "
            "update it"
        )
    # Bare names, so that a class may move to another module. A file of an ancestor or a descendant is let through.
    lineage = manifest.get("lineage")
    if not isinstance(lineage, list) or not lineage or not all(isinstance(name, str) for name in lineage):
        raise ValueError(f"`path` {label} does not say which class it holds; save the model again")
    if lineage[0] not in [base.__name__ for base in cls.__mro__] and cls.__name__ not in lineage:
        name = lineage[0][:100]
        raise ValueError(f"`path` {label} holds a {name}, not a {cls.__name__}; load it with {name}.load")


class JsonContents(BaseAlgorithm):
    """The half of :class:`~otbaselines.common.saving.algorithm.JsonSaveMixin` that says what is stored."""

    _json_state: ClassVar[tuple[str, ...]] = (
        "num_timesteps",
        "_total_timesteps",
        "_num_timesteps_at_start",
        "_episode_num",
        "_n_updates",
        "_current_progress_remaining",
    )
    _json_skip: ClassVar[tuple[str, ...]] = ()
    _saves_random_state: ClassVar[bool] = False

    # ------------------------------------------------------------ hooks

    def _extra_data(self) -> dict[str, Any]:
        """
        What else ``_setup_model`` needs when there is no environment, e.g. the agents and their own spaces.

        :return: names and values that :func:`~otbaselines.common.saving.values.encode_value` takes
        """
        return {}

    def _load_extra_data(self, extra: dict[str, Any]) -> None:
        """
        Take back what ``_extra_data`` gave. Called after the spaces are set, and before the environment is checked and
        ``_setup_model`` runs.

        :param extra: the decoded values
        """

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        if names == ["policy"] and hasattr(self.policy, "optimizer"):
            # SB3's base class forgets the optimizer, which `load` would then silently start afresh.
            names = ["policy", "policy.optimizer"]
        return names, variables

    # ------------------------------------------------------------ what is stored

    @classmethod
    def _merged(cls, attribute: str) -> tuple[str, ...]:
        names = (name for base in reversed(cls.__mro__) for name in vars(base).get(attribute, ()))
        return tuple(dict.fromkeys(names))

    @classmethod
    def _constructor_parameters(cls) -> tuple[str, ...]:
        return tuple(constructor_parameters(cls))

    @classmethod
    def _is_free(cls, name: Any) -> bool:
        """Whether a file may hold an attribute of this name: it must not hide what the class defines."""
        defined = inspect.getattr_static(cls, str(name), None)
        return str(name).isidentifier() and not callable(defined) and not hasattr(defined, "__get__")

    def _parameter_value(self, name: str) -> Any:
        for attribute in (name, f"_{name}"):
            if hasattr(self, attribute):
                value = getattr(self, attribute)
                if name == "policy_kwargs":
                    return {key: item for key, item in (value or {}).items() if key != "device"}
                return portable_log(value) if name == "tensorboard_log" else value
        raise TypeError(
            f"`{type(self).__name__}` keeps no attribute for its constructor parameter `{name}`, so it cannot be saved; "
            f"set `self.{name}`, or name it in `_json_skip`"
        )

    def _stored_policy(self) -> str | type:
        aliases = (alias for alias, policy in self.policy_aliases.items() if policy is self.policy_class)
        return next(aliases, self.policy_class)

    def _encode_state(self, include: Iterable[str]) -> dict[str, Any]:
        state = {}
        for name in dict.fromkeys((*self._merged("_json_state"), *include)):
            if not hasattr(self, name):
                raise TypeError(
                    f"`{type(self).__name__}` has no attribute `{name}` to save; correct `_json_state` or `include`"
                )
            state[name] = encode_value(getattr(self, name), name=name)
        for name in EPISODES:
            state[name] = encode_episodes(getattr(self, name))
        for name in LAST_STEP:
            value = getattr(self, name)
            state[name] = encode_value(value if is_small(value) else None, name=name)
        return state

    def _encode_data(self, exclude: set[str], include: set[str]) -> dict[str, Any]:
        required = exclude.intersection(REQUIRED)
        if required:
            raise ValueError(
                f"`exclude` names {sorted(required)}, without which nothing can be loaded; leave it out of `exclude`"
            )
        defined = sorted(name for name in include if not self._is_free(name))
        if defined:
            raise ValueError(
                f"`include` names {defined}, which {type(self).__name__} itself defines; name plain attributes only"
            )
        missing: list[str] = []
        data: dict[str, Any] = {
            "policy_class": encode_value(self._stored_policy(), name="policy_class", missing=missing),
            "observation_space": encode_value(self.observation_space, name="observation_space"),
            "action_space": encode_value(self.action_space, name="action_space"),
            # SB3 sets this with an environment only.
            "n_envs": int(getattr(self, "n_envs", 1)),
        }
        skipped = exclude.union(self._merged("_json_skip")).difference(include)
        parameters = [name for name in self._constructor_parameters() if name not in skipped]
        for name in parameters:
            data[name] = encode_value(self._parameter_value(name), name=name, missing=missing)
        others = include.difference(data, EPISODES, LAST_STEP)
        data |= {name: value for name, value in self._encode_state(sorted(others)).items() if name not in exclude - include}
        data["_extra_data"] = encode_value(self._extra_data(), name="_extra_data")
        if self._saves_random_state:
            data["_random_state"] = encode_value(random_state(self), name="_random_state")
        if missing:
            warnings.warn(
                f"{type(self).__name__}.save: JSON cannot hold {', '.join(missing)}, so the file is written without. "
                f"Give it again at load: {type(self).__name__}.load(path, {ask_again(missing)}). A schedule can be "
                "stored as a number, as 'lin_<start>', or as stable_baselines3.common.utils.LinearSchedule.",
                UserWarning,
                stacklevel=3,
            )
        return data

    def _manifest(self, data: dict[str, Any]) -> dict[str, Any]:
        schedules = [name for name in data if callable(getattr(self, name, None)) and name in self._constructor_parameters()]
        schedules = [
            name for name in ("learning_rate", *schedules) if name in data and not isinstance(getattr(self, name), type)
        ]
        return {
            "format": FORMAT,
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "lineage": [base.__name__ for base in type(self).__mro__ if issubclass(base, JsonContents)],
            "policy": data["policy_class"],
            "observation_space": data["observation_space"],
            "action_space": data["action_space"],
            "policy_kwargs": data.get("policy_kwargs", {}),
            "schedules": {name: data[name] for name in dict.fromkeys(schedules)},
            "versions": versions(),
        }

    def unsaved_attributes(self) -> set[str]:
        """
        Attributes that ``save`` does not write. A state that must survive and appears here belongs in ``_json_state``.

        :return: names of instance attributes
        """
        names, variables = self._get_torch_save_params()
        parameters = set(self._constructor_parameters()).difference(self._merged("_json_skip"))
        stored = {*BESIDE, *self._merged("_json_state"), *parameters, *(f"_{name}" for name in parameters)}
        modules = {name.split(".")[0] for name in (*names, *variables)}
        return set(vars(self)).difference(stored, modules, self._excluded_save_params(), ("start_time", "lr_schedule"))
