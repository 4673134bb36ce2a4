"""Sources of mass, each with its own candidates to move to: the lines that a price of transport draws for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch as th

# Entries that are looked at together: 1 MiB in float64, which stays in a core's cache.
BLOCK = 1 << 17


@dataclass(frozen=True)
class Lines:
    """
    One candidate of each source: the line ``value - multiplier * cost``.

    :param index: number of the candidate, shape ``(n,)``
    :param value: its value, shape ``(n,)``
    :param cost: what it costs to go there, shape ``(n,)``
    """

    index: th.Tensor
    value: th.Tensor
    cost: th.Tensor

    def at(self, multiplier: float) -> th.Tensor:
        """
        :param multiplier: the price of the cost
        :return: heights of the lines, shape ``(n,)``
        """
        return th.sub(self.value, self.cost, alpha=multiplier)

    def select(self, rows: th.Tensor) -> Lines:
        """
        :param rows: which sources to keep
        :return: their lines
        """
        return Lines(self.index[rows], self.value[rows], self.cost[rows])


class Candidates:
    """
    Values and costs of the candidates of every source, which are never broadcast to their full size in more than one block.

    :param values: broadcastable to ``(*sources, m)``
    :param cost: the same
    :param sources: shape of the sources, of one or more dimensions
    """

    def __init__(self, values: th.Tensor, cost: th.Tensor, sources: th.Size) -> None:
        self.sources, self.size = sources, values.shape[-1]
        self._tables = [x.detach().reshape((1,) * (len(sources) + 1 - x.dim()) + x.shape) for x in (values, cost)]

    def subset(self, rows: th.Tensor) -> Candidates:
        """
        :param rows: numbers of a few sources
        :return: their candidates
        """
        values, cost = (self._rows(table, rows) for table in self._tables)
        return Candidates(values, cost, rows.shape)

    def _rows(self, table: th.Tensor, rows: th.Tensor) -> th.Tensor:
        """The rows of a table that belong to these sources."""
        owner, stride, own_stride = th.zeros_like(rows), 1, 1
        for size, own in zip(reversed(self.sources), reversed(table.shape[:-1]), strict=True):
            if own > 1:
                owner += rows.div(stride, rounding_mode="floor").remainder(size) * own_stride
            stride, own_stride = stride * size, own_stride * own
        return table.reshape(-1, self.size).index_select(0, owner)

    def _blocks(self, rows: th.Tensor | None) -> Iterator[tuple[th.Tensor, th.Tensor, tuple[int, ...]]]:
        """Values and costs in float64, the candidates last, and the leading shape that they broadcast to."""
        if rows is None:
            first, rest = self.sources[0], tuple(self.sources[1:])
            step = max(BLOCK * first // (self.sources.numel() * self.size), 1)
            for start in range(0, first, step):
                values, cost = (x[start : start + step] if len(x) > 1 else x for x in self._tables)
                yield values.double(), cost.double(), (min(step, first - start), *rest)
            return
        for part in rows.split(max(BLOCK // self.size, 1)):
            values, cost = (self._rows(table, part).double() for table in self._tables)
            yield values, cost, (len(part),)

    def tops(self, multiplier: float, rows: th.Tensor | None = None) -> Lines:
        """
        :param multiplier: the price of the cost
        :param rows: numbers of the sources; all of them when omitted
        :return: a line of each source that no other is above, in the order of the sources
        """
        blocks = self._blocks(rows)
        return _joined([_pick(_net(v, c, multiplier).max(-1, keepdim=True).indices, v, c, shape) for v, c, shape in blocks])

    def moved(self, tops: Lines, multiplier: float) -> Lines:
        """
        What is on top at another multiplier, where few sources change: the heights of all tell which.

        :param tops: lines of all sources on top at a multiplier near it
        :param multiplier: the price of the cost
        :return: as :meth:`tops`
        """
        heights = [_net(v, c, multiplier).amax(-1).expand(shape).reshape(-1) for v, c, shape in self._blocks(None)]
        changed = (th.cat(heights) > tops.at(multiplier)).nonzero().squeeze(-1)
        found = self.tops(multiplier, changed)
        return Lines(
            tops.index.index_copy(0, changed, found.index),
            tops.value.index_copy(0, changed, found.value),
            tops.cost.index_copy(0, changed, found.cost),
        )

    def ties(self, multiplier: float, slack: float, rows: th.Tensor | None = None) -> tuple[Lines, Lines, Lines]:
        """
        :param multiplier: the price of the cost
        :param slack: how far below the top still counts as on top
        :param rows: numbers of the sources; all of them when omitted
        :return: lines on top, the least costly of those that count as on top, and the most costly
        """
        found: tuple[list[Lines], ...] = ([], [], [])
        for values, cost, shape in self._blocks(rows):
            net = _net(values, cost, multiplier)
            best, top = net.max(-1, keepdim=True)
            shared = net >= best - slack
            near = far = top
            # Ties are rare, and it costs more to break them than to see that there are none.
            if int(shared.sum()) > top.numel():
                near, far = (th.where(shared, x, -math.inf).max(-1, keepdim=True).indices for x in (-cost, cost))
            for parts, index in zip(found, (top, near, far), strict=True):
                parts.append(_pick(index, values, cost, shape))
        tops, nearest, furthest = (_joined(parts) for parts in found)
        return tops, nearest, furthest

    def closest(self) -> Lines:
        """
        :return: the least costly candidate of each source, and of several the most valuable
        """
        parts = []
        for values, cost, shape in self._blocks(None):
            least, index = cost.min(-1, keepdim=True)
            shared = cost <= least
            if int(shared.sum()) > index.numel():
                index = th.where(shared, values, -math.inf).max(-1, keepdim=True).indices
            parts.append(_pick(index, values, cost, shape))
        return _joined(parts)

    def steepest(self, base: Lines, rows: th.Tensor) -> float:
        """
        How much a unit of cost gains at most.

        :param base: the closest candidates of these sources, the most valuable of each
        :param rows: numbers of the sources
        :return: the largest ratio of what is gained over what is spent by leaving them, at least zero
        """
        largest, start = 0.0, 0
        for values, cost, (length,) in self._blocks(rows):
            gain = values - base.value[start : start + length, None]
            price = cost - base.cost[start : start + length, None]
            largest = max(largest, float(th.where(price > 0, gain / price, -math.inf).max()))
            start += length
        return largest


def _net(values: th.Tensor, cost: th.Tensor, multiplier: float) -> th.Tensor:
    # Where moving is free, the values need not be broadcast to the costs.
    return th.sub(values, cost, alpha=multiplier) if multiplier > 0 else values


def _pick(index: th.Tensor, values: th.Tensor, cost: th.Tensor, shape: tuple[int, ...]) -> Lines:
    index = index.expand(*shape, 1)
    value, price = (x.expand(*shape, -1).gather(-1, index).reshape(-1) for x in (values, cost))
    return Lines(index.reshape(-1), value, price)


def _joined(parts: list[Lines]) -> Lines:
    if len(parts) == 1:
        return parts[0]
    return Lines(*(th.cat([getattr(part, name) for part in parts]) for name in ("index", "value", "cost")))
