"""The equations of learning from data: one function each, pure, on tensors of one minibatch."""

import math

import torch as th

# Steps of Newton's method on the logarithm of the temperature, and how far one may go.
_NEWTON_STEPS, _LONGEST = 8, 1.5


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


def bounded_weights(advantages: th.Tensor, divergence: float) -> th.Tensor:
    r"""
    :math:`w_j = n e^{A_j / \eta} / \sum_k e^{A_k / \eta}`, which of all weights of mean one whose Kullback-Leibler divergence
    from equal ones, :math:`\frac1n \sum_j w_j \log w_j`, is at most ``divergence`` have the largest
    :math:`\frac1n \sum_j w_j A_j`: relative entropy policy search (Peters et al. 2010) on one minibatch.

    A shift of the advantages or a positive factor on them changes nothing. The temperature :math:`\eta` is found by Newton's
    method, in a fixed number of steps and without a look at the numbers.

    :param advantages: :math:`A`, shape ``(n,)``
    :param divergence: in nats, above 0; beyond :math:`\log n` the best row has all of the weight
    :return: shape ``(n,)``, without a gradient
    """
    a = advantages.detach()
    a = a - a.max()
    spread = a.std(correction=0)
    # Equal advantages stay equal whatever they are divided by.
    a = a / spread.clamp(min=th.finfo(a.dtype).tiny)
    log_n, target = math.log(len(a)), math.log(divergence)
    # What the temperature of normal advantages would be.
    log_eta = a.new_full((), 0.5 * math.log(0.5 / divergence))
    for _ in range(_NEWTON_STEPS):
        scaled = a * (-log_eta).exp()
        log_w = th.log_softmax(scaled, 0)
        share = log_w.exp()
        found = (share * log_w).sum() + log_n
        mean = (share * scaled).sum()
        slope = (share * (scaled - mean).square()).sum() / found.clamp(min=1e-12)
        step = (found.clamp(min=1e-12).log() - target) / slope.clamp(min=0.1)
        log_eta = log_eta + step.clamp(-_LONGEST, _LONGEST)
    return th.softmax(a * (-log_eta).exp(), 0) * len(a)


def agreed_weights(advantages: th.Tensor, variances: th.Tensor, noise_divergence: float) -> th.Tensor:
    r"""
    :math:`w_j = n e^{A_j / \eta} / \sum_k e^{A_k / \eta}`, as sharp as the critics agree: :math:`\eta^2 = \bar v / (2 \delta)`
    with :math:`\bar v` the mean variance of the advantages' errors.

    Normal errors of that variance and nothing else would give weights :math:`\bar v / (2 \eta^2) = \delta` nats from equal
    ones, and normal advantages of :math:`r` times that variance :math:`r \delta`. A shift of the advantages, or a positive
    factor on advantages and errors, changes nothing.

    :param advantages: :math:`A`, shape ``(n,)``
    :param variances: of their errors, shape ``(n,)``; see :func:`disagreement`
    :param noise_divergence: :math:`\delta`, in nats, above 0
    :return: shape ``(n,)``, without a gradient
    """
    a, v = advantages.detach(), variances.detach().mean()
    a = a - a.max()
    return th.softmax(a * (2.0 * noise_divergence / v.clamp(min=th.finfo(a.dtype).tiny)).sqrt(), 0) * len(a)


def disagreement(values: th.Tensor) -> th.Tensor:
    """
    Variance of the mean of several critics, as far as they differ.

    The smallest of normal critics varies more: 1.36 times as much of two, 1.7 times of three, 3.4 times of ten. What all of
    them have wrong alike is in neither.

    :param values: shape ``(n_critics, batch)``, of two critics or more
    :return: shape ``(batch,)``
    """
    return values.var(0) / len(values)


def effective_share(weights: th.Tensor) -> th.Tensor:
    r"""
    :math:`(\sum_j w_j)^2 / (n \sum_j w_j^2)`: how many equally weighted rows would vary as much, as a share of all.

    :param weights: not negative, shape ``(n,)``
    :return: from :math:`1/n` to 1, and 0 where all weights are, shape ``()``
    """
    # Squares of very small or large weights are no numbers of single precision.
    tiny = th.finfo(weights.dtype).tiny
    shares = weights / weights.max().clamp(min=tiny)
    return shares.mean().square() / shares.square().mean().clamp(min=tiny)
