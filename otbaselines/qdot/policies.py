"""QDOT's policy: an actor, implicit Q-learning's critics, and a transport map on actions."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule

from otbaselines.common.memory import check_fits
from otbaselines.common.offline.policies import ImplicitQPolicy
from otbaselines.common.settings import COUNT, POLICY_SETTINGS
from otbaselines.ot.maps import ConvexPotential

# How an actor acts, by the name of its extraction: as it is, through the map, or by the best of several mapped actions.
ACTS = {"awr": "actor", "regression": "actor", "weighted_map": "actor", "bc_map": "map", "best_of": "best"}
N_CANDIDATES = 10


class TransportPolicy(ImplicitQPolicy):
    """
    Implicit Q-learning's policy and a map of actions, the gradient of a potential that is convex in the action.

    :param observation_space: a box, which is flattened
    :param action_space: a bounded box
    :param lr_schedule: learning rate by remaining progress
    :param map_arch: widths of the map's layers; two of 64 when omitted
    :param use_map: without it, the map is the identity and has no parameters
    :param extraction: one of QDOT's, which says how to act
    :param n_candidates: actions among which ``extraction="best_of"`` chooses
    :param kwargs: of :class:`~otbaselines.common.offline.policies.ImplicitQPolicy`
    """

    candidate_noise: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        map_arch: list[int] | None = None,
        use_map: bool = True,
        extraction: str = "weighted_map",
        n_candidates: int = N_CANDIDATES,
        **kwargs: Any,
    ) -> None:
        if extraction not in ACTS:
            raise ValueError(f"`extraction` must be one of {', '.join(map(repr, ACTS))}, got {extraction!r}")
        COUNT.check("n_candidates", n_candidates)
        POLICY_SETTINGS["map_arch"].check("map_arch", map_arch)
        self.map_arch = [64, 64] if map_arch is None else [int(width) for width in map_arch]
        self.use_map, self.extraction, self.n_candidates = use_map, extraction, n_candidates
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build_networks(self, actor_arch: list[int], critic_arch: list[int]) -> None:
        if self.use_map:
            self._check_map_fits()
        super()._build_networks(actor_arch, critic_arch)
        # Last, so that equal seeds give the networks of implicit Q-learning.
        self.potential = ConvexPotential(self.action_dim, self.obs_dim, self.map_arch) if self.use_map else None
        # Of a layer, what goes in and what comes out are there at once.
        critics = [self.n_critics * width for width in critic_arch]
        self._widest = 2 * max(self.obs_dim, *actor_arch, *critics, sum(self.map_arch))
        if ACTS[self.extraction] == "best":
            self._check_candidates_fit(1)
            # What is deterministic takes the same candidates every time, the most probable action first.
            noise = th.randn(self.n_candidates, self.action_dim)
            noise[0] = 0.0
            self.register_buffer("candidate_noise", noise)

    def _check_map_fits(self) -> None:
        with th.device("meta"):
            numbers = sum(p.numel() for p in ConvexPotential(self.action_dim, self.obs_dim, self.map_arch).parameters())
        # Of each its gradient, and Adam's two moments.
        check_fits(16 * numbers, f"a map of `policy_kwargs['map_arch']`={self.map_arch}", "make it narrower")

    def _check_candidates_fit(self, n: int) -> None:
        numbers = n * self.n_candidates * (self.obs_dim + 3 * self.action_dim + self._widest)
        subject = f"choosing among `n_candidates`={self.n_candidates} actions for {n} observations"
        check_fits(4 * numbers, subject, "lower it, or ask for fewer observations at once", self.device)

    def _build_optimizers(self, lr_schedule: Schedule) -> None:
        super()._build_optimizers(lr_schedule)
        if self.potential is not None:
            self.map_optimizer = self._optimizer(self.potential.parameters(), lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("map_arch", "use_map", "extraction", "n_candidates")}
        return {**super()._get_constructor_parameters(), **own}

    def transport(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param observations: normalised, shape ``(batch, obs_dim)``
        :param actions: scaled to [-1, 1], shape ``(batch, action_dim)``
        :return: where the map takes them, which may be outside of [-1, 1], of the same shape
        """
        return actions if self.potential is None else self.potential.transport(actions, observations)

    def act(self, observations: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        way = ACTS[self.extraction]
        if way == "actor":
            return super().act(observations, noise)
        if way == "map":
            return self.transport(observations, super().act(observations, noise)).clamp(-1.0, 1.0)
        return self._best(observations, noise)

    def _best(self, observations: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        """Of the actor's candidates, the one that the slow critics think best after the map."""
        n, k = len(observations), self.n_candidates
        self._check_candidates_fit(n)
        drawn = self.candidate_noise.expand(n, -1, -1) if noise is None else th.randn(n, k, self.action_dim).to(noise)
        candidates = (self.actor(observations).unsqueeze(1) + self._std() * drawn).clamp(-1.0, 1.0).flatten(0, 1)
        repeated = observations.repeat_interleave(k, 0)
        moved = self.transport(repeated, candidates).clamp(-1.0, 1.0)
        chosen = self.target_value(th.cat([repeated, moved], 1)).view(n, k).argmax(1)
        return moved.view(n, k, -1)[th.arange(n, device=chosen.device), chosen]
