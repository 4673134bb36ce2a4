"""Sources of mass, each with its own candidates to move to: the lines that a price of transport draws for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch as th

# Entries that are looked at together: a MiB in float64, which stays in a cache.
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

    def copy(self) -> Lines:
        """
        :return: the same in memory of its own
        """
        return Lines(self.index.clone(), self.value.clone(), self.cost.clone())

    def put(self, rows: th.Tensor | slice, lines: Lines) -> None:
        """
        :param rows: which sources to change, in place
        :param lines: what they have from now on
        """
        self.index[rows], self.value[rows], self.cost[rows] = lines.index, lines.value, lines.cost


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
                place = rows if stride == 1 else rows.div(stride, rounding_mode="floor")
                owner += own_stride * (place if stride * size == self.sources.numel() else place.remainder(size))
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
        found = _Collected(self._count(rows), self._tables[0].device)
        for values, cost, shape in self._blocks(rows):
            found.add(_net(values, cost, multiplier).max(-1, keepdim=True).indices, values, cost, shape)
        return found.lines

    def above(self, tops: Lines, multiplier: float) -> th.Tensor:
        """
        Where something else is on top: heights tell this sooner than the numbers of the candidates.

        :param tops: lines of all sources
        :param multiplier: the price of the cost
        :return: numbers of the sources that have a line above
        """
        rows, start = [], 0
        for values, cost, shape in self._blocks(None):
            heights = _net(values, cost, multiplier).amax(-1).expand(shape).reshape(-1)
            end = start + len(heights)
            known = th.sub(tops.value[start:end], tops.cost[start:end], alpha=multiplier)
            rows.append((heights > known).nonzero().squeeze(-1) + start)
            start = end
        return th.cat(rows)

    def ties(self, multiplier: float, slack: float, rows: th.Tensor | None = None) -> tuple[Lines, Lines, Lines]:
        """
        :param multiplier: the price of the cost
        :param slack: how far below the top still counts as on top
        :param rows: numbers of the sources; all of them when omitted
        :return: lines on top, the least costly of those that count as on top, and the most costly
        """
        found = _Collected(self._count(rows), self._tables[0].device)
        tied: list[tuple[slice, Lines, Lines]] = []
        for values, cost, shape in self._blocks(rows):
            net = _net(values, cost, multiplier)
            best, index = net.max(-1, keepdim=True)
            shared = net >= best - slack
            part = found.add(index, values, cost, shape)
            # Ties are rare, and it costs more to break them than to see that there are none.
            if int(shared.sum()) > index.numel():
                near, far = (th.where(shared, x, -math.inf).max(-1, keepdim=True).indices for x in (-cost, cost))
                tied.append((part, _pick(near, values, cost, shape), _pick(far, values, cost, shape)))
        tops = found.lines
        if not tied:
            return tops, tops, tops
        closest, furthest = tops.copy(), tops.copy()
        for part, near_part, far_part in tied:
            closest.put(part, near_part)
            furthest.put(part, far_part)
        return tops, closest, furthest

    def closest(self) -> Lines:
        """
        :return: the least costly candidate of each source, and of several the most valuable
        """
        found = _Collected(self._count(None), self._tables[0].device)
        for values, cost, shape in self._blocks(None):
            least, index = cost.min(-1, keepdim=True)
            shared = cost <= least
            if int(shared.sum()) > index.numel():
                index = th.where(shared, values, -math.inf).max(-1, keepdim=True).indices
            found.add(index, values, cost, shape)
        return found.lines

    def _count(self, rows: th.Tensor | None) -> int:
        return self.sources.numel() if rows is None else len(rows)

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


class _Collected:
    """Lines that are found block by block, in the memory that they end in."""

    def __init__(self, n: int, device: th.device) -> None:
        value, cost = th.empty(2, n, dtype=th.float64, device=device)
        self.lines, self._start = Lines(th.empty(n, dtype=th.int64, device=device), value, cost), 0

    def add(self, index: th.Tensor, values: th.Tensor, cost: th.Tensor, shape: tuple[int, ...]) -> slice:
        """The candidates ``index`` of the next sources, of shape ``shape``; which of all they are."""
        part = slice(self._start, self._start + math.prod(shape))
        self.lines.put(part, _pick(index, values, cost, shape))
        self._start = part.stop
        return part
