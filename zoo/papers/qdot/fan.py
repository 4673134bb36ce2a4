"""
Many policies on one pair of critics: QDOT's extractions at several prices, cloning and implicit Q-learning, in one training.

With an expectile for its target, QDOT's critics know nothing of the map and the policy, so that runs which differ in these
alone train the same critics again and again. Here all of them stand beside one pair, see the same minibatches, and start from
the same actor and the same map, as separate runs of one seed would; their parameters are stacked.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from otbaselines.common.offline.implicit_q import ImplicitQLearning
from otbaselines.common.offline.losses import advantage_weights, agreed_weights, disagreement, expectile_loss
from otbaselines.common.offline.policies import log_density
from otbaselines.common.offline.rows import OfflineBatch
from otbaselines.ot.maps import ConvexPotential, displacement_cost
from otbaselines.qdot.policies import ACTS, TransportPolicy
from otbaselines.qdot.qdot import magnitude, transport_loss

#: Weights of a policy: ``plain``, ``iql`` (its own, of a fixed temperature), or what the critics' disagreement alone may tilt
#: them by, in nats, as QDOT's ``noise_divergence``.
PLAIN, IQL_WEIGHTS = "plain", "iql"


def weights_by_name(weights: Sequence[str | float]) -> list[str]:
    """
    :param weights: names, or numbers of nats
    :return: names
    """
    return [each if isinstance(each, str) else str(float(each)) for each in weights]


class _Mover(nn.Module):
    """A potential whose forward pass is its map, which is what :func:`torch.func.functional_call` calls."""

    def __init__(self, potential: ConvexPotential) -> None:
        super().__init__()
        self.potential = potential

    def forward(self, actions: th.Tensor, observations: th.Tensor) -> th.Tensor:
        return self.potential.transport(actions, observations)


class FanPolicy(TransportPolicy):
    """
    QDOT's networks, with one map for each price and one actor for each way to extract a policy.

    ``actor``, ``log_std`` and ``potential`` are copies of the way that was chosen last, and act; training moves the stacks.

    :param observation_space: a box, which is flattened
    :param action_space: a bounded box
    :param lr_schedule: learning rate by remaining progress
    :param prices: of the maps; none of them infinite
    :param ways: price (infinity: no map) and weights of each actor
    :param kwargs: of :class:`~otbaselines.qdot.MlpPolicy`
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        prices: Sequence[float] = (),
        ways: Sequence[tuple[float, str]] = (),
        **kwargs: Any,
    ) -> None:
        self.prices, self.ways = tuple(prices), tuple((float(price), str(weights)) for price, weights in ways)
        super().__init__(observation_space, action_space, lr_schedule, extraction="best_of", **kwargs)
        self.choose(self.ways[0])

    def _build_networks(self, actor_arch: list[int], critic_arch: list[int]) -> None:
        super()._build_networks(actor_arch, critic_arch)
        assert self.potential is not None
        movers, actors = [_Mover(self.potential)] * len(self.prices), [self.actor] * len(self.ways)
        self.maps, self.actors = (
            nn.ParameterDict(
                {name.replace(".", "/"): nn.Parameter(stacked) for name, stacked in stack_module_state(modules)[0].items()}
            )
            for modules in (movers, actors)
        )
        self.log_stds = nn.Parameter(self.log_std.detach().expand(len(self.ways), -1).clone())
        # Templates, without parameters of their own in training.
        self._templates = [copy.deepcopy(movers[0]).requires_grad_(False), copy.deepcopy(self.actor).requires_grad_(False)]
        for part in (self.actor, self.potential):
            part.requires_grad_(False)
        self.log_std.requires_grad_(False)

    def _build_optimizers(self, lr_schedule: Schedule) -> None:
        super()._build_optimizers(lr_schedule)
        self.optimizer = self._optimizer([*self.actors.values(), self.log_stds], lr_schedule)
        self.map_optimizer = self._optimizer(self.maps.values(), lr_schedule)

    def move(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param observations: normalised, shape ``(batch, obs_dim)``
        :param actions: scaled to [-1, 1], shape ``(batch, action_dim)``
        :return: where each map takes them, shape ``(n_prices, batch, action_dim)``
        """
        template = self._templates[0]

        def moved(parameters: dict[str, th.Tensor]) -> th.Tensor:
            found: th.Tensor = functional_call(template, parameters, (actions, observations))
            return found

        assert self.potential is not None
        # What the template has beside parameters stays where it was made; the policy's own moves along with it.
        constants = {f"potential.{name}": buffer for name, buffer in self.potential.named_buffers()}
        return vmap(lambda parameters: moved({**parameters, **constants}))(_named(self.maps))

    def log_probs(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param observations: normalised, shape ``(batch, obs_dim)``
        :param actions: what each actor is to follow, scaled to [-1, 1], shape ``(n_ways, batch, action_dim)``
        :return: log-densities, shape ``(n_ways, batch)``
        """
        template = self._templates[1]

        def mean(parameters: dict[str, th.Tensor]) -> th.Tensor:
            found: th.Tensor = functional_call(template, parameters, (observations,))
            return found

        return log_density(vmap(mean)(_named(self.actors)), self.log_stds.unsqueeze(1), actions)

    @th.no_grad()
    def choose(self, way: tuple[float, str], *, acts: str = "weighted_map", moved_by: float | None = None) -> None:
        """
        Act by one of the actors from now on.

        :param way: price and weights, one of ``ways``
        :param acts: the extraction by which it acts: ``"bc_map"`` and ``"best_of"`` send what the actor does through a map
        :param moved_by: price of that map; infinity for none
        :raises ValueError: if there is no such way, extraction or price
        """
        price = math.inf if moved_by is None else moved_by
        known = {"way": (way, self.ways), "acts": (acts, tuple(ACTS)), "moved_by": (price, (*self.prices, math.inf))}
        for name, (value, choices) in known.items():
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
        k = self.ways.index(way)
        self.actor.load_state_dict({name: stacked[k] for name, stacked in _named(self.actors).items()})
        self.log_std.copy_(self.log_stds[k])
        self.extraction = acts
        self.use_map = math.isfinite(price)
        if self.use_map:
            assert self.potential is not None
            stacks = _named(self.maps)
            own = {name.removeprefix("potential."): stacked[self.prices.index(price)] for name, stacked in stacks.items()}
            self.potential.load_state_dict(own)

    def transport(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return super().transport(observations, actions) if self.use_map else actions


def _named(stacks: nn.ParameterDict) -> dict[str, th.Tensor]:
    return {name.replace("/", "."): parameter for name, parameter in stacks.items()}


class PolicyFan(ImplicitQLearning):
    """
    Train every policy of a table on one pair of critics. A tool of comparisons, not part of the package: it is not saved.

    :param prices: of the maps, as QDOT's ``alpha``; infinity, the map switched off, may be among them
    :param weights: of the extractions, each at every price: ``"plain"``, or QDOT's ``noise_divergence``
    :param return_share: as QDOT's
    :param settings: of :class:`~otbaselines.common.offline.implicit_q.ImplicitQLearning`
    """

    metric_names: ClassVar[tuple[str, ...]] = ("value_loss", "critic_loss", "actor_loss", "map_loss", "value", "q")
    optimizer_names: ClassVar[tuple[str, ...]] = ("optimizer", "critic_optimizer", "map_optimizer")
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": FanPolicy}
    policy: FanPolicy

    def __init__(
        self,
        policy: str | type,
        env: GymEnv | str | None = None,
        *,
        prices: Sequence[float] = (0.3, math.inf),
        weights: Sequence[str | float] = (PLAIN, 0.05),
        return_share: float = 0.2,
        **settings: Any,
    ) -> None:
        self.prices = [float(price) for price in prices if math.isfinite(price)]
        self.weights = weights_by_name(weights)
        self.ways = [(float(price), each) for each in self.weights for price in prices]
        # Cloning and implicit Q-learning are two of the ways.
        self.ways += [way for way in ((math.inf, PLAIN), (math.inf, IQL_WEIGHTS)) if way not in self.ways]
        # Where each way finds what it follows and weighs; behind the maps is what stays where it was.
        self._rows_of_ways = [self.prices.index(price) if math.isfinite(price) else len(self.prices) for price, _ in self.ways]
        super().__init__(policy, env, return_share=return_share, **settings)

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.policy.n_critics < 2 and any(each not in (PLAIN, IQL_WEIGHTS) for each in self.weights):
            raise ValueError(f"`policy_kwargs['n_critics']`={self.policy.n_critics} leaves nobody to disagree with; have two")

    def _policy_settings(self) -> dict[str, Any]:
        return {"prices": self.prices, "ways": self.ways}

    def _losses(self, batch: OfflineBatch) -> tuple[th.Tensor, th.Tensor]:
        policy = self.policy
        values, next_values = policy.value(batch.observations), self._next_values(batch)
        data_q = policy.target_values(batch.observation_actions)
        target_q = data_q.amin(0)
        value_loss = expectile_loss(target_q - values, self.expectile)
        critic_loss = self._critic_loss(batch, next_values)
        moved = policy.move(batch.observations, batch.actions)
        inside = moved.clamp(-1.0, 1.0)
        seen = batch.observations.expand(len(inside), -1, -1)
        all_moved_q = policy.target_values(th.cat([seen, inside], -1).flatten(0, 1)).unflatten(1, (len(inside), -1))
        moved_q = all_moved_q.amin(0)
        scale = magnitude(target_q)
        map_loss = th.stack(
            [
                transport_loss(q, batch.actions, to, alpha=price, order=2, scale=scale)
                for q, to, price in zip(moved_q, moved, self.prices, strict=True)
            ]
        ).sum()
        followed = th.cat([inside.detach(), batch.actions.unsqueeze(0)])
        weighed = th.cat([all_moved_q.detach(), data_q.unsqueeze(1)], 1)
        advantages, variances = weighed.amin(0) - values.detach(), disagreement(weighed)
        rows = self._rows_of_ways
        weights = th.stack(
            [self._weights(kind, advantages[row], variances[row]) for row, (_, kind) in zip(rows, self.ways, strict=True)]
        )
        log_probs = policy.log_probs(batch.observations, followed[rows])
        actor_loss = -(weights * log_probs).mean(1).sum()
        scalars = (value_loss, critic_loss, actor_loss, map_loss, values.mean(), target_q.mean())
        return value_loss + critic_loss + actor_loss + map_loss, th.stack(scalars).detach()

    def _weights(self, kind: str, advantages: th.Tensor, variances: th.Tensor) -> th.Tensor:
        if kind == PLAIN:
            return th.ones_like(advantages)
        if kind == IQL_WEIGHTS:
            return advantage_weights(advantages, self.inverse_temperature, self.max_weight)
        return agreed_weights(advantages, variances, float(kind))

    @th.no_grad()
    def worth(self, n_rows: int) -> tuple[list[float], list[float]]:
        """
        What each map does to the data's actions.

        :param n_rows: looked at, evenly spaced, at most
        :return: by price, how far actions are moved, and what the critics say that they gain, over the standard deviation of
            their values
        """
        assert self._rows is not None
        batch = self._rows.batch(self._rows.spread(n_rows))
        before = self.policy.target_value(batch.observation_actions)
        moves, gains = [], []
        for moved in self.policy.move(batch.observations, batch.actions).clamp(-1.0, 1.0):
            after = self.policy.target_value(th.cat([batch.observations, moved], 1))
            moves.append(float(displacement_cost(batch.actions, moved, order=1).mean()))
            gains.append(float((after - before).mean() / before.std()))
        return moves, gains
