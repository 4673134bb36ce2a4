"""
The federation over a network: Flower carries what clients send to the function that fuses it.

A message to a client holds the present parameters, and the number of the round, which Flower adds; its answer the client's own
parameters and the number of its demonstrations. Nothing else crosses the wire. The server's part is
:func:`~otbaselines.fedirl.fusion.aggregate` itself. ``zoo/flower`` has a project that ``flwr run`` starts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch as th
from stable_baselines3.common.logger import Logger

from otbaselines.common.settings import COUNT, Setting, check_settings
from otbaselines.fedirl.fusion import FUSION_SETTINGS, FusionResult, Support, aggregate, usable_updates

try:
    from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp.strategy import FedAvg
except ImportError as error:
    raise ImportError(
        "a federation over a network needs Flower: pip install otbaselines[flower], in an environment of its own"
    ) from error

#: Names of what crosses the wire.
ARRAYS, THETA, METRICS, EXAMPLES = "arrays", "theta", "metrics", "num-examples"
_SETTINGS = {
    "support": Setting((Support,)),
    "quorum": COUNT,
    "by_examples": Setting("flag"),
    "fusion_kwargs": Setting((dict,), entries=FUSION_SETTINGS, optional=True),
}


class LocalPart(Protocol):
    """One client's learning: :class:`~otbaselines.fedirl.exact.ExactClients` of one client, or one of the sampled kinds."""

    expert: th.Tensor

    def learn(self, start: th.Tensor, logger: Logger) -> th.Tensor:
        """
        :param start: parameters to start from, shape ``(1, k)``
        :param logger: stays with the client
        :return: the client's own, shape ``(1, k)``
        """


def to_record(theta: npt.ArrayLike) -> ArrayRecord:
    """
    :param theta: parameters, shape ``(k,)``
    :return: what carries them
    :raises ValueError: if they are no real numbers
    """
    return ArrayRecord({THETA: Array(_numbers(theta))})


def from_record(record: ArrayRecord) -> npt.NDArray[np.float64]:
    """
    :param record: of :func:`to_record`
    :return: the parameters
    :raises ValueError: if they are no real numbers
    """
    return _numbers(record[THETA].numpy())


def _numbers(array: npt.ArrayLike) -> npt.NDArray[np.float64]:
    found = np.asarray(array)
    # Dates, text and truth values would become numbers without a word.
    if found.dtype.kind not in "iuf":
        raise ValueError(f"parameters must be real numbers, got {found.dtype}")
    return np.array(found, dtype=np.float64)


def client_app(make: Callable[[int, int], tuple[LocalPart, int]]) -> ClientApp:
    """
    The clients of a federation. What ``make`` loads stays with the client.

    A client is made anew for every message: learners of SB3 in it do not go on from one round to the next.

    :param make: takes the number of a client and how many there are; returns its learning and its number of demonstrations
    :return: the app
    """
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator,unused-ignore]
    def train(message: Message, context: Context) -> Message:
        part, n_examples = make(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))
        start = th.as_tensor(from_record(message.content[ARRAYS])).unsqueeze(0)
        theta = part.learn(start, Logger(None, []))[0].detach()
        content = RecordDict({ARRAYS: to_record(theta.numpy()), METRICS: MetricRecord({EXAMPLES: n_examples})})
        return Message(content=content, reply_to=message)

    return app


class FusionStrategy(FedAvg):  # type: ignore[misc,unused-ignore]
    """
    What the server does in a round: drop what is missing or damaged, and fuse the rest.

    :param support: where rewards are compared
    :param quorum: how many clients must have sent usable parameters
    :param by_examples: whether a client's weight is its number of demonstrations, and not the same for all
    :param fusion_kwargs: further arguments of :func:`~otbaselines.fedirl.fusion.aggregate`
    :param fedavg_kwargs: further arguments of Flower's ``FedAvg``, such as ``min_available_nodes``
    :raises TypeError: if an argument is of another type, unknown, or not the caller's to give
    :raises ValueError: if one is out of range
    """

    def __init__(
        self,
        support: Support,
        *,
        quorum: int = 1,
        by_examples: bool = False,
        fusion_kwargs: dict[str, Any] | None = None,
        **fedavg_kwargs: Any,
    ) -> None:
        check_settings(_SETTINGS, locals())
        if unknown := sorted(map(str, set(fusion_kwargs or {}) - set(FUSION_SETTINGS))):
            raise TypeError(f"`fusion_kwargs` may have {', '.join(FUSION_SETTINGS)}, got {', '.join(unknown)}")
        for name in ("fraction_evaluate", "arrayrecord_key"):
            if name in fedavg_kwargs:
                raise TypeError(f"`{name}` is {type(self).__name__}'s own to set, got {fedavg_kwargs[name]!r}; leave it out")
        super().__init__(fraction_evaluate=0.0, arrayrecord_key=ARRAYS, **fedavg_kwargs)
        self._support, self._quorum, self._by_examples = support, quorum, by_examples
        self._fusion_kwargs = fusion_kwargs or {}
        #: The last round's.
        self.result: FusionResult | None = None

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """
        :param server_round: number of the round
        :param replies: what came back
        :return: the fused parameters, and how many clients they are made of
        :raises ValueError: if fewer than the quorum are usable
        """
        del server_round
        # In an order that does not depend on who answered first.
        ordered = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        updates = [_update(reply) for reply in ordered]
        good = usable_updates([theta for theta, _ in updates], self._support, quorum=self._quorum)
        thetas = th.stack([th.as_tensor(updates[place][0]) for place in good])
        weights = None
        if self._by_examples:
            counts = th.tensor([float(updates[place][1]) for place in good], dtype=thetas.dtype)
            weights = counts / counts.sum()
        self.result = aggregate(thetas, self._support, weights=weights, **self._fusion_kwargs)
        metrics = MetricRecord({"n-clients": len(good), "residual": self.result.residual})
        return to_record(self.result.theta.numpy()), metrics


def _update(reply: Message) -> tuple[object, int]:
    """What a client sent, whatever it is, and the number of its demonstrations, at least 1."""
    if reply.has_error():
        reason = str(getattr(reply.error, "reason", None) or "no reason is given")
        warnings.warn(f"a client answered with an error: {reason[:200]}", UserWarning, stacklevel=3)
        return None, 1
    try:
        theta: object = from_record(reply.content[ARRAYS])
        count = reply.content.get(METRICS, {}).get(EXAMPLES, 1)
    except Exception:
        # Whatever Flower or NumPy make of bytes that were meant to be an array: the client is dropped, and the round goes on.
        return None, 1
    sound = type(count) is int and 1 <= count < 2**40
    return (theta, count) if sound else (None, 1)
