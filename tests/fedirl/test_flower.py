"""The federation over Flower: what crosses the wire, what is dropped, and that it is the federation in one process."""

import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch as th

from otbaselines import FedIRL
from otbaselines.envs import gridworld
from otbaselines.fedirl.fusion import aggregate

with warnings.catch_warnings():
    # Flower's own imports.
    warnings.simplefilter("ignore")
    pytest.importorskip("flwr.serverapp", reason="the extra `flower` is not installed")
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from otbaselines.fedirl import flower

PROJECT = Path(__file__).parents[2] / "zoo" / "flower"
N_CLIENTS, SIZE, N_EPISODES = 5, 5, 20


@pytest.fixture(autouse=True)
def _running():
    # Messages can be made inside of a run only.
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


@pytest.fixture
def worlds(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT))
    found = importlib.import_module("gridfederation.worlds")
    yield found
    for name in [name for name in sys.modules if name.startswith("gridfederation")]:
        del sys.modules[name]


def _message(content, node=1):
    # Flower sets the sender where a message is sent.
    message = Message(content=content, dst_node_id=node, message_type="train")
    message.metadata._src_node_id = node
    return message


def _answer(worlds, number, theta):
    members = {}

    def make(place, n_clients):
        assert n_clients == N_CLIENTS
        members[place] = worlds.client(place, SIZE, N_EPISODES)
        return worlds.learning(members[place]), N_EPISODES

    context = Context(
        run_id=1, node_id=number, node_config={"partition-id": number, "num-partitions": N_CLIENTS}, state=RecordDict(),
        run_config={},
    )  # fmt: skip
    return flower.client_app(make)(_message(RecordDict({flower.ARRAYS: flower.to_record(theta)}), number), context), members


def _sent(theta, node, count=3):
    arrays = ArrayRecord({"theta": Array(np.asarray(theta))})
    return _message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": count})}), node)


def test_the_federation_over_messages_is_the_one_in_one_process(worlds):
    answers = [_answer(worlds, number, np.zeros(2))[0] for number in range(N_CLIENTS)]
    strategy = flower.FusionStrategy(worlds.support(SIZE))
    record, metrics = strategy.aggregate_train(1, answers)
    assert metrics["n-clients"] == N_CLIENTS
    clients = [worlds.client(number, SIZE, N_EPISODES) for number in range(N_CLIENTS)]
    probe = gridworld.make(SIZE, worlds.SERVER_SEED)
    model = FedIRL("MlpPolicy", probe, clients=clients, irl_tol=1e-9).learn(1)
    np.testing.assert_allclose(flower.from_record(record), model.theta, atol=1e-6)


def test_only_parameters_and_counts_cross_the_wire(worlds):
    answer, members = _answer(worlds, 2, np.zeros(2))
    records = dict(answer.content.items())
    assert set(records) == {"arrays", "metrics"}
    assert list(records["arrays"]) == ["theta"]
    assert records["arrays"]["theta"].numpy().shape == (2,)
    assert dict(records["metrics"]) == {"num-examples": N_EPISODES}
    # Two numbers and their description: none of the demonstrations would fit, nor is one in it.
    wire = b"".join(each.data for each in records["arrays"].values())
    assert len(wire) < 300
    for episode in members[2].demonstrations:
        assert len(episode.actions) < 3 or episode.actions.tobytes() not in wire


def test_what_is_missing_or_damaged_is_dropped_and_the_rest_is_fused(worlds):
    good = [np.array([-2.0, 1.0]), np.array([-1.0, 0.5]), np.array([-3.0, 2.0])]
    failed = Message(error=Error(code=1, reason="lost"), reply_to=_message(RecordDict(), 9))
    failed.metadata._src_node_id = 9
    damaged = ArrayRecord({"theta": Array(dtype="float64", shape=(2,), stype="numpy.ndarray", data=b"no array")})
    wordless = Message(error=Error(code=1), reply_to=_message(RecordDict(), 10))
    wordless.metadata._src_node_id = 10
    replies = [
        *(_sent(theta, node) for node, theta in enumerate(good)),
        _sent([np.nan, 1.0], 4),
        _sent([1.0, 2.0, 3.0], 5),
        _message(RecordDict(), 6),
        _message(RecordDict({"arrays": damaged}), 7),
        _sent(np.array(["a", "b"]), 8),
        _sent(np.array(["1", "2"]), 11),
        _sent(np.array([1, 2], "M8[s]"), 12),
        _sent(np.array([True, False]), 13),
        _sent(np.array([1j, 2.0]), 14),
        _sent([1e300, 1.0], 15),
        _sent([-1e308, -1e308], 16),
        failed,
        wordless,
    ]
    support = worlds.support(SIZE)
    strategy = flower.FusionStrategy(support, quorum=3)
    with pytest.warns(UserWarning, match=r"dropped|answered with an error") as record:
        arrays, metrics = strategy.aggregate_train(1, reversed(replies))
    assert metrics["n-clients"] == 3
    assert sum("is dropped" in str(each.message) for each in record) == 13
    expected = aggregate(th.as_tensor(np.array(good)), support)
    np.testing.assert_array_equal(flower.from_record(arrays), expected.theta)
    strict = flower.FusionStrategy(support, quorum=4)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="`quorum` is 4, but only 3 of 16"):  # noqa: PT030
        strict.aggregate_train(1, replies)


def test_weights_are_numbers_of_demonstrations_where_asked_for(worlds):
    support = worlds.support(SIZE)
    strategy = flower.FusionStrategy(support, by_examples=True, fusion_kwargs={"fusion": "mean_params"})
    arrays, _ = strategy.aggregate_train(1, [_sent([1.0, 0.0], 1, count=3), _sent([0.0, 1.0], 2, count=1)])
    np.testing.assert_allclose(flower.from_record(arrays), [0.75, 0.25])
    for count in (0, -5, 2**41, 1.5):
        with pytest.warns(UserWarning, match="the update of client 1 is dropped"):
            arrays, _ = strategy.aggregate_train(1, [_sent([1.0, 0.0], 1, count=3), _sent([0.0, 1.0], 2, count=count)])
        np.testing.assert_allclose(flower.from_record(arrays), [1.0, 0.0])


def test_a_message_to_a_client_holds_parameters_and_the_number_of_the_round(worlds):
    class Two:
        """As much of Flower's grid as is asked which nodes there are."""

        def get_node_ids(self):
            return [1, 2]

    strategy = flower.FusionStrategy(worlds.support(SIZE), min_available_nodes=2, min_train_nodes=2)
    sent = list(strategy.configure_train(3, flower.to_record([1.0, 2.0]), ConfigRecord(), Two()))
    assert len(sent) == 2
    for message in sent:
        records = dict(message.content.items())
        assert set(records) == {"arrays", "config"}
        np.testing.assert_array_equal(flower.from_record(records["arrays"]), [1.0, 2.0])
        assert dict(records["config"]) == {"server-round": 3}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"support": None}, "`support` must be of the type Support"),
        ({"quorum": 0}, "`quorum` must be an integer of at least 1"),
        ({"quorum": 1.5}, "`quorum` must be an integer"),
        ({"by_examples": "x"}, "`by_examples` must be True or False"),
        ({"fusion_kwargs": 5}, "`fusion_kwargs` must be"),
        ({"fusion_kwargs": {"fusion": "x"}}, "`fusion_kwargs\\['fusion'\\]` must be one of"),
        ({"fusion_kwargs": {"reg": -1}}, "`fusion_kwargs\\['reg'\\]` must be a number above 0"),
        ({"fusion_kwargs": {"weights": None}}, "`fusion_kwargs` may have fusion, reg"),
        ({"fraction_evaluate": 0.5}, "`fraction_evaluate` is FusionStrategy's own"),
    ],
)
def test_arguments_of_the_server_are_checked_before_a_round(worlds, kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        flower.FusionStrategy(**{"support": worlds.support(SIZE), **kwargs})
