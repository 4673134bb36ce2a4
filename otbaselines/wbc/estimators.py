"""
The estimators of WBC by name, each with exactly the options that apply to it.

``WBC(estimator="pooled", estimator_kwargs={"p": 1})`` makes a :class:`Pooled` with ``p=1``; what a class does not name is an
error, and so are options for discrete actions where actions are continuous.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces

from otbaselines.common.settings import Setting, check_settings
from otbaselines.ot.sliced import MAX_PROJECTIONS
from otbaselines.wbc.conditional import CategoricalConsensus, GaussianConsensus
from otbaselines.wbc.consensus import Consensus
from otbaselines.wbc.divergences import EnergyConsensus, KLConsensus
from otbaselines.wbc.metric import GroundMetric, TeamSpaces, labels, make_metric
from otbaselines.wbc.visitation import ExpectedConsensus, ReparametrisedConsensus, SampledConsensus, SlicedConsensus

# Marks options that continuous actions do not have.
DISCRETE = {"discrete": True}
#: What options may be; embeddings and coordinates are checked against the spaces.
OPTION_RANGES: dict[str, Setting] = {
    "n_support": Setting("integer", low=2, high=1_000_000),
    "weights": Setting("text", choices=("uniform", "return")),
    "beta": Setting("number", low=0.0, above="always", remedy="it weighs actions against states"),
    "p": Setting("integer", choices=(1, 2)),
    "debiased": Setting("flag"),
    "reverse": Setting("flag"),
    "action_metric": Setting("text", choices=("euclidean", "zero_one")),
    "scale_observations": Setting("flag"),
    "support": Setting("text", choices=("own", "pooled")),
    "gradient": Setting("text", choices=("potential", "plan")),
    "n_projections": Setting("integer", low=1, high=MAX_PROJECTIONS),
}

# A matrix of costs between all pairs of states is held: a gigabyte.
DENSE_SUPPORT = Setting("integer", low=2, high=16_384, remedy="`estimator='sliced'` takes more")


@dataclass(frozen=True)
class Streams:
    """
    Random streams of consensus, so that it never disturbs the learner's.

    :param states: draws states, actions and noise, on the learner's device
    :param directions: draws the directions of sliced transport, on the CPU, so that a seed means the same on every device
    """

    states: th.Generator
    directions: th.Generator


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """
    Which disagreement is measured, and how.

    :param n_support: states in the team's support: per minibatch where agents are compared at equal states, else per rollout,
        spread over the agents; at least 2
    :param weights: of the agents in the barycenter: ``"uniform"``, or ``"return"`` for a softmax of their standardised mean
        rewards
    :cvar default_reg: entropic strength when none is given; ``None`` for estimators without
    :cvar support_setting: what ``n_support`` may be, where it is bounded more narrowly
    """

    default_reg: ClassVar[float | None] = 0.6
    support_setting: ClassVar[Setting | None] = None

    n_support: int = 64
    weights: str = "uniform"

    def __post_init__(self) -> None:
        ranges = OPTION_RANGES if self.support_setting is None else {**OPTION_RANGES, "n_support": self.support_setting}
        check_settings(ranges, vars(self))

    @abstractmethod
    def build(self, team: TeamSpaces, streams: Streams) -> Consensus:
        """
        :param team: the team's spaces
        :param streams: random streams
        :return: the consensus that these options describe
        :raises ValueError: if the options do not go with the spaces
        """


@dataclass(frozen=True, kw_only=True)
class KL(Estimator):
    """
    A Kullback-Leibler pull to the team's mixture at equal states, the baseline: no metric and no ``reg``.

    :param action_embedding: (discrete actions) what makes two actions the same: ``"one_hot"`` for their numbers, which is to
        know nothing of what they do; or ``"matched"``, ``"environment"`` or a table as the estimators by transport take, under
        which actions at the same point are the same, and how far apart others are does not count
    :param reverse: from the mixture to the policy instead of from the policy to the mixture
    """

    default_reg = None

    action_embedding: str | Sequence[Any] = field(default="one_hot", metadata=DISCRETE)
    reverse: bool = False

    def build(self, team: TeamSpaces, streams: Streams) -> Consensus:
        placement = labels(team, self.action_embedding) if team.discrete else None
        return KLConsensus(self.n_support, streams.states, placement, reverse=self.reverse)


@dataclass(frozen=True, kw_only=True)
class MetricEstimator(Estimator):
    """
    What all estimators with a ground metric have.

    :param beta: weight of actions against states in the ground metric, positive
    :param action_embedding: (discrete actions) ``"one_hot"``; one row per action, such as the displacement that it causes;
        such a table for each agent, shape ``(n_agents, n_actions, k)``, which compares teams by what their actions do;
        ``"environment"``, the environment's own ``agent_action_vectors``, scaled to the distances of one-hot; or
        ``"matched"``, the same with the actions of different agents matched by optimal assignment, so that all have the same
        places. When omitted, ``"matched"`` where the environment says what its actions do, and ``"one_hot"`` elsewhere
    :param action_metric: (discrete actions) ``"euclidean"`` between the points of the embedding, or ``"zero_one"``: all points
        as far from each other as under one-hot
    """

    beta: float = 0.8
    action_embedding: str | Sequence[Any] | None = field(default=None, metadata=DISCRETE)
    action_metric: str = field(default="euclidean", metadata=DISCRETE)

    def _metric(self, team: TeamSpaces, p: int, **states: Any) -> GroundMetric:
        embedding, metric = self.action_embedding, self.action_metric
        return make_metric(team, beta=self.beta, p=p, action_embedding=embedding, action_metric=metric, **states)


@dataclass(frozen=True, kw_only=True)
class Energy(MetricEstimator):
    """The energy distance to the team's mixture at equal states: a metric between actions, but no transport and no ``reg``."""

    default_reg = None

    def build(self, team: TeamSpaces, streams: Streams) -> Consensus:
        return EnergyConsensus(self.n_support, streams.states, self._metric(team, 1))


@dataclass(frozen=True, kw_only=True)
class Conditional(MetricEstimator):
    """
    The agents at the same states, a new sample for every minibatch; mass does not move between states.

    Continuous actions are implemented, by closed forms, for ``p=2`` and debiased only.

    :param p: (discrete actions) exponent of the ground metric, 1 or 2
    :param debiased: (discrete actions) Sinkhorn divergence and debiased barycenter; without it a strong pull shrinks the team
        to one action
    """

    p: int = field(default=2, metadata=DISCRETE)
    debiased: bool = field(default=True, metadata=DISCRETE)

    def build(self, team: TeamSpaces, streams: Streams) -> Consensus:
        metric = self._metric(team, self.p)
        if team.discrete:
            return CategoricalConsensus(self.n_support, streams.states, metric, debiased=self.debiased)
        return GaussianConsensus(self.n_support, streams.states, metric)


@dataclass(frozen=True, kw_only=True)
class VisitationEstimator(MetricEstimator):
    """
    What the estimators by measures over states and actions have; observations must be vectors.

    :param p: exponent of the ground metric, 1 or 2
    :param metric_coordinates: entries of the observation that count in the metric between states; all when omitted
    :param scale_observations: divide them by their standard deviations over the rollout
    """

    p: int = 2
    metric_coordinates: Sequence[int] | None = None
    scale_observations: bool = True

    def _ground(self, team: TeamSpaces) -> GroundMetric:
        if not isinstance(team.observation_space, spaces.Box):
            name = next(name for name, kind in ESTIMATORS.items() if kind is type(self))
            raise ValueError(
                f"`estimator={name!r}` compares observations, which must be vectors, but the observation space is "
                f"{team.observation_space}; use `estimator='conditional'`"
            )
        states = {"metric_coordinates": self.metric_coordinates, "scale_observations": self.scale_observations}
        return self._metric(team, self.p, **states)


@dataclass(frozen=True, kw_only=True)
class Own(VisitationEstimator):
    """
    Every agent on the states that it visited, as in the paper, its actions weighted by their probabilities (discrete) or moved
    with the parameters (continuous).

    :param debiased: Sinkhorn divergence and debiased barycenter
    """

    support_setting = DENSE_SUPPORT
    pooled: ClassVar[bool] = False

    debiased: bool = True

    def build(self, team: TeamSpaces, streams: Streams) -> Consensus:
        kind = ExpectedConsensus if team.discrete else ReparametrisedConsensus
        return kind(self.n_support, streams.states, self._ground(team), pooled=self.pooled, debiased=self.debiased)


@dataclass(frozen=True, kw_only=True)
class Pooled(Own):
    """Every agent's policy on the union of the drawn states; otherwise as :class:`Own`."""

    pooled = True


@dataclass(frozen=True, kw_only=True)
class Sampled(VisitationEstimator):
    """
    Sampled state-action pairs and the score function, as printed in the paper.

    :param support: ``"own"`` for what each agent did, ``"pooled"`` for what it would do on the union of the drawn states
    :param gradient: the dual ``"potential"`` (consistent), or the ``"plan"``'s cost (as printed)
    :param debiased: Sinkhorn divergence and debiased barycenter
    """

    support_setting = DENSE_SUPPORT

    support: str = "own"
    gradient: str = "potential"
    debiased: bool = True

    def build(self, team: TeamSpaces, streams: Streams) -> Consensus:
        return SampledConsensus(
            self.n_support,
            streams.states,
            self._ground(team),
            pooled=self.support == "pooled",
            debiased=self.debiased,
            gradient=self.gradient,
        )


@dataclass(frozen=True, kw_only=True)
class Sliced(VisitationEstimator):
    """
    Sampled pairs and exact transport along random lines, for large supports: no ``reg``, and no bias to remove.

    :param support: ``"own"`` for what each agent did, ``"pooled"`` for what it would do on the union of the drawn states
    :param gradient: potentials on the lines (``"potential"``), or the ``"plan"``'s cost
    :param n_projections: random lines per rollout, at least 1
    """

    default_reg = None

    support: str = "own"
    gradient: str = "potential"
    n_projections: int = 64

    def build(self, team: TeamSpaces, streams: Streams) -> Consensus:
        return SlicedConsensus(
            self.n_support,
            streams.states,
            self._ground(team),
            pooled=self.support == "pooled",
            gradient=self.gradient,
            n_projections=self.n_projections,
            directions=streams.directions,
        )


ESTIMATORS: dict[str, type[Estimator]] = {
    "conditional": Conditional,
    "pooled": Pooled,
    "own": Own,
    "sampled": Sampled,
    "sliced": Sliced,
    "kl": KL,
    "energy": Energy,
}


def make_estimator(name: str, options: Mapping[str, Any] | None, *, discrete: bool = True) -> Estimator:
    """
    An estimator by name.

    :param name: a key of ``ESTIMATORS``
    :param options: its options; the defaults when omitted
    :param discrete: whether actions are discrete; where they are not, options for discrete actions are refused
    :return: the estimator
    :raises ValueError: if an option is out of range
    :raises TypeError: if an option does not apply or is of the wrong type
    """
    options = options or {}
    known = [option.name for option in fields(ESTIMATORS[name]) if discrete or not option.metadata.get("discrete")]
    unknown = [option for option in options if option not in known]
    if unknown:
        where = f"`estimator={name!r}`" + ("" if discrete else " with continuous actions")
        raise TypeError(
            f"`estimator_kwargs` has {', '.join(f'`{option}`' for option in unknown)}, which {where} does not take; its "
            f"options are {', '.join(f'`{option}`' for option in known)}"
        )
    return ESTIMATORS[name](**options)
