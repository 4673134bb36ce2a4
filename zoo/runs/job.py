"""One training: an algorithm with its hyperparameters on an environment, with a seed, and the files that it leaves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from otbaselines.common.saving.normalizer import FILE_NAME, load_normalizer
from otbaselines.common.vec_env.make import make_vec_env
from zoo.config.entries import RunConfig, read_entry, split_entry
from zoo.config.registry import ALGOS, LEARNERS, OFFLINE


@dataclass(frozen=True, kw_only=True)
class Job:
    """
    Whatever trains in the zoo is one of these; it can be sent to another process.

    What an entry holds beside the steps and the environment goes to the algorithm's constructor, so that a learner from data
    is described by its ``dataset`` in the entry.

    :param algo: a name in :data:`zoo.config.registry.ALGOS`
    :param env_id: anything that ``make_vec_env`` knows by name
    :param entry: hyperparameters as plain values, variants and changes applied
    :param seed: of everything random
    :param folder: where its files go
    :param name: of its files, without their endings
    :param learner: a name in :data:`zoo.config.registry.LEARNERS` instead of the algorithm
    :param trained_agent: saved agent to go on with
    :param eval_env_kwargs: other arguments of the environment for evaluations
    :param device: where environment and learner live
    :param backend: of ``make_vec_env``
    """

    algo: str
    env_id: str
    entry: Mapping[str, Any]
    seed: int
    folder: Path
    name: str
    learner: str | None = None
    trained_agent: Path | None = None
    eval_env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    backend: str = "auto"

    @classmethod
    def read(
        cls,
        algo: str,
        env_id: str,
        *,
        variants: Iterable[str] = (),
        overrides: Mapping[str, Any] | None = None,
        path: str | None = None,
        **options: Any,
    ) -> Self:
        """
        Look the hyperparameters up.

        :param algo: as for the class
        :param env_id: as for the class
        :param variants: of the entry
        :param overrides: merged over it
        :param path: another file of hyperparameters
        :param options: everything else
        :return: the job
        :raises ValueError: as :func:`zoo.config.entries.read_entry` does
        """
        entry = read_entry(algo, env_id, variants=variants, overrides=overrides, path=path)
        return cls(algo=algo, env_id=env_id, entry=entry, **options)

    @property
    def agent(self) -> Path:
        """File of the agent."""
        return self.folder / f"{self.name}.zip"

    @property
    def parameters(self) -> Path:
        """Folder of what else there is to know about the run."""
        return self.folder / self.name

    @property
    def is_offline(self) -> bool:
        """Whether it learns from recorded data, by gradient steps."""
        return self.algo in OFFLINE

    @property
    def normalizer(self) -> Path:
        """File of the statistics of ``VecNormalize``."""
        return self.parameters / FILE_NAME

    @property
    def config(self) -> RunConfig:
        """The entry, divided by who needs it."""
        return split_entry(self.entry)

    def make_env(self, n_copies: int | None = None, *, evaluation: bool = False, **env_kwargs: Any) -> VecEnv:
        """
        Build copies of the team on the learner's device.

        :param n_copies: how many; the entry's when omitted
        :param evaluation: copies of their own, which play other starts and normalise no rewards
        :param env_kwargs: further arguments of the environment
        :return: the vector environment
        """
        config = self.config
        env_kwargs = {**config.env_kwargs, **(self.eval_env_kwargs if evaluation else {}), **env_kwargs}
        venv = make_vec_env(
            self.env_id,
            # From data nobody acts in the copies of the training.
            n_copies=n_copies or (1 if self.is_offline else config.n_envs),
            seed=(self.seed + 1_000_000) % 2**32 if evaluation else self.seed,
            device=get_device(self.device),
            backend=self.backend,
            env_kwargs=env_kwargs,
        )
        if self.trained_agent is not None:
            stored = self.trained_agent.parent / self.name / FILE_NAME
            if stored.is_file():
                return load_normalizer(venv, stored, training=not evaluation)
        if config.normalize is None:
            return venv
        frozen = {"norm_reward": False, "training": False} if evaluation else {}
        return VecNormalize(venv, **{**config.normalize, **frozen})

    def build(self, **options: Any) -> BaseAlgorithm:
        """
        Make the learner, or load the one to go on with; the entry's values replace those that it was trained with.

        :param options: arguments of the algorithm that are no hyperparameters, such as ``verbose``
        :return: the model
        """
        env, settings = self.make_env(), self.config.model_kwargs
        try:
            options = {"seed": self.seed, "device": get_device(self.device), **options}
            if self.trained_agent is None:
                return LEARNERS[self.learner or self.algo](env=env, **options, **settings)
            changes = {name: value for name, value in settings.items() if name not in ("policy", "policy_kwargs")}
            return ALGOS[self.algo].load(str(self.trained_agent), env=env, **options, **changes)
        except BaseException:
            env.close()
            raise
