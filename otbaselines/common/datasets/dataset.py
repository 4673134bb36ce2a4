"""The data set that offline learners draw from: tensors on the learner's device."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from otbaselines.common.datasets.columns import (
    COLUMNS,
    Columns,
    Recording,
    agreed_space,
    check_columns,
    infer_action_space,
    infer_observation_space,
    number_episodes,
)
from otbaselines.common.datasets.hdf5 import read_d4rl
from otbaselines.common.datasets.minari import read_minari
from otbaselines.common.datasets.npz import read_npz, write_npz
from otbaselines.common.datasets.replay import read_buffer
from otbaselines.common.datasets.rollout import roll_out
from otbaselines.common.datasets.summary import describe_dataset
from otbaselines.common.datasets.transitions import Transitions
from otbaselines.common.saving.archive import SavePath


class OfflineDataset(Transitions):
    """
    Recorded transitions of boxes of observations and actions, episode after episode, as tensors on one device.

    The columns are ``observations`` and ``next_observations`` of shape ``(n, *obs_shape)``, ``actions`` of
    ``(n, *action_shape)`` in the environment's own scale, ``rewards`` of ``(n,)``, all float32; ``terminations`` and
    ``truncations`` of ``(n,)``, bool. Learners must not change them. A termination is the end of the task: nothing is to be
    expected after it. At a truncation the recording alone stopped, and the value of the next observation counts.

    Use :meth:`load` and the ``from_...`` methods for files; this constructor is for arrays that are at hand.

    :param observations: numbers, shape ``(n, *obs_shape)``
    :param actions: numbers, shape ``(n, *action_shape)``; those that miss the space by rounding (a share of 1e-4 of its
        width) are clipped with a warning
    :param rewards: shape ``(n,)``
    :param next_observations: as ``observations``
    :param terminations: booleans, shape ``(n,)``
    :param truncations: booleans, shape ``(n,)``
    :param observation_space: without bounds when omitted
    :param action_space: from -1 to 1 when omitted, if the actions stay within
    :param name: what to call the data in messages and tables
    :param episodes: number of the episode that each row is of, ascending, and -1 where the episode is not whole; when
        omitted, the rows after each termination or truncation begin a new one
    :param device: where the tensors live
    :raises ValueError: if there are no data, NaN or infinite ones, actions outside of their space, or the shapes do not agree
    """

    def __init__(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        terminations: Any,
        truncations: Any,
        *,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        name: str = "data",
        episodes: Any = None,
        device: th.device | str = "cpu",
    ) -> None:
        given = (observations, actions, rewards, next_observations, terminations, truncations)
        arrays = {key: _as_column(key, value) for key, value in zip(COLUMNS, given, strict=True)}
        if episodes is None and len(arrays["terminations"]) == len(arrays["truncations"]):
            ends = (arrays["terminations"] != 0) | (arrays["truncations"] != 0)
            episodes = number_episodes(ends.reshape(-1))
        elif episodes is None:
            # Which of the two is wrong is told below.
            episodes = np.zeros(len(arrays["rewards"]), np.int64)
        columns = Columns(**arrays, episodes=_as_array(episodes))
        self._fill(Recording(columns=columns, label=f"the data set {name!r}", name=name), observation_space, action_space)
        vars(self).update(vars(self.to(device)))

    def _fill(self, recording: Recording, observation_space: Any, action_space: Any) -> None:
        columns, label = recording.columns, recording.label
        observation_space = agreed_space(recording.observation_space, observation_space, "observation", label)
        action_space = agreed_space(recording.action_space, action_space, "action", label)
        if action_space is None:
            action_space = infer_action_space(columns.actions, label)
        if observation_space is None:
            observation_space = infer_observation_space(columns.observations)
        columns = check_columns(columns, observation_space, action_space, label)
        self.observation_space, self.action_space, self.name = observation_space, action_space, recording.name
        self.episodes = columns.episodes
        for key in COLUMNS:
            setattr(self, key, th.from_numpy(getattr(columns, key)))

    @classmethod
    def _of(cls, recording: Recording, observation_space: Any = None, action_space: Any = None) -> Self:
        dataset = cls.__new__(cls)
        dataset._fill(recording, observation_space, action_space)
        return dataset

    def describe(self) -> str:
        """
        Say what is inside, for people. A row that is both terminated and truncated counts as a termination alone, since
        nothing comes after it.

        :return: several lines of text
        """
        return describe_dataset(self)

    # ------------------------------------------------------------------ files
    def save(self, path: SavePath) -> None:
        """
        Write everything as ``.npz`` without pickles or compression, whole or not at all.

        :param path: a path, to which ``.npz`` is added where it is missing; or a binary file
        """
        columns = Columns(**{key: getattr(self, key).cpu().numpy() for key in COLUMNS}, episodes=self.episodes)
        write_npz(path, columns, self.observation_space, self.action_space, self.name)

    @classmethod
    def load(
        cls,
        source: Any,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
    ) -> "OfflineDataset":
        """
        Read whatever users pass as ``dataset``. Nothing in a file is executed, and nothing is downloaded.

        :param source: a data set; SB3's replay buffer; a ``MinariDataset``, its folder or its id; a path that ends in
            ``.npz``, ``.hdf5`` or ``.h5``
        :param observation_space: of the environment, which the data must agree with; the source's when omitted
        :param action_space: of the environment, likewise
        :return: the data
        :raises TypeError: if it is another kind of object
        :raises ValueError: if it cannot be used
        :raises FileNotFoundError: if there is no such file or Minari data set
        """
        given: dict[str, Any] = {"observation_space": observation_space, "action_space": action_space}
        if isinstance(source, OfflineDataset):
            return source.with_spaces(**given)
        if isinstance(source, ReplayBuffer):
            return cls.from_replay_buffer(source, **given)
        if hasattr(source, "iterate_episodes") and hasattr(source, "storage"):
            return cls.from_minari(source, **given)
        if not isinstance(source, (str, pathlib.Path)):
            raise TypeError(
                "`dataset` must be an OfflineDataset, a ReplayBuffer, a MinariDataset, a Minari id, or the path of a .npz or "
                f".hdf5 file, got {type(source).__name__}"
            )
        path = pathlib.Path(source)
        if path.suffix == ".npz":
            return cls.from_npz(path, **given)
        if path.suffix in (".hdf5", ".h5"):
            return cls.from_hdf5(path, **given)
        if path.suffix in (".pkl", ".pickle"):
            raise ValueError(
                f"`dataset` {str(source)!r} is a pickle, and reading it executes what it says; if you trust it, read it with "
                "`OfflineDataset.from_replay_buffer(path, trust_pickle=True)`"
            )
        if path.is_file():
            raise ValueError(f"`dataset` {str(source)!r} must end in .npz, .hdf5 or .h5 to be read")
        return cls.from_minari(source, **given)

    def with_spaces(
        self, observation_space: spaces.Space[Any] | None = None, action_space: spaces.Space[Any] | None = None
    ) -> "OfflineDataset":
        """
        :param observation_space: of an environment
        :param action_space: of an environment
        :return: this object
        :raises ValueError: if the data are of other spaces; bounds of observations may differ
        """
        label = f"the data set {self.name!r}"
        agreed_space(self.observation_space, observation_space, "observation", label)
        agreed_space(self.action_space, action_space, "action", label)
        return self

    @classmethod
    def from_npz(
        cls,
        path: SavePath,
        *,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        max_bytes: int | None = None,
    ) -> Self:
        """
        Read what :meth:`save` wrote, a replay buffer that otbaselines saved, or D4RL's columns.

        :param path: a path, tried as it is and with ``.npz`` added; or a binary file
        :param observation_space: as for :meth:`load`
        :param action_space: as for :meth:`load`; must be given for a replay buffer, whose actions are scaled
        :param max_bytes: what a compressed file may unpack to; without it compressed files are refused
        :return: the data
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if it is damaged, or holds something else
        """
        return cls._of(read_npz(path, action_space, max_bytes), observation_space, action_space)

    @classmethod
    def from_hdf5(
        cls,
        path: str | pathlib.Path,
        *,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        max_bytes: int | None = None,
    ) -> Self:
        """
        Read D4RL's files: ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts``, ``next_observations``.

        Where there are no ``next_observations``, those of a row are the observations of the following one of the same
        episode. The last row before a timeout has none, since its successor was never written: it is left out, and the row
        before it becomes the truncated one. So is the last row of a file that ends in the middle of an episode. Without
        ``timeouts`` nobody knows where a limit of time ended an episode, and a ``RuntimeWarning`` says what is assumed.

        :param path: of the file
        :param observation_space: as for :meth:`load`; the file has none
        :param action_space: as for :meth:`load`; from -1 to 1 when omitted, as in D4RL
        :param max_bytes: what it may unpack to; 32 times its size (at least 64 MiB) when omitted
        :return: the data
        :raises ImportError: if h5py is not installed
        :raises FileNotFoundError: if there is no such file
        :raises ValueError: if it is damaged, or holds something else
        """
        return cls._of(read_d4rl(pathlib.Path(path), max_bytes), observation_space, action_space)

    @classmethod
    def from_minari(
        cls,
        dataset: Any,
        *,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        max_bytes: int | None = None,
    ) -> Self:
        """
        Read a Minari data set that is on this machine.

        :param dataset: its id, its folder, or the ``MinariDataset``, of which a selection of episodes will do
        :param observation_space: as for :meth:`load`
        :param action_space: as for :meth:`load`
        :param max_bytes: what it may unpack to; 32 times its size (at least 64 MiB) when omitted
        :return: the data
        :raises ImportError: if minari is not installed
        :raises FileNotFoundError: if there is none of this id
        :raises ValueError: if it is damaged, or its spaces are no boxes
        """
        return cls._of(read_minari(dataset, max_bytes), observation_space, action_space)

    @classmethod
    def from_replay_buffer(
        cls,
        buffer: ReplayBuffer | str | pathlib.Path | io.BufferedIOBase,
        *,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        scaled_actions: bool = True,
        trust_pickle: bool = False,
    ) -> Self:
        """
        Take over what an off-policy learner of SB3 has seen, in the order in which it happened in each environment.

        A full buffer does not say whether anything was overwritten, not even where the number of steps was exactly its size.
        The rows until each environment's first end then count as the rest of an episode: they are data, but of no return.

        :param buffer: a ``ReplayBuffer``, or the pickle that SB3's ``save_replay_buffer`` writes
        :param observation_space: as for :meth:`load`
        :param action_space: as for :meth:`load`
        :param scaled_actions: whether the actions were scaled to the range from -1 to 1, as SB3's algorithms do before they
            store them; false for a buffer that you have filled yourself
        :param trust_pickle: read a pickle, which executes what it says: only for files that you made yourself
        :return: the data
        :raises TypeError: if it is another object
        :raises ValueError: if it is a pickle and ``trust_pickle`` is false, or holds nothing
        """
        recording = read_buffer(buffer, action_space, scaled_actions=scaled_actions, trust_pickle=trust_pickle)
        return cls._of(recording, observation_space, action_space)

    @classmethod
    def from_agent(
        cls,
        model: Any,
        env: gym.Env[Any, Any] | str,
        n_steps: int | None = None,
        n_episodes: int | None = None,
        deterministic: bool = False,
        seed: int | None = None,
        name: str | None = None,
    ) -> Self:
        """
        Record an agent at work.

        :param model: whatever has SB3's ``predict``
        :param env: a Gymnasium environment, or an id
        :param n_steps: steps to record; the last episode may be cut short by it
        :param n_episodes: whole episodes to record, instead
        :param deterministic: the most probable actions instead of samples
        :param seed: of the environment and of sampled actions
        :param name: of the data; from the agent and the environment when omitted
        :return: the data
        :raises TypeError: if the agent cannot predict, or the environment is none of Gymnasium's
        :raises ValueError: unless exactly one of ``n_steps`` and ``n_episodes`` is given
        """
        recording = roll_out(
            model, env, n_steps=n_steps, n_episodes=n_episodes, deterministic=deterministic, seed=seed, name=name
        )
        return cls._of(recording)

    @classmethod
    def concatenate(cls, datasets: Sequence["OfflineDataset"], name: str | None = None) -> Self:
        """
        Put data sets one behind the other, as in D4RL's medium-expert mixtures.

        :param datasets: of the same spaces, on any device
        :param name: of the whole; the names with plus signs when omitted
        :return: the data, on the CPU
        :raises ValueError: if there are none, or the spaces differ
        """
        if not datasets:
            raise ValueError("`datasets` must hold at least one data set, got none")
        first = datasets[0]
        columns: dict[str, list[Any]] = {key: [] for key in (*COLUMNS, "episodes")}
        following = 0
        for dataset in datasets:
            dataset.with_spaces(first.observation_space, first.action_space)
            for key in COLUMNS:
                columns[key].append(getattr(dataset, key).cpu().numpy())
            episodes = np.where(dataset.episodes >= 0, dataset.episodes + following, -1)
            columns["episodes"].append(episodes)
            following = max(following, int(episodes.max()) + 1)
        name = name or " + ".join(each.name for each in datasets)
        arrays = {key: np.concatenate(parts) for key, parts in columns.items()}
        recording = Recording(columns=Columns(**arrays), label=f"the data set {name!r}", name=name)
        return cls._of(recording, first.observation_space, first.action_space)


def _as_column(name: str, values: Any) -> npt.NDArray[Any]:
    """One column of the constructor, whatever it was given as."""
    try:
        array = _as_array(values.float() if isinstance(values, th.Tensor) and values.dtype == th.bfloat16 else values)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"`{name}` cannot be read as an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the data set has `{name}` of {array.dtype}, which are no numbers")
    if array.ndim == 0:
        raise ValueError(f"`{name}` must have one entry for each transition, got the single value {array}")
    return array


def _as_array(values: Any) -> npt.NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, th.Tensor) else np.asarray(values)
