"""Policy optimisation as a Wasserstein gradient flow, from a replay buffer."""

import math
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from otbaselines.common.networks.optimizers import clear_gradients, take_step
from otbaselines.common.settings import NUMBERS, Setting, arguments_of
from otbaselines.wfpg.log_det import squash_log_det
from otbaselines.wfpg.losses import (
    anchor_error,
    critic_loss,
    differential_targets,
    discounted_targets,
    noise_entropy,
    temperature_gradient,
)
from otbaselines.wfpg.maps import FORMS
from otbaselines.wfpg.policies import FlowCnnPolicy, FlowMultiInputPolicy, FlowPolicy
from otbaselines.wfpg.replay import ReplayBatch, ReplayLearner
from otbaselines.wfpg.solvers import (
    FlowStep,
    Metric,
    ascent_loss,
    flatten,
    flow_targets,
    natural_direction,
    proximal_loss,
    unflatten,
)

SOLVERS = ("regression", "cg", "first_order")
# What is taken where nothing is said.
GAMMA, INNER_STEPS, CG_STEPS, CG_DAMPING = 0.99, 2, 5, 0.1
# A regression is pulled to its targets by an optimizer with a rate of its own; a natural step takes its particles there.
STEP_SIZES = {"regression": 1.0, "cg": 0.1, "first_order": 0.1}
# How much of the running averages of speeds and of the metric a step replaces.
_FORGETTING = 0.01
# The squares of errors that hotter entropies make are infinite in single precision.
_HOTTEST = 1e15
# Slopes below it are none.
_SLOWEST = 1e-8
# How much of the last natural direction the next one starts from.
_WARM_START = 0.9


class WassersteinFlowPG(ReplayLearner):
    r"""
    Wasserstein flow policy gradient (after Dus 2026): the policy's actions are particles that move up the slope of the value,
    :math:`a \leftarrow a + \eta \nabla_a Q(s, a)`, which is the gradient flow of the return in the Wasserstein geometry of
    policies, weighted by the states that are visited.

    The policy is a map :math:`a = T_\theta(s, z)` of noise. Its parameters follow the particles by one of three solvers.
    Critics are those of SAC.

    This is a formulation of our own: of the paper only an abstract and a summary were at hand. The documentation says which
    choices are ours.

    :param learning_rate: of the critics' optimizer, the temperature's, and the actor's but for ``solver="cg"``, whose step is
        ``step_size``: a number, or a function of the remaining progress (from 1 to 0)
    :param solver: how the map follows its particles. ``"regression"``: by regression onto where they go, the implicit step;
        ``"cg"``: by the natural step :math:`G^{-1} \nabla_\theta J` of the metric :math:`G = E[\partial T^\top \partial T]`,
        found by conjugate gradients; ``"first_order"``: by a step of the optimizer along :math:`\nabla_\theta J`
    :param step_size: :math:`\eta`, how far the particles go in a step, for slopes of unit root mean square, to which they are
        scaled by a running average; when omitted 1 for ``"regression"`` and 0.1 else. Not for ``"first_order"`` without
        Langevin noise, whose optimizer has a scale of its own
    :param n_inner_steps: optimizer steps of a regression; 2 when omitted
    :param cg_max_steps: of conjugate gradients, for ``"cg"``; 5 when omitted
    :param cg_damping: what is added to the metric's diagonal, in units of its mean, for ``"cg"``; 0.1 when omitted
    :param policy_batch_size: of how many states of a minibatch the particles move; of half of them when omitted, since a step
        of the policy costs as much as one of the critics. The metric of ``"cg"`` is of these states, and needs some tens
    :param objective: the ``"discounted"`` return, or the long-run ``"average"`` of rewards, which is learned along with
        differential values; for tasks that do not end
    :param policy_form: ``"pushforward"``, whose law may have several modes, or a squashed ``"gaussian"``
    :param entropy: what keeps the policy from becoming deterministic. ``"bonus"``: the entropy itself, times ``ent_coef``;
        ``"langevin"``: each action is kicked by noise of variance :math:`2 \eta \,` ``ent_coef``, the heat of one step
    :param ent_coef: temperature, in the unit of rewards. ``"auto"`` learns it, ``"auto_0.1"`` from 0.1 on; for ``"langevin"``
        a number has to be given
    :param target_entropy: for ``"auto"``: in nats for actions scaled to [-1, 1]; minus the number of actions when omitted
    :param gamma: the discount, for ``objective="discounted"``; 0.99 when omitted
    """

    setting_ranges: ClassVar[dict[str, Setting]] = {
        "solver": Setting("text", choices=SOLVERS),
        "step_size": Setting("number", low=0.0, above="always", optional=True),
        "n_inner_steps": Setting("integer", low=1, high=1000, optional=True),
        "cg_max_steps": Setting("integer", low=1, high=1000, optional=True),
        "cg_damping": Setting("number", low=0.0, optional=True),
        "policy_batch_size": Setting("integer", low=1, optional=True),
        "objective": Setting("text", choices=("discounted", "average")),
        "policy_form": Setting("text", choices=FORMS),
        "entropy": Setting("text", choices=("bonus", "langevin")),
        "target_entropy": Setting("number", optional=True),
        "gamma": Setting("number", low=0.0, high=1.0, optional=True),
        "ent_coef": Setting(
            (str, *NUMBERS),
            fits=lambda value: _is_temperature(value),
            what="a number of at least 0, 'auto', or 'auto_' with the number to start from",
        ),
    }
    metric_names: ClassVar[tuple[str, ...]] = (
        *("critic_loss", "q", "average_reward", "speed", "displacement", "entropy", "ent_coef", "solver_residual"),
    )
    optimizer_names: ClassVar[tuple[str, ...]] = ("actor_optimizer", "critic_optimizer", "ent_coef_optimizer")
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": FlowPolicy,
        "CnnPolicy": FlowCnnPolicy,
        "MultiInputPolicy": FlowMultiInputPolicy,
    }
    policy: FlowPolicy

    def __init__(
        self,
        policy: str | type,
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float | None = None,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        solver: str = "regression",
        step_size: float | None = None,
        n_inner_steps: int | None = None,
        cg_max_steps: int | None = None,
        cg_damping: float | None = None,
        policy_batch_size: int | None = None,
        objective: str = "discounted",
        policy_form: str = "pushforward",
        entropy: str = "bonus",
        ent_coef: float | str = "auto",
        target_entropy: float | None = None,
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
        self.solver = solver
        self.step_size = step_size
        self.n_inner_steps = n_inner_steps
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.policy_batch_size = policy_batch_size
        self.objective = objective
        self.policy_form = policy_form
        self.entropy = entropy
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        super().__init__(**arguments_of(super().__init__, locals()))  # type: ignore[arg-type]

    def _check_together(self, gamma: float | None, n_steps: int) -> None:
        is_langevin = self.entropy == "langevin"
        applies = [
            ("step_size", self.step_size, self.solver != "first_order" or is_langevin, "`solver` in ('regression', 'cg')"),
            ("n_inner_steps", self.n_inner_steps, self.solver == "regression", "`solver='regression'`"),
            ("cg_max_steps", self.cg_max_steps, self.solver == "cg", "`solver='cg'`"),
            ("cg_damping", self.cg_damping, self.solver == "cg", "`solver='cg'`"),
            ("target_entropy", self.target_entropy, self._learns_temperature, "`ent_coef='auto'`"),
            ("gamma", gamma, self.objective == "discounted", "`objective='discounted'`"),
        ]
        for name, value, used, where in applies:
            if value is not None and not used:
                remedy = f"leave it out, or give `{name}`=None to `load`"
                raise TypeError(f"`{name}` applies to {where} only, got {value}; {remedy}")
        if is_langevin and self._learns_temperature:
            raise TypeError(
                f"`ent_coef` as 'auto' applies to `entropy='bonus'` only, got {self.ent_coef!r}; give a number for 'langevin'"
            )
        if self.objective == "average" and n_steps != 1:
            raise TypeError(f"`n_steps` applies to `objective='discounted'` only, got {n_steps}; leave it out")

    # ------------------------------------------------------------------ set-up
    @property
    def _learns_temperature(self) -> bool:
        return isinstance(self.ent_coef, str)

    @property
    def _has_bonus(self) -> bool:
        return self.entropy == "bonus" and (self._learns_temperature or float(self.ent_coef) > 0.0)

    def _policy_settings(self) -> dict[str, Any]:
        return {"policy_form": self.policy_form, "keeps_metric": self.solver == "cg"}

    def _setup_model(self) -> None:
        if not issubclass(self.policy_class, FlowPolicy):
            raise ValueError(
                f"`policy` must be one of {', '.join(map(repr, self.policy_aliases))} or a subclass of "
                f"{FlowPolicy.__module__}.{FlowPolicy.__name__}, got {self.policy_class.__name__}"
            )
        if self.objective == "discounted" and self.gamma is None:
            self.gamma = GAMMA
        super()._setup_model()
        if self.policy_batch_size is not None and self.policy_batch_size > self.batch_size:
            raise ValueError(
                f"`policy_batch_size` must be at most `batch_size`={self.batch_size}, got {self.policy_batch_size}; "
                "the particles that move are those of a minibatch"
            )
        if self._has_bonus and self.policy.latent_dim != self.policy.action_dim:
            raise ValueError(
                f"`entropy`='bonus' needs as much noise as there are actions, {self.policy.action_dim}, to see how the map "
                f"stretches it, but `policy_kwargs['latent_dim']` is {self.policy.latent_dim}; leave it out, or use "
                "entropy='langevin', or ent_coef=0"
            )
        if isinstance(self.ent_coef, str):
            start = float(self.ent_coef.removeprefix("auto").removeprefix("_") or 1.0)
            with th.no_grad():
                self.policy.log_ent_coef.fill_(math.log(start))
        self._fixed_ent_coef = None if isinstance(self.ent_coef, str) else th.tensor(float(self.ent_coef), device=self.device)
        self._wanted_entropy = -float(self.policy.action_dim) if self.target_entropy is None else float(self.target_entropy)
        self._step_size = STEP_SIZES[self.solver] if self.step_size is None else float(self.step_size)
        self._n_inner_steps = INNER_STEPS if self.n_inner_steps is None else int(self.n_inner_steps)
        # Where values follow their targets at once, the anchor settles soonest so, and does not swing.
        self._anchor_rate = min(1.0, 4.0 * float(self.tau))
        self._noise_entropy = noise_entropy(self.policy.action_dim)

    # ------------------------------------------------------------------ the algorithm
    def _gradient_step(self) -> th.Tensor:
        """The critics towards their targets, the particles up the slope, the map after its particles."""
        batch, policy = self._batch, self.policy
        assert batch is not None
        ent_coef = policy.log_ent_coef.detach().exp() if self._fixed_ent_coef is None else self._fixed_ent_coef
        targets = self._targets(batch, ent_coef)
        if self.objective == "average":
            # Before the values are fitted: at rates of one this is relative value iteration, and nothing swings.
            correction = self._anchor_rate * anchor_error(batch.rewards, targets)
            policy.average_reward += correction
            targets = targets - correction
        loss, values = self._critic_loss(batch, targets)
        clear_gradients(policy.critic_optimizer)
        loss.backward()
        take_step(policy.critic_optimizer)
        step = self._move_policy(batch, ent_coef)
        if self._learns_temperature:
            policy.log_ent_coef.grad = temperature_gradient(step.entropy, self._wanted_entropy)
            take_step(policy.ent_coef_optimizer)
        policy.update_target(self.tau)
        scalars = (
            loss,
            values.mean(),
            policy.average_reward,
            step.speed,
            step.displacement,
            step.entropy,
            ent_coef,
            step.residual,
        )
        return th.stack([scalar.detach() for scalar in scalars])

    @th.no_grad()
    def _targets(self, batch: ReplayBatch, ent_coef: th.Tensor) -> th.Tensor:
        """What the critics are to say, with the entropy of the next action where there is a bonus on it."""
        actor = self.policy.actor
        if self._has_bonus:
            u, log_det = actor.with_log_det(actor.hidden(batch.next_seen), batch.noise[1])
            bonus = ent_coef * (self._noise_entropy + log_det + squash_log_det(u))
            next_values = self.policy.target_value(batch.next_seen, u.tanh()) + bonus
        else:
            u = actor(batch.next_seen, batch.noise[1])
            if self.entropy == "langevin":
                u = u + self.policy.kick_std * batch.kicks[1]
            next_values = self.policy.target_value(batch.next_seen, u.tanh())
        if self.objective == "average":
            return differential_targets(batch.rewards, batch.continues, next_values, self.policy.average_reward)
        return discounted_targets(batch.rewards, batch.continues * batch.discounts, next_values)

    def _n_moved(self, batch_size: int) -> int:
        """Of how many states of a minibatch the particles move."""
        return (batch_size + 1) // 2 if self.policy_batch_size is None else int(self.policy_batch_size)

    def _critic_loss(self, batch: ReplayBatch, targets: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        values = self.policy.values(batch.seen, batch.actions)
        return critic_loss(values, targets), values

    def _images(self, hidden: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """The particles, and how the map stretches the noise there, on average; without a bonus on it that is only told."""
        actor = self.policy.actor
        if not actor.is_stretched:
            return actor.bend(hidden, noise), noise.new_zeros(())
        u, log_det = actor.with_log_det(hidden, noise)
        return u, log_det.mean() if self._has_bonus else log_det.detach().mean()

    def _velocities(self, seen: Any, u: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
        r"""
        The slope of :math:`Q(s, \tanh u) + \alpha \sum_j \log(1 - \tanh^2 u_j)` at the particles: each climbs a critic, and
        what squashing adds to the entropy.
        """
        actions = u.detach().tanh().requires_grad_()
        with th.no_grad():
            features = self.policy.critic_features(seen)
        slopes = th.autograd.grad(self._summed_values(features, actions), actions)[0]
        with th.no_grad():
            velocities = slopes - slopes * actions * actions
            return th.addcmul(velocities, ent_coef, actions, value=-2.0) if self._has_bonus else velocities

    def _summed_values(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return self.policy.critic.values_by_parts(features, actions).sum()

    def _move_policy(self, batch: ReplayBatch, ent_coef: th.Tensor) -> FlowStep:
        """One step of the flow, and of the map after it."""
        policy = self.policy
        batch = batch.first(self._n_moved(len(batch.rewards)))
        hidden = policy.actor.hidden(batch.seen)
        # The first of several steps of a regression is of the layers behind the trunk alone.
        is_partial = self.solver == "regression" and self._n_inner_steps > 1
        u, log_det = self._images(hidden.detach() if is_partial else hidden, batch.noise[0])
        velocities = self._velocities(batch.seen, u, ent_coef)
        speed = velocities.norm() / math.sqrt(len(velocities))
        scale = policy.velocity_scale
        scale.copy_(th.where(scale > 0.0, scale.lerp(speed, _FORGETTING), speed))
        rate = self._step_size / scale.clamp(min=_SLOWEST)
        if self.entropy == "langevin":
            policy.kick_std.copy_((2.0 * rate * ent_coef).sqrt())
        entropy = self._noise_entropy + log_det.detach() + squash_log_det(u.detach()).mean()
        residual = speed.new_zeros(())
        if self.solver == "regression":
            targets = flow_targets(u.detach(), velocities, rate)
            self._regress(batch.noise[0], hidden, (u, log_det), targets, rate * ent_coef)
        else:
            loss = ascent_loss(u, velocities) - ent_coef * log_det
            if self.solver == "cg":
                residual = self._natural_step(batch, loss, rate)
            else:
                # The optimizer is told nothing of the scale of rewards.
                self._take_actor_step(loss / scale.clamp(min=_SLOWEST))
        return FlowStep(speed, rate * speed, entropy, residual)

    def _regress(
        self, noise: th.Tensor, hidden: th.Tensor, images: tuple[th.Tensor, th.Tensor], targets: th.Tensor, heat: th.Tensor
    ) -> None:
        """
        Towards the particles, less what the entropy is worth: the implicit step, by some steps of the optimizer.

        All but the last are of the layers behind the trunk alone, whose features stay the same and are computed once.
        """
        (u, log_det), features = images, hidden.detach()
        for left in reversed(range(self._n_inner_steps)):
            self._take_actor_step(proximal_loss(u, targets) - heat * log_det)
            if left > 0:
                u, log_det = self._images(hidden if left == 1 else features, noise)

    def _take_actor_step(self, loss: th.Tensor) -> None:
        clear_gradients(self.policy.actor_optimizer)
        loss.backward()
        take_step(self.policy.actor_optimizer)

    def _natural_step(self, batch: ReplayBatch, loss: th.Tensor, rate: th.Tensor) -> th.Tensor:
        r""":math:`\theta \leftarrow \theta + \eta (G + \lambda I)^{-1} \nabla_\theta J`."""
        policy = self.policy
        named = dict(policy.actor.named_parameters())
        parameters = tuple(named.values())
        gradient = -flatten(th.autograd.grad(loss, parameters, materialize_grads=True))

        def images(values: tuple[th.Tensor, ...]) -> th.Tensor:
            moved = dict(zip(named, values, strict=True))
            result: th.Tensor = th.func.functional_call(policy.actor, moved, (batch.seen, batch.noise[0]))
            return result

        with th.no_grad():
            metric = Metric(images, tuple(parameter.detach() for parameter in parameters))
            sample, diagonal = metric.diagonal_sample(batch.kicks[0].sign()), policy.metric_diagonal
            is_new = diagonal.amax() == 0.0
            diagonal.copy_(th.where(is_new, sample, diagonal.lerp(sample, _FORGETTING)))
            damping = (CG_DAMPING if self.cg_damping is None else self.cg_damping) * diagonal.mean()
            found = natural_direction(
                metric,
                gradient,
                damping=damping,
                n_steps=CG_STEPS if self.cg_max_steps is None else int(self.cg_max_steps),
                diagonal=diagonal,
                start=_WARM_START * policy.last_direction,
            )
            policy.last_direction.copy_(found.solution)
            # The particles move by `step_size` at most, root mean square: curvature that the minibatch has not seen must not
            # fling them. What the direction's product with the gradient says of that holds at a solution alone.
            longest = rate * metric.push_forward(found.solution).square().sum(-1).mean().sqrt()
            rate = rate * (self._step_size / longest.clamp(min=_SLOWEST)).clamp(max=1.0)
            th._foreach_add_([p.detach() for p in parameters], list(unflatten(rate * found.solution, parameters)))
        return found.residual

    def _compile_losses(self) -> None:
        if self.compile:
            for name in ("_targets", "_critic_loss", "_images", "_summed_values"):
                setattr(self, name, th.compile(getattr(type(self), name).__get__(self), dynamic=False))


def _is_temperature(value: Any) -> bool:
    if not isinstance(value, str):
        return not isinstance(value, bool) and 0.0 <= value <= _HOTTEST
    if value == "auto":
        return True
    try:
        return value.startswith("auto_") and 0.0 < float(value.removeprefix("auto_")) <= _HOTTEST
    except ValueError:
        return False
