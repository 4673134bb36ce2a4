r"""
The minimiser of :math:`g(\lambda) = \lambda\delta + \sum_k w_k \max_m (v_{km} - \lambda c_{km})` over :math:`\lambda \ge 0`.

Each source's term is the upper envelope of its candidates' lines, so that g is convex and piecewise linear. The search keeps a
bracket and, at each of its ends, the line of every source that is on top there. A source with one line at both ends is settled
between them and leaves the search, so that the later steps look at few sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch as th

# Entries that are looked at together: 16 MiB in float64.
BLOCK = 1 << 21
# Sums of weighted values are exact to a few units in the last place.
ROUNDING = 8 * th.finfo(th.float64).eps
# After so many steps without an upper end it is computed, and after so many that did not halve the bracket it is halved.
PATIENCE = 3

Score = Callable[[th.Tensor, th.Tensor], th.Tensor]


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
        numbers = (th.arange(x.shape[:-1].numel(), device=x.device).view(x.shape[:-1]) for x in self._tables)
        # Which row of each table belongs to which source.
        self._owners = [x.expand(sources).reshape(-1) for x in numbers]

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
            values, cost = (
                table.reshape(-1, self.size).index_select(0, owner[part])
                for table, owner in zip(self._tables, self._owners, strict=True)
            )
            yield values.double(), cost.double(), (len(part),)

    def best(self, score: Score, other: Score | None = None, *, slack: float = 0.0, rows: th.Tensor | None = None) -> Lines:
        """
        The candidates with the largest score.

        :param score: of values and costs, broadcastable to their common shape
        :param other: a second score, to be largest where several candidates share the first one
        :param slack: by how much a candidate may miss the largest score and still share it
        :param rows: numbers of the sources; all of them when omitted
        :return: one candidate of each source, in the order of the sources
        """
        found = []
        for values, cost, shape in self._blocks(rows):
            scores = score(values, cost)
            best, index = scores.max(-1, keepdim=True)
            if other is not None:
                shared = scores >= best - slack
                # Ties are rare, and it costs more to break them than to see that there are none.
                if int(shared.sum()) > index.numel():
                    index = th.where(shared, other(values, cost), -math.inf).max(-1, keepdim=True).indices
            index = index.expand(*shape, 1)
            chosen = (x.expand(*shape, -1).gather(-1, index) for x in (values, cost))
            found.append(tuple(x.reshape(-1) for x in (index, *chosen)))
        return Lines(*(th.cat(parts) if len(found) > 1 else parts[0] for parts in zip(*found, strict=True)))

    def steepest(self, base: Lines, rows: th.Tensor) -> float:
        """
        How much a unit of cost gains at most.

        :param base: the closest candidates of these sources, the most valuable of each
        :param rows: numbers of the sources
        :return: the largest ratio of what is gained over what is spent by leaving them
        """
        largest, start = -math.inf, 0
        for values, cost, (length,) in self._blocks(rows):
            gain = values - base.value[start : start + length, None]
            price = cost - base.cost[start : start + length, None]
            largest = max(largest, float(th.where(price > 0, gain / price, -math.inf).max()))
            start += length
        return largest


def value_score(values: th.Tensor, cost: th.Tensor) -> th.Tensor:
    """The value, where moving is free."""
    return values


def cheap_score(values: th.Tensor, cost: th.Tensor) -> th.Tensor:
    """What is largest for the cheapest candidate."""
    return -cost


def dear_score(values: th.Tensor, cost: th.Tensor) -> th.Tensor:
    """What is largest for the dearest candidate."""
    return cost


def net_score(multiplier: float) -> Score:
    """
    :param multiplier: the price of the cost
    :return: the score ``value - multiplier * cost``
    """
    return lambda values, cost: th.sub(values, cost, alpha=multiplier)


class Bracket:
    """
    Two multipliers around the minimiser, and what is on top at each of them.

    :param weights: of the sources, shape ``(n,)``
    :param steep: lines on top at zero, which spend more than the budget
    :param flat: lines on top where the multiplier is large, which do not
    """

    def __init__(self, weights: th.Tensor, steep: Lines, flat: Lines) -> None:
        self.low, self.high = 0.0, math.inf
        self.steep, self.flat, self.weights = steep, flat, weights
        # Numbers of the sources that are open, the value and cost of those that are settled, and the candidates of all.
        self.rows = th.arange(len(weights), device=weights.device)
        self.value, self.cost = 0.0, 0.0
        self.steep_index, self.flat_index = steep.index.clone(), flat.index.clone()
        self._settle()

    def _settle(self) -> None:
        # Two lines of one cost that are both on top are one line, whatever their numbers.
        is_open = self.steep.cost != self.flat.cost
        settled = self.weights * ~is_open
        value, cost = th.stack((settled @ self.flat.value, settled @ self.flat.cost)).tolist()
        self.value, self.cost = self.value + value, self.cost + cost
        kept = is_open.nonzero().squeeze(-1)
        self.steep, self.flat = self.steep.select(kept), self.flat.select(kept)
        self.weights, self.rows = self.weights[kept], self.rows[kept]

    def crossing(self) -> float:
        """
        Where the supporting lines of both ends meet: no minimiser is lower than their height there.

        :return: the multiplier
        """
        gain = self.weights @ (self.steep.value - self.flat.value)
        return float(gain / (self.weights @ (self.steep.cost - self.flat.cost)))

    def spent(self, lines: Lines) -> float:
        """
        :param lines: of the open sources
        :return: what they cost on average, together with the settled sources
        """
        return self.cost + float(self.weights @ lines.cost)

    def narrow(self, multiplier: float, tops: Lines, *, below: bool) -> None:
        """
        Put one of the ends at a multiplier between them.

        :param multiplier: the new end
        :param tops: the lines of the open sources that are on top there
        :param below: whether they spend more than the budget, so that the minimiser is above
        """
        if below:
            self.low, self.steep = multiplier, tops
            self.steep_index[self.rows] = tops.index
        else:
            self.high, self.flat = multiplier, tops
            self.flat_index[self.rows] = tops.index
        self._settle()


@dataclass(frozen=True)
class Minimum:
    """
    :param multiplier: the minimiser
    :param n_iter: multipliers looked at
    :param nearest: the closest candidate on top of each source, shape ``(n,)``
    :param furthest: the furthest candidate on top
    :param mixing: share of ``nearest`` with which the budget is met
    :param value: of the dual
    :param cost: what the mixture spends
    :param gap: by how much the value of the mixture is below that of the dual
    """

    multiplier: float
    n_iter: int
    nearest: th.Tensor
    furthest: th.Tensor
    mixing: float
    value: float
    cost: float
    gap: float


def minimise(
    candidates: Candidates, weights: th.Tensor, radius: float, *, slack: float, scale: float, max_iter: int
) -> Minimum:
    """
    Minimise the dual, and find the two maps whose mixture meets the budget.

    :param candidates: values and costs of every source
    :param weights: of the sources, shape ``(n,)``, summing to one, in float64
    :param radius: the budget
    :param slack: differences of value that count as ties
    :param scale: largest size of a value, whose rounding is the limit of what can be told apart
    :param max_iter: multipliers to look at
    :return: the minimiser and the maps
    :raises ValueError: if no map is within the budget
    """
    free = candidates.best(value_score, cheap_score, slack=slack)
    spent = float(weights @ free.cost)
    tolerance = ROUNDING * (radius + spent)
    if spent <= radius + tolerance:
        furthest = candidates.best(value_score, dear_score, slack=slack)
        value = float(weights @ candidates.best(value_score).value)
        gap = max(value - float(weights @ free.value), 0.0)
        return Minimum(0.0, 0, free.index, furthest.index, 1.0, value, spent, gap)
    bracket = Bracket(weights, candidates.best(value_score, cheap_score), candidates.best(cheap_score, value_score))
    least = bracket.spent(bracket.flat)
    if least > radius + tolerance:
        raise ValueError(
            f"`radius` must be at least {least:g}, what the closest candidates cost on average, got {radius:g}; "
            "let every source be one of its own candidates, at a cost of zero"
        )
    if least >= radius - tolerance:
        # Only the closest candidates are within the budget. They stay on top from the slope of the steepest line on.
        return _mixture(candidates, bracket, _steepest(candidates, bracket), radius, slack, 1)
    multiplier, n_iter = _cross(candidates, bracket, radius, tolerance, ROUNDING * scale, max_iter)
    return _mixture(candidates, bracket, multiplier, radius, slack, n_iter)


def _cross(
    candidates: Candidates, bracket: Bracket, radius: float, cost_tolerance: float, value_tolerance: float, max_iter: int
) -> tuple[float, int]:
    """
    Look where the supporting lines of both ends cross, until nothing is above them there.

    As g has finitely many lines this ends, but it may crawl along many of them: then the bracket is halved.
    """
    width = math.inf
    for n_iter in range(1, max_iter + 1):
        multiplier, halves = bracket.crossing(), False
        if n_iter % PATIENCE == 0:
            if math.isinf(bracket.high):
                bracket.high = _steepest(candidates, bracket)
            halves = bracket.high - bracket.low > 0.5 * width
            width = bracket.high - bracket.low
            if halves:
                multiplier = bracket.low + 0.5 * width
        tops = candidates.best(net_score(multiplier), rows=bracket.rows)
        excess = float(bracket.weights @ (tops.at(multiplier) - bracket.steep.at(multiplier)))
        slope = radius - bracket.spent(tops)
        if abs(slope) <= cost_tolerance or (excess <= value_tolerance and not halves):
            return multiplier, n_iter
        bracket.narrow(multiplier, tops, below=slope < 0)
    return bracket.crossing(), max_iter


def _steepest(candidates: Candidates, bracket: Bracket) -> float:
    """The least multiplier from which on no source of positive weight gains by leaving its closest candidate."""
    rows = bracket.weights.nonzero().squeeze(-1)
    steepest = candidates.steepest(bracket.flat.select(rows), bracket.rows[rows])
    if not math.isfinite(steepest):
        raise ValueError(
            "`cost` has entries so small beside differences of `values` that their ratio is not finite; change the unit"
        )
    return steepest


def _mixture(candidates: Candidates, bracket: Bracket, multiplier: float, radius: float, slack: float, n_iter: int) -> Minimum:
    """The closest and the furthest candidates on top at the minimiser, in the shares that meet the budget."""
    score, rows = net_score(multiplier), bracket.rows
    tops = candidates.best(score, rows=rows).at(multiplier)
    near = candidates.best(score, cheap_score, slack=slack, rows=rows)
    far = candidates.best(score, dear_score, slack=slack, rows=rows)
    if not bracket.spent(near) <= radius <= bracket.spent(far):
        # The lines of the two ends are on both sides of the budget, wherever the search was stopped.
        near, far = bracket.flat, bracket.steep
    least, most = bracket.spent(near), bracket.spent(far)
    mixing = min(max((most - radius) / (most - least), 0.0), 1.0) if most > least else 1.0
    cost = mixing * least + (1 - mixing) * most
    value = bracket.value + multiplier * (radius - bracket.cost) + float(bracket.weights @ tops)
    missed = tops - (mixing * near.at(multiplier) + (1 - mixing) * far.at(multiplier))
    gap = max(multiplier * (radius - cost) + float(bracket.weights @ missed), 0.0)
    nearest, furthest = bracket.flat_index.clone(), bracket.steep_index.clone()
    nearest[rows], furthest[rows] = near.index, far.index
    return Minimum(multiplier, n_iter, nearest, furthest, mixing, value, cost, gap)
