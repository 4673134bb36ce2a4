"""Learners from an :class:`~otbaselines.OfflineDataset`: what they share, whatever they learn from it."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from otbaselines.common.datasets import OfflineDataset
from otbaselines.common.memory import check_fits
from otbaselines.common.networks.optimizers import clear_gradients, take_step
from otbaselines.common.offline.graphs import GraphedStep, make_capturable, set_learning_rate, without_capture
from otbaselines.common.offline.loop import OfflineAlgorithm, spaces_only_env
from otbaselines.common.offline.policies import OfflineActorPolicy
from otbaselines.common.offline.rows import OfflineBatch, Rows
from otbaselines.common.seeding import child_seeds
from otbaselines.common.settings import MANY, Setting, arguments_of
from otbaselines.common.training import Metrics, Snapshot


class DatasetAlgorithm(OfflineAlgorithm):
    """
    Base of the learners whose data are an :class:`~otbaselines.OfflineDataset`.

    A subclass implements :meth:`_losses`. The data are scaled once, at the start of :meth:`learn`, and lie on the device as
    one matrix; they are never saved with the model.

    :param env: a Gymnasium environment or its id, for spaces and evaluation; None takes the spaces from the data
    :param dataset: the data: an :class:`~otbaselines.OfflineDataset`, or what its ``load`` takes, such as the path of a
        ``.npz`` or HDF5 file, a Minari id or dataset, or a replay buffer of SB3's. May be given later, by :meth:`set_dataset`
    :param batch_size: rows of the data in a gradient step, drawn with replacement
    :param normalize_observations: subtract the data's mean from observations and divide by their standard deviation
    :param compile: let ``torch.compile`` fuse the losses, which takes a minute at the first step and a C++ compiler on CPUs
    :param cuda_graph: capture the whole gradient step as one CUDA graph; on CUDA only
    """

    _json_skip: ClassVar[tuple[str, ...]] = ("dataset",)
    setting_ranges: ClassVar[dict[str, Setting]] = {
        "batch_size": Setting("integer", low=1, high=MANY),
        "normalize_observations": Setting("flag"),
        "compile": Setting("flag"),
        "cuda_graph": Setting("flag"),
    }
    #: Names of the scalars that :meth:`_losses` returns beside the loss.
    metric_names: ClassVar[tuple[str, ...]]
    #: Optimizers, as attributes of the policy.
    optimizer_names: ClassVar[tuple[str, ...]] = ("optimizer",)
    policy: OfflineActorPolicy

    def __init__(
        self,
        policy: str | type,
        env: GymEnv | str | None = None,
        learning_rate: float | str | Schedule = 3e-4,
        dataset: Any = None,
        batch_size: int = 256,
        normalize_observations: bool = True,
        compile: bool = False,
        cuda_graph: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if _init_setup_model:
            # A model that was trained so may be loaded anywhere.
            check_cuda_graph(cuda_graph, get_device(device))
        env = None if env is None else maybe_make_env(env, verbose)
        self.dataset = None if dataset is None else _as_dataset(dataset, env)
        self.batch_size = batch_size
        self.normalize_observations = normalize_observations
        self.compile = compile
        self.cuda_graph = cuda_graph
        self.minibatches = th.Generator()
        self._rows: Rows | None = None
        self._scales_are_new = self._scales_are_refuted = False
        if env is None and _init_setup_model:
            if self.dataset is None:
                raise ValueError("`env` and `dataset` are both None, but one has to say what the spaces are; give one")
            env = spaces_only_env(self.dataset.observation_space, self.dataset.action_space)
        super().__init__(**arguments_of(super().__init__, locals()))

    # ------------------------------------------------------------------ set-up
    @staticmethod
    def _wrap_env(env: GymEnv | str, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # SB3 takes ids in the constructor alone; `load` and `set_env` come through here.
        return OfflineAlgorithm._wrap_env(maybe_make_env(env, verbose), verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        self._check_dataset(self.dataset)
        super()._setup_model()

    def set_random_seed(self, seed: int | None = None) -> None:
        super().set_random_seed(seed)
        if seed is not None:
            self.minibatches.manual_seed(child_seeds(seed, self.num_timesteps)["minibatches"])
        elif self._n_updates == 0:
            self.minibatches.manual_seed(int(th.randint(2**62, ())))

    def set_dataset(self, dataset: Any) -> None:
        """
        Train on other data from the next call of :meth:`learn` on. What a trained model has scaled observations and rewards
        by, it keeps.

        :param dataset: as the constructor takes it
        :raises ValueError: if the spaces are not the model's
        """
        found = _as_dataset(dataset, self.env)
        self._check_dataset(found)
        self.dataset, self._rows = found, None

    def _check_dataset(self, dataset: Any) -> None:
        if dataset is None:
            return
        for name in ("observation_space", "action_space"):
            own, given = getattr(self, name), getattr(dataset, name)
            same = isinstance(given, spaces.Box) and isinstance(own, spaces.Box) and own.shape == given.shape
            # Actions are scaled by their box; observations are not.
            if same and name == "action_space":
                same = bool(np.allclose(own.low, given.low) and np.allclose(own.high, given.high))
            if not same:
                raise ValueError(f"`dataset` has the {name} {given}, but the model's is {own}; both have to be the same")

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"policy.{name}" for name in self._optimizer_names())], []

    def _optimizer_names(self) -> tuple[str, ...]:
        return self.optimizer_names

    def _optimizers(self) -> list[th.optim.Optimizer]:
        return [getattr(self.policy, name) for name in self._optimizer_names()]

    def get_parameters(self) -> dict[str, dict[Any, Any]]:
        """
        :return: the state dicts by name, as SB3's. What a CUDA graph needs of an optimizer is left out, so that the model
            loads everywhere
        """
        return without_capture(super().get_parameters())

    # ------------------------------------------------------------------ learning
    def check_before_learning(self) -> None:
        super().check_before_learning()
        check_cuda_graph(self.cuda_graph, self.device)
        width = int(np.prod(self.observation_space.shape or ()) * 2 + np.prod(self.action_space.shape or ()) + 2)
        check_fits(
            4 * int(self.batch_size) * width, f"a minibatch of `batch_size`={self.batch_size} rows", "lower it", self.device
        )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if self.dataset is None:
            raise RuntimeError("the model has no data to learn from; call `set_dataset`, or `load` it with `dataset=`")
        result = super()._setup_learn(*args, **kwargs)
        if self._n_updates == 0 or self._scales_are_refuted:
            self._fit_scales(self.dataset)
            # Until a first part of the training has been found sound, they may be those of data that nothing can learn from.
            self._scales_are_new = True
        self._scales_are_refuted = False
        self._rows = self._make_rows(self.dataset)
        self._drawn = th.zeros(self.batch_size, dtype=th.int64)
        self._index = self._drawn.to(self.device)
        # Made anew: a graph knows the tensors of the optimizers' states, and a restored state has others.
        self._step: Callable[[], th.Tensor] = self._gradient_step
        self._loss_of_rows = self._losses_at
        if self.compile:
            self._loss_of_rows = th.compile(self._losses_at, dynamic=False)
        if self.cuda_graph:
            make_capturable(self._optimizers(), self.device)
            self._step = GraphedStep(self._gradient_step)
        return result

    def _check_and_record(self, metrics: Metrics, snapshot: Snapshot) -> None:
        try:
            super()._check_and_record(metrics, snapshot)
        except ValueError:
            self._scales_are_refuted = self._scales_are_new
            raise
        self._scales_are_new = False

    def _fit_scales(self, dataset: OfflineDataset) -> None:
        """Take over what observations are normalised by; the policy keeps it."""
        if self.normalize_observations:
            self.policy.observation_mean.copy_(dataset.observation_mean.flatten())
            self.policy.observation_std.copy_(dataset.observation_std.flatten())

    def _reward_factor(self) -> float:
        return 1.0

    def _make_rows(self, dataset: OfflineDataset) -> Rows:
        return Rows.of(
            dataset,
            mean=self.policy.observation_mean,
            std=self.policy.observation_std,
            reward_factor=self._reward_factor(),
            device=self.device,
        )

    def train_step(self, metrics: Metrics) -> None:
        assert self._rows is not None
        # Drawn on the CPU, so that a seed gives the same minibatches on every device.
        th.randint(len(self._rows), (self.batch_size,), generator=self.minibatches, out=self._drawn)
        if self._index is not self._drawn:
            self._index.copy_(self._drawn, non_blocking=True)
        for name, value in zip(self.metric_names, self._step().unbind(), strict=True):
            metrics.add(f"train/{name}", value)

    def _gradient_step(self) -> th.Tensor:
        """One step of all optimizers down the sum of the losses, each of which has parameters of its own."""
        loss, scalars = self._loss_of_rows(self._index)
        optimizers = self._optimizers()
        for optimizer in optimizers:
            clear_gradients(optimizer)
        loss.backward()
        for optimizer in optimizers:
            take_step(optimizer)
        self._after_step()
        return scalars

    def _losses_at(self, index: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        assert self._rows is not None
        return self._losses(self._rows.batch(index))

    def _losses(self, batch: OfflineBatch) -> tuple[th.Tensor, th.Tensor]:
        """
        The algorithm.

        :param batch: a minibatch
        :return: the sum of the losses, shape ``()``, and the scalars named in ``metric_names``, shape ``(n_metrics,)``
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `_losses`")

    def _after_step(self) -> None:
        """What follows the step of the optimizers, such as slow copies."""

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        del optimizers
        for optimizer, rate in zip(self._optimizers(), self._learning_rates(), strict=True):
            set_learning_rate(optimizer, rate)

    def _learning_rates(self) -> list[float]:
        """One for each optimizer, at the present progress."""
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        return [rate] * len(self._optimizers())


def check_cuda_graph(cuda_graph: bool, device: th.device) -> None:
    """
    :param cuda_graph: whether steps are to be captured
    :param device: where they are computed
    :raises ValueError: if that cannot be
    """
    if cuda_graph and device.type != "cuda":
        raise ValueError(f"`cuda_graph`=True works on CUDA only, but the device is {device.type!r}; leave it out")


def _as_dataset(source: Any, env: Any) -> OfflineDataset:
    """Whatever a user passes as ``dataset``; files without spaces take those of the environment."""
    known = {} if env is None else {"observation_space": env.observation_space, "action_space": env.action_space}
    found = OfflineDataset.load(source, **known)
    if is_image_space(found.observation_space):
        raise ValueError(
            f"`dataset` {found.name!r} has images of {found.observation_space} for observations, which learners on data have "
            "no network for; record features of them, or, for small ones, through gymnasium.wrappers.FlattenObservation"
        )
    return found
