r"""
The minimiser of :math:`g(\lambda) = \lambda\delta + \sum_k w_k \max_m (v_{km} - \lambda c_{km})` over :math:`\lambda \ge 0`.

Each source's term is the upper envelope of its candidates' lines, so that g is convex and piecewise linear. The search keeps a
bracket and, at each of its ends, the line of every source that is on top there. A source with one line at both ends is settled
between them and leaves the search, so that the later steps look at few sources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch as th

from otbaselines.ot._candidates import Candidates, Lines

# Sums of weighted values are exact to a few units in the last place.
ROUNDING = 8 * th.finfo(th.float64).eps
# Every so many steps the bracket must have been halved, or it is halved.
PATIENCE = 3
# Of many sources so few say where to look first; the relative steps from there that look for the other end.
SAMPLE = 2048
STEPS = (0.08, 0.3, 0.8)
# So near to an end of the bracket, relative to the multiplier, is on it.
AT_AN_END = 1e-12
GOLDEN_SECTION = 0.5 * (math.sqrt(5) - 1)


class Bracket:
    """
    Two multipliers around the minimiser, and what is on top at each of them.

    :param weights: of the sources, shape ``(n,)``
    :param radius: the budget
    :param ends: the lower one, where what is on top spends more than the budget, and the upper one, where it does not
    :param lines: of all sources, on top at one of the ends or both
    :param rows: numbers of the sources that have other lines on top at the other end, or may have
    :param steep: what these have at the lower end
    :param flat: what these have at the upper end
    """

    def __init__(
        self,
        weights: th.Tensor,
        radius: float,
        ends: tuple[float, float],
        lines: Lines,
        rows: th.Tensor,
        steep: Lines,
        flat: Lines,
    ) -> None:
        self.radius, (self.low, self.high) = radius, ends
        # Two lines of one cost that are both on top are one line, whatever their numbers and their rounding.
        kept = (steep.cost != flat.cost).nonzero().squeeze(-1)
        rows, steep, flat = rows[kept], steep.select(kept), flat.select(kept)
        # Of the sources that are open; of those that are settled the candidates, and their value and cost.
        self.rows, self.weights, self.steep, self.flat = rows, weights[rows], steep, flat
        self.index = lines.index.clone()
        ours = lines.select(rows)
        self.value = float(weights @ lines.value) - float(self.weights @ ours.value)
        self.cost = float(weights @ lines.cost) - float(self.weights @ ours.cost)
        # What is spent is compared with the radius, and where they are close its rounding is the radius's.
        self.tolerance = 2 * ROUNDING * radius

    @classmethod
    def between(cls, weights: th.Tensor, radius: float, ends: tuple[float, float], steep: Lines, flat: Lines) -> Bracket:
        """
        :param weights: of the sources, shape ``(n,)``
        :param radius: the budget
        :param ends: both ends
        :param steep: the lines of all sources on top at the lower end
        :param flat: those at the upper end
        :return: the bracket
        """
        return cls(weights, radius, ends, flat, th.arange(len(weights), device=weights.device), steep, flat)

    def spent(self, lines: Lines) -> float:
        """
        :param lines: of the open sources
        :return: what they cost on average, together with the settled sources
        """
        return self.cost + float(self.weights @ lines.cost)

    def is_around(self, *, near: Lines, far: Lines) -> bool:
        """
        :param near: of the open sources
        :param far: of the open sources
        :return: whether some mixture of the two spends the budget
        """
        return self.spent(near) - self.tolerance <= self.radius <= self.spent(far) + self.tolerance

    def crossing(self) -> float:
        """
        Where the minimiser is if the open sources have no other lines than those of the two ends.

        :return: the multiplier at which so many of these pairs have crossed that the budget is met
        """
        if len(self.rows) == 0:
            return self.low
        saving = self.steep.cost - self.flat.cost
        crossings, order = ((self.steep.value - self.flat.value) / saving).sort()
        spent = self.spent(self.steep) - (self.weights * saving)[order].cumsum(0)
        # The last one where rounding leaves all of them above the budget.
        first = min(int((spent > self.radius + self.tolerance).sum()), len(spent) - 1)
        return min(max(_finite(float(crossings[first])), self.low), self.high)

    def middle(self) -> float:
        """
        :return: a multiplier between the ends, in the middle of their logarithms where they are far apart
        """
        if 0 < 4 * self.low < self.high:
            return math.sqrt(self.low) * math.sqrt(self.high)
        return self.low + 0.5 * (self.high - self.low)

    def narrow(self, multiplier: float, tops: Lines, *, below: bool) -> None:
        """
        Put one of the ends at a multiplier between them.

        :param multiplier: the new end
        :param tops: the lines of the open sources that are on top there
        :param below: whether they spend more than the budget, so that the minimiser is above
        """
        if below:
            self.low, self.steep = multiplier, tops
        else:
            self.high, self.flat = multiplier, tops
        is_open = self.steep.cost != self.flat.cost
        self.index[self.rows] = self.flat.index
        settled = self.weights * ~is_open
        value, cost = th.stack((settled @ self.flat.value, settled @ self.flat.cost)).tolist()
        self.value, self.cost = self.value + value, self.cost + cost
        kept = is_open.nonzero().squeeze(-1)
        self.steep, self.flat = self.steep.select(kept), self.flat.select(kept)
        self.weights, self.rows = self.weights[kept], self.rows[kept]


def _finite(ratio: float) -> float:
    if math.isfinite(ratio):
        return ratio
    raise ValueError("`cost` is so small beside differences of `values` that their ratio is not finite; change the unit")


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


@dataclass(frozen=True)
class DualProblem:
    """
    :param candidates: values and costs of every source
    :param weights: of the sources, shape ``(n,)``, summing to one, in float64
    :param radius: the budget
    :param slack: differences of value that count as ties
    :param scale: largest size of a value, whose rounding is the limit of what can be told apart
    :param max_iter: multipliers to look at
    """

    candidates: Candidates
    weights: th.Tensor
    radius: float
    slack: float
    scale: float
    max_iter: int

    def solve(self) -> Minimum:
        """
        Minimise the dual, and find the two maps whose mixture meets the budget.

        :return: the minimiser and the maps
        :raises ValueError: if no map is within the budget
        """
        bracket = self._bracket()
        if isinstance(bracket, Minimum):
            return bracket
        least = bracket.spent(bracket.flat)
        if least > self.radius + bracket.tolerance:
            raise ValueError(
                f"`radius` must be at least {least:g}, what the closest candidates cost on average, got {self.radius:g}; "
                "let every source be one of its own candidates, at a cost of zero"
            )
        multiplier, n_iter = self._search(bracket)
        if multiplier - bracket.low <= AT_AN_END * multiplier or bracket.high - multiplier <= AT_AN_END * multiplier:
            bracket = self._on_the_spot(multiplier, bracket)
        return self._mixture(bracket, multiplier, n_iter)

    def _bracket(self) -> Bracket | Minimum:
        """Ends around the minimiser, or the minimiser where it is zero."""
        guess = self._guess()
        bracket = self._around(guess) if guess > 0 else None
        return self._outermost() if bracket is None else bracket

    def _on_the_spot(self, multiplier: float, bracket: Bracket) -> Bracket:
        """A bracket without width: at an end of the other one, sources are tied that are settled between its ends."""
        _, near, far = self.candidates.ties(multiplier, self.slack)
        spot = Bracket.between(self.weights, self.radius, (multiplier, multiplier), far, near)
        return spot if spot.is_around(near=spot.flat, far=spot.steep) else bracket

    def _guess(self) -> float:
        """The minimiser of a few sources, spread over all of them; zero where there is no need for it."""
        n = len(self.weights)
        if n < 8 * SAMPLE:
            return 0.0
        # Multiples of the golden section keep no step with the actions of a state, however many they are.
        steps = th.arange(SAMPLE, dtype=th.float64, device=self.weights.device)
        rows = (steps * GOLDEN_SECTION % 1 * n).long()
        weights = self.weights[rows]
        if not bool(weights.any()):
            return 0.0
        few = replace(self, candidates=self.candidates.subset(rows), weights=weights / weights.sum())
        bracket = few._outermost()
        return 0.0 if isinstance(bracket, Minimum) else few._search(bracket)[0]

    def _around(self, guess: float) -> Bracket | None:
        """A bracket with a guess for one of its ends, if the other one is near."""
        near, tops = guess, self.candidates.tops(guess)
        spent = float(self.weights @ tops.cost)
        below = spent > self.radius
        for step in STEPS:
            end = guess * (1 + step if below else 1 - step)
            rows = self.candidates.above(tops, end)
            others, before = self.candidates.tops(end, rows), tops.select(rows)
            spent += float(self.weights[rows] @ (others.cost - before.cost))
            if below != (spent > self.radius):
                ends, pair = ((near, end), (before, others)) if below else ((end, near), (others, before))
                return Bracket(self.weights, self.radius, ends, tops, rows, *pair)
            near = end
            tops.put(rows, others)
        return None

    def _outermost(self) -> Bracket | Minimum:
        """
        Zero and infinity, or the minimum where what is best at no price is within the budget.

        Of several candidates that are best the closest is taken: the furthest may be beyond the budget.
        """
        tops, near, far = self.candidates.ties(0.0, self.slack)
        spent = float(self.weights @ near.cost)
        if spent <= self.radius + ROUNDING * (self.radius + spent):
            gap = max(float(self.weights @ (tops.value - near.value)), 0.0)
            return Minimum(0.0, 0, near.index, far.index, 1.0, float(self.weights @ tops.value), spent, gap)
        return Bracket.between(self.weights, self.radius, (0.0, math.inf), tops, self.candidates.closest())

    def _search(self, bracket: Bracket) -> tuple[float, int]:
        """
        Look where the lines of the two ends meet, until no others are above them there.

        As there are finitely many lines this ends, but it may crawl along many of them: then the bracket is halved.
        """
        if bracket.spent(bracket.flat) >= self.radius - bracket.tolerance and math.isinf(bracket.high):
            # Only the closest candidates are within the budget, and from here on they are on top.
            return self._steepest(bracket), 1
        width = bracket.high - bracket.low
        for n_iter in range(1, self.max_iter + 1):
            multiplier, halves = bracket.crossing(), False
            if n_iter % PATIENCE == 0:
                if math.isinf(bracket.high):
                    bracket.high = self._steepest(bracket)
                halves = bracket.high - bracket.low > 0.5 * width
                width = bracket.high - bracket.low
                multiplier = bracket.middle() if halves else multiplier
            tops, near, far = self.candidates.ties(multiplier, ROUNDING * self.scale, bracket.rows)
            lines = th.maximum(bracket.steep.at(multiplier), bracket.flat.at(multiplier))
            excess = float(bracket.weights @ (tops.at(multiplier) - lines))
            if bracket.is_around(near=near, far=far) or (excess <= ROUNDING * self.scale and not halves):
                return multiplier, n_iter
            below = bracket.spent(near) > self.radius
            bracket.narrow(multiplier, near if below else far, below=below)
        return bracket.crossing(), self.max_iter

    def _steepest(self, bracket: Bracket) -> float:
        """The least multiplier from which on no source of positive weight gains by leaving its closest candidate."""
        rows = bracket.weights.nonzero().squeeze(-1)
        return _finite(self.candidates.steepest(bracket.flat.select(rows), bracket.rows[rows]))

    def _mixture(self, bracket: Bracket, multiplier: float, n_iter: int) -> Minimum:
        """The closest and the furthest candidates on top at the minimiser, in the shares that meet the budget."""
        rows = bracket.rows
        tops, near, far = self.candidates.ties(multiplier, self.slack, rows)
        heights = tops.at(multiplier)
        if not bracket.is_around(near=near, far=far):
            # The lines of the two ends are on both sides of the budget, wherever the search was stopped.
            near, far = bracket.flat, bracket.steep
        least, most = bracket.spent(near), bracket.spent(far)
        mixing = min(max((most - self.radius) / (most - least), 0.0), 1.0) if most > least else 1.0
        cost = mixing * least + (1 - mixing) * most
        value = bracket.value + multiplier * (self.radius - bracket.cost) + float(bracket.weights @ heights)
        missed = heights - (mixing * near.at(multiplier) + (1 - mixing) * far.at(multiplier))
        gap = max(multiplier * (self.radius - cost) + float(bracket.weights @ missed), 0.0)
        nearest, furthest = bracket.index.clone(), bracket.index
        nearest[rows], furthest[rows] = near.index, far.index
        return Minimum(multiplier, n_iter, nearest, furthest, mixing, value, cost, gap)
