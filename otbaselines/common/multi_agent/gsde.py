r"""
Generalized state-dependent exploration (gSDE; Raffin et al. 2022, https://arxiv.org/abs/2005.05719) for teams.

Instead of fresh noise at every step an agent draws a matrix :math:`M` now and then and adds :math:`M^\top z(s)`, where
:math:`z(s)` is the last hidden layer of its actor: the same state gets the same noise, and robots are not shaken.
"""

import torch as th

# As in SB3: keeps the variance of a dead last layer above zero.
_EPSILON = 1e-6


class StateDependentNoise:
    r"""
    Noise matrices of every agent of every copy, and the distribution of the actions that they make.

    The log standard deviations of the entries, shape ``(n_sets, latent_dim, action_dim)`` or ``(n_sets, latent_dim, 1)``,
    are the policy's parameter and are passed in.

    :param n_agents: agents; they share the one set where ``n_sets`` is 1
    :param action_dim: action dimensions
    :param use_expln: :math:`e^x` below zero and :math:`\log(1 + x) + 1` above it, which grows more slowly, instead of
        :math:`e^x`
    """

    def __init__(self, n_agents: int, action_dim: int, *, use_expln: bool) -> None:
        self.n_agents = n_agents
        self.action_dim = action_dim
        self.use_expln = use_expln
        # For batches of any size, and one for each copy: shapes (n_agents, ...) and (n_copies, n_agents, ...).
        self._single: th.Tensor | None = None
        self._matrices: th.Tensor | None = None

    def agent(self, index: int) -> "StateDependentNoise":
        """
        :param index: number of an agent
        :return: that agent's noise alone, with its present matrices
        """
        one = StateDependentNoise(1, self.action_dim, use_expln=self.use_expln)
        if self._single is not None and self._matrices is not None:
            one._single, one._matrices = self._single[index : index + 1], self._matrices[:, index : index + 1]
        return one

    def deviations(self, log_std: th.Tensor) -> th.Tensor:
        """
        :param log_std: of the matrices' entries
        :return: their standard deviations, shape ``(n_sets, latent_dim, action_dim)``
        """
        std = log_std.exp()
        if self.use_expln:
            # The branch that is not taken must not overflow either, since its gradient would be 0 * inf.
            std = th.where(log_std > 0, log_std.clamp_min(0.0).log1p() + 1.0, log_std.clamp_max(0.0).exp())
        return std.expand(-1, -1, self.action_dim)

    def action_log_std(self, latent: th.Tensor, log_std: th.Tensor) -> th.Tensor:
        r"""
        Log standard deviations of the actions, :math:`\tfrac12 \log(z^2 \cdot \sigma^2)`; no gradient reaches the actor.

        :param latent: the actor's last hidden layer, shape ``(n_sets, rows, latent_dim)``
        :param log_std: of the matrices' entries
        :return: shape ``(n_sets, rows, action_dim)``
        """
        variance = th.bmm(latent.detach().square(), self.deviations(log_std).square())
        return 0.5 * (variance + _EPSILON).log()

    @th.no_grad()
    def reset(self, log_std: th.Tensor, n_copies: int) -> None:
        """
        Draw new matrices.

        :param log_std: of the matrices' entries
        :param n_copies: copies of the team, each with its own
        """
        std = self.deviations(log_std).expand(self.n_agents, -1, -1)
        self._single = std * th.randn_like(std)
        self._matrices = std * th.randn(n_copies, *std.shape, dtype=std.dtype, device=std.device)

    def noise(self, latent: th.Tensor, log_std: th.Tensor) -> th.Tensor:
        """
        :param latent: shape ``(batch, n_agents, latent_dim)``
        :param log_std: of the matrices' entries, where none have been drawn yet
        :return: what to add to the mean, shape ``(batch, n_agents, action_dim)``; a batch that is not one row for each copy
            uses one matrix for all rows
        """
        if self._single is None or self._matrices is None or self._single.device != latent.device:
            self.reset(log_std, len(latent))
        matrices = self._matrices if self._matrices is not None and 1 < len(latent) == len(self._matrices) else self._single
        assert matrices is not None
        return (latent.detach().unsqueeze(-2) @ matrices).squeeze(-2)
