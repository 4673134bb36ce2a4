"""Federated maximum-entropy inverse reinforcement learning with barycentric reward fusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from otbaselines.common.settings import COUNT, LEARN_SETTINGS, Setting, arguments_of, check_settings, settings_of
from otbaselines.fedirl.clients import Client
from otbaselines.fedirl.exact import ENDS, as_counted, soft_optimal
from otbaselines.fedirl.features import FeatureFunction
from otbaselines.fedirl.federation import Federation
from otbaselines.fedirl.fusion import FUSIONS, Support, aggregate, usable_updates
from otbaselines.fedirl.learners import PayingVecEnv, Relay, check_learner_kwargs, is_learner, learner_name, normalizing
from otbaselines.fedirl.maxent import Horizon
from otbaselines.fedirl.policies import TabularPolicy
from otbaselines.fedirl.sampled import POLICY_FEATURES, SampledClients


class FedIRL(Federation):
    r"""
    Clients that share states, actions and goals, and differ in dynamics, learn a reward each from demonstrations; a server
    fuses the rewards, and finds a policy for a world of its own (Millard and Baheri 2026).

    Where ``env`` is finite and tells its :class:`~otbaselines.common.tabular.TabularModel`, values and visits are exact, and
    ``num_timesteps`` counts rounds of the federation. Elsewhere an algorithm of Stable-Baselines3 learns the policy,
    ``num_timesteps`` are its steps in ``env``, and what policies do is sampled.

    :param policy: ``"MlpPolicy"``, which is a table in finite worlds and the learner's elsewhere, or a class
    :param env: the world that the policy is for; no client needs it
    :param clients: who takes part; not stored with the model
    :param fusion: ``"barycenter"``, or one of its controls ``"mean_params"``, ``"mean_measure"`` and ``"mean_matched"``, see
        :func:`~otbaselines.fedirl.fusion.aggregate`
    :param n_rounds: rounds of ``learn``; each starts the clients from the fused reward of the last one. The paper has one
    :param discount: :math:`\gamma`, of the learner as well; below 1 without a horizon
    :param horizon: steps after which every episode is taken to be cut off; None for endless ones
    :param ends: in finite worlds, ``"absorbing"`` (when omitted): a state in which episodes end counts for ever, so that a
        constant added to the rewards changes nothing; ``"terminal"``: nothing counts any more, and a constant decides whether
        to end early, as it does everywhere but in finite worlds
    :param l2: ridge on the reward parameters, which bounds them where a demonstrator never errs
    :param irl_iterations: most steps of a client's inverse reinforcement learning in a round: 200, beside a learner 50, when
        omitted
    :param irl_learning_rate: of plain gradient ascent, as in the paper. When omitted, BFGS, which needs none; beside a learner
        0.5
    :param irl_tol: largest entry of the gradient at which a client is done, in the unit of the features
    :param reg: entropic strength of the barycenter, in units of the lattice spacing squared
    :param debiased: whether to remove the entropy's blur from the barycenter
    :param margin: the smallest reward of all clients becomes this share of their range before they are normalised
    :param quorum: how many clients must have sent usable parameters
    :param support: where rewards are compared; when omitted the states and actions of ``env`` on its ``lattice_axes``, or a
        grid of some thousand points over the box of radial basis functions. Not stored
    :param features: of vectors: :func:`~otbaselines.fedirl.features.rbf_features`, 64 of them over the spaces when omitted, or
        a function of observations and actions that returns a tensor ``(n, k)``, which is not stored
    :param learner: where states are vectors, the algorithm that learns policies: ``"a2c"``, ``"ddpg"``, ``"dqn"``, ``"ppo"``
        (when omitted), ``"sac"``, ``"td3"`` or a class of this kind
    :param learner_kwargs: arguments of its constructor
    :param policy_features: where states are vectors: ``"learner"`` (when omitted): of the episodes that a client's learner has
        under the present reward; ``"samples"``: of random episodes with importance weights, in which nothing is learned
    :param irl_timesteps: steps in a client's environment: of each iteration with a learner, 2048 when omitted; of all with
        samples, 20000
    :param normalize_reward: whether learners are paid in units of their returns' standard deviation (when omitted they are);
        not where the weight of their entropy is in the unit of the reward
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if one is out of range or does not apply, there is no client, or a client's spaces are not those of
        ``env``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": TabularPolicy}
    _json_skip: ClassVar[tuple[str, ...]] = ("clients", "support", "features")
    setting_ranges: ClassVar[dict[str, Setting]] = {
        "clients": Setting((list, tuple), optional=True, what="a list of `Client`"),
        "fusion": Setting("text", choices=FUSIONS),
        "n_rounds": COUNT,
        "discount": Setting("number", low=0.0, high=1.0),
        "horizon": Setting("integer", low=1, high=2**31 - 1, optional=True),
        "ends": Setting("text", choices=ENDS, optional=True),
        "l2": Setting("number", low=0.0),
        "irl_iterations": Setting("integer", low=0, high=2**31 - 1, optional=True),
        "irl_learning_rate": Setting("number", low=0.0, above="always", optional=True),
        "irl_tol": Setting("number", low=0.0),
        "reg": Setting("number", low=0.0, above="always"),
        "debiased": Setting("flag"),
        "margin": Setting("number", low=0.0, above="always"),
        "quorum": COUNT,
        "support": Setting((Support,), optional=True),
        "features": Setting((Callable,), what="features such as `rbf_features` makes", optional=True),  # type: ignore[arg-type]
        "learner": Setting(
            (str, type), fits=is_learner, what="'a2c', 'ddpg', 'dqn', 'ppo', 'sac', 'td3' or a class of SB3", optional=True
        ),
        "learner_kwargs": Setting((dict,), together=check_learner_kwargs, optional=True),
        "policy_features": Setting("text", choices=POLICY_FEATURES, optional=True),
        "irl_timesteps": Setting("integer", low=1, high=2**31 - 1, optional=True),
        "normalize_reward": Setting("flag", optional=True),
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
        ends: str | None = None,
        l2: float = 0.01,
        irl_iterations: int | None = None,
        irl_learning_rate: float | None = None,
        irl_tol: float = 1e-6,
        reg: float = 0.5,
        debiased: bool = True,
        margin: float = 0.01,
        quorum: int = 1,
        support: Support | None = None,
        features: FeatureFunction | None = None,
        learner: str | type[BaseAlgorithm] | None = None,
        learner_kwargs: dict[str, Any] | None = None,
        policy_features: str | None = None,
        irl_timesteps: int | None = None,
        normalize_reward: bool | None = None,
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
        self.features = features
        self.learner = learner_name(learner)
        self.learner_kwargs = learner_kwargs
        self.policy_features = policy_features
        self.irl_timesteps = irl_timesteps
        self.normalize_reward = normalize_reward
        self.episodes = Horizon(discount, horizon)
        self.agent: BaseAlgorithm | None = None
        self._is_finite, self._shape = True, (0, 0)
        # Of the radial basis functions, which are built anew from a file: coordinates of their box, shape of their centers.
        self._rbf: tuple[int, int, int] | None = None
        self._federation: SampledClients | None = None
        # Nothing here is learned by gradients of a network of its own, so that there is no rate to choose.
        arguments = arguments_of(super().__init__, locals())
        super().__init__(**{**arguments, "learning_rate": 0.0}, support_multi_env=True)
        if _init_setup_model:
            self._describe()
            self._setup_model()

    # ------------------------------------------------------------ the algorithm

    def learn(
        self,
        total_timesteps: int = 1,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "FedIRL",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        Learn the clients' rewards, fuse them, and find a policy for ``env`` under the fused reward.

        :param total_timesteps: steps that the learner takes in ``env``, after all rounds; of which finite worlds
            need none
        :param callback: called after each step of the learner in ``env``; in finite worlds after each round
        :param log_interval: as the learner has it; in finite worlds rounds between log entries
        :param tb_log_name: name of the run
        :param reset_num_timesteps: start counting anew; ``False`` starts the clients from the fused reward
        :param progress_bar: show a bar that counts what ``num_timesteps`` does, and before it one for the clients' part
        :return: the model
        :raises TypeError: if an argument is of the wrong type
        :raises RuntimeError: if the model was loaded without ``clients``, or without ``features`` of the user's
        :raises ValueError: if an argument is out of range, fewer clients than the quorum have sent usable parameters, or a
            reward became NaN or infinite
        """
        check_settings(LEARN_SETTINGS, locals())
        if self.clients is None:
            raise RuntimeError("the model has no clients to learn from; `load` it with `clients=`")
        clients, goes_on = self._checked_clients(), not reset_num_timesteps
        steps = self.n_rounds if self._is_finite else int(total_timesteps)
        # The bar reads it: in finite worlds what is counted are rounds.
        total_timesteps, callback = self._setup_learn(steps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        n_features = self.reward_model.theta.shape[0]
        start = self.reward_model.theta.cpu() if goes_on else th.zeros(n_features, dtype=th.float64)
        start = start.expand(len(clients), -1)
        callback.on_training_start(locals(), globals())
        if not self._is_finite:
            self._learn_rewards(start, progress_bar)
            self._learn_policy(steps, callback, log_interval, tb_log_name, reset_num_timesteps)
            callback.on_training_end()
            return self
        federation, probe = self._exact_clients(), as_counted(self._probe(), self.ends or ENDS[0])
        support = self._support()
        while self.num_timesteps < total_timesteps:
            thetas = federation.learn(start, self.logger)
            theta = self._fuse(thetas, support)
            self.policy.log_policy = soft_optimal(probe, theta, self.episodes).to(self.device)
            self.reward_model.features = probe.features.to(self.device)
            self._keep(theta, thetas)
            start = theta.expand(len(clients), -1)
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

    def _learn_rewards(self, start: th.Tensor, progress_bar: bool) -> None:
        """All rounds of the federation, where states are vectors."""
        support, federation = self._support(), self._sampled_clients()
        for number in range(self.n_rounds):
            thetas = federation.learn(start, self.logger, progress_bar=progress_bar)
            theta = self._fuse(thetas, support)
            self._keep(theta, thetas)
            start = theta.expand(len(thetas), -1)
            self.logger.record("time/rounds", number + 1)
            self.logger.dump(step=federation.n_steps)

    def _learn_policy(self, steps: int, callback: Any, log_interval: int | None, tb_log_name: str, reset: bool) -> None:
        """The policy of the fused reward."""
        assert self.agent is not None
        assert self.env is not None
        paying = PayingVecEnv(self.env, self._feature_function(), self.episodes)
        paying.theta = self.reward_model.theta.cpu()
        self.agent.set_env(paying if self.normalize_reward is False else normalizing(paying, self.discount))
        self.agent.set_logger(self.logger)
        # A model that was loaded goes on where the file says that it was.
        self.agent.num_timesteps, self.agent._n_updates = self.num_timesteps, self._n_updates
        self.agent.learn(steps, Relay(self, callback), log_interval, tb_log_name, reset)  # type: ignore[arg-type]

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

    def _keep(self, theta: th.Tensor, thetas: th.Tensor) -> None:
        self._shape = (len(thetas), int(theta.shape[0]))
        self.reward_model.theta, self.reward_model.thetas = theta.to(self.device), thetas.to(self.device)
