"""rl_zoo3's experiment manager for teams."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, ProgressBarCallback
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from otbaselines.common.evaluation.team import TeamEvalCallback
from otbaselines.common.saving.normalizer import FILE_NAME, SaveNormalizer, load_normalizer, save_normalizer
from otbaselines.common.vec_env.make import make_vec_env
from zoo.config.entries import read_entry, split_entry
from zoo.config.registry import ALGOS


class TeamExperimentManager(ExperimentManager):
    """
    Trains one agent or team and leaves everything about the run in ``<folder>/<algo>/<env>_<run>/``.

    What rl_zoo3 does for one agent is kept: numbering of runs, set-up in one place, the grammar of the folders. Replaced are
    the environments (teams are in no Gymnasium registry), everything that rl_zoo3 evaluates as Python code or reads with an
    unsafe loader, its pickled normalisers, and the callbacks, which count copies where a team has slots.

    :param args: the command line, stored beside the run
    :param algo: a name in :data:`zoo.config.registry.ALGOS`
    :param env_id: anything that ``make_vec_env`` knows by name
    :param log_folder: where runs are collected
    :param variants: variants of the hyperparameter entry
    :param backend: of ``make_vec_env``
    :param options: rl_zoo3's further options
    :raises ValueError: if the hyperparameters or a trained agent cannot be found
    """

    def __init__(
        self,
        args: argparse.Namespace,
        algo: str,
        env_id: str,
        log_folder: str,
        *,
        variants: Sequence[str] = (),
        backend: str = "auto",
        **options: Any,
    ) -> None:
        self.variants = tuple(variants)
        self.backend = backend
        self.eval_env: VecEnv | None = None
        # The parent looks for a trained agent silently and starts afresh when a name was misspelt.
        trained_agent = str(options.get("trained_agent") or "")
        if trained_agent and not (trained_agent.endswith(".zip") and Path(trained_agent).is_file()):
            raise ValueError(f"--trained-agent must name an existing .zip file, got {trained_agent!r}")
        super().__init__(args, algo, env_id, log_folder, **options)
        # Without a file of the user's, the parent would read its own for an algorithm of this name.
        self.hyperparameter_file: str | None = options.get("config")

    # Teams are in no Gymnasium registry, where the parent would look these up.
    @staticmethod
    def is_atari(env_id: str) -> bool:
        """Tell the parent that nothing here needs Atari's wrappers."""
        return False

    @staticmethod
    def is_minigrid(env_id: str) -> bool:
        """Tell the parent that nothing here needs Minigrid's wrappers."""
        return False

    # ------------------------------------------------------------------ hyperparameters
    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the YAML entry, with the variants and the command line's changes applied.

        :return: the entry, and a copy to be stored beside the run
        """
        overrides: dict[str, Any] = dict(self.custom_hyperparams or {})
        if self.env_kwargs:
            overrides["env_kwargs"] = {**overrides.get("env_kwargs", {}), **self.env_kwargs}
        if self.n_timesteps > 0:
            overrides["n_timesteps"] = self.n_timesteps
        entry = read_entry(
            self.algo, self.env_name.gym_id, variants=self.variants, overrides=overrides, path=self.hyperparameter_file
        )
        if self.verbose > 0:
            print(yaml.safe_dump(entry, sort_keys=True).rstrip())
        return entry, dict(entry)

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> tuple[dict[str, Any], None, list[BaseCallback], None]:
        config = split_entry(hyperparams)
        self.n_timesteps, self.n_envs = config.n_timesteps, config.n_envs
        self.env_kwargs = config.env_kwargs
        self.eval_env_kwargs = {**config.env_kwargs, **(self._eval_env_kwargs_args or {})}
        self.normalize, self.normalize_kwargs = config.normalize is not None, dict(config.normalize or {})
        return dict(config.model_kwargs), None, [], None

    # ------------------------------------------------------------------ environments
    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Build the copies of the team on the learner's device.

        :param n_envs: copies
        :param eval_env: normalise neither rewards nor, with new statistics, observations
        :param no_log: unused; episode statistics are kept by the environments themselves
        :return: the vector environment
        """
        env_kwargs = self.eval_env_kwargs if eval_env else self.env_kwargs
        seed = self.seed + 1_000_000 if eval_env else self.seed
        device = get_device(self.device)
        venv = make_vec_env(
            self.env_name.gym_id, n_copies=n_envs, seed=seed, device=device, backend=self.backend, env_kwargs=env_kwargs
        )
        stored = Path(self.trained_agent).parent / str(self.env_name) / FILE_NAME
        if self.continue_training and stored.is_file():
            return load_normalizer(venv, stored, training=not eval_env)
        if self.normalize:
            frozen: Mapping[str, Any] = {"norm_reward": False, "training": False} if eval_env else {}
            return VecNormalize(venv, **{**self.normalize_kwargs, **frozen})
        return venv

    # ------------------------------------------------------------------ callbacks and files
    def create_log_folder(self) -> None:
        """Wait: a run that fails in its set-up must leave no empty folder, which the evaluation would later pick."""

    def create_callbacks(self) -> None:
        """Add the progress bar, the checkpoints and the evaluation, with frequencies given in agent-steps."""
        if self.show_progress:
            self.callbacks.append(ProgressBarCallback())
        # Building it here also refuses an unknown id before anything is written.
        self.eval_env = self.create_envs(self.n_eval_envs, eval_env=True)
        slots = self.n_envs * self.eval_env.num_envs // self.n_eval_envs
        if self.save_freq > 0:
            frequency = max(self.save_freq // slots, 1)
            self.callbacks.append(CheckpointCallback(frequency, self.save_path, name_prefix="rl_model", verbose=1))
        if self.eval_freq > 0:
            self.callbacks.append(
                TeamEvalCallback(
                    self.eval_env,
                    callback_on_new_best=SaveNormalizer(self.params_path),
                    best_model_save_path=self.save_path,
                    n_eval_episodes=self.n_eval_episodes,
                    log_path=self.save_path,
                    eval_freq=max(self.eval_freq // slots, 1),
                    deterministic=self.deterministic_eval,
                    verbose=self.verbose,
                )
            )

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        folder = Path(self.params_path)
        folder.mkdir(parents=True, exist_ok=True)
        arguments = dict(sorted(vars(self.args).items()))
        for name, values in (("config.yml", saved_hyperparams), ("args.yml", arguments)):
            (folder / name).write_text(yaml.safe_dump(values, sort_keys=True), encoding="utf-8")
        (folder / "command.txt").write_text(f"python -m zoo.train {shlex.join(sys.argv[1:])}\n", encoding="utf-8")
        if self.verbose > 0:
            print(f"Log path: {self.save_path}")

    # ------------------------------------------------------------------ training
    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        """Load the agent to go on with; the entry's values replace those that it was trained with."""
        changes = {key: value for key, value in hyperparams.items() if key not in ("policy", "policy_kwargs")}
        return ALGOS[self.algo].load(
            self.trained_agent,
            env=env,
            seed=self.seed,
            tensorboard_log=self.tensorboard_log,
            verbose=self.verbose,
            device=self.device,
            **changes,
        )

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train; an interruption by the keyboard ends the training, not the run.

        :param model: what :meth:`setup_experiment` returned
        """
        options: dict[str, Any] = {}
        if self.log_interval > -1:
            options["log_interval"] = self.log_interval
        elif self.log_interval < -1:
            options["log_interval"] = None
        try:
            model.learn(
                self.n_timesteps,
                callback=list(self.callbacks),
                # A continued run goes on with its schedules and its axis of steps.
                reset_num_timesteps=not self.continue_training,
                **options,
            )
        except KeyboardInterrupt:
            print("interrupted; saving what was learned so far")
        finally:
            for env in (model.env, self.eval_env):
                if env is not None:
                    env.close()

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the agent and, where there is one, its normaliser.

        :param model: the trained agent
        """
        model.save(str(Path(self.save_path) / str(self.env_name)))
        normalizer = model.get_vec_normalize_env()
        if normalizer is not None:
            save_normalizer(normalizer, Path(self.params_path) / FILE_NAME)
        if self.verbose > 0:
            print(f"Saved to {self.save_path}")
