"""What all systems of :mod:`otbaselines.envs.regulators` have in common: a noisy step, bounds, and their linear optimum."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from scipy.linalg import solve_discrete_are

from otbaselines.common.settings import Setting, check_settings
from otbaselines.envs._drawing import Scene

Array = npt.NDArray[np.float64]
POSITIVE = Setting("number", low=0.0, above="always")
#: With twice 128 state variables the Riccati equation takes 3 s of a CPU, with this many some 25 minutes.
MAX_LINEAR = 2048
_DISCOUNT = Setting("number", low=0.0, high=1.0, above="always", remedy="1 is the long-run average")


@dataclass(frozen=True)
class LQRSolution:
    r"""
    The optimal linear regulator: :math:`a = K s`, cost to go :math:`s^\top P s` plus what noise costs.

    :param gain: :math:`K`, shape ``(action_dim, state_dim)``
    :param value: :math:`P`, shape ``(state_dim, state_dim)``
    :param average_cost: :math:`J = \gamma \, \mathrm{tr}(P \Sigma)`: the long-run cost of a step without a discount, and with
        one what noise adds to :math:`1 - \gamma` times the discounted sum of costs
    :param discount: :math:`\gamma`
    :param is_exact: whether the system is linear; otherwise this is the solution of its linearisation at rest
    """

    gain: Array
    value: Array
    average_cost: float
    discount: float
    is_exact: bool

    def cost_from(self, states: npt.ArrayLike) -> Array:
        r"""
        :math:`(1 - \gamma) \, E \sum_t \gamma^t c_t`, which is the average cost, wherever one starts, at :math:`\gamma = 1`.

        :param states: where to start, shape ``(..., state_dim)``
        :return: shape ``(...)``
        """
        x = np.asarray(states, dtype=np.float64)
        from_start: Array = np.einsum("...i,ij,...j->...", x, self.value, x)
        return (1.0 - self.discount) * from_start + self.average_cost


@dataclass(frozen=True, kw_only=True)
class Regulator(ABC):
    """
    A system to be kept at the origin. Subclasses are frozen dataclasses of its parameters.

    States are held within the box of plus and minus :attr:`state_bounds`, where walls catch whatever would leave it, and
    actions are clipped to plus and minus ``max_action``. To the environments agents name them as shares of ``max_action``,
    from -1 to 1, as Gymnasium and SB3 recommend; here, and in :meth:`lqr`, they have their own units, and :meth:`shares`
    translates. Lengths, angles and times are in metres, radians and seconds where the system is mechanical, and without a unit
    otherwise.
    """

    max_action: float
    _settings: ClassVar[dict[str, Setting]] = {}

    def __post_init__(self) -> None:
        check_settings({"max_action": POSITIVE, **self._settings}, vars(self))

    @property
    @abstractmethod
    def state_dim(self) -> int:
        """Number of state variables."""

    @property
    @abstractmethod
    def action_dim(self) -> int:
        """Number of actions."""

    @property
    @abstractmethod
    def noise_std(self) -> tuple[float, ...]:
        """Standard deviation of the noise of a step on each state variable."""

    @property
    @abstractmethod
    def state_bounds(self) -> tuple[float, ...]:
        """Largest absolute value of each state variable; of an angle, half its period."""

    @property
    @abstractmethod
    def start_bounds(self) -> tuple[float, ...]:
        """Largest absolute value of each state variable at the start of an episode, which is uniform."""

    @property
    def periods(self) -> tuple[float | None, ...]:
        """Period of each state variable that is an angle, ``None`` for the others."""
        return (None,) * self.state_dim

    @property
    @abstractmethod
    def is_linear(self) -> bool:
        """Whether ``drift`` is linear and ``cost`` quadratic."""

    @abstractmethod
    def drift(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        The next state without noise, before walls and periods.

        :param states: shape ``(..., state_dim)``
        :param actions: shape ``(..., action_dim)``; not clipped
        :return: shape ``(..., state_dim)``
        """

    @abstractmethod
    def cost(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        What a step from ``states`` with ``actions`` costs.

        :param states: shape ``(..., state_dim)``
        :param actions: shape ``(..., action_dim)``; not clipped
        :return: shape ``(...)``
        """

    def observe(self, states: th.Tensor) -> th.Tensor:
        """
        :param states: shape ``(..., state_dim)``
        :return: what is seen of them, shape ``(..., observation_dim)``: here the states themselves
        """
        return states

    @abstractmethod
    def scene(self, state: Array) -> Scene:
        """
        :param state: shape ``(state_dim,)``
        :return: a picture's content, with a line from where each mass belongs to where it is
        """

    def observation_space(self) -> spaces.Box:
        """Return a fresh float32 space of observations."""
        high = np.array(self.state_bounds, dtype=np.float32)
        return spaces.Box(-high, high, dtype=np.float32)

    def action_space(self) -> spaces.Box:
        """Return a fresh float32 space of what agents say: shares of ``max_action``."""
        return spaces.Box(-1.0, 1.0, (self.action_dim,), np.float32)

    def shares(self, actions: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """
        :param actions: in their own units, shape ``(..., action_dim)``
        :return: the same for the environments, clipped to their space
        """
        return (np.asarray(actions, dtype=np.float64) / self.max_action).clip(-1.0, 1.0).astype(np.float32)

    def transition(self, dtype: th.dtype, device: th.device | str = "cpu") -> RegulatorStep:
        """
        :param dtype: floating-point type of the states
        :param device: where they are
        :return: one step as a function of such states
        """
        noise, bounds, starts = (
            th.tensor(each, dtype=dtype, device=device) for each in (self.noise_std, self.state_bounds, self.start_bounds)
        )
        is_angle = th.tensor([period is not None for period in self.periods], device=device)
        return RegulatorStep(self, noise, bounds, starts, is_angle)

    def linearised(self) -> tuple[Array, Array]:
        """
        :return: the derivatives of ``drift`` by state and action at rest, shapes ``(state_dim, state_dim)`` and
            ``(state_dim, action_dim)``
        """
        rest = th.zeros(self.state_dim, dtype=th.float64), th.zeros(self.action_dim, dtype=th.float64)
        by_state, by_action = th.func.jacrev(self.drift, argnums=(0, 1))(*rest)
        return by_state.numpy(), by_action.numpy()

    def lqr(self, discount: float = 1.0) -> LQRSolution:
        r"""
        The optimal linear regulator, from the discrete-time Riccati equation of :math:`\sqrt\gamma A, \sqrt\gamma B`.

        Walls and the bounds of actions are left out. Where the system is not linear this is the solution of its linearisation
        at rest (``is_exact`` is false): near rest the optimum to first order, elsewhere a reference without a guarantee.

        :param discount: :math:`\gamma` in (0, 1]; 1 is the long-run average
        :return: gain, value and average cost
        :raises TypeError: if the discount is no number
        :raises ValueError: if it is out of range, the linearisation cannot be brought to rest, or there are more than
            :data:`MAX_LINEAR` state variables
        """
        _DISCOUNT.check("discount", discount)
        if self.state_dim > MAX_LINEAR:
            raise ValueError(
                f"`lqr` solves a dense equation, in a time that grows with the cube of the state variables, of which it takes "
                f"{MAX_LINEAR} at most, got {self.state_dim}; a chain's cost per mass hardly depends on its length"
            )
        a, b = self.linearised()
        rest = th.zeros(self.state_dim, dtype=th.float64), th.zeros(self.action_dim, dtype=th.float64)
        (of_state, _), (mixed, of_action) = th.func.jacrev(th.func.jacrev(self.cost, argnums=(0, 1)), argnums=(0, 1))(*rest)
        q, n, r = 0.5 * of_state.numpy(), 0.5 * mixed.numpy(), 0.5 * of_action.numpy()
        try:
            value = solve_discrete_are(math.sqrt(discount) * a, math.sqrt(discount) * b, q, r, s=n.T)
        except (np.linalg.LinAlgError, ValueError) as error:
            raise ValueError(
                f"{self} with `discount` {discount} leaves the Riccati equation without a solution in double precision, by "
                f"parameters or the discount: {error}"
            ) from error
        gain = -np.linalg.solve(r + discount * b.T @ value @ b, discount * b.T @ value @ a + n)
        noise_cost = discount * float(np.square(self.noise_std) @ np.diag(value))
        return LQRSolution(gain, value, noise_cost, discount, self.is_linear)


@dataclass(frozen=True)
class RegulatorStep:
    """
    One step of a regulator, with its constants on one device.

    :param regulator: the system
    :param noise_std: shape ``(state_dim,)``
    :param bounds: of the states, shape ``(state_dim,)``
    :param start_bounds: of the states at the start, shape ``(state_dim,)``
    :param is_angle: which states go round instead of meeting a wall, shape ``(state_dim,)``, bool
    """

    regulator: Regulator
    noise_std: th.Tensor
    bounds: th.Tensor
    start_bounds: th.Tensor
    is_angle: th.Tensor

    def start(self, uniform: th.Tensor) -> th.Tensor:
        """
        :param uniform: draws from [0, 1), shape ``(..., state_dim)``
        :return: first states, of the same shape
        """
        return (2.0 * uniform - 1.0) * self.start_bounds

    def __call__(self, states: th.Tensor, shares: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param states: shape ``(..., state_dim)``
        :param shares: actions as shares of ``max_action``, shape ``(..., action_dim)``, clipped here
        :param noise: standard normal draws, shape ``(..., state_dim)``
        :return: the next states, shape ``(..., state_dim)``, and the rewards of the step, shape ``(...)``
        """
        actions = self.regulator.max_action * shares.clamp(-1.0, 1.0)
        arrived = self.regulator.drift(states, actions) + self.noise_std * noise
        turned = th.remainder(arrived + self.bounds, 2.0 * self.bounds) - self.bounds
        walled = th.clamp(arrived, -self.bounds, self.bounds)
        return th.where(self.is_angle, turned, walled), -self.regulator.cost(states, actions)
