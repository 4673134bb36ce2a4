"""
Tensors from files that nobody vouches for: read within bounds, compared with the model that they are for, then set.

``torch.load(weights_only=True)`` executes nothing, but it calls whatever of torch's constructors the file names, with the
file's sizes, and optimizers take any state that they are given; fused kernels then write past the end of it.
"""

import copy
import io
import math
import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch as th
from torch.utils._python_dispatch import TorchDispatchMode

from otbaselines.common.networks.parameter_sets import MISSED, check_missed_steps, steps_made

# What the state dicts of modules and optimizers are made of. torch itself allows more, `bytearray(10**9)` among it.
_GLOBALS: Final = frozenset(
    {
        *("collections OrderedDict", "torch Size", "torch device"),
        *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"),
        *(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16")),
        *(f"torch {kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte", "Bool")),
        *(f"torch {name}" for name in ("float16", "bfloat16", "float32", "float64")),
        *(f"torch {name}" for name in ("int8", "int16", "int32", "int64", "uint8", "bool")),
    }
)
# State that counts or squares; with it below zero a step would go uphill.
_NEVER_NEGATIVE: Final = frozenset(("step", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf"))
_FACTORIES: Final = frozenset(
    f"aten::{prefix}{name}"
    for name in ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "empty_strided", "empty_permuted")
    for prefix in ("", "new_")
) | {"aten::eye", "aten::arange", "aten::randperm"}


class StateMismatchError(ValueError, RuntimeError):
    """A state that does not fit its model. torch and SB3 have ``RuntimeError`` for some of these cases, hence both."""


# ---------------------------------------------------------------- reading


def read_tensors(content: bytes) -> Any:
    """
    What ``torch.save`` wrote, if it is made of plain tensors and containers, and needs no more memory than it has bytes.

    :param content: the file
    :return: the state dict, on the CPU
    :raises ValueError: if the file is damaged, compressed, or names anything else
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("its records are larger than the file")
        records = {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    program = records.get("data.pkl", b"")
    if len(program) > 2**16 + 2**11 * len(records):
        raise ValueError("its description is longer than its tensors need")
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "GLOBAL" and argument not in _GLOBALS:
            raise ValueError(f"it names {str(argument)[:100]!r}, which no state dict needs")
    # Packed anew, so that torch reads what was looked at: the two have different opinions on damaged zips.
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w") as archive:
        for name, record in records.items():
            if name in ("data.pkl", "version", "byteorder") or name.startswith("data/"):
                archive.writestr(f"archive/{name}", record)
    clean.seek(0)
    return th.load(clean, map_location="cpu", weights_only=True)


def _storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Address and bytes of every storage, in state dicts that may be nested and may repeat themselves."""
    storages: dict[int, int] = {}
    waiting, seen = list(tensors), set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, th.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, Mapping) else value)
    return storages


def building_budget(tensors: Iterable[Any]) -> int:
    """
    :param tensors: the state dicts of a model
    :return: bytes that building it may take: initialisation works on copies, and a module without weights is not free
    """
    storages = _storages(tensors)
    return 2**25 + 16 * sum(storages.values()) + 2**18 * len(storages)


class MemoryBudget(TorchDispatchMode):
    """
    While it is entered, tensors may be made only within a budget: a few numbers in a file can describe a huge model.

    :param n_bytes: of all tensors made together
    """

    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self.n_bytes = n_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in _FACTORIES:
            given = [*args, *(kwargs or {}).values()]
            sizes = [math.prod(value) for value in given if isinstance(value, (list, tuple))]
            if func._schema.name in ("aten::eye", "aten::arange", "aten::randperm"):
                length = int(max(value for value in args if isinstance(value, (int, float))))
                sizes.append(length**2 if func._schema.name == "aten::eye" else length)
            # A tensor of any size costs Python some kilobytes, and no number here takes more than eight bytes.
            self.n_bytes -= max(8 * max(sizes, default=0), 2**14)
            if self.n_bytes < 0:
                raise ValueError(f"it describes networks far larger than the tensors that it holds (of {max(sizes)} elements)")
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------- comparing


def _all_finite(value: th.Tensor) -> bool:
    return not value.is_floating_point() or bool(th.isfinite(value).all())


def check_tensor(given: Any, own: th.Tensor, name: str) -> None:
    """
    :param given: what a file or a caller offers
    :param own: the tensor in whose place it would go
    :param name: what to call it in messages
    :raises ValueError: if shape or kind differ, or ``given`` has NaN or infinite entries where ``own`` has none
    """
    if not isinstance(given, th.Tensor) or given.layout != th.strided or given.is_meta:
        raise StateMismatchError(f"`{name}` must be a dense tensor, got {type(given).__name__}")
    if given.shape != own.shape:
        raise StateMismatchError(f"`{name}` must have the shape {tuple(own.shape)}, got {tuple(given.shape)}")
    if given.is_floating_point() != own.is_floating_point() or given.is_complex() != own.is_complex():
        raise StateMismatchError(f"`{name}` must be of {own.dtype}, got {given.dtype}")
    # What float64 holds may be infinite in the model's own type.
    if not _all_finite(given.to(own.dtype)) and _all_finite(own):
        raise StateMismatchError(f"`{name}` has NaN or infinite entries, or entries too large for {own.dtype}")


def _mapping(given: Any, name: str) -> dict[Any, Any]:
    if not isinstance(given, Mapping):
        raise StateMismatchError(f"`{name}` must be a state dict, got {type(given).__name__}")
    return dict(given)


def check_module_state(given: Any, module: th.nn.Module, name: str, *, strict: bool = True) -> dict[str, Any]:
    """
    :param given: a state dict
    :param module: whose parameters and buffers it would replace
    :param name: what to call it in messages
    :param strict: it has to be complete, and have nothing else
    :return: the state dict, as a plain dictionary
    :raises ValueError: if anything does not fit; the module is as it was
    """
    state, own = _mapping(given, name), module.state_dict()
    if strict and set(state) != set(own):
        raise StateMismatchError(
            f"`{name}` lacks {sorted(set(own) - set(state))} and has {sorted(map(str, set(state) - set(own)))} besides, which "
            "belong to another model"
        )
    for key in set(state).intersection(own):
        check_tensor(state[key], own[key], f"{name}[{key!r}]")
    return state


def _same_setting(given: Any, own: Any) -> bool:
    if isinstance(own, th.Tensor) or isinstance(given, th.Tensor):
        return isinstance(given, th.Tensor) and isinstance(own, th.Tensor) and th.equal(given.cpu(), own.cpu())
    if isinstance(own, (list, tuple)):
        return isinstance(given, (list, tuple)) and list(given) == list(own)
    return isinstance(given, bool) == isinstance(own, bool) and bool(given == own)


def _check_group(given: Any, own: dict[str, Any], name: str) -> dict[str, Any]:
    """A group of parameters: the same ones in the same order, and the same settings but for the learning rate."""
    group = _mapping(given, name)
    for key, value in group.items():
        if key == MISSED:
            # Counts, which `check_optimizer_state` compares with the steps that were made.
            continue
        if key not in own:
            raise StateMismatchError(f"`{name}` has {key!r}, which the optimizer does not know")
        if key == "lr" and not isinstance(own[key], th.Tensor):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise StateMismatchError(f"`{name}['lr']` must be a non-negative number, got {str(value)[:100]}")
        elif not _same_setting(value, own[key]):
            raise StateMismatchError(
                f"`{name}[{key!r}]` must be {str(own[key])[:200]} as in the model, got {str(value)[:200]}"
            )
    if group.get("params") != own["params"]:
        raise StateMismatchError(f"`{name}` does not say which parameters it is of")
    # A setting that an older torch did not know keeps its value; counts belong to the state, and absent ones are zero.
    return {**{key: value for key, value in own.items() if key != MISSED}, **group}


def _state_after_a_step(optimizer: th.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """What the optimizer would hold, learned from a step of a copy of it."""
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = th.zeros_like(parameter)
    twin.step()
    state: dict[int, dict[str, Any]] = twin.state_dict()["state"]
    return state


def _fitting_entry(given: Any, own: Any, name: str) -> Any:
    """One value of an optimizer's state, in memory of its own with the strides that the kernels expect."""
    if isinstance(own, th.Tensor):
        check_tensor(given, own, name)
        given = th.empty_like(own).copy_(given)
    elif type(given) is not type(own) or not (given is None or isinstance(given, (bool, int, float))):
        raise StateMismatchError(f"`{name}` must be a {type(own).__name__}, got {type(given).__name__}")
    if name.rpartition("[")[2].strip("'\"]") in _NEVER_NEGATIVE and bool(th.any(th.as_tensor(given) < 0)):
        raise StateMismatchError(f"`{name}` must not be negative")
    return given


def check_optimizer_state(given: Any, optimizer: th.optim.Optimizer, name: str) -> dict[str, Any]:
    """
    :param given: a state dict of an optimizer
    :param optimizer: that of the model
    :param name: what to call it in messages
    :return: a state dict with tensors of its own, which may be loaded
    :raises ValueError: if the parameters, their order, a setting, or a name, shape or kind in the state differ from the
        optimizer's own; the optimizer is as it was
    """
    whole, own = _mapping(given, name), optimizer.state_dict()
    if set(whole) != {"state", "param_groups"}:
        raise StateMismatchError(f"`{name}` must have 'state' and 'param_groups', got {sorted(map(str, whole))[:10]}")
    groups = whole["param_groups"]
    if not isinstance(groups, (list, tuple)) or len(groups) != len(own["param_groups"]):
        raise StateMismatchError(f"`{name}['param_groups']` must be a list of {len(own['param_groups'])}")
    checked = [
        _check_group(group, mine, f"{name}['param_groups'][{index}]")
        for index, (group, mine) in enumerate(zip(groups, own["param_groups"], strict=True))
    ]
    state = _mapping(whole["state"], f"{name}['state']")
    counted = [index for index, group in enumerate(checked) if MISSED in group]
    expected = _state_after_a_step(optimizer) if state or counted else {}
    entries = {}
    for index, entry in state.items():
        label = f"{name}['state'][{str(index)[:20]}]"
        if type(index) is not int or index not in expected:
            raise StateMismatchError(f"`{label}` belongs to no parameter of the optimizer")
        values = _mapping(entry, label)
        if set(values) != set(expected[index]):
            raise StateMismatchError(f"`{label}` must have {sorted(expected[index])}, got {sorted(map(str, values))[:10]}")
        entries[index] = {
            key: _fitting_entry(value, expected[index][key], f"{label}[{key!r}]") for key, value in values.items()
        }
    for index in counted:
        label, missed = f"{name}['param_groups'][{index}][{MISSED!r}]", checked[index][MISSED]
        has_steps = any("step" in entry for entry in expected.values())
        check_missed_steps(missed, steps_made(entries, 0) if has_steps else steps_made({}), label)
        if len(missed) not in {len(parameter) for parameter in optimizer.param_groups[index]["params"] if parameter.ndim}:
            raise StateMismatchError(f"`{label}` must have an entry for each parameter set, got {len(missed)}")
    return {"state": entries, "param_groups": checked}


# ---------------------------------------------------------------- setting


def restore(states: Mapping[str, Any], targets: Mapping[str, Any], *, exact_match: bool = True) -> None:
    """
    Give modules, optimizers and loose tensors new values: all of them, or none if one does not fit.

    :param states: state dicts and tensors by name
    :param targets: what they are for, by the same names
    :param exact_match: state dicts of modules have to be complete
    :raises ValueError: if a state does not fit; nothing has been changed then
    """
    checked = {}
    for name, target in targets.items():
        if isinstance(target, th.optim.Optimizer):
            checked[name] = check_optimizer_state(states[name], target, name)
        elif isinstance(target, th.nn.Module):
            checked[name] = check_module_state(states[name], target, name, strict=exact_match)
        else:
            check_tensor(states[name], target, name)
    for name, target in targets.items():
        if isinstance(target, th.optim.Optimizer):
            target.load_state_dict(checked[name])
        elif isinstance(target, th.nn.Module):
            target.load_state_dict(checked[name], strict=exact_match)
        else:
            # The data alone: an optimizer may already hold the tensor itself.
            target.data = states[name].detach().to(target.device, target.dtype, copy=True)
