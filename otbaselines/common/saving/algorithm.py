"""Saving and loading of algorithms without pickles: SB3's ``save`` and ``load`` over plain JSON and tensors."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Self, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from otbaselines.common.saving.archive import (
    Archive,
    SavePath,
    atomic_write,
    describe,
    has_suffix,
    naming_damage,
    read_zip,
    write_zip,
)
from otbaselines.common.saving.contents import BESIDE, JsonContents, ask_again, check_manifest, name_set, writer
from otbaselines.common.saving.description import (
    LAST_STEP,
    REQUIRED,
    check_arguments,
    check_device,
    check_sizes,
    check_state,
    names_of,
    portable_log,
    same_form,
)
from otbaselines.common.saving.random_state import set_random_state
from otbaselines.common.saving.replay_buffer import load_buffer, save_buffer
from otbaselines.common.saving.tensors import MemoryBudget, building_budget, restore
from otbaselines.common.saving.values import decode_value

__all__ = ["JsonSaveMixin", "atomic_write", "read_zip", "write_zip"]

_NEVER_GIVEN = ("self", "policy", "env", "device", "_init_setup_model")
_VARIABLES = "pytorch_variables"


class JsonSaveMixin(JsonContents):
    """
    ``save`` and ``load`` with SB3's signatures and zip layout, in which every entry is plain JSON or a state dict.

    Put it before an SB3 algorithm: ``class WBC(JsonSaveMixin, OnPolicyAlgorithm)``. What the class must keep to:

    - the constructor works with ``env=None`` and ``_init_setup_model=False``, and keeps each parameter's current value in
      an attribute of the same name (or with one underscore before it, as SB3's ``_stats_window_size``), in a form that the
      constructor takes again; schedules may have become callables;
    - ``_setup_model`` uses attributes only;
    - tensors that must survive are named by ``_get_torch_save_params``, best as parts of the policy module;
    - further plain attributes that must survive are named in ``_json_state``.

    - ``_setup_model`` builds networks, and buffers that take memory when they are first used: ``load`` grants it memory in
      proportion to the file.

    The logger, the environment, buffers and a ``tensorboard_log`` outside the working directory are not stored. Attributes
    that are named nowhere are not stored either, unless ``save(include=...)`` and ``load(include=...)`` name them.

    :cvar _json_state: names of plain attributes that survive, merged over the class's ancestors
    :cvar _json_skip: names of constructor parameters that are never stored (datasets, clients), merged likewise; ``load``
        leaves them at their defaults or takes them as keywords
    :cvar _saves_random_state: store where the random streams stand. For learners without an environment, which then resume
        to the bit; the state of an environment is never stored
    """

    def save(self, path: SavePath, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save the model as a zip of JSON and tensors. A path is written whole or not at all.

        :param path: where to save; ``.zip`` is added to a path that does not end so
        :param exclude: names of parameters and attributes to leave out; they are at their defaults after ``load``
        :param include: names of further attributes to store
        :raises TypeError: if ``exclude`` or ``include`` is no list of names, or an attribute to be stored is something that
            JSON cannot hold. A constructor parameter of that kind, such as a function as schedule, gives a ``UserWarning``
            instead, and ``load`` asks for it
        """
        data = self._encode_data(name_set(exclude, "exclude"), name_set(include, "include"))
        tensors: dict[str, Any] = dict(self.get_parameters())
        variables = self._get_torch_save_params()[1]
        if variables:
            tensors[_VARIABLES] = {name: recursive_getattr(self, name) for name in variables}
        write_zip(path, data=data, tensors=tensors, manifest=self._manifest(data))

    def save_replay_buffer(self, path: SavePath) -> None:
        """
        Save the replay buffer as ``.npz``, whole or not at all.

        :param path: where to save; ``.npz`` is added to a path without a suffix
        :raises TypeError: if the algorithm has none, or one that only a pickle could hold, such as ``HerReplayBuffer``
        """
        save_buffer(self._replay_buffer(), path, suffix="" if has_suffix(path) else ".npz")

    def load_replay_buffer(self, path: SavePath, truncate_last_traj: bool = True) -> None:
        """
        Fill the replay buffer from what :meth:`save_replay_buffer` has written. Nothing in the file is executed.

        :param path: the file, with or without ``.npz``
        :param truncate_last_traj: part of SB3's signature, and about ``HerReplayBuffer`` alone, which is refused
        :raises ValueError: if the file is damaged, or of a buffer of other size or spaces
        """
        del truncate_last_traj
        load_buffer(self._replay_buffer(), path)

    def _replay_buffer(self) -> Any:
        buffer = getattr(self, "replay_buffer", None)
        if buffer is None:
            raise TypeError(f"{type(self).__name__} has no replay buffer")
        return buffer

    # ------------------------------------------------------------ loading

    @classmethod
    def _decode_data(cls, saved: Archive, given: dict[str, Any], include: set[str], label: str) -> dict[str, Any]:
        """The stored values, with those that the caller gives in their place."""
        absent = [name for name in REQUIRED if name not in saved.data]
        if absent:
            raise ValueError(f"`path` {label} holds no {', '.join(absent)}; save the model again")
        # The class and the caller say what may be set; the file does not.
        known = {*BESIDE, *cls._constructor_parameters(), *cls._merged("_json_state"), *filter(cls._is_free, include)}
        if cls._saves_random_state:
            known.add("_random_state")
        if unknown := sorted(set(saved.data) - known):
            raise ValueError(
                f"`path` {label} holds {names_of(unknown)}, which {cls.__name__} does not know; it was saved by another "
                f"class, by {writer(saved.manifest)}, or with `save(include=...)`, in which case name it in "
                "`load(include=...)` too"
            )
        check_sizes(saved.data, given)
        missing: list[str] = []
        values = {
            name: given[name] if name in given else decode_value(stored, name=name, missing=missing)
            for name, stored in saved.data.items()
        }
        if missing:
            raise ValueError(
                f"`path` {label} could not store {names_of(missing)}; give it at load: "
                f"{cls.__name__}.load(path, {ask_again(missing)})"
            )
        if isinstance(values.get("tensorboard_log"), str) and "tensorboard_log" not in given:
            values["tensorboard_log"] = portable_log(values["tensorboard_log"])
        return {**{name: given[name] for name in cls._constructor_parameters() if name in given}, **values}

    @classmethod
    def _resolve(
        cls, saved: Archive, custom: dict[str, Any], kwargs: dict[str, Any], include: set[str], label: str
    ) -> dict[str, Any]:
        """Decoded data with the caller's replacements, and SB3's check that ``policy_kwargs`` are not contradicted."""
        values = cls._decode_data(saved, {**kwargs, **custom}, include, label)
        if "policy_kwargs" in kwargs:
            lost: list[str] = []
            stored = custom.get("policy_kwargs", decode_value(saved.data.get("policy_kwargs", {}), missing=lost))
            # A part that could not be stored cannot be contradicted.
            if not lost and kwargs["policy_kwargs"] != stored:
                raise ValueError(
                    "The specified policy kwargs do not equal the stored policy kwargs. "
                    f"Stored kwargs: {stored}, specified kwargs: {kwargs['policy_kwargs']}; leave out `policy_kwargs`"
                )
        values |= {name: value for name, value in kwargs.items() if name in cls._constructor_parameters()}
        check_arguments({name: value for name, value in values.items() if name not in kwargs and name not in custom}, cls)
        return values

    @classmethod
    def _check_given(
        cls, saved: Archive, custom: dict[str, Any], kwargs: dict[str, Any], include: set[str], label: str
    ) -> None:
        """Refuse what the caller gives and no file could take, so that it is not the file that is blamed."""
        given, parameters = {**custom, **kwargs}, cls._constructor_parameters()
        if defined := sorted(name for name in given if name not in parameters and not cls._is_free(name)):
            raise ValueError(
                f"`load` got {names_of(defined)}, which {cls.__name__} itself defines; give plain attributes only"
            )
        # SB3's users give the schedule of learning rates, which is made of `learning_rate` here.
        if unused := sorted(set(custom).difference(saved.data, parameters, ["lr_schedule"])):
            raise ValueError(
                f"`custom_objects` names {names_of(unused)}, which `path` {label} does not hold; check the spelling"
            )
        if absent := sorted(include.difference(saved.data, given)):
            raise ValueError(f"`include` names {names_of(absent)}, which `path` {label} does not hold; check the spelling")
        for name in given.keys() & {"observation_space", "action_space"}:
            lost: list[str] = []
            with naming_damage(label, (), "its spaces"):
                stored = decode_value(saved.data.get(name), name=name, missing=lost)
            if not lost and not same_form(given[name], stored):
                raise ValueError(
                    f"`{name}` must be of the form of the stored {str(stored)[:200]}, got {str(given[name])[:200]}"
                )

    def _check_env(self, env: VecEnv) -> None:
        """
        Refuse an environment that does not fit the loaded model.

        :param env: the wrapped environment
        :raises ValueError: if its spaces are not the model's
        """
        check_for_correct_spaces(cast(GymEnv, env), self.observation_space, self.action_space)

    def _attach(self, env: GymEnv) -> None:
        wrapped = self._wrap_env(env, self.verbose)
        self._check_env(wrapped)
        self.env = wrapped
        self.n_envs = wrapped.num_envs
        self._vec_normalize_env = unwrap_vec_normalize(wrapped)

    def set_parameters(
        self, load_path_or_dict: SavePath | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Take over parameters and optimizer states: all of them, or none if one does not fit. Nothing is executed, and SB3's
        own files will do, of which nothing but the tensors is read.

        :param load_path_or_dict: a saved model, or state dicts by name as ``get_parameters`` returns them
        :param exact_match: every module and every one of its parameters has to be given
        :param device: part of SB3's signature; the model stays on its device
        :raises ValueError: if a name is no module or optimizer of the model, or a state does not fit it in shape, order or
            settings, or has NaN entries
        """
        del device
        if isinstance(load_path_or_dict, dict):
            self._set_states(load_path_or_dict, exact_match)
            return
        tensors = read_zip(load_path_or_dict, tensors_only=True).tensors
        with naming_damage(repr(describe(load_path_or_dict)), (), "its tensors"):
            # What the class does not name is refused, but for the tensors that SB3 keeps beside its modules.
            names = self._get_torch_save_params()[0]
            if unknown := sorted(set(tensors).difference(names, [_VARIABLES])):
                raise ValueError(f"it holds {names_of(unknown)}, expected {names}")
            self._set_states({name: state for name, state in tensors.items() if name in names}, exact_match)

    def _set_states(self, states: Mapping[str, Any], exact_match: bool) -> None:
        names, targets = self._get_torch_save_params()[0], {}
        for name in states:
            try:
                targets[name] = recursive_getattr(self, name)
            except (AttributeError, TypeError) as error:
                raise ValueError(f"Key {name} is an invalid object name.") from error
            if not isinstance(targets[name], (th.nn.Module, th.optim.Optimizer)):
                raise ValueError(f"Key {name} names a {type(targets[name]).__name__}, not a module or an optimizer.")
        if exact_match and set(states) != set(names):
            raise ValueError(f"Names of parameters do not match agents' parameters: expected {set(names)}, got {set(states)}")
        restore(states, targets, exact_match=exact_match)

    def _restore_tensors(self, tensors: dict[str, Any], label: str, replaced: Iterable[str] = ()) -> None:
        names, variables = self._get_torch_save_params()
        expected = {*names, *([_VARIABLES] if variables else [])}
        loose = tensors.get(_VARIABLES, {})
        if set(tensors) != expected or not isinstance(loose, dict) or set(loose) != set(variables):
            changed = sorted(set(replaced).intersection(self._constructor_parameters()).difference(self._merged("_json_skip")))
            remedy = "save the model again"
            if changed:
                remedy = f"if {names_of(changed)} as given asks for other networks, leave it out, or construct a new model"
            raise ValueError(
                f"`path` {label} holds the tensors {names_of(sorted(tensors))}, expected {sorted(expected)}; {remedy}"
            )
        states = {name: tensors[name] for name in names} | loose
        restore(states, {name: recursive_getattr(self, name) for name in states})

    @classmethod
    def load(
        cls,
        path: SavePath,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        include: Iterable[str] = (),
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
        :param include: names of further attributes to take from the file, as ``save(include=...)`` stored them
        :param kwargs: constructor parameters and attributes to change
        :return: the model
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if the file is damaged, was tampered with, belongs to another class, does not fit ``env``, or
            lacks a value that ``custom_objects`` has to supply; and if what is given names nothing, a method, or no device
        :raises TypeError: if ``include`` is no list of names
        """
        if custom_objects is not None and not isinstance(custom_objects, dict):
            raise ValueError("custom_objects argument must be a dict or None")
        custom = custom_objects or {}
        if forbidden := sorted(set(kwargs).intersection(_NEVER_GIVEN)):
            raise TypeError(f"`load` cannot take {', '.join(forbidden)} as keywords; use `env`, `device` or `policy_class`")
        included = name_set(include, "include")
        check_device(device)
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")
            get_system_info()
        saved = read_zip(path)
        if print_system_info:
            print("== SAVED MODEL SYSTEM INFO ==")
            print(saved.system_info)
        label, given = repr(describe(path)), {*custom, *kwargs}
        check_manifest(saved.manifest, cls, label)
        cls._check_given(saved, custom, kwargs, included, label)
        with naming_damage(label, given, "its values"):
            values = cls._resolve(saved, custom, kwargs, included, label)
            if env is not None and force_reset:
                values["_last_obs"] = None
            parameters = {name: values.pop(name) for name in cls._constructor_parameters() if name in values}
            streams = values.pop("_random_state", None)
            model = cls(
                policy=values.pop("policy_class"),
                env=None,
                device=device,
                _init_setup_model=False,
                **parameters,  # type: ignore[call-arg]
            )
            changes = {name: value for name, value in kwargs.items() if name not in (*parameters, "policy_class")}
            state = model._take_description(values, changes)
        model._warn_of_defaults(parameters, label)
        if env is not None:
            model._attach(env)
        with naming_damage(label, given, "`policy_kwargs`, spaces or sizes, from which no model can be built"):
            check_arguments(model.policy_kwargs, model.policy_class, "policy_kwargs")
            with MemoryBudget(building_budget(saved.tensors.values())):
                model._setup_model()
            # Once more: the counters are there for `_setup_model`, and it must not have reset them.
            vars(model).update(state)
            model._restore_tensors(saved.tensors, label, given)
            if model.use_sde:
                # The exploration matrix is no parameter, and must be on the right device.
                model.policy.reset_noise()  # type: ignore[operator]
            if streams is not None:
                set_random_state(model, streams)
        return model

    def _warn_of_defaults(self, parameters: Mapping[str, Any], label: str) -> None:
        """Tell of settings that the class has learned since the file was written, or that were left out of it."""
        absent = [name for name in self._constructor_parameters() if name not in {*parameters, *self._merged("_json_skip")}]
        if absent:
            taken = ", ".join(f"`{name}`={str(self._parameter_value(name))[:100]}" for name in absent)
            warnings.warn(
                f"`path` {label} does not say {names_of(absent)}; the defaults are taken: {taken}. If it was trained with "
                "others, give them at load",
                UserWarning,
                stacklevel=3,
            )

    def _take_description(self, values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        """Set what the constructor could not know, and return what ``_setup_model`` must not change."""
        unknown = sorted(name for name in changes if not hasattr(self, name) and name not in REQUIRED)
        if unknown:
            names = ", ".join(f"`{name}`" for name in unknown)
            raise ValueError(f"`load` got {names}, which {type(self).__name__} does not have; check the spelling")
        for name in ("observation_space", "action_space"):
            if not isinstance(values[name], spaces.Space):
                raise ValueError(f"`{name}` must be a Gymnasium space, got {str(values[name])[:100]!r}")
        extra = values.pop("_extra_data", {})
        if not isinstance(extra, dict):
            raise ValueError(f"`_extra_data` must be a dictionary, got {str(extra)[:100]!r}")
        check_state({**values, **changes}, self)
        self.observation_space, self.action_space = values.pop("observation_space"), values.pop("action_space")
        self.n_envs = values.pop("n_envs")
        state = {**values, **changes}
        for name in LAST_STEP:
            if isinstance(value := state.get(name), th.Tensor):
                state[name] = value.to(self.device)
        vars(self).update(state)
        self._load_extra_data(extra)
        return state
