"""Critics of a team's joint action, evaluated for many actions of one agent at the price of the layers after the first."""

import torch as th
from torch import nn

from otbaselines.common.multi_agent.critics import RunningNormalizer
from otbaselines.common.networks.layers import FastTanh, StackedLinear, StackedMLP

# Of the layers of random networks, so that they vary over the actions instead of being nearly linear.
PRIOR_GAIN, PRIOR_BIAS = 2.0, 0.5
# Numbers of a hidden layer that are looked at together: 64 MiB in float32.
BLOCK = 1 << 24


class JointNetworks(nn.Module):
    """
    Networks of the state and the actions of all agents, with one output each.

    :param n_critics: number of networks
    :param state_width: numbers that describe the state
    :param n_agents: agents in the team
    :param action_width: numbers that describe one agent's action
    :param net_arch: widths of the hidden layers, at least one
    :param activation_fn: activation class of the hidden layers
    """

    def __init__(
        self,
        n_critics: int,
        state_width: int,
        n_agents: int,
        action_width: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
    ) -> None:
        super().__init__()
        self.n_critics = n_critics
        self.n_agents = n_agents
        self.state_width = state_width
        self.action_width = action_width
        self.first = StackedLinear(n_critics, state_width + n_agents * action_width, net_arch[0])
        self.activation = FastTanh() if activation_fn is nn.Tanh else activation_fn()
        self.body = StackedMLP(n_critics, net_arch[0], net_arch[1:], activation_fn)
        self.out = StackedLinear(n_critics, self.body.out_features, 1)

    def _after_first(self, x: th.Tensor) -> th.Tensor:
        return self.out(self.body(self.activation(x))).squeeze(-1)  # type: ignore[no-any-return]

    def forward(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param states: shape ``(rows, state_width)``
        :param actions: shape ``(rows, n_agents, action_width)``
        :return: shape ``(n_critics, rows)``
        """
        x = th.cat([states, actions.flatten(1)], 1)
        return self._after_first(self.first(x.expand(self.n_critics, -1, -1)))

    def responses(self, states: th.Tensor, actions: th.Tensor, agent: int, candidates: th.Tensor) -> th.Tensor:
        """
        Q for every candidate in the place of one agent's action, whose part of the first layer is computed once a candidate.

        :param states: shape ``(n_states, state_width)``
        :param actions: of the team, several joint ones in each state, shape
            ``(n_states or 1, n_joint, n_agents, action_width)``
        :param agent: whose action is replaced
        :param candidates: by these, shape ``(n_states or 1, n_candidates, action_width)``
        :return: shape ``(n_critics, n_states, n_joint, n_candidates)``
        """
        others = actions.clone()
        others[:, :, agent] = 0.0
        weight = self.first.weight[:, None]
        of_states = (states @ self.first.weight[:, : self.state_width] + self.first.bias).unsqueeze(2)
        base = (of_states + others.flatten(2) @ weight[:, :, self.state_width :]).unsqueeze(3)
        n_states, n_joint = base.shape[1:3]
        start = self.state_width + agent * self.action_width
        own_weight = weight[:, :, start : start + self.action_width]
        together = max(1, BLOCK // max(1, base.numel()))
        parts = []
        for part in candidates.split(together, dim=1):
            own = (part.unsqueeze(0) @ own_weight).unsqueeze(2)
            values = self._after_first((base + own).flatten(1, 3))
            parts.append(values.view(self.n_critics, n_states, n_joint, -1))
        return parts[0] if len(parts) == 1 else th.cat(parts, -1)

    def scatter(self) -> None:
        """Orthogonal weights and random biases, under which outputs vary by about one over the actions."""
        layers = [module for module in self.modules() if isinstance(module, StackedLinear)]
        for layer in layers:
            layer.orthogonal_(PRIOR_GAIN if layer is not self.out else 1.0)
            if layer is not self.out:
                nn.init.normal_(layer.bias, std=PRIOR_BIAS)


class JointCritics(nn.Module):
    """
    An ensemble of centralised critics Q(s, a) of the state and the actions of all agents.

    Networks are fitted in the unit of the returns' standard deviation over all that was seen, so that rewards of any size are
    learned alike. With a ``prior_scale`` each critic is the sum of a trained network and a random one that stays as it is
    (Osband et al. 2018), so that they agree where there are data and differ where there are none.

    :param n_critics: critics in the ensemble, which differ in their initial parameters
    :param state_width: numbers that describe the state
    :param n_agents: agents in the team
    :param action_width: numbers that describe one agent's action
    :param net_arch: widths of the hidden layers, at least one
    :param activation_fn: activation class of the hidden layers
    :param prior_scale: of the random networks, in the unit of the returns' standard deviation; none at 0
    """

    def __init__(
        self,
        n_critics: int,
        state_width: int,
        n_agents: int,
        action_width: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        *,
        prior_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_critics = n_critics
        self.prior_scale = prior_scale
        arguments = (n_critics, state_width, n_agents, action_width, net_arch, activation_fn)
        self.returns = RunningNormalizer(1)
        self.networks = JointNetworks(*arguments)
        self.priors = None
        if prior_scale > 0.0:
            self.priors = JointNetworks(*arguments).requires_grad_(False)
            self.priors.scatter()

    def _unit(self) -> th.Tensor:
        """Of returns; one while they have not varied."""
        return th.where(self.returns.variance > 0, self.returns.variance, 1.0).sqrt()

    def loss(self, states: th.Tensor, actions: th.Tensor, returns: th.Tensor) -> th.Tensor:
        """
        Squared error of each critic in the unit of the returns' standard deviation.

        :param states: shape ``(rows, state_width)``
        :param actions: shape ``(rows, n_agents, action_width)``
        :param returns: what the critics are to predict, shape ``(rows,)``
        :return: shape ``(n_critics,)``
        """
        targets = (returns - self.returns.mean) / self._unit()
        return (self._normalised(states, actions) - targets).square().mean(1)

    def _normalised(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        values: th.Tensor = self.networks(states, actions)
        return values if self.priors is None else values + self.prior_scale * self.priors(states, actions)

    def forward(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param states: shape ``(rows, state_width)``
        :param actions: shape ``(rows, n_agents, action_width)``
        :return: in the unit of the return, shape ``(n_critics, rows)``
        """
        return self._normalised(states, actions) * self._unit() + self.returns.mean

    def responses(self, states: th.Tensor, actions: th.Tensor, agent: int, candidates: th.Tensor) -> th.Tensor:
        """
        :param states: shape ``(n_states, state_width)``
        :param actions: shape ``(n_states or 1, n_joint, n_agents, action_width)``
        :param agent: whose action is replaced
        :param candidates: by these, shape ``(n_states or 1, n_candidates, action_width)``
        :return: in the unit of the return, shape ``(n_critics, n_states, n_joint, n_candidates)``
        """
        values = self.networks.responses(states, actions, agent, candidates)
        if self.priors is not None:
            values = values + self.prior_scale * self.priors.responses(states, actions, agent, candidates)
        return values * self._unit() + self.returns.mean
