"""Actor-critic policies that hold a whole team in stacked parameters."""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from otbaselines.common.memory import check_networks
from otbaselines.common.multi_agent.agent_view import agent_view, parameter_groups
from otbaselines.common.multi_agent.critics import RunningNormalizer, check_critic
from otbaselines.common.multi_agent.distributions import (
    DiagonalGaussian,
    IndependentBernoulli,
    MaskedCategorical,
    MultiCategorical,
    SquashedGaussian,
    TeamDistribution,
    action_head_size,
)
from otbaselines.common.multi_agent.gsde import StateDependentNoise
from otbaselines.common.multi_agent.row_policy import TeamActionEvaluation, TeamRowPolicy
from otbaselines.common.networks.layers import StackedLinear, StackedMLP
from otbaselines.common.networks.optimizers import default_optimizer_kwargs, scale_gradients
from otbaselines.common.vec_env.layout import TeamLayout


class MultiAgentActorCriticPolicy(TeamRowPolicy):
    """
    Independent or shared actors and critics of a team, evaluated together.

    Parameters are stacked along a first axis of ``n_sets`` (one per agent, or one in all when they are shared), so that
    a team costs one batched kernel a layer. A plain Gymnasium environment is a team of one, and there this is SB3's
    ``ActorCriticPolicy``.

    Rows are ordered ``row = copy * n_agents + agent``, as in the vector environments.

    :param observation_space: the team's common (padded) observation space
    :param action_space: the team's common (padded) action space
    :param lr_schedule: learning rate as a function of the remaining progress
    :param net_arch: hidden widths, ``[64, 64]`` or ``dict(pi=[...], vf=[...])``; two layers of 64 when omitted. SB3's old
        ``[dict(pi=[...], vf=[...])]`` is taken with a warning
    :param activation_fn: activation class of the hidden layers
    :param ortho_init: orthogonal initialisation, as SB3's PPO
    :param use_sde: generalized state-dependent exploration, for continuous actions
    :param log_std_init: initial log standard deviation of continuous actions, or of the entries of the noise matrices
    :param mean_init: initial mean of continuous actions, in every dimension
    :param full_std: with ``use_sde``: a standard deviation for every entry of the noise matrix, not one per row
    :param use_expln: with ``use_sde``: a standard deviation that grows more slowly than the exponential
    :param squash_output: with ``use_sde``: squash actions by the hyperbolic tangent and stretch them over the team's common
        box, instead of clipping them to it
    :param features_extractor_class: SB3 features extractor; one instance per parameter set
    :param features_extractor_kwargs: its keyword arguments
    :param share_features_extractor: one extractor for an actor and its own critic; other critics have one of their own
    :param normalize_images: divide image observations by 255
    :param optimizer_class: optimizer of all parameters
    :param optimizer_kwargs: its keyword arguments, the learning rate excluded
    :param layout: the team; one agent when omitted
    :param share_parameters: one set of parameters for all agents
    :param append_agent_id: append a one-hot agent index to the features, so that a shared network can tell agents apart
    :param critic: ``"own"``; ``"shared"`` by all agents while actors are separate; or ``"central"``: one network that reads
        the team's state, or else the features of all agents' observations, and has a value head for each agent
    :param state_space: of the team's state, one-dimensional; omitted where there is none. Only a central critic reads it
    :param normalize_states: scale it by its running mean and variance
    """

    #: Observations that the default features extractor needs: ``"dict"``, ``"image"``, or any when empty.
    reads: ClassVar[str] = ""
    #: The algorithm that such a policy is for, by the name of its class; any when empty.
    belongs_to: ClassVar[str] = ""
    action_mask: th.Tensor | None
    agent_ids: th.Tensor | None
    action_low: th.Tensor
    action_high: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        mean_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        *,
        layout: TeamLayout | None = None,
        share_parameters: bool = False,
        append_agent_id: bool = False,
        critic: str = "own",
        state_space: spaces.Box | None = None,
        normalize_states: bool = False,
    ) -> None:
        if squash_output and not use_sde:
            raise ValueError("`squash_output=True` is for state-dependent exploration; set `use_sde=True` or leave it off")
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=default_optimizer_kwargs(optimizer_class, optimizer_kwargs),
            squash_output=squash_output,
        )
        if layout is None:
            layout = TeamLayout(("agent_0",), 1, {"agent_0": observation_space}, {"agent_0": action_space})
        self.layout = layout
        self.n_agents = layout.n_agents
        self.share_parameters = share_parameters
        self.append_agent_id = append_agent_id
        self.n_sets = 1 if share_parameters else self.n_agents
        check_critic(critic, share_parameters=share_parameters)
        self.critic = critic
        self.n_critics = self.n_sets if critic == "own" else 1
        self.state_space = state_space if critic == "central" else None
        self.normalize_states = normalize_states
        self.ortho_init = ortho_init
        self.activation_fn = activation_fn
        self.use_sde = use_sde
        self.log_std_init = log_std_init
        self.mean_init = mean_init
        self.full_std = full_std
        self.use_expln = use_expln
        self.share_features_extractor = share_features_extractor
        self.net_arch = _normalise_net_arch(net_arch, features_extractor_class)
        # A vector that is only flattened needs neither preprocessing nor an extractor; a subclass may do more.
        self._plain_vector = (
            features_extractor_class is FlattenExtractor
            and isinstance(observation_space, spaces.Box)
            and not is_image_space(observation_space)
        )
        self._groups: tuple[list[nn.Parameter], list[list[nn.Parameter]]] | None = None
        self._build_action_mask()
        self._build(lr_schedule)
        parameter_groups(self)

    # ------------------------------------------------------------------ construction
    def _build_action_mask(self) -> None:
        mask = self.layout.action_mask(self.action_space)
        self.register_buffer("action_mask", None if mask is None else th.as_tensor(mask), persistent=False)
        if isinstance(self.action_space, spaces.Box):
            self.register_buffer("action_low", th.as_tensor(self.action_space.low), persistent=False)
            self.register_buffer("action_high", th.as_tensor(self.action_space.high), persistent=False)
        self.action_start = int(self.action_space.start) if isinstance(self.action_space, spaces.Discrete) else 0
        self.register_buffer("agent_ids", th.eye(self.n_agents) if self.append_agent_id else None, persistent=False)

    def _build(self, lr_schedule: Schedule) -> None:
        self.pi_extractors = self._make_extractors(self.n_sets)
        is_shared = self.share_features_extractor and self.critic == "own"
        self.vf_extractors = self.pi_extractors if is_shared else self._make_extractors(self.n_critics)
        if self.n_sets == 1:
            # SB3's name for it, without registering its parameters twice.
            vars(self)["features_extractor"] = self.pi_extractors[0]
        extractor: Any = self.pi_extractors[0]
        width = int(extractor.features_dim) + (0 if self.agent_ids is None else self.agent_ids.shape[1])
        n_actions, n_heads = action_head_size(self.action_space), self.n_agents if self.critic == "central" else 1
        vf_width = self._critic_width(width)
        actors, critics = (width, *self.net_arch["pi"], n_actions), (vf_width, *self.net_arch["vf"], n_heads)
        check_networks([(self.n_sets, actors), (self.n_critics, critics)], self.net_arch, self.observation_space)
        self.pi_net = StackedMLP(self.n_sets, width, self.net_arch["pi"], self.activation_fn)
        self.vf_net = StackedMLP(self.n_critics, vf_width, self.net_arch["vf"], self.activation_fn)
        self.action_net = StackedLinear(self.n_sets, self.pi_net.out_features, n_actions)
        self.value_net = StackedLinear(self.n_critics, self.vf_net.out_features, n_heads)
        if isinstance(self.action_space, spaces.Box):
            self._build_noise(n_actions)
        elif self.use_sde:
            raise ValueError(
                f"`use_sde=True` needs continuous actions, but the action space is {self.action_space}; leave it off"
            )
        if self.ortho_init:
            self._orthogonal_init()
        if self.mean_init:
            if not isinstance(self.action_space, spaces.Box):
                raise ValueError(f"`mean_init`={self.mean_init} is for Box actions, not for {self.action_space}; leave it out")
            nn.init.constant_(self.action_net.bias, self.mean_init)
        self.optimizer = self.make_optimizer(self.parameters(), lr_schedule(1))

    def make_optimizer(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> th.optim.Optimizer:
        """
        An optimizer with the policy's class and settings, for steps on some of its parameters alone.

        :param parameters: such as :meth:`actor_parameters` or :meth:`critic_parameters`
        :param learning_rate: its step size
        :return: the optimizer; its state is not part of what the policy saves
        """
        return self.optimizer_class(parameters, lr=learning_rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _critic_modules(self) -> list[nn.Module]:
        own = [] if self.vf_extractors is self.pi_extractors else [self.vf_extractors]
        return [*own, self.vf_net, self.value_net]

    def critic_parameters(self) -> list[nn.Parameter]:
        """:return: all parameters of the critics, in the order of ``parameters()``; a shared extractor is the actors'"""
        critic = {id(parameter) for module in self._critic_modules() for parameter in module.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) in critic]

    def common_parameters(self) -> list[nn.Parameter]:
        """:return: those of a critic that several parameter sets share; where each has its own, none"""
        return self.critic_parameters() if self.n_critics < self.n_sets else []

    def actor_parameters(self) -> list[nn.Parameter]:
        """:return: all other parameters, in the order of ``parameters()``"""
        critic = {id(parameter) for parameter in self.critic_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in critic]

    def agent(self, index: int) -> Self:
        """
        One agent's actor and critic alone, at one agent's price: a policy for a team of one that uses the same memory.

        What is written into its parameters is written into the team's, and the reverse. They are leaves of their own, one
        leading entry each, so that gradients, Fisher-vector products and optimizers of the view touch nobody else. With shared
        parameters they are the team's. Ask again after the policy has moved to another device.

        :param index: the agent's number, from 0 to ``n_agents - 1``
        :return: the view; it has no ``optimizer``, make one with :meth:`make_optimizer`
        :raises IndexError: if there is no such agent
        """
        return agent_view(self, index)

    def _build_noise(self, size: int) -> None:
        shape: tuple[int, ...] = (self.n_sets, size)
        if self.use_sde:
            shape = (self.n_sets, self.pi_net.out_features, size if self.full_std else 1)
            self.exploration = StateDependentNoise(self.n_agents, size, use_expln=self.use_expln)
        self.log_std = nn.Parameter(th.full(shape, float(self.log_std_init)))

    def reset_noise(self, n_envs: int = 1) -> None:
        """
        Draw new noise matrices for state-dependent exploration.

        :param n_envs: slots of the environment, copies times agents
        :raises ValueError: if the policy explores otherwise
        """
        if not self.use_sde:
            raise ValueError("`reset_noise` is for policies with `use_sde=True`; this one draws fresh noise at every step")
        self.exploration.reset(self.log_std, max(1, n_envs // self.n_agents))

    def _make_extractors(self, n: int) -> nn.ModuleList:
        try:
            return nn.ModuleList(self.make_features_extractor() for _ in range(n))
        except RuntimeError as error:
            raise ValueError(
                f"`features_extractor_class` {self.features_extractor_class.__name__} cannot read {self.observation_space}: "
                f"{error}; images that are not scaled must have channels first, and NatureCNN needs 36 x 36 pixels or more"
            ) from error

    def _critic_width(self, width: int) -> int:
        """What a critic reads, given the ``width`` of an agent's features."""
        if self.state_space is not None:
            self.state_normalizer = RunningNormalizer(self.state_space.shape[0]) if self.normalize_states else None
            return self.state_space.shape[0]
        return width * self.n_agents if self.critic == "central" else width

    def _orthogonal_init(self) -> None:
        # SB3's gains for PPO: sqrt 2 in the body, a near-uniform initial policy, a unit-gain critic.
        # In a fixed order, each once: the draws must not depend on where the modules happen to lie in memory.
        for extractor in dict.fromkeys([*self.pi_extractors, *self.vf_extractors]):
            extractor.apply(lambda module: self.init_weights(module, gain=float(np.sqrt(2))))
        gains = {self.pi_net: np.sqrt(2), self.vf_net: np.sqrt(2), self.action_net: 0.01, self.value_net: 1.0}
        for network, gain in gains.items():
            for module in network.modules():
                if isinstance(module, StackedLinear):
                    module.orthogonal_(float(gain))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            ortho_init=self.ortho_init,
            use_sde=self.use_sde,
            log_std_init=self.log_std_init,
            mean_init=self.mean_init,
            full_std=self.full_std,
            use_expln=self.use_expln,
            squash_output=self.squash_output,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            share_features_extractor=self.share_features_extractor,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            lr_schedule=self._dummy_schedule,
            layout=self.layout,
            share_parameters=self.share_parameters,
            append_agent_id=self.append_agent_id,
            critic=self.critic,
            state_space=self.state_space,
            normalize_states=self.normalize_states,
        )
        return data

    def clip_gradients(self, max_norm: float) -> None:
        """
        Bound the norm of each parameter set's gradient, as if every agent were trained alone, and that of a common critic.

        :param max_norm: the bound; the gradients are scaled in place
        """
        if self._groups is None:
            self._groups, self._common = parameter_groups(self), self.common_parameters()
        stacked, apart = self._groups
        gradients = [p.grad for p in stacked if p.grad is not None]
        scale_gradients(gradients, [[p.grad for p in group] for group in apart], self.n_sets, max_norm)
        scale_gradients([p.grad for p in self._common if p.grad is not None], [], 1, max_norm)

    # ------------------------------------------------------------------ networks
    def _rows(self, obs: PyTorchObs) -> PyTorchObs:
        """Merge ``(batch, n_agents)`` into rows and preprocess as SB3 does (one-hot, images to [0, 1])."""
        if isinstance(obs, dict):
            flat: PyTorchObs = {key: value.flatten(0, 1) for key, value in obs.items()}
        else:
            flat = obs.flatten(0, 1)
        return preprocess_obs(flat, self.observation_space, normalize_images=self.normalize_images)  # type: ignore[return-value]

    def _agent_features(self, obs: PyTorchObs, extractors: nn.ModuleList) -> th.Tensor:
        """Features of each agent from its own extractor, shape ``(batch, n_agents, features)``."""
        batch = next(iter(obs.values())).shape[0] if isinstance(obs, dict) else obs.shape[0]
        if self._plain_vector and isinstance(obs, th.Tensor):
            features = obs.to(self.action_net.weight.dtype).flatten(2)
        elif len(extractors) == 1 or type(extractors[0]) is FlattenExtractor:
            features = extractors[0](self._rows(obs)).unflatten(0, (batch, self.n_agents))
        else:
            rows = self._rows(obs)
            features = th.stack(
                [extractor(_every(rows, agent, self.n_agents)) for agent, extractor in enumerate(extractors)], 1
            )
        if self.agent_ids is not None:
            features = th.cat([features, self.agent_ids.expand(batch, -1, -1)], -1)
        return features

    def _to_sets(self, x: th.Tensor, *, pooled: bool = False) -> th.Tensor:
        """``(batch, n_agents, k)`` to ``(n_sets, rows of the set, k)``; one set for all agents where ``pooled``."""
        return x.flatten(0, 1).unsqueeze(0) if pooled or self.share_parameters else x.transpose(0, 1)

    def _to_agents(self, x: th.Tensor, *, pooled: bool = False) -> th.Tensor:
        """``(n_sets, rows of the set, k)`` to ``(batch, n_agents, k)``."""
        return x.squeeze(0).unflatten(0, (-1, self.n_agents)) if pooled or self.share_parameters else x.transpose(0, 1)

    def _critic_features(self, obs: PyTorchObs, states: th.Tensor | None, features: th.Tensor | None = None) -> th.Tensor:
        """
        What the critics read, shape ``(n_critics, rows of the critic, width)``.

        :param obs: shape ``(batch, n_agents, ...)``
        :param states: of the teams, shape ``(batch, state_dim)``, where the critic reads them
        :param features: of the agents, where the actors' are the critics' as well
        """
        if self.critic == "central" and self.value_net.out_features != self.n_agents:
            raise ValueError("one agent of a team has no critic of its own where `critic`='central'; ask the team's policy")
        if self.state_space is not None:
            if states is None:
                raise ValueError(
                    "`states` is missing: the central critic reads the teams' states; pass what `env.team_states()` returns"
                )
            states = states.to(self.value_net.weight.dtype)
            return (states if self.state_normalizer is None else self.state_normalizer(states)).unsqueeze(0)
        if features is None:
            features = self._agent_features(obs, self.vf_extractors)
        if self.critic == "central":
            return features.flatten(1).unsqueeze(0)
        return self._to_sets(features, pooled=self.critic == "shared")

    def _head(self, latent: th.Tensor) -> th.Tensor:
        """What :meth:`_distribution` takes, from the actor's last hidden layer; shape ``(n_sets, rows of the set, width)``."""
        head: th.Tensor = self.action_net(latent)
        return th.cat([head, self.exploration.action_log_std(latent, self.log_std)], -1) if self.use_sde else head

    def _distribution(self, head: th.Tensor, noise: Callable[[], th.Tensor] | None = None) -> TeamDistribution:
        """
        :param head: of :meth:`_head`, shape ``(batch, n_agents, width)``
        :param noise: gives the noise of state-dependent exploration, shape ``(batch, n_agents, action_dim)``
        """
        if isinstance(self.action_space, spaces.Discrete):
            return MaskedCategorical(head, self.action_mask)
        if isinstance(self.action_space, spaces.MultiDiscrete):
            return MultiCategorical(head, self.action_space.nvec.tolist())
        if isinstance(self.action_space, spaces.MultiBinary):
            return IndependentBernoulli(head)
        if self.use_sde:
            mean, log_std = head.chunk(2, -1)
            family = SquashedGaussian if self.squash_output else DiagonalGaussian
            return family(mean, log_std, self.action_mask, noise)
        return DiagonalGaussian(head, self.log_std, self.action_mask)

    def team_distribution(self, obs: PyTorchObs) -> TeamDistribution:
        """
        :param obs: shape ``(batch, n_agents, ...)``
        :return: every agent's policy at its own observation
        """
        latent = self.pi_net(self._to_sets(self._agent_features(obs, self.pi_extractors)))
        noise = partial(self.exploration.noise, self._to_agents(latent), self.log_std) if self.use_sde else None
        return self._distribution(self._to_agents(self._head(latent)), noise)

    def _values(self, features: th.Tensor) -> th.Tensor:
        """The critics' estimates from :meth:`_critic_features`, shape ``(batch, n_agents)``."""
        values: th.Tensor = self.value_net(self.vf_net(features))
        if self.critic == "central":
            return values.squeeze(0)
        return self._to_agents(values, pooled=self.critic == "shared").squeeze(-1)

    def team_values(self, obs: PyTorchObs, states: th.Tensor | None = None) -> th.Tensor:
        """
        :param obs: shape ``(batch, n_agents, ...)``
        :param states: of the teams, shape ``(batch, state_dim)``, where the critic reads them
        :return: every agent's value, from its own observation or from the team's state, shape ``(batch, n_agents)``
        :raises ValueError: if the states are missing
        """
        return self._values(self._critic_features(obs, states))

    def track_states(self, states: th.Tensor) -> None:
        if self.state_normalizer is not None:
            self.state_normalizer.update(states)

    def evaluate_team_actions(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        common_states: PyTorchObs | None = None,
        states: th.Tensor | None = None,
    ) -> TeamActionEvaluation:
        """
        :param obs: shape ``(batch, n_agents, ...)``
        :param actions: shape ``(batch, n_agents, ...)``
        :param common_states: rows of observations ``(n, ...)`` at which every agent's policy is wanted as well; they join
            the same forward pass
        :param states: of the teams, shape ``(batch, state_dim)``, where the critic reads them
        :return: values, log-likelihoods and entropies
        """
        features = self._agent_features(obs, self.pi_extractors)
        pi_features = self._to_sets(features)
        # A plain vector is its own features, whoever's extractor it passes.
        is_common = self._plain_vector or self.vf_extractors is self.pi_extractors
        vf_features = self._critic_features(obs, states, features if is_common else None)
        distribution, common = self._distributions(pi_features, common_states)
        values, log_prob = self._values(vf_features), distribution.log_prob(actions)
        # Squashed actions have no entropy in closed form; then the sample's own surprise, as in SB3.
        entropy = -log_prob if self.squash_output else distribution.entropy()
        return TeamActionEvaluation(values, log_prob, entropy, distribution, common)

    def _distributions(
        self, features: th.Tensor, common_states: PyTorchObs | None
    ) -> tuple[TeamDistribution, TeamDistribution | None]:
        """The policies at their own features, and at the common states if there are any, from one forward pass."""
        if common_states is None:
            return self._distribution(self._to_agents(self._head(self.pi_net(features)))), None
        n_rows = features.shape[1]
        head = self._head(self.pi_net(th.cat([features, self._common_features(common_states)], 1)))
        if self.n_sets > 1 and isinstance(self.action_space, spaces.Discrete):
            # Both have rows by agents here, so that one softmax serves.
            joint = self._distribution(self._to_agents(head))
            assert isinstance(joint, MaskedCategorical)
            return joint.divide(n_rows)
        common = self._distribution(self._common_to_agents(head[:, n_rows:]))
        return self._distribution(self._to_agents(head[:, :n_rows])), common

    def policies_at(self, states: PyTorchObs) -> TeamDistribution:
        """
        Every agent's policy at the same states, whoever saw them.

        :param states: rows of observations, shape ``(n, ...)``
        :return: distribution whose leading shape is ``(n, n_agents)``: states by policies
        """
        return self._distribution(self._common_to_agents(self._head(self.pi_net(self._common_features(states)))))

    def _common_features(self, states: PyTorchObs) -> th.Tensor:
        """Features of the same states for every parameter set, shape ``(n_sets, rows of the set, features)``."""
        if self._plain_vector and isinstance(states, th.Tensor):
            features = states.to(self.action_net.weight.dtype).flatten(1).expand(self.n_sets, -1, -1)
        else:
            rows = preprocess_obs(states, self.observation_space, normalize_images=self.normalize_images)
            features = th.stack([extractor(rows) for extractor in self.pi_extractors])
        if self.share_parameters:
            features = features.expand(self.n_agents, -1, -1)
        if self.agent_ids is not None:
            # Policy j keeps its own identity when it is asked about another agent's observation.
            features = th.cat([features, self.agent_ids[:, None].expand(-1, features.shape[1], -1)], -1)
        return features.flatten(0, 1).unsqueeze(0) if self.share_parameters else features

    def _common_to_agents(self, head: th.Tensor) -> th.Tensor:
        """Heads of :meth:`_common_features`, as ``(n, n_agents, width)``."""
        if self.share_parameters:
            head = head.view(self.n_agents, -1, head.shape[-1])
        return head.transpose(0, 1)


class MultiAgentActorCriticCnnPolicy(MultiAgentActorCriticPolicy):
    """Team policy on images: ``NatureCNN`` features by default, one extractor per parameter set."""

    reads = "image"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": NatureCNN, **kwargs})


class MultiAgentMultiInputPolicy(MultiAgentActorCriticPolicy):
    """Team policy on dict observations: ``CombinedExtractor`` features by default."""

    reads = "dict"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": CombinedExtractor, **kwargs})


def _every(rows: PyTorchObs, agent: int, n_agents: int) -> PyTorchObs:
    """One agent's rows of a slot-ordered batch."""
    if isinstance(rows, dict):
        return {key: value[agent::n_agents] for key, value in rows.items()}
    return rows[agent::n_agents]


def _normalise_net_arch(
    net_arch: list[Any] | dict[str, list[int]] | None, extractor: type[BaseFeaturesExtractor]
) -> dict[str, list[int]]:
    if isinstance(net_arch, list) and len(net_arch) == 1 and isinstance(net_arch[0], dict):
        warnings.warn(
            "a list around the dict is SB3's old form of `net_arch`; pass `net_arch=dict(pi=..., vf=...)` instead of "
            "`net_arch=[dict(pi=..., vf=...)]`",
            stacklevel=3,
        )
        net_arch = net_arch[0]
    if net_arch is None:
        # A convolutional extractor ends in a wide layer of its own, so SB3 adds none.
        widths = [] if issubclass(extractor, NatureCNN) else [64, 64]
        return {"pi": list(widths), "vf": list(widths)}
    if isinstance(net_arch, dict):
        if unknown := sorted(map(str, set(net_arch) - {"pi", "vf"})):
            raise ValueError(f"`net_arch` must have no other keys than 'pi' and 'vf', got {', '.join(map(repr, unknown))}")
        return {"pi": list(net_arch.get("pi", [])), "vf": list(net_arch.get("vf", []))}
    return {"pi": list(net_arch), "vf": list(net_arch)}
