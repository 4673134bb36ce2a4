"""The critic's equations: one function each, pure, on tensors of one minibatch."""

import math

import torch as th
from torch.nn import functional as F


def discounted_targets(rewards: th.Tensor, discounts: th.Tensor, next_values: th.Tensor) -> th.Tensor:
    r"""
    :math:`r + \gamma^k c V(s')`.

    :param rewards: of one or several steps, shape ``(batch,)``
    :param discounts: :math:`\gamma^k c`, zero after a terminal step, shape ``(batch,)``
    :param next_values: :math:`V(s')`, shape ``(batch,)``
    :return: shape ``(batch,)``
    """
    return rewards + discounts * next_values


def differential_targets(
    rewards: th.Tensor, continues: th.Tensor, next_values: th.Tensor, average_reward: th.Tensor
) -> th.Tensor:
    r"""
    :math:`r - J + c h(s')`, the right-hand side of the Poisson equation :math:`Q = r - J + E[h(s')]`.

    :param rewards: of one step, shape ``(batch,)``
    :param continues: 0 after a terminal step and 1 elsewhere, shape ``(batch,)``
    :param next_values: :math:`h(s')`, shape ``(batch,)``
    :param average_reward: :math:`J`, shape ``()``
    :return: shape ``(batch,)``
    """
    return rewards - average_reward + continues * next_values


def anchor_error(rewards: th.Tensor, targets: th.Tensor) -> th.Tensor:
    r"""
    :math:`E[c \, h(s')] - J`, from the differential targets :math:`r - J + c \, h(s')`.

    Differential values solve their equation up to a constant. Following this error, :math:`J` becomes what they are worth on
    average where transitions arrive, which chooses the constant: relative value iteration (White 1963; Abounadi, Bertsekas and
    Borkar 2001). In small steps, with values :math:`Q` that follow their targets at a rate :math:`\kappa`, slow copies at
    :math:`\tau` and :math:`J` at :math:`\rho`, the constant obeys :math:`\lambda^3 + (\tau + \kappa + \rho) \lambda^2 +
    \rho (\tau + \kappa) \lambda + \tau \kappa \rho = 0`, whose roots all have negative real parts, whatever the rates.

    :param rewards: of one step, shape ``(batch,)``
    :param targets: :func:`differential_targets`, shape ``(batch,)``
    :return: shape ``()``
    """
    return (targets - rewards).mean()


def critic_loss(values: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    Half of the squared errors, summed over critics, as in SB3's SAC.

    :param values: shape ``(n_critics, batch)``
    :param targets: held constant, shape ``(batch,)``
    :return: shape ``()``
    """
    return F.mse_loss(values, targets.expand_as(values), reduction="sum") * (0.5 / len(targets))


def noise_entropy(n: int) -> float:
    """
    :param n: dimension
    :return: the entropy of standard normal noise, in nats
    """
    return 0.5 * n * (1.0 + math.log(2.0 * math.pi))


def temperature_gradient(entropy: th.Tensor, target_entropy: float) -> th.Tensor:
    r"""
    The slope of :math:`\log \alpha \, (H - \bar H)`, which lowers the temperature where the policy has more entropy than
    wanted (Haarnoja et al. 2018, Eq. 18, on the logarithm).

    :param entropy: :math:`H` of the policy, shape ``()``
    :param target_entropy: :math:`\bar H`, in nats
    :return: shape ``()``
    """
    return entropy - target_entropy
