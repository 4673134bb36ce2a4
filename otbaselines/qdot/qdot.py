"""Offline reinforcement learning with Wasserstein regularisation through optimal transport maps."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from otbaselines.common.offline.implicit_q import ImplicitQLearning
from otbaselines.common.offline.losses import (
    advantage_weights,
    agreed_weights,
    bounded_weights,
    disagreement,
    effective_share,
    expectile_loss,
)
from otbaselines.common.offline.rows import OfflineBatch
from otbaselines.common.settings import Setting, arguments_of, check_settings, settings_of
from otbaselines.ot.maps import displacement_cost
from otbaselines.qdot.policies import ACTS, N_CANDIDATES, TransportPolicy

# What is taken where nothing is said.
EXPECTILE, MAX_WEIGHT, NOISE_DIVERGENCE = 0.7, 100.0, 0.05
WEIGHTED = ("awr", "weighted_map")
# The optimizer keeps squares of gradients, which are of the price's size; beyond it they would overflow single precision.
LARGEST_PRICE = 1e15


def transport_loss(
    moved_q: th.Tensor, actions: th.Tensor, moved: th.Tensor, *, alpha: float, order: int, scale: th.Tensor
) -> th.Tensor:
    r"""
    :math:`E_D\left[-Q(s, T(s, a)) / c + \alpha |a - T(s, a)|^p\right]`: the policy is the data's, moved to where it earns more
    at a price per distance. For :math:`p = 2` and :math:`T = \nabla_a f`, the price is :math:`\alpha W_2^2`.

    :param moved_q: :math:`Q(s, T(s, a))`, shape ``(batch,)``
    :param actions: :math:`a`, shape ``(batch, action_dim)``
    :param moved: :math:`T(s, a)`, of the same shape
    :param alpha: price, in the unit of ``moved_q / scale``
    :param order: :math:`p`, 1 or 2
    :param scale: :math:`c`, shape ``()``
    :return: shape ``()``
    """
    return alpha * displacement_cost(actions, moved, order=order, validate=False).mean() - moved_q.mean() / scale


def magnitude(values: th.Tensor) -> th.Tensor:
    """
    :param values: of the minibatch's actions, shape ``(batch,)``
    :return: their mean magnitude, above 0, shape ``()``
    """
    return values.abs().mean().clamp(min=1e-6)


class QDOT(ImplicitQLearning):
    r"""
    Offline reinforcement learning that moves the data's actions by an optimal transport map (after Omura et al. 2025).

    The map :math:`T = \nabla_a f(s, a)` of a network that is convex in the action raises :math:`Q(s, T(s, a))` at a price of
    :math:`\alpha W_2^2` between the policy and the data's, without a discriminator. Values are implicit Q-learning's.

    This is a reconstruction: the paper's equations and settings were not at hand. The documentation says which choices are
    ours.

    :param alpha: price of moving actions, for actions scaled to [-1, 1]; ``inf`` switches the map off
    :param order: 2 for :math:`|a - T|^2`, whose mean is :math:`W_2^2`; 1 for :math:`|a - T|`, a bound on :math:`W_1`
    :param v_target: what :math:`V(s)` estimates: an ``"expectile"`` of :math:`Q(s, a)` over the data's actions, or by
        ``"map"`` the mean of :math:`Q(s, T(s, a))`
    :param extraction: how the policy comes about. ``"weighted_map"``: by regression onto :math:`T(s, a)`, weighted by
        advantages; ``"regression"``: the same without weights; ``"awr"``: onto the data's actions, weighted by advantages;
        ``"bc_map"``: the map applied to cloned behaviour; ``"best_of"``: of several such actions the one of highest value
    :param normalize_q: divide :math:`Q` by its mean magnitude in the minibatch, so that ``alpha`` means the same in every task
    :param expectile: for ``v_target="expectile"`` only; 0.7 when omitted
    :param noise_divergence: for extractions with weights only: how far, in nats, normal errors as large as what the critics
        differ by would take the weighted minibatch from the minibatch, from which the temperature of the weights follows; 0.05
        when omitted
    :param weight_divergence: in its place, how far it is from the minibatch in all
    :param inverse_temperature: in its place, :math:`\beta` of implicit Q-learning's weights :math:`e^{\beta A}`
    :param max_weight: the largest of these; 100 when omitted
    :param n_candidates: for ``extraction="best_of"`` only; 10 when omitted
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "alpha": Setting("number", low=0.0, above="always", endless=True),
        "order": Setting("integer", choices=(1, 2)),
        "v_target": Setting("text", choices=("expectile", "map")),
        "extraction": Setting("text", choices=tuple(ACTS)),
        "normalize_q": Setting("flag"),
        **{
            name: replace(ImplicitQLearning.setting_ranges[name], optional=True)
            for name in ("expectile", "inverse_temperature", "max_weight")
        },
        "noise_divergence": Setting("number", low=0.0, above="always", high=100.0, optional=True),
        "weight_divergence": Setting("number", low=0.0, above="always", high=100.0, optional=True),
        "n_candidates": Setting("integer", low=1, high=10**6, optional=True),
    }
    metric_names: ClassVar[tuple[str, ...]] = (*ImplicitQLearning.metric_names, "map_loss", "moved_q", "displacement")
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": TransportPolicy}
    settings_behind: ClassVar[dict[str, str]] = {"use_map": "alpha"}
    policy: TransportPolicy

    def __init__(
        self,
        policy: str | type,
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
        actor_learning_rate: float | str | Schedule = "cosine_3e-4",
        dataset: Any = None,
        alpha: float = 0.3,
        order: int = 2,
        v_target: str = "expectile",
        extraction: str = "weighted_map",
        normalize_q: bool = True,
        batch_size: int = 256,
        gamma: float = 0.99,
        tau: float = 0.005,
        expectile: float | None = None,
        noise_divergence: float | None = None,
        weight_divergence: float | None = None,
        inverse_temperature: float | None = None,
        max_weight: float | None = None,
        return_share: float = 0.2,
        n_candidates: int | None = None,
        reward_scale: float | str = "return_range",
        normalize_observations: bool = True,
        compile: bool = False,
        cuda_graph: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.alpha = alpha
        self.order = order
        self.v_target = v_target
        self.extraction = extraction
        self.normalize_q = normalize_q
        self.noise_divergence = noise_divergence
        self.weight_divergence = weight_divergence
        self.n_candidates = n_candidates
        self.expectile = expectile  # type: ignore[assignment]
        self.inverse_temperature = inverse_temperature  # type: ignore[assignment]
        self.max_weight = max_weight  # type: ignore[assignment]
        check_settings(settings_of(type(self)), {**vars(self), **locals()})
        self._check_together()
        super().__init__(**arguments_of(super().__init__, locals()))  # type: ignore[arg-type]

    def check_before_learning(self) -> None:
        self._check_together()
        self._check_critics()
        super().check_before_learning()

    def _check_together(self) -> None:
        if LARGEST_PRICE < self.alpha < math.inf:
            raise ValueError(
                f"`alpha`={self.alpha} is beyond {LARGEST_PRICE:g}, whose gradients single precision can square; use "
                "infinity, the map switched off"
            )
        applies = [
            ("expectile", self.expectile, self.v_target == "expectile", "`v_target='expectile'`"),
            ("noise_divergence", self.noise_divergence, self.extraction in WEIGHTED, f"`extraction` in {WEIGHTED}"),
            ("weight_divergence", self.weight_divergence, self.extraction in WEIGHTED, f"`extraction` in {WEIGHTED}"),
            ("inverse_temperature", self.inverse_temperature, self.extraction in WEIGHTED, f"`extraction` in {WEIGHTED}"),
            ("max_weight", self.max_weight, self.inverse_temperature is not None, "weights of a given `inverse_temperature`"),
            ("n_candidates", self.n_candidates, self.extraction == "best_of", "`extraction='best_of'`"),
        ]
        for name, value, used, where in applies:
            if value is not None and not used:
                raise TypeError(f"`{name}` applies to {where} only, got {value}; leave it out")
        sharpness = {
            "noise_divergence": self.noise_divergence,
            "weight_divergence": self.weight_divergence,
            "inverse_temperature": self.inverse_temperature,
        }
        given = [f"`{name}`={value}" for name, value in sharpness.items() if value is not None]
        if len(given) > 1:
            raise TypeError(f"{' and '.join(given)} are different ways to say how sharply advantages weigh; give one of them")
        if self.extraction == "awr" and self.v_target == "expectile" and math.isfinite(self.alpha):
            raise ValueError(
                "`extraction`='awr' with `v_target`='expectile' would train a map that nothing uses; set `alpha` to infinity, "
                "which leaves IQL, or choose 'weighted_map'"
            )

    # ------------------------------------------------------------------ set-up
    @property
    def uses_map(self) -> bool:
        """Whether there is a map at all."""
        return math.isfinite(self.alpha)

    def _policy_settings(self) -> dict[str, Any]:
        n_candidates = N_CANDIDATES if self.n_candidates is None else int(self.n_candidates)
        return {"use_map": self.uses_map, "extraction": self.extraction, "n_candidates": n_candidates}

    def _setup_model(self) -> None:
        super()._setup_model()
        self._check_critics()

    def _check_critics(self) -> None:
        asks = self.extraction in WEIGHTED and self.weight_divergence is None and self.inverse_temperature is None
        if asks and self.policy.n_critics < 2:
            raise ValueError(
                f"`policy_kwargs['n_critics']`={self.policy.n_critics} leaves nobody to disagree with, from which "
                "`noise_divergence` takes the temperature of the weights; have two critics, or set `weight_divergence` or "
                "`inverse_temperature`"
            )

    def _optimizer_names(self) -> tuple[str, ...]:
        return (*self.optimizer_names, *(["map_optimizer"] if self.uses_map else []))

    # ------------------------------------------------------------------ the losses
    def _losses(self, batch: OfflineBatch) -> tuple[th.Tensor, th.Tensor]:
        policy = self.policy
        values, next_values = policy.value(batch.observations), self._next_values(batch)
        data_q = policy.target_values(batch.observation_actions)
        target_q = data_q.amin(0)
        moved, inside, all_moved_q, map_loss = self._moved(batch, data_q)
        moved_q = all_moved_q.amin(0)
        if self.v_target == "map":
            value_loss = expectile_loss(moved_q.detach() - values, 0.5)
        else:
            value_loss = expectile_loss(target_q - values, EXPECTILE if self.expectile is None else self.expectile)
        critic_loss = self._critic_loss(batch, next_values)
        weighed = data_q if self.extraction == "awr" else all_moved_q.detach()
        advantages = weighed.amin(0) - values.detach()
        weights = self._weights(advantages, weighed)
        followed = inside if self.extraction in ("regression", "weighted_map") else batch.actions
        actor_loss = -(weights * policy.log_prob(batch.observations, followed)).mean()
        displacement = displacement_cost(batch.actions, moved.detach(), order=1, validate=False).mean()
        scalars = (
            *(value_loss, critic_loss, actor_loss, values.mean(), target_q.mean(), advantages.mean(), weights.mean()),
            *(effective_share(weights), map_loss, moved_q.mean(), displacement),
        )
        return value_loss + critic_loss + actor_loss + map_loss, th.stack(scalars).detach()

    def _moved(self, batch: OfflineBatch, data_q: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        The data's actions after the map, within the box, their values by every critic, and the map's loss.

        The critics are asked inside of the box only: beyond it, the price alone has a slope, which leads back. What the map's
        best response is therefore lies in the box.
        """
        if not self.uses_map:
            return batch.actions, batch.actions, data_q, data_q.new_zeros(())
        moved = self.policy.transport(batch.observations, batch.actions)
        inside = moved.clamp(-1.0, 1.0)
        moved_q = self.policy.target_values(th.cat([batch.observations, inside], 1))
        scale = magnitude(data_q.amin(0)) if self.normalize_q else data_q.new_ones(())
        loss = transport_loss(moved_q.amin(0), batch.actions, moved, alpha=self.alpha, order=self.order, scale=scale)
        return moved, inside.detach(), moved_q, loss

    def _weights(self, advantages: th.Tensor, values: th.Tensor) -> th.Tensor:
        if self.extraction not in WEIGHTED:
            return th.ones_like(advantages)
        if self.weight_divergence is not None:
            return bounded_weights(advantages, float(self.weight_divergence))
        if self.inverse_temperature is None:
            divergence = NOISE_DIVERGENCE if self.noise_divergence is None else self.noise_divergence
            return agreed_weights(advantages, disagreement(values), float(divergence))
        largest = MAX_WEIGHT if self.max_weight is None else self.max_weight
        return advantage_weights(advantages, self.inverse_temperature, largest)
