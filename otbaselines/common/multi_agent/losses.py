"""What PPO minimises, and how well its critics predict, for teams whose agents may leave early."""

import torch as th


def agent_mean(x: th.Tensor, active: th.Tensor | None, *, pooled: bool) -> th.Tensor:
    """
    Mean over the steps in which an agent acted.

    :param x: of one minibatch, or of several of equal size, shape ``(..., batch, n_agents)``
    :param active: of the same shape; all when omitted
    :param pooled: one mean over all agents (shared parameters) instead of one per agent
    :return: shape ``(...)`` when pooled, else ``(..., n_agents)``; zero where nobody acted
    """
    over = (-2, -1) if pooled else (-2,)
    if active is None:
        return x.mean(over)
    weights = active.to(x.dtype)
    return (x * weights).sum(over) / weights.sum(over).clamp_min(1.0)


def normalize_advantages(advantages: th.Tensor, active: th.Tensor | None, *, pooled: bool) -> th.Tensor:
    """
    Centre and scale the advantages of a minibatch, with Bessel's correction and SB3's 1e-8.

    :param advantages: of one minibatch, or of several of equal size, shape ``(..., batch, n_agents)``
    :param active: of the same shape; all when omitted
    :param pooled: over all agents together (shared parameters) instead of each agent on its own
    :return: of the same shape
    """

    def spread(of_sets: th.Tensor) -> th.Tensor:
        return of_sets[..., None, None] if pooled else of_sets.unsqueeze(-2)

    centred = advantages - spread(agent_mean(advantages, active, pooled=pooled))
    if active is None:
        count = float(advantages.shape[-2] * (advantages.shape[-1] if pooled else 1))
        if count <= 1.0:
            return advantages
        variance = agent_mean(centred.square(), None, pooled=pooled) * (count / (count - 1.0))
    else:
        counts = active.sum((-2, -1) if pooled else -2).to(advantages.dtype)
        variance = agent_mean(centred.square(), active, pooled=pooled) * counts / (counts - 1.0).clamp_min(1.0)
    return centred / (spread(variance.sqrt()) + 1e-8)


def clipped_surrogate(ratio: th.Tensor, advantages: th.Tensor, clip_range: float) -> th.Tensor:
    r"""
    PPO's pessimistic objective :math:`\min(r A, \mathrm{clip}(r, 1 - \epsilon, 1 + \epsilon) A)`
    (Schulman et al. 2017, Eq. 7).

    :param ratio: new over old likelihood of each action
    :param advantages: of the same shape
    :param clip_range: :math:`\epsilon`
    :return: to be maximised, of the same shape; where both terms are equal, with the gradient of the first
    """
    surrogate = advantages * ratio
    # Where the clipped term is the smaller one it is a constant, so that no derivative passes the clipping.
    bound = advantages * ratio.detach().clamp(1.0 - clip_range, 1.0 + clip_range)
    return th.where(surrogate <= bound, surrogate, bound)


def kl_estimates(log_ratio: th.Tensor) -> th.Tensor:
    r"""
    :math:`(r - 1) - \log r`, whose mean over the old policy's steps is :math:`\mathrm{KL}(\pi_{old}, \pi_{new})`, with less
    variance than the mean of :math:`-\log r` (Schulman 2020).

    :param log_ratio: :math:`\log r`, new over old likelihood of each action
    :return: not negative, of the same shape
    """
    return (log_ratio.exp() - 1.0) - log_ratio


def squared_value_error(
    values: th.Tensor, old_values: th.Tensor, returns: th.Tensor, clip_range_vf: float | None
) -> th.Tensor:
    """
    Squared error of the critics, optionally with their change since the rollout clipped.

    :param values: current predictions
    :param old_values: predictions at the time of the rollout
    :param returns: targets
    :param clip_range_vf: bound on the change, in the unit of the return; none when ``None``
    :return: of the same shape
    """
    if clip_range_vf is not None:
        values = old_values + (values - old_values).clamp(-clip_range_vf, clip_range_vf)
    return th.nn.functional.mse_loss(values, returns, reduction="none")


def explained_variance(values: th.Tensor, returns: th.Tensor, active: th.Tensor | None) -> th.Tensor:
    """
    Share of the returns' variance that the critics explain, over the whole team.

    :param values: predictions, shape ``(batch, n_agents)``
    :param returns: targets, of the same shape
    :param active: which agents acted, of the same shape; all when omitted
    :return: at most one, shape ``()``; NaN where the returns are constant up to rounding, as in SB3
    """

    def variance(x: th.Tensor) -> th.Tensor:
        return agent_mean((x - agent_mean(x, active, pooled=True)).square(), active, pooled=True)

    total = variance(returns)
    # Rounding leaves constant returns a variance, of which the critics' errors would be a huge multiple.
    rounding = (4.0 * th.finfo(returns.dtype).eps) ** 2 * agent_mean(returns.square(), active, pooled=True)
    return th.where(total > rounding, 1.0 - variance(returns - values) / total, th.nan)
