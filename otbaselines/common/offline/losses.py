"""The equations of learning from data: one function each, pure, on tensors of one minibatch."""

import torch as th


def expectile_loss(difference: th.Tensor, expectile: float) -> th.Tensor:
    r"""
    :math:`E\left[\,|\tau - 1(u < 0)|\, u^2\right]` (Kostrikov et al. 2022, Eq. 5), minimised by an expectile; for
    :math:`\tau = 0.5` half of the mean squared error, minimised by the mean.

    :param difference: :math:`u`, targets less predictions
    :param expectile: :math:`\tau` in (0, 1)
    :return: shape ``()``
    """
    weight = th.where(difference > 0, expectile, 1.0 - expectile)
    return (weight * difference.square()).mean()


def td_targets(rewards: th.Tensor, continues: th.Tensor, next_values: th.Tensor, gamma: float) -> th.Tensor:
    r"""
    :math:`r + \gamma \, c \, V(s')` (Kostrikov et al. 2022, Eq. 6).

    :param rewards: shape ``(batch,)``
    :param continues: 0 after a terminal step, 1 elsewhere, truncated steps included, shape ``(batch,)``
    :param next_values: :math:`V(s')`, shape ``(batch,)``
    :param gamma: the discount
    :return: shape ``(batch,)``
    """
    return rewards + gamma * continues * next_values


def advantage_weights(advantages: th.Tensor, inverse_temperature: float, max_weight: float) -> th.Tensor:
    r"""
    :math:`\min(e^{\beta A}, w_{max})` (Kostrikov et al. 2022, Eq. 7).

    :param advantages: :math:`A`, in the unit of the scaled returns
    :param inverse_temperature: :math:`\beta \ge 0`
    :param max_weight: :math:`w_{max}`
    :return: of the shape of ``advantages``
    """
    return (inverse_temperature * advantages).exp().clamp(max=max_weight)
