"""Saving and loading of algorithms without pickles: SB3's ``save`` and ``load`` over plain JSON and tensors."""

import inspect
import os
import pathlib
import warnings
from collections import deque
from collections.abc import Iterable
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr, recursive_setattr
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from otbaselines.common.saving.archive import Archive, SavePath, atomic_write, describe, read_zip, versions, write_zip
from otbaselines.common.saving.arrays import MAX_ELEMENTS
from otbaselines.common.saving.values import decode_value, encode_value

__all__ = ["JsonSaveMixin", "atomic_write", "read_zip", "write_zip"]

# Raised by one whenever an older otbaselines could no longer read the file.
_FORMAT = 1
_REQUIRED = ("policy_class", "observation_space", "action_space", "n_envs")
_NEVER_STORED = ("self", "policy", "env", "device", "_init_setup_model")
# The state of an unfinished rollout, for `load(..., force_reset=False)`.
_LAST_STEP = ("_last_obs", "_last_episode_starts", "_last_original_obs")
_EPISODES = ("ep_info_buffer", "ep_success_buffer")
# Stored beside the constructor's parameters and `_json_state`.
_BESIDE = (*_REQUIRED, *_EPISODES, *_LAST_STEP, "_extra_data")
_VARIABLES = "pytorch_variables"


def _portable_log(path: Any) -> str | None:
    """A log directory below the working directory; others name somebody's machine, or write where nobody expects it."""
    if path is None or os.path.isabs(str(path)) or ".." in pathlib.PurePath(str(path)).parts:
        return None
    return str(path)


def _ask_again(missing: list[str]) -> str:
    """The ``custom_objects`` that would supply what a file lacks."""
    names = sorted({item.split(" ")[0].split("[")[0] for item in missing})
    return "custom_objects={" + ", ".join(f"'{name}': ..." for name in names) + "}"


def _is_small(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_small(item) for item in value.values())
    return not isinstance(value, (np.ndarray, th.Tensor)) or int(np.prod(value.shape)) <= MAX_ELEMENTS


def _encode_episodes(buffer: Any) -> Any:
    """The statistics of the last episodes; what a wrapper has added beyond reward, length and time may be unstorable."""
    episodes: deque[Any] = deque(maxlen=buffer.maxlen)
    for episode in buffer:
        lost: list[str] = []
        encode_value(episode, missing=lost)
        episodes.append({key: episode[key] for key in ("r", "l", "t") if key in episode} if lost else episode)
    return encode_value(episodes, name="ep_info_buffer")


class JsonSaveMixin(BaseAlgorithm):
    """
    ``save`` and ``load`` with SB3's signatures and zip layout, in which every entry is plain JSON or a state dict.

    Put it before an SB3 algorithm: ``class WBC(JsonSaveMixin, OnPolicyAlgorithm)``. What the class must keep to:

    - the constructor works with ``env=None`` and ``_init_setup_model=False``, and keeps each parameter's current value in
      an attribute of the same name (or with one underscore before it, as SB3's ``_stats_window_size``), in a form that the
      constructor takes again; schedules may have become callables;
    - ``_setup_model`` uses attributes only;
    - tensors that must survive are named by ``_get_torch_save_params``, best as parts of the policy module;
    - further plain attributes that must survive are named in ``_json_state``.

    The logger, the environment, buffers and a ``tensorboard_log`` outside the working directory are not stored. Attributes
    that are named nowhere are not stored either, unless ``save(include=...)`` names them.

    :cvar _json_state: names of plain attributes that survive, merged over the class's ancestors
    :cvar _json_skip: names of constructor parameters that are never stored (datasets, clients), merged likewise; ``load``
        leaves them at their defaults or takes them as keywords
    """

    _json_state: ClassVar[tuple[str, ...]] = (
        "num_timesteps",
        "_total_timesteps",
        "_num_timesteps_at_start",
        "_episode_num",
        "_n_updates",
        "_current_progress_remaining",
    )
    _json_skip: ClassVar[tuple[str, ...]] = ()

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

    def _check_env(self, env: VecEnv) -> None:
        """
        Refuse an environment that does not fit the loaded model.

        :param env: the wrapped environment
        :raises ValueError: if its spaces are not the model's
        """
        check_for_correct_spaces(cast(GymEnv, env), self.observation_space, self.action_space)

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
        """
        The names that the constructor takes as keywords, through ``**kwargs`` into its ancestors.

        :return: the names, without the policy, the environment and the device
        """
        names: list[str] = []
        for base in cls.__mro__:
            if "__init__" not in vars(base):
                continue
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            names += [parameter.name for parameter in parameters if parameter.kind in keywords]
            if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
                break
        return tuple(name for name in dict.fromkeys(names) if name not in _NEVER_STORED)

    @classmethod
    def _is_free(cls, name: Any) -> bool:
        """Whether a file may set an attribute of this name: it must not hide what the class defines."""
        defined = inspect.getattr_static(cls, str(name), None)
        return str(name).isidentifier() and not callable(defined) and not hasattr(defined, "__get__")

    def _parameter_value(self, name: str) -> Any:
        for attribute in (name, f"_{name}"):
            if hasattr(self, attribute):
                value = getattr(self, attribute)
                if name == "policy_kwargs":
                    return {key: item for key, item in (value or {}).items() if key != "device"}
                return _portable_log(value) if name == "tensorboard_log" else value
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
        for name in _EPISODES:
            buffer = getattr(self, name)
            state[name] = None if buffer is None else _encode_episodes(buffer)
        for name in _LAST_STEP:
            value = getattr(self, name)
            state[name] = encode_value(value if _is_small(value) else None, name=name)
        return state

    def _encode_data(self, exclude: set[str], include: set[str]) -> dict[str, Any]:
        required = exclude.intersection(_REQUIRED)
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
            "n_envs": int(self.n_envs),
        }
        skipped = exclude.union(self._merged("_json_skip")).difference(include)
        parameters = [name for name in self._constructor_parameters() if name not in skipped]
        for name in parameters:
            data[name] = encode_value(self._parameter_value(name), name=name, missing=missing)
        others = include.difference(data, _EPISODES, _LAST_STEP)
        data |= {name: value for name, value in self._encode_state(sorted(others)).items() if name not in exclude - include}
        data["_extra_data"] = encode_value(self._extra_data(), name="_extra_data")
        if missing:
            warnings.warn(
                f"{type(self).__name__}.save: JSON cannot hold {', '.join(missing)}, so the file is written without. "
                f"Give it again at load: {type(self).__name__}.load(path, {_ask_again(missing)}). A schedule can be "
                "stored as a number, as 'lin_<start>', or as stable_baselines3.common.utils.LinearSchedule.",
                UserWarning,
                stacklevel=3,
            )
        return data

    def _manifest(self, data: dict[str, Any], included: Iterable[str]) -> dict[str, Any]:
        schedules = [name for name in data if callable(getattr(self, name, None)) and name in self._constructor_parameters()]
        schedules = [
            name for name in ("learning_rate", *schedules) if name in data and not isinstance(getattr(self, name), type)
        ]
        return {
            "format": _FORMAT,
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "lineage": [base.__name__ for base in type(self).__mro__ if issubclass(base, JsonSaveMixin)],
            "policy": data["policy_class"],
            "observation_space": data["observation_space"],
            "action_space": data["action_space"],
            "policy_kwargs": data.get("policy_kwargs", {}),
            "schedules": {name: data[name] for name in dict.fromkeys(schedules)},
            "included": sorted(included),
            "versions": versions(),
        }

    def unsaved_attributes(self) -> set[str]:
        """
        Attributes that ``save`` does not write. A state that must survive and appears here belongs in ``_json_state``.

        :return: names of instance attributes
        """
        names, variables = self._get_torch_save_params()
        parameters = set(self._constructor_parameters()).difference(self._merged("_json_skip"))
        stored = {*_BESIDE, *self._merged("_json_state"), *parameters, *(f"_{name}" for name in parameters)}
        modules = {name.split(".")[0] for name in (*names, *variables)}
        return set(vars(self)).difference(stored, modules, self._excluded_save_params(), ("start_time", "lr_schedule"))

    def save(self, path: SavePath, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save the model as a zip of JSON and tensors. A path is written whole or not at all.

        :param path: where to save; ``.zip`` is added to a path that does not end so
        :param exclude: names of parameters and attributes to leave out; they are at their defaults after ``load``
        :param include: names of further attributes to store
        :raises TypeError: if an attribute to be stored is something that JSON cannot hold. A constructor parameter of that
            kind, such as a function as schedule, gives a ``UserWarning`` instead, and ``load`` asks for it
        """
        included = set(include or ())
        data = self._encode_data(set(exclude or ()), included)
        tensors: dict[str, Any] = dict(self.get_parameters())
        variables = self._get_torch_save_params()[1]
        if variables:
            tensors[_VARIABLES] = {name: recursive_getattr(self, name) for name in variables}
        write_zip(path, data=data, tensors=tensors, manifest=self._manifest(data, included))

    # ------------------------------------------------------------ loading

    @classmethod
    def _check_manifest(cls, manifest: dict[str, Any], label: str) -> None:
        if not isinstance(manifest.get("format"), int) or manifest["format"] > _FORMAT:
            raise ValueError(
                f"`path` {label} has the format {manifest.get('format')!r}, this otbaselines reads up to {_FORMAT}; update it"
            )
        # Bare names, so that a class may move to another module. A file of an ancestor or a descendant is let through.
        lineage = manifest.get("lineage")
        if not isinstance(lineage, list) or not lineage or not isinstance(manifest.get("included"), list):
            raise ValueError(f"`path` {label} does not say which class it holds; save the model again")
        if lineage[0] not in [base.__name__ for base in cls.__mro__] and cls.__name__ not in lineage:
            raise ValueError(f"`path` {label} holds a {lineage[0]}, not a {cls.__name__}; load it with {lineage[0]}.load")

    @classmethod
    def _decode_data(cls, saved: Archive, given: dict[str, Any], label: str) -> dict[str, Any]:
        """The stored values, with those that the caller gives in their place."""
        absent = [name for name in _REQUIRED if name not in saved.data]
        if absent:
            raise ValueError(f"`path` {label} holds no {', '.join(absent)}; save the model again")
        included = [name for name in saved.manifest["included"] if cls._is_free(name)]
        known = {*_BESIDE, *cls._constructor_parameters(), *cls._merged("_json_state"), *included}
        unknown = sorted(set(saved.data) - known)
        if unknown:
            raise ValueError(
                f"`path` {label} holds {', '.join(unknown)}, which {cls.__name__} does not know; it was saved by another "
                "class or by a newer otbaselines"
            )
        missing: list[str] = []
        values = {}
        for name, stored in saved.data.items():
            try:
                values[name] = given[name] if name in given else decode_value(stored, name=name, missing=missing)
            except ValueError as error:
                raise ValueError(f"`path` {label} cannot be loaded: {error}; save the model again") from error
        if missing:
            raise ValueError(
                f"`path` {label} could not store {', '.join(missing)}; give it at load: "
                f"{cls.__name__}.load(path, {_ask_again(missing)})"
            )
        if "tensorboard_log" in values and "tensorboard_log" not in given:
            values["tensorboard_log"] = _portable_log(values["tensorboard_log"])
        return {**{name: given[name] for name in cls._constructor_parameters() if name in given}, **values}

    @classmethod
    def _resolve(cls, saved: Archive, custom: dict[str, Any], kwargs: dict[str, Any], label: str) -> dict[str, Any]:
        """Decoded data with the caller's replacements, and SB3's check that ``policy_kwargs`` are not contradicted."""
        forbidden = sorted(set(kwargs).intersection(_NEVER_STORED))
        if forbidden:
            raise TypeError(f"`load` cannot take {', '.join(forbidden)} as keywords; use `env`, `device` or `policy_class`")
        values = cls._decode_data(saved, {**kwargs, **custom} if custom else kwargs, label)
        if "policy_kwargs" in kwargs:
            lost: list[str] = []
            stored = custom.get("policy_kwargs", decode_value(saved.data.get("policy_kwargs", {}), missing=lost))
            # A part that could not be stored cannot be contradicted.
            if not lost and kwargs["policy_kwargs"] != stored:
                raise ValueError(
                    "The specified policy kwargs do not equal the stored policy kwargs. "
                    f"Stored kwargs: {stored}, specified kwargs: {kwargs['policy_kwargs']}; leave out `policy_kwargs`"
                )
        return {**values, **{name: value for name, value in kwargs.items() if name in cls._constructor_parameters()}}

    def _attach(self, env: GymEnv) -> None:
        wrapped = self._wrap_env(env, self.verbose)
        self._check_env(wrapped)
        self.env = wrapped
        self.n_envs = wrapped.num_envs
        self._vec_normalize_env = unwrap_vec_normalize(wrapped)

    def _restore_tensors(self, tensors: dict[str, Any], label: str) -> None:
        names, variables = self._get_torch_save_params()
        expected = {*names, *([_VARIABLES] if variables else [])}
        if set(tensors) != expected or set(tensors.get(_VARIABLES, {})) != set(variables):
            raise ValueError(
                f"`path` {label} holds the tensors {sorted(tensors)}, expected {sorted(expected)}; save the model again"
            )
        try:
            self.set_parameters({name: tensors[name] for name in names}, exact_match=True, device=self.device)
            for name in variables:
                # The data alone: an optimizer may already hold the tensor itself.
                recursive_setattr(self, f"{name}.data", tensors[_VARIABLES][name].data)
        except (RuntimeError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, th.OutOfMemoryError):
                raise
            raise ValueError(f"`path` {label} does not fit the model that it describes: {error}") from error

    @classmethod
    def load(
        cls,
        path: SavePath,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trust_pickle: bool = False,
        **kwargs: Any,
    ) -> Self:
        """
        Load a model from a zip file. Nothing in the file is executed, so it may come from anywhere.

        The model is built anew; for an in-place load use ``set_parameters``.

        :param path: the file, with or without ``.zip``, or an open binary file
        :param env: the environment to go on with; its spaces must be the stored ones. None is enough for ``predict``
        :param device: where to put the model
        :param custom_objects: values by name that take the place of stored ones, above all those that ``save`` could not store
        :param print_system_info: print the system of the file and the present one
        :param force_reset: reset the environment before training. Without it, the stored last observation is used
        :param trust_pickle: allow a file of SB3's own, with pickled entries. They execute whatever their author wished
        :param kwargs: constructor parameters and attributes to change
        :return: the model
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if the file is damaged, was tampered with, belongs to another class, does not fit ``env``, or
            lacks a value that ``custom_objects`` has to supply
        """
        if custom_objects is not None and not isinstance(custom_objects, dict):
            raise ValueError("custom_objects argument must be a dict or None")
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")
            get_system_info()
        saved = read_zip(path, device=device, trust_pickle=trust_pickle)
        if saved.pickled:
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if print_system_info:
            print("== SAVED MODEL SYSTEM INFO ==")
            print(saved.system_info)
        label = repr(describe(path))
        cls._check_manifest(saved.manifest, label)
        values = cls._resolve(saved, custom_objects or {}, kwargs, label)
        if env is not None and force_reset:
            values["_last_obs"] = None
        parameters = {name: values.pop(name) for name in cls._constructor_parameters() if name in values}
        model = cls(policy=values.pop("policy_class"), env=None, device=device, _init_setup_model=False, **parameters)  # type: ignore[call-arg]
        model._rebuild(values, {name: value for name, value in kwargs.items() if name not in parameters}, env)
        model._restore_tensors(saved.tensors, label)
        if model.use_sde:
            # The exploration matrix is no parameter, and must be on the right device.
            model.policy.reset_noise()  # type: ignore[operator]
        return model

    def _rebuild(self, values: dict[str, Any], changes: dict[str, Any], env: GymEnv | None) -> None:
        """Set what the constructor could not know, and build the networks."""
        unknown = sorted(name for name in changes if not hasattr(self, name) and name not in _REQUIRED)
        if unknown:
            raise ValueError(f"`load` got {', '.join(unknown)}, which {type(self).__name__} does not have; check the spelling")
        for name in ("observation_space", "action_space"):
            if not isinstance(values[name], spaces.Space):
                raise ValueError(f"`{name}` must be a Gymnasium space, got {values[name]!r}")
        self.observation_space, self.action_space = values.pop("observation_space"), values.pop("action_space")
        self.n_envs = values.pop("n_envs")
        extra = values.pop("_extra_data", {})
        state = {**values, **changes}
        vars(self).update(state)
        self._load_extra_data(extra)
        if env is not None:
            self._attach(env)
        self._setup_model()
        # Once more: the counters are there for `_setup_model`, and it must not have reset them.
        vars(self).update(state)
        for name in _LAST_STEP:
            if isinstance(value := getattr(self, name), th.Tensor):
                setattr(self, name, value.to(self.device))
