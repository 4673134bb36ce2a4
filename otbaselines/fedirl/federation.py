"""What :class:`~otbaselines.fedirl.FedIRL` is put together of: clients, policy, reward, and what is stored of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from otbaselines.common.learner import Learner
from otbaselines.common.offline import spaces_only_env
from otbaselines.common.seeding import child_seeds
from otbaselines.common.settings import check_settings
from otbaselines.common.tabular import TabularModel
from otbaselines.common.vec_env.layout import first_attribute
from otbaselines.fedirl import exact, sampled
from otbaselines.fedirl.checks import check_clients, check_kind, check_model, check_shape, name_of, warn_of_shared
from otbaselines.fedirl.clients import Client
from otbaselines.fedirl.exact import ExactClients, has_model, lattice_of
from otbaselines.fedirl.features import (
    FeatureFunction,
    RBFFeatures,
    default_lengths,
    evaluated,
    lattice_support,
    rbf_features,
)
from otbaselines.fedirl.fusion import Support
from otbaselines.fedirl.learners import learner_name, make_learner, untransposed
from otbaselines.fedirl.maxent import Horizon
from otbaselines.fedirl.policies import FeatureReward, TableReward
from otbaselines.fedirl.sampled import LearningClients, RandomClients, SampledClients


class Federation(Learner, BaseAlgorithm):
    """The half of :class:`~otbaselines.fedirl.FedIRL` that builds and stores; the other half is the algorithm."""

    clients: Sequence[Client] | None
    quorum: int
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
    agent: BaseAlgorithm | None
    _is_finite: bool
    # Whether SB3 has put the channels of images first.
    _is_transposed: bool
    _shape: tuple[int, ...]
    _rbf: tuple[int, ...] | None
    # The clients with their learners, and what these were built from: objects, and settings.
    _federation: SampledClients | None
    _built: tuple[list[object], dict[str, Any]]
    # The learner's class and arguments, with which it has been made.
    _made: tuple[str | type | None, dict[str, Any]]

    @property
    def episodes(self) -> Horizon:
        """Discount and length of episodes."""
        return Horizon(self.discount, self.horizon)

    # ------------------------------------------------------------ building

    def _describe(self) -> None:
        """What of the model follows from the environment and the clients."""
        if self.env is None:
            raise ValueError("`env` must be the world that the policy is for, got None")
        self._is_finite = has_model(self.env)
        check_kind(self, is_finite=self._is_finite)
        if not self._is_finite and self.features is None:
            self.features = rbf_features(untransposed(self.env).observation_space, self.action_space)
        if isinstance(self.features, RBFFeatures):
            self._rbf = (len(self.features.low), *self.features.centers.shape)
        self._checked_clients()

    def _checked_clients(self) -> Sequence[Client]:
        """Who takes part, after a look at everything that follows from them and from what may have been changed."""
        check_settings(type(self).setting_ranges, vars(self))
        check_kind(self, is_finite=self._is_finite)
        assert self.env is not None
        probe = self._probe() if self._is_finite else None
        if probe is not None:
            check_model(probe, self.env, "`env`")
        self._is_transposed = isinstance(self.env, VecTransposeImage)
        states = untransposed(self.env).observation_space
        check_clients(self.clients, states, self.action_space, self.features, probe)
        assert self.clients is not None
        if probe is None:
            warn_of_shared(self.env, self.clients)
        if self.quorum > len(self.clients):
            raise ValueError(f"`quorum` is {self.quorum}, but there are only {len(self.clients)} clients; lower it")
        if probe is not None:
            n_features = int(probe.features.shape[-1])
        else:
            features, first = self._feature_function(), self.clients[0].demonstrations[0]
            n_features = evaluated(features, first.observations[:1], first.actions[:1]).shape[1]
        self._check_features(n_features)
        self._shape = (len(self.clients), n_features)
        return self.clients

    def _check_features(self, n_features: int) -> None:
        if self._shape[1] not in (0, n_features) or isinstance(self.features, RBFFeatures) != (self._rbf is not None):
            raise ValueError(
                f"`features` must be {self._shape[1]} of the kind that the model was made with, got {n_features}; make a new "
                "model"
            )
        if self.support is None and isinstance(self.features, RBFFeatures):
            default_lengths(self.features)
        elif self.support is None and not self._is_finite:
            raise ValueError("`support` is needed where `features` is a function: points on which rewards are compared")
        elif self.support is not None and self.support.features.shape[1] != n_features:
            raise ValueError(
                f"`support` must have the {n_features} features of the clients, got {self.support.features.shape[1]}"
            )

    def _setup_model(self) -> None:
        if self.env is None:
            self.env, self.n_envs = spaces_only_env(self.observation_space, self.action_space), 1
        check_kind(self, is_finite=self._is_finite)
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
        self._made = (learner_name(self.learner), dict(self.learner_kwargs or {}))
        self.agent = self._make_learner(self.env, seed, self.verbose)
        assert self.agent.policy is not None
        self.policy, self.use_sde = self.agent.policy, self.agent.use_sde
        centers = None if self._rbf is None else (self._rbf[1], self._rbf[2])
        n_actions = int(self.action_space.n) if isinstance(self.action_space, spaces.Discrete) else None
        n_coordinates = 0 if self._rbf is None else self._rbf[0]
        self.reward_model = FeatureReward(n_features, n_clients, centers, n_coordinates, n_actions).to(self.device)
        self._keep_features()

    def _keep_features(self) -> None:
        if self._rbf is not None and isinstance(self.features, RBFFeatures):
            self.reward_model.keep(self.features)

    def _check_learner(self) -> None:
        """Refuse changes that come too late."""
        for name, now, made in (
            ("learner", learner_name(self.learner), self._made[0]),
            ("learner_kwargs", dict(self.learner_kwargs or {}), self._made[1]),
        ):
            if now != made:
                raise ValueError(f"`{name}` cannot become {now!r} once the learner is made with {made!r}; make a new model")

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
            "is_transposed": self._is_transposed,
            "rbf": None if self._rbf is None else list(self._rbf),
        }

    def _load_extra_data(self, extra: dict[str, Any]) -> None:
        self._shape = check_shape("shape", extra.get("shape"), 2)
        self._is_finite = bool(extra.get("is_finite", True))
        self._is_transposed = bool(extra.get("is_transposed", False))
        rbf = extra.get("rbf")
        self._rbf = None if rbf is None else check_shape("rbf", rbf, 3)

    def _restore_tensors(self, tensors: dict[str, Any], label: str, replaced: Iterable[str] = ()) -> None:
        super()._restore_tensors(tensors, label, replaced)
        if self._rbf is None or self.features is None:
            return
        stored, given = self.reward_model.rbf(), self.features
        names = ("low", "high", "centers")
        if not isinstance(given, RBFFeatures) or not (
            given.bandwidth == stored.bandwidth and all(th.equal(getattr(given, n), getattr(stored, n)) for n in names)
        ):
            raise ValueError(f"`features` are not the radial basis functions of `path` {label}; leave them out")

    def __getstate__(self) -> dict[str, Any]:
        # Clients' learners are made anew, and the wrappers of environments cannot be stored.
        state = {**vars(self), "_federation": None, "_built": ([], {})}
        if self.agent is not None:
            state["agent"] = copy.copy(self.agent)
            state["agent"].env = None
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if self.agent is not None:
            assert self.agent.policy is not None
            for module in self.agent.policy.modules():
                # What was drawn last is part of a graph, which torch copies in a pickle alone.
                if (drawn := getattr(module, "action_dist", None)) is not None:
                    memo[id(drawn)] = pickle.loads(pickle.dumps(drawn))
        found = type(self).__new__(type(self))
        memo[id(self)] = found
        vars(found).update(copy.deepcopy(self.__getstate__(), memo))
        return found

    # ------------------------------------------------------------ who takes part

    def _probe(self) -> TabularModel:
        assert self.env is not None
        model = first_attribute(self.env, "tabular_model")
        if not isinstance(model, TabularModel):
            raise ValueError("`env` must have an attribute `tabular_model` of type `TabularModel`, as the world of the model")
        return model

    def _support(self) -> Support:
        if self.support is not None:
            return self.support
        assert self.env is not None
        if self._is_finite:
            return lattice_of(self.env, self._probe())
        features = self._feature_function()
        # Others have been asked for a support before.
        assert isinstance(features, RBFFeatures)
        return lattice_support(features)

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
        """The clients with their learners, which go on from one call of ``learn`` to the next where nothing changed."""
        assert self.clients is not None
        kind, features = self.policy_features or sampled.POLICY_FEATURES[0], self._feature_function()
        common: dict[str, Any] = {
            "horizon": self.episodes,
            "l2": self.l2,
            "n_iterations": self._iterations(self.clients, sampled.IRL_ITERATIONS[kind]),
            "tol": self.irl_tol,
            "n_timesteps": self.irl_timesteps or sampled.IRL_TIMESTEPS[kind],
        }
        own: dict[str, Any] = (
            {}
            if kind == "samples"
            else {
                "learning_rate": self.irl_learning_rate or sampled.LEARNING_RATE,
                "normalize": self.normalize_reward is not False,
            }
        )
        objects, settings = [features, *self.clients], {"kind": kind, **common, **own}
        if isinstance(self._federation, LearningClients | RandomClients):
            before, used = self._built
            same = len(objects) == len(before) and all(one is other for one, other in zip(objects, before, strict=True))
            if same and settings == used:
                return self._federation
        first = (
            int(np.random.default_rng().integers(2**30))
            if self.seed is None
            else child_seeds(self.seed)["environment"] % 2**30
        )
        common["seeds"] = [first + place for place in range(len(self.clients))]
        if kind == "samples":
            found: LearningClients | RandomClients = RandomClients(self.clients, features, **common)
        else:
            found = LearningClients(self.clients, features, make=self._make_learner, **own, **common)
        self._federation, self._built = found, (objects, settings)
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
        The fused reward: in finite worlds of the ``env`` in which the model has learned last, whatever ``set_env`` was told
        since.

        :param obs: numbers of states ``(n,)``, or observations ``(n, ...)``
        :param actions: numbers ``(n,)``, or vectors ``(n, d_act)``
        :return: rewards, shape ``(n,)``
        :raises RuntimeError: if the model was loaded without ``features`` of the user's
        :raises ValueError: if a number is not a state or an action, or shapes do not fit
        """
        if not self._is_finite:
            seen, done, shape = np.asarray(obs), np.asarray(actions), self.observation_space.shape or ()
            if self._is_transposed:
                shape = (*shape[1:], shape[0])
            for name, array, wanted in (("obs", seen, shape), ("actions", done, self.action_space.shape or ())):
                if array.ndim == 0 or array.shape[1:] != wanted or len(array) != len(seen):
                    raise ValueError(f"`{name}` must have the shape {(len(np.atleast_1d(seen)), *wanted)}, got {array.shape}")
            theta = self.reward_model.theta.cpu()
            return np.asarray((evaluated(self._feature_function(), seen, done, len(theta)) @ theta).numpy())
        pairs: list[th.Tensor] = []
        for name, given, limit in zip(("obs", "actions"), (obs, actions), self.reward_model.features.shape, strict=False):
            numbers = np.atleast_1d(np.asarray(given))
            inside = numbers.dtype.kind in "iu" and not ((numbers < 0) | (numbers >= limit)).any()
            if not inside or numbers.ndim != 1 or any(len(each) != len(numbers) for each in pairs):
                raise ValueError(f"`{name}` must be integers in [0, {limit}), one for each of `obs`, got {np.asarray(given)}")
            pairs.append(th.as_tensor(numbers.astype(np.int64), device=self.device))
        return np.asarray(self.reward_model(*pairs).cpu().numpy())
