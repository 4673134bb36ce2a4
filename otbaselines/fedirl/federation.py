"""What :class:`~otbaselines.fedirl.FedIRL` is put together of: clients, policy, reward, and what is stored of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.learner import Learner
from otbaselines.common.offline import spaces_only_env
from otbaselines.common.seeding import child_seeds
from otbaselines.common.tabular import TabularModel
from otbaselines.fedirl import exact, sampled
from otbaselines.fedirl.checks import check_clients, check_kind, check_shape, name_of
from otbaselines.fedirl.clients import Client
from otbaselines.fedirl.exact import ExactClients, has_model, lattice_of
from otbaselines.fedirl.features import FeatureFunction, RBFFeatures, evaluated, lattice_support, rbf_features
from otbaselines.fedirl.fusion import Support
from otbaselines.fedirl.learners import make_learner
from otbaselines.fedirl.maxent import Horizon
from otbaselines.fedirl.policies import FeatureReward, TableReward
from otbaselines.fedirl.sampled import LearningClients, RandomClients, SampledClients


class Federation(Learner, BaseAlgorithm):
    """The half of :class:`~otbaselines.fedirl.FedIRL` that builds and stores; the other half is the algorithm."""

    clients: Sequence[Client] | None
    discount: float
    horizon: int | None
    ends: str | None
    l2: float
    irl_iterations: int | None
    irl_learning_rate: float | None
    irl_tol: float
    support: Support | None
    features: FeatureFunction | None
    learner: str | type[BaseAlgorithm] | None
    learner_kwargs: dict[str, Any] | None
    policy_features: str | None
    irl_timesteps: int | None
    normalize_reward: bool | None
    episodes: Horizon
    agent: BaseAlgorithm | None
    _is_finite: bool
    _shape: tuple[int, ...]
    _rbf: tuple[int, ...] | None
    _federation: SampledClients | None

    # ------------------------------------------------------------ building

    def _describe(self) -> None:
        """What of the model follows from the environment and the clients."""
        if self.env is None:
            raise ValueError("`env` must be the world that the policy is for, got None")
        self._is_finite = has_model(self.env)
        check_kind(self, is_finite=self._is_finite)
        clients = self._checked_clients()
        if self._is_finite:
            self._shape = (len(clients), int(self._probe().features.shape[-1]))
            return
        if self.features is None:
            self.features = rbf_features(self.observation_space, self.action_space)
        first = clients[0].demonstrations[0]
        n_features = evaluated(self.features, first.observations[:1], first.actions[:1]).shape[1]
        self._shape = (len(clients), n_features)
        if isinstance(self.features, RBFFeatures):
            self._rbf = (len(self.features.low), *self.features.centers.shape)

    def _checked_clients(self) -> Sequence[Client]:
        check_clients(self.clients, self.observation_space, self.action_space, self.features, is_finite=self._is_finite)
        assert self.clients is not None
        return self.clients

    def _setup_model(self) -> None:
        if self.env is None:
            self.env, self.n_envs = spaces_only_env(self.observation_space, self.action_space), 1
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        n_clients, n_features = self._shape
        if self._is_finite:
            policy_class: Any = self.policy_class
            of_steps = {} if self.horizon is None else {"n_steps": self.horizon}
            self.policy = policy_class(
                self.observation_space, self.action_space, self.lr_schedule, **of_steps, **self.policy_kwargs
            ).to(self.device)
            states, actions = self.observation_space, self.action_space
            # The policy has refused other spaces.
            assert isinstance(states, spaces.Discrete)
            assert isinstance(actions, spaces.Discrete)
            self.reward_model: Any = TableReward(int(states.n), int(actions.n), n_features, n_clients).to(self.device)
            return
        seed = None if self.seed is None else child_seeds(self.seed, self.num_timesteps)["learner"]
        self.agent = self._make_learner(self.env, seed, self.verbose)
        assert self.agent.policy is not None
        self.policy, self.use_sde = self.agent.policy, self.agent.use_sde
        centers = None if self._rbf is None else (self._rbf[1], self._rbf[2])
        n_actions = int(self.action_space.n) if isinstance(self.action_space, spaces.Discrete) else None
        n_coordinates = 0 if self._rbf is None else self._rbf[0]
        self.reward_model = FeatureReward(n_features, n_clients, centers, n_coordinates, n_actions).to(self.device)
        if isinstance(self.features, RBFFeatures):
            self.reward_model.keep(self.features)

    def _make_learner(self, env: VecEnv, seed: int | None, verbose: int = 0) -> BaseAlgorithm:
        return make_learner(
            self.learner or "ppo",
            self._stored_policy(),
            env,
            discount=self.discount,
            seed=seed,
            device=self.device,
            verbose=verbose,
            policy_kwargs=dict(self.policy_kwargs),
            **(self.learner_kwargs or {}),
        )

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        if self.agent is None:
            return ["policy", "reward_model"], []
        names, variables = self.agent._get_torch_save_params()
        return ["reward_model", *(f"agent.{name}" for name in names)], [f"agent.{name}" for name in variables]

    def _extra_data(self) -> dict[str, Any]:
        return {
            "shape": list(self._shape),
            "is_finite": self._is_finite,
            "rbf": None if self._rbf is None else list(self._rbf),
        }

    def _load_extra_data(self, extra: dict[str, Any]) -> None:
        self._shape = check_shape("shape", extra.get("shape"), 2)
        self._is_finite = bool(extra.get("is_finite", True))
        rbf = extra.get("rbf")
        self._rbf = None if rbf is None else check_shape("rbf", rbf, 3)

    # ------------------------------------------------------------ who takes part

    def _probe(self) -> TabularModel:
        assert self.env is not None
        if not has_model(self.env):
            raise ValueError("`env` must have an attribute `tabular_model` of type `TabularModel`, as the world of the model")
        model: TabularModel = self.env.get_attr("tabular_model")[0]
        return model

    def _support(self) -> Support:
        if self.support is not None:
            return self.support
        assert self.env is not None
        if self._is_finite:
            return lattice_of(self.env, self._probe())
        features = self._feature_function()
        if isinstance(features, RBFFeatures):
            return lattice_support(features)
        raise ValueError("`support` is needed where `features` is a function: points on which rewards are compared")

    def _feature_function(self) -> FeatureFunction:
        if self.features is not None:
            return self.features
        if self._rbf is None:
            raise RuntimeError(
                "the model was made with a function as `features`, which no file holds; `load` it with `features=`"
            )
        self.features = self.reward_model.rbf()
        return self.features

    def _iterations(self, clients: Sequence[Client], default: int) -> list[int]:
        common = default if self.irl_iterations is None else self.irl_iterations
        return [common if each.irl_iterations is None else each.irl_iterations for each in clients]

    def _exact_clients(self) -> ExactClients:
        assert self.clients is not None
        return ExactClients(
            self.clients,
            [name_of(self.clients, place) for place in range(len(self.clients))],
            horizon=self.episodes,
            ends=self.ends or exact.ENDS[0],
            l2=self.l2,
            n_iterations=self._iterations(self.clients, exact.IRL_ITERATIONS),
            learning_rate=self.irl_learning_rate,
            tol=self.irl_tol,
        )

    def _sampled_clients(self) -> LearningClients | RandomClients:
        """The clients with their learners, which stay as they are from one call of ``learn`` to the next."""
        if isinstance(self._federation, LearningClients | RandomClients):
            return self._federation
        assert self.clients is not None
        kind = self.policy_features or sampled.POLICY_FEATURES[0]
        n_clients = len(self.clients)
        first = (
            int(np.random.default_rng().integers(2**30))
            if self.seed is None
            else child_seeds(self.seed)["environment"] % 2**30
        )
        common: dict[str, Any] = {
            "horizon": self.episodes,
            "l2": self.l2,
            "n_iterations": self._iterations(self.clients, sampled.IRL_ITERATIONS[kind]),
            "tol": self.irl_tol,
            "n_timesteps": self.irl_timesteps or sampled.IRL_TIMESTEPS[kind],
            "seeds": [first + place for place in range(n_clients)],
        }
        features = self._feature_function()
        if kind == "samples":
            found: LearningClients | RandomClients = RandomClients(self.clients, features, **common)
        else:
            found = LearningClients(
                self.clients,
                features,
                make=self._make_learner,
                learning_rate=self.irl_learning_rate or sampled.LEARNING_RATE,
                normalize=self.normalize_reward is not False,
                **common,
            )
        self._federation = found
        return found

    # ------------------------------------------------------------ what was found

    @property
    def theta(self) -> npt.NDArray[np.float64]:
        """Parameters of the fused reward, shape ``(k,)``."""
        return np.asarray(self.reward_model.theta.cpu().numpy())

    @property
    def client_thetas(self) -> npt.NDArray[np.float64]:
        """Parameters that the clients sent in the last round, shape ``(n_clients, k)``."""
        return np.asarray(self.reward_model.thetas.cpu().numpy())

    def reward(self, obs: npt.ArrayLike, actions: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """
        The fused reward in ``env``.

        :param obs: numbers of states ``(n,)``, or observations ``(n, ...)``
        :param actions: numbers ``(n,)``, or vectors ``(n, d_act)``
        :return: rewards, shape ``(n,)``
        :raises RuntimeError: if the model was loaded without ``features`` of the user's
        :raises ValueError: if a number is not a state or an action, or shapes do not fit
        """
        if not self._is_finite:
            seen, done = np.asarray(obs), np.asarray(actions)
            for name, array, space in (("obs", seen, self.observation_space), ("actions", done, self.action_space)):
                if array.ndim == 0 or array.shape[1:] != space.shape or len(array) != len(seen):
                    raise ValueError(
                        f"`{name}` must have the shape {(len(np.atleast_1d(seen)), *(space.shape or ()))}, got {array.shape}"
                    )
            rows = evaluated(self._feature_function(), seen, done)
            return np.asarray((rows @ self.reward_model.theta.cpu()).numpy())
        pairs = []
        for name, given, limit in zip(("obs", "actions"), (obs, actions), self.reward_model.features.shape, strict=False):
            numbers = np.atleast_1d(np.asarray(given))
            if numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= limit:
                raise ValueError(f"`{name}` must be integers in [0, {limit}), got {np.asarray(given)}")
            pairs.append(th.as_tensor(numbers.astype(np.int64), device=self.device))
        return np.asarray(self.reward_model(*pairs).cpu().numpy())
