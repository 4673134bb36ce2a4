"""What the JSON codecs promise: every value comes back as it was, and a file's words execute nothing."""

import json
import math
import sys
from collections import OrderedDict, deque
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from otbaselines.common.saving.arrays import MAX_ELEMENTS
from otbaselines.common.saving.classes import class_from_name, class_to_name
from otbaselines.common.saving.spaces import space_from_json, space_to_json
from otbaselines.common.saving.values import decode_value, encode_value
from otbaselines.common.schedules import CosineSchedule, ProportionalSchedule, parse_schedule

SPACES: list[spaces.Space[Any]] = [
    spaces.Box(-1.0, 1.0, (3,)),
    spaces.Box(0, 255, (4, 5, 3), np.uint8),
    spaces.Box(np.float32([-0.1, -np.inf, 1e-40]), np.float32([0.1, 3.0, np.inf]), dtype=np.float32),
    spaces.Box(np.array([[-np.pi, 0.1]]), np.array([[np.e, 1e300]]), dtype=np.float64),
    spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    spaces.Box(-2.0, 2.0, (), np.float16),
    spaces.Box(-5, 5, (2,), np.int64),
    spaces.Box(-np.inf, np.inf, (2,), np.int64),
    spaces.Box(np.array([-np.inf, -3.0]), np.array([7.0, np.inf]), dtype=np.int32),
    spaces.Box(0, 1, (3,), np.bool_),
    spaces.Box(-1.0, 1.0, (0,)),
    spaces.Discrete(7),
    spaces.Discrete(3, start=-1),
    spaces.Discrete(3, dtype=np.int32),
    spaces.MultiDiscrete([2, 3, 4]),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 0], [-1, 2]])),
    spaces.MultiDiscrete([2, 3], dtype=np.int32),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Dict({"z": spaces.Discrete(2), "a": spaces.Box(0.0, 1.0, (2,))}),
    spaces.Dict(OrderedDict([("z", spaces.Discrete(2)), ("a", spaces.MultiBinary(2))])),
    spaces.Dict({"inner": spaces.Dict({"x": spaces.Discrete(2)}), "t": spaces.Tuple([spaces.Discrete(2)])}),
    spaces.Tuple([spaces.Discrete(2), spaces.Box(-1.0, 1.0, (1,))]),
]


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def assert_identical(first: spaces.Space[Any], second: spaces.Space[Any]) -> None:
    """Stricter than Gymnasium's ``==``, which compares bounds with a tolerance and forgets the flags."""
    assert type(first) is type(second)
    assert first == second
    assert first.dtype == second.dtype
    if isinstance(first, spaces.Box) and isinstance(second, spaces.Box):
        for name in ("low", "high", "bounded_below", "bounded_above"):
            one, other = getattr(first, name), getattr(second, name)
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert one.tobytes() == other.tobytes()
    if isinstance(first, spaces.Dict) and isinstance(second, spaces.Dict):
        assert list(first.spaces) == list(second.spaces)
        for key in first.spaces:
            assert_identical(first[key], second[key])


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_space_round_trips_to_the_bit(space: spaces.Space[Any]) -> None:
    restored = space_from_json(through_json(space_to_json(space)))
    assert_identical(space, restored)
    assert str(restored) == str(space)
    space.seed(3)
    restored.seed(3)
    assert str(space.sample()) == str(restored.sample())


def test_a_uniform_image_space_is_stored_in_a_few_bytes() -> None:
    assert len(json.dumps(space_to_json(spaces.Box(0, 255, (3, 84, 84), np.uint8)))) < 200


def test_a_space_that_no_policy_takes_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="Text space cannot be saved"):
        space_to_json(spaces.Text(5))


@pytest.mark.parametrize(
    "stored",
    [
        {"type": "Box", "dtype": "object", "shape": [1], "low": 0, "high": 1},
        {"type": "Box", "dtype": "float32", "shape": [2], "low": [0.0], "high": 1.0},
        {"type": "Box", "dtype": "float32", "shape": [1], "low": 2.0, "high": 1.0},
        {"type": "Box", "dtype": "float32", "shape": [1], "low": "nan", "high": 1.0},
        {"type": "Discrete", "n": 0, "start": 0, "dtype": "int64"},
        {"type": "Discrete"},
        {"type": "os.system"},
    ],
)
def test_a_damaged_space_is_a_value_error_that_names_it(stored: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^`observation_space` cannot be read"):
        decode_value({":kind:": "space", **stored}, name="observation_space")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**70),
        0.1,
        5e-324,
        math.inf,
        -math.inf,
        "inf",
        [1, [2.5, "x"]],
        (1, (2, [3, ()])),
        {"net_arch": {"pi": [64, 64], "vf": (64,)}},
        {1: "a", (2, 3): "b"},
        {":kind:": "float", "value": "1"},
        {"betas": (0.9, 0.999), "activation_fn": th.nn.Tanh, "optimizer_class": th.optim.RMSprop},
        {"features_extractor_class": NatureCNN, "dtype": th.float64, "buffer": RolloutBuffer},
        deque([1, (2,)], maxlen=5),
        OrderedDict([("b", 1), ("a", 2)]),
        {"space": spaces.Discrete(4)},
    ],
    ids=repr,
)
def test_values_round_trip_with_their_types(value: Any) -> None:
    restored = decode_value(through_json(encode_value(value)))
    assert restored == value
    assert type(restored) is type(value)
    # repr tells tuples from lists at every depth, where == on mixed containers would also do so.
    assert repr(restored) == repr(value)


def test_nan_round_trips_without_the_nan_literal() -> None:
    assert math.isnan(decode_value(through_json(encode_value(math.nan))))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "int64", "float16", "float32", "float64"])
def test_arrays_and_numpy_scalars_round_trip_to_the_bit(dtype: str) -> None:
    raw = np.array([[0, 1, 2**7], [3, 5, 9]]).astype(dtype)
    if raw.dtype.kind == "f":
        raw[0] = [np.inf, -np.inf, np.nan]
        raw[1] = np.array([0.1, -0.0, 1 / 3]).astype(dtype)
    restored = decode_value(through_json(encode_value(raw)))
    assert (restored.dtype, restored.shape, restored.tobytes()) == (raw.dtype, raw.shape, raw.tobytes())
    scalar = decode_value(through_json(encode_value(raw[1, 2])))
    assert type(scalar) is type(raw[1, 2])
    assert scalar.tobytes() == raw[1, 2].tobytes()


@pytest.mark.parametrize("dtype", [th.bool, th.int32, th.bfloat16, th.float16, th.float32, th.float64])
def test_small_tensors_round_trip_to_the_bit(dtype: th.dtype) -> None:
    tensor = th.tensor([[0.1, -3.0], [1e-3, 7.0]]).to(dtype)
    restored = decode_value(through_json(encode_value(tensor)))
    assert restored.dtype == dtype
    assert th.equal(restored, tensor)


@pytest.mark.parametrize("value", [np.zeros(MAX_ELEMENTS + 1), object(), {1, 2}, b"x", len, 1j, np.array([object()])])
def test_what_json_cannot_hold_is_a_type_error_with_the_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"`policy_kwargs\['a'\]\[0\]` is a .* JSON cannot hold"):
        encode_value({"a": [value]}, name="policy_kwargs")


def test_a_part_that_was_not_stored_is_noted_at_both_ends() -> None:
    noted: list[str] = []
    stored = through_json(encode_value({"net": [8], "init": len}, name="policy_kwargs", missing=noted))
    assert noted == ["policy_kwargs['init'] (a builtins.builtin_function_or_method)"]
    asked: list[str] = []
    assert decode_value(stored, name="policy_kwargs", missing=asked) == {"net": [8], "init": None}
    assert asked == noted
    with pytest.raises(ValueError, match="policy_kwargs"):
        decode_value(stored, name="policy_kwargs")


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (th.nn.Tanh, "torch.nn.Tanh"),
        (th.optim.AdamW, "torch.optim.AdamW"),
        (NatureCNN, "stable_baselines3.common.torch_layers.NatureCNN"),
    ],
)
def test_classes_of_the_allowed_packages_have_a_name_and_come_back(cls: type, name: str) -> None:
    assert class_to_name(cls) == name
    assert class_from_name(name) is cls


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "torch.nn.modules.module.os.system",
        "torch.nn.modules.module.OrderedDict",
        "torch.nn.functional.relu",
        "torch.nn_evil.Tanh",
        "torch.hub.load",
        "torch.jit.ScriptModule",
        "stable_baselines3.common.utils.subprocess",
        "stable_baselines3.common.save_util.cloudpickle.loads",
        "stable_baselines3.common.save_util.load_from_pkl",
        "stable_baselines3.common.base_class.BaseAlgorithm.load",
        "stable_baselines3.common.logger.HumanOutputFormat",
        "stable_baselines3.common.vec_env.base_vec_env.CloudpickleWrapper",
        "otbaselines.common.saving.classes.importlib",
        "otbaselines.common.saving.archive.pickle.Unpickler",
        "otbaselines_evil.Net",
        "otbaselines..Net",
        "torch.nn.",
        ".torch.nn.Tanh",
        "torch.nn.__class__",
        "torch.nn.Tanh\n",
        "",
    ],
)
def test_no_other_name_is_resolved(name: str) -> None:
    with pytest.raises(ValueError, match="is refused"):
        class_from_name(name)


def test_a_foreign_class_put_into_an_allowed_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign(th.nn.Module):
        pass

    monkeypatch.setattr("torch.nn.Foreign", Foreign, raising=False)
    with pytest.raises(ValueError, match="is refused"):
        class_from_name("torch.nn.Foreign")


def test_looking_up_a_foreign_name_imports_nothing() -> None:
    with pytest.raises(ValueError, match="is refused"):
        class_from_name("this.Thing")
    assert "this" not in sys.modules


def test_a_users_own_class_and_a_nested_class_have_no_name() -> None:
    class Own(th.nn.Module):
        pass

    assert class_to_name(Own) is None
    assert class_to_name(dict) is None


# ---------------------------------------------------------------- schedules


def sampled(schedule: Any) -> list[float]:
    return [schedule(progress) for progress in np.linspace(1.0, 0.0, 37).tolist()]


@pytest.mark.parametrize(
    "schedule",
    [
        FloatSchedule(3e-4),
        ConstantSchedule(0.2),
        LinearSchedule(0.3, 0.01, 0.4),
        FloatSchedule(LinearSchedule(1.0, 0.0, 1.0)),
        FloatSchedule(FloatSchedule(ProportionalSchedule(0.7))),
        FloatSchedule(CosineSchedule(0.7)),
    ],
    ids=repr,
)
def test_schedules_round_trip_to_the_bit(schedule: Any) -> None:
    restored = FloatSchedule(decode_value(through_json(encode_value(schedule))))
    assert sampled(restored) == sampled(schedule)


def test_the_schedule_of_rl_zoo_is_stored_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class SimpleLinearSchedule:
        def __init__(self, initial_value: float) -> None:
            self.initial_value = initial_value

        def __call__(self, progress_remaining: float) -> float:
            return progress_remaining * self.initial_value

    SimpleLinearSchedule.__module__ = "rl_zoo3.utils"
    monkeypatch.setitem(sys.modules, "rl_zoo3.utils", ModuleType("rl_zoo3.utils"))
    restored = decode_value(through_json(encode_value(SimpleLinearSchedule(2.5e-4))))
    assert sampled(restored) == sampled(SimpleLinearSchedule(2.5e-4))


def test_a_subclass_of_a_named_schedule_is_not_taken_for_it() -> None:
    class Squared(LinearSchedule):
        def __call__(self, progress_remaining: float) -> float:
            return super().__call__(progress_remaining) ** 2

    with pytest.raises(TypeError, match="JSON cannot hold"):
        encode_value(Squared(1.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, lambda p: 0.5),
        (1, lambda p: 1.0),
        (np.float32(0.25), lambda p: 0.25),
        ("3e-4", lambda p: 3e-4),
        ("const_0.5", lambda p: 0.5),
        ("lin_0.5", lambda p: 0.5 * p),
        ("linear_3.0e-4", lambda p: 3.0e-4 * p),
        ("cosine_0.6", lambda p: 0.3 - 0.3 * np.cos(np.pi * p)),
        ("linear_1.0_0.2", lambda p: 0.2 + 0.8 * p),
        ("linear_1.0_0.2_0.5", lambda p: max(0.2, 1.0 - 1.6 * (1.0 - p))),
        (lambda p: p**2, lambda p: p**2),
    ],
)
def test_parse_schedule_reads_numbers_text_and_callables(value: Any, expected: Any) -> None:
    schedule = parse_schedule(value)
    np.testing.assert_allclose(sampled(schedule), sampled(expected), rtol=0, atol=1e-12)
    assert type(schedule(0.5)) is float


@pytest.mark.parametrize(
    "value", ["", "lin_", "lin_x", "cos_0.1", "linear_1_0_0", "linear_1_0_2", "lin_inf", "__import__", math.nan]
)
def test_a_schedule_that_means_nothing_is_a_value_error_with_the_forms(value: Any) -> None:
    with pytest.raises(ValueError, match=r"schedule .*; give a number"):
        parse_schedule(value)


@pytest.mark.parametrize("value", [None, True, [1.0], {}])
def test_a_schedule_of_the_wrong_type_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="schedule cannot be made"):
        parse_schedule(value)
