"""Federated maximum-entropy inverse reinforcement learning with barycentric reward fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from otbaselines.common.learner import Learner
from otbaselines.common.offline import spaces_only_env
from otbaselines.common.settings import COUNT, LEARN_SETTINGS, Setting, arguments_of, check_settings, settings_of
from otbaselines.common.tabular import TabularModel, soft_values, soft_values_finite, stack_models
from otbaselines.fedirl.clients import Client, tabular_model_of
from otbaselines.fedirl.fusion import FUSIONS, Support, aggregate, lattice_cost, usable_updates
from otbaselines.fedirl.maxent import Horizon, expert_features, fit, rewards_of, warn_of_missed_states
from otbaselines.fedirl.policies import RewardModel, TabularPolicy

#: How the end of an episode counts.
ENDS = ("absorbing", "terminal")


class FedIRL(Learner, BaseAlgorithm):
    r"""
    Clients that share states, actions and goals, and differ in dynamics, learn a reward each from demonstrations; a server
    fuses the rewards, and finds a policy for a world of its own (Millard and Baheri 2026).

    Environments must be finite, and tell their :class:`~otbaselines.common.tabular.TabularModel`: values and visits are then
    exact, and ``num_timesteps`` counts rounds of the federation.

    :param policy: ``"MlpPolicy"``, which is a table here
    :param env: the world that the policy is for, whose features the server fuses rewards on; no client needs it
    :param clients: who takes part; not stored with the model
    :param fusion: ``"barycenter"``, or one of its controls ``"mean_params"``, ``"mean_measure"`` and ``"mean_matched"``, see
        :func:`~otbaselines.fedirl.fusion.aggregate`
    :param n_rounds: rounds of ``learn``; each starts the clients from the fused reward of the last one. The paper has one
    :param discount: :math:`\gamma`; below 1 without a horizon
    :param horizon: steps after which every episode is taken to be cut off; None for endless ones
    :param ends: ``"absorbing"``: a state in which episodes end counts for ever, so that a constant added to the rewards
        changes nothing; ``"terminal"``: nothing counts any more, and a constant decides whether to end early
    :param l2: ridge on the reward parameters, which bounds them where a demonstrator never errs
    :param irl_iterations: most steps of a client's inverse reinforcement learning in a round
    :param irl_learning_rate: of plain gradient ascent, as in the paper; BFGS, which needs none, when omitted
    :param irl_tol: largest entry of the gradient at which a client is done, in the unit of the features
    :param reg: entropic strength of the barycenter, in units of the lattice spacing squared
    :param debiased: whether to remove the entropy's blur from the barycenter
    :param margin: the smallest reward of all clients becomes this share of their range before they are normalised
    :param quorum: how many clients must have sent usable parameters
    :param support: where rewards are compared; states and actions of ``env`` on its ``lattice_axes`` when omitted. Not stored
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if one is out of range, there is no client, or a client's spaces are not those of ``env``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": TabularPolicy}
    _json_skip: ClassVar[tuple[str, ...]] = ("clients", "support")
    setting_ranges: ClassVar[dict[str, Setting]] = {
        "clients": Setting((list, tuple), optional=True, what="a list of `Client`"),
        "fusion": Setting("text", choices=FUSIONS),
        "n_rounds": COUNT,
        "discount": Setting("number", low=0.0, high=1.0),
        "horizon": Setting("integer", low=1, high=2**31 - 1, optional=True),
        "ends": Setting("text", choices=ENDS),
        "l2": Setting("number", low=0.0),
        "irl_iterations": Setting("integer", low=0, high=2**31 - 1),
        "irl_learning_rate": Setting("number", low=0.0, above="always", optional=True),
        "irl_tol": Setting("number", low=0.0),
        "reg": Setting("number", low=0.0, above="always"),
        "debiased": Setting("flag"),
        "margin": Setting("number", low=0.0, above="always"),
        "quorum": COUNT,
        "support": Setting((Support,), optional=True),
    }

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        clients: Sequence[Client] | None = None,
        fusion: str = "barycenter",
        n_rounds: int = 1,
        discount: float = 0.99,
        horizon: int | None = None,
        ends: str = "absorbing",
        l2: float = 0.01,
        irl_iterations: int = 200,
        irl_learning_rate: float | None = None,
        irl_tol: float = 1e-6,
        reg: float = 0.5,
        debiased: bool = True,
        margin: float = 0.01,
        quorum: int = 1,
        support: Support | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        check_settings(settings_of(type(self)), locals())
        self.clients = clients
        self.fusion = fusion
        self.n_rounds = n_rounds
        self.discount = discount
        self.horizon = horizon
        self.ends = ends
        self.l2 = l2
        self.irl_iterations = irl_iterations
        self.irl_learning_rate = irl_learning_rate
        self.irl_tol = irl_tol
        self.reg = reg
        self.debiased = debiased
        self.margin = margin
        self.quorum = quorum
        self.support = support
        self.episodes = Horizon(discount, horizon)
        self._shape: tuple[int, int] = (0, 0)
        # Nothing here is learned by gradients of a network, so that there is no rate to choose.
        arguments = arguments_of(super().__init__, locals())
        super().__init__(**{**arguments, "learning_rate": 0.0}, support_multi_env=True)
        if _init_setup_model:
            self._check_clients()
            self._shape = (len(self.clients or ()), int(self._probe().features.shape[-1]))
            self._setup_model()

    def _setup_model(self) -> None:
        if self.env is None:
            self.env, self.n_envs = spaces_only_env(self.observation_space, self.action_space), 1
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        policy_class: Any = self.policy_class
        self.policy = policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)
        self.policy = self.policy.to(self.device)
        n_clients, n_features = self._shape
        states, actions = self.observation_space, self.action_space
        # The policy has refused other spaces.
        assert isinstance(states, spaces.Discrete)
        assert isinstance(actions, spaces.Discrete)
        self.reward_model = RewardModel(int(states.n), int(actions.n), n_features, n_clients).to(self.device)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "reward_model"], []

    def _extra_data(self) -> dict[str, Any]:
        return {"shape": list(self._shape)}

    def _load_extra_data(self, extra: dict[str, Any]) -> None:
        shape = extra.get("shape")
        if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 <= n < 2**20 for n in shape):
            raise ValueError(f"`shape` must be the numbers of clients and features, got {str(shape)[:100]!r}")
        self._shape = (shape[0], shape[1])

    # ------------------------------------------------------------ who takes part

    def _check_clients(self) -> None:
        if not self.clients:
            raise ValueError("`clients` must hold at least one `Client`, got none")
        if self.env is None:
            raise ValueError("`env` must be the world that the policy is for, got None")
        for place, client in enumerate(self.clients):
            if not isinstance(client, Client):
                raise TypeError(f"`clients[{place}]` must be a `Client`, got {type(client).__name__}")
            for space in ("observation_space", "action_space"):
                own, shared = getattr(client.env, space), getattr(self, space)
                if own != shared:
                    raise ValueError(
                        f"the `{space}` of {self._name_of(place)} is {own}, that of `env` {shared}; clients share both"
                    )
            name = self._name_of(place)
            warn_of_missed_states(tabular_model_of(client.env, name), client.demonstrations, name)

    def _name_of(self, place: int) -> str:
        assert self.clients is not None
        return self.clients[place].name or f"clients[{place}]"

    def _probe(self) -> TabularModel:
        assert self.env is not None
        try:
            model = self.env.get_attr("tabular_model")[0]
        except AttributeError:
            model = None
        if not isinstance(model, TabularModel):
            raise ValueError(
                "`env` must have an attribute `tabular_model` of type `TabularModel`, such as `otbaselines/GridWorld-v0` has"
            )
        return model

    def _as_counted(self, model: TabularModel) -> TabularModel:
        return model.absorbing() if self.ends == "absorbing" else model

    def _support_on(self, probe: TabularModel) -> Support:
        if self.support is not None:
            return self.support
        assert self.env is not None
        try:
            lengths = [len(axis) for axis in self.env.get_attr("lattice_axes")[0]]
        except AttributeError:
            raise ValueError("`support` is needed where `env` has no `lattice_axes` to compare rewards on") from None
        # The last axis holds the actions, whose numbers mean nothing.
        cost = lattice_cost(lengths, categorical=[*[False] * (len(lengths) - 1), True])
        return Support(probe.features.flatten(0, 1), cost)

    # ------------------------------------------------------------ the algorithm

    def learn(
        self,
        total_timesteps: int = 1,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "FedIRL",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        Learn the clients' rewards, fuse them, and solve ``env`` under the fused reward.

        :param total_timesteps: steps that a learner may take in ``env``: at least 1, of which the exact solution needs none
        :param callback: called after each round
        :param log_interval: rounds between log entries
        :param tb_log_name: name of the run
        :param reset_num_timesteps: start counting rounds anew; ``False`` starts the clients from the fused reward
        :param progress_bar: show a bar that counts rounds
        :return: the model
        :raises TypeError: if an argument is of the wrong type
        :raises RuntimeError: if the model was loaded without ``clients``
        :raises ValueError: if an argument is out of range, or fewer clients than the quorum have sent usable parameters
        """
        check_settings(LEARN_SETTINGS, locals())
        if self.clients is None:
            raise RuntimeError("the model has no clients to learn from; `load` it with `clients=`")
        self._check_clients()
        goes_on = not reset_num_timesteps
        rounds, callback = self._setup_learn(self.n_rounds, callback, reset_num_timesteps, tb_log_name, progress_bar)
        # The bar reads it: what is counted here are rounds.
        total_timesteps = rounds
        probe = self._as_counted(self._probe())
        support, models = self._support_on(probe), self._client_models()
        expert = self._expert_features()
        start = self.reward_model.theta.cpu().expand(len(self.clients), -1) if goes_on else th.zeros_like(expert)
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps:
            thetas = self._learn_locally(models, expert, start)
            theta = self._fuse(thetas, support)
            self._solve(probe, theta)
            self._keep(probe, theta, thetas)
            start = theta.expand(len(self.clients), -1)
            self.num_timesteps += 1
            self._n_updates += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            callback.update_locals(locals())
            if log_interval and self.num_timesteps % log_interval == 0:
                self.logger.record("time/rounds", self.num_timesteps)
                self.logger.dump(step=self.num_timesteps)
            if not callback.on_step():
                break
        callback.on_training_end()
        return self

    def _client_models(self) -> TabularModel:
        assert self.clients is not None
        models = [tabular_model_of(client.env, self._name_of(place)) for place, client in enumerate(self.clients)]
        return stack_models([self._as_counted(model) for model in models])

    def _expert_features(self) -> th.Tensor:
        assert self.clients is not None
        return th.stack(
            [
                expert_features(
                    self._as_counted(tabular_model_of(client.env, self._name_of(place))), client.demonstrations, self.episodes
                )
                for place, client in enumerate(self.clients)
            ]
        )

    def _learn_locally(self, models: TabularModel, expert: th.Tensor, start: th.Tensor) -> th.Tensor:
        """Inverse reinforcement learning of every client: what each of them sends, shape ``(n_clients, k)``."""
        assert self.clients is not None
        own = [self.irl_iterations if each.irl_iterations is None else each.irl_iterations for each in self.clients]
        found = fit(
            models,
            expert,
            horizon=self.episodes,
            l2=self.l2,
            n_iterations=th.tensor(own),
            tol=self.irl_tol,
            learning_rate=self.irl_learning_rate,
            init=start,
        )
        gap = (found.expert_features - found.policy_features).abs().amax(-1)
        self.logger.record("irl/feature_gap", float(gap.max()))
        self.logger.record("irl/gradient", float(found.error.max()))
        self.logger.record("irl/iterations", float(found.n_iter.double().mean()))
        return found.theta

    def _fuse(self, thetas: th.Tensor, support: Support) -> th.Tensor:
        """The server's part: parameters in, parameters out."""
        assert self.clients is not None
        good = usable_updates(list(thetas), thetas.shape[1], quorum=self.quorum)
        weights = thetas.new_tensor([self.clients[place].weight for place in good])
        fused = aggregate(
            thetas[good],
            support,
            fusion=self.fusion,
            weights=None if bool((weights == weights[0]).all()) else weights / weights.sum(),
            reg=self.reg,
            debiased=self.debiased,
            margin=self.margin,
        )
        self.logger.record("fusion/residual", fused.residual)
        self.logger.record("fusion/error", fused.error)
        self.logger.record("fusion/iterations", fused.n_iter)
        self.logger.record("fusion/n_clients", len(good))
        return fused.theta

    def _solve(self, probe: TabularModel, theta: th.Tensor) -> None:
        """The policy of the fused reward, by exact soft value iteration; with a horizon that of its first step."""
        rewards = rewards_of(probe, theta)
        if self.episodes.n_steps is None:
            logs = soft_values(probe, rewards, discount=self.episodes.discount).log_policy
        else:
            logs = soft_values_finite(
                probe, rewards, horizon=self.episodes.n_steps, discount=self.episodes.discount
            ).log_policy[0]
        self.policy.log_policy = logs.to(self.device)

    def _keep(self, probe: TabularModel, theta: th.Tensor, thetas: th.Tensor) -> None:
        self._shape = (len(thetas), int(theta.shape[0]))
        self.reward_model.features = probe.features.to(self.device)
        self.reward_model.theta, self.reward_model.thetas = theta.to(self.device), thetas.to(self.device)

    # ------------------------------------------------------------ what was found

    @property
    def theta(self) -> npt.NDArray[np.float64]:
        """Parameters of the fused reward, shape ``(k,)``."""
        return self.reward_model.theta.cpu().numpy()

    @property
    def client_thetas(self) -> npt.NDArray[np.float64]:
        """Parameters that the clients sent in the last round, shape ``(n_clients, k)``."""
        return self.reward_model.thetas.cpu().numpy()

    def reward(self, obs: npt.ArrayLike, actions: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """
        The fused reward in ``env``.

        :param obs: numbers of states, shape ``(n,)``
        :param actions: numbers of actions, shape ``(n,)``
        :return: rewards, shape ``(n,)``
        :raises ValueError: if a number is not a state or an action
        """
        pairs = []
        for name, given, limit in zip(("obs", "actions"), (obs, actions), self.reward_model.features.shape, strict=False):
            numbers = np.atleast_1d(np.asarray(given))
            if numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= limit:
                raise ValueError(f"`{name}` must be integers in [0, {limit}), got {np.asarray(given)}")
            pairs.append(th.as_tensor(numbers.astype(np.int64), device=self.device))
        return np.asarray(self.reward_model(*pairs).cpu().numpy())
