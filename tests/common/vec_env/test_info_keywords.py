"""Entries of the infos that an environment makes part of its episodes' results, in both forms, and up to the log."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from mpe2 import simple_spread_v3
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecMonitor
from toy_teams import DiceEnv, RelayEnv

from otbaselines.common.vec_env.parallel import ParallelVecEnv
from otbaselines.common.vec_env.statistics import DeviceEpisodeStatistics
from otbaselines.common.vec_env.subproc import SubprocParallelVecEnv
from otbaselines.common.vec_env.tensor import TensorVecEnv
from otbaselines.ippo import IPPO

SMALL = {"n_steps": 12, "batch_size": 12, "n_epochs": 1, "seed": 0}


class Clocks(TensorVecEnv):
    """
    Slot ``s`` shows ``10 s + t`` at step ``t`` of an episode; episodes have four steps, or copy 0's two of them.

    Nothing is observed, and nothing that agents do matters.
    """

    info_keywords = ("clock",)

    def __init__(self, *, terminates_early: bool = False, renamed: str = "clock") -> None:
        super().__init__(
            n_copies=2,
            agent_observation_spaces=dict.fromkeys("ab", spaces.Box(0, 1, (1,), np.float32)),
            agent_action_spaces=dict.fromkeys("ab", spaces.Discrete(2)),
            max_episode_steps=4,
            terminates_early=terminates_early,
        )
        self.renamed = renamed
        self.time = th.zeros(2, 1)

    def _reset_state(self, mask: th.Tensor | None) -> None:
        self.time = th.zeros(2, 1) if mask is None else th.where(mask[:, None], 0.0, self.time)

    def _observe(self) -> th.Tensor:
        return th.zeros(2, 2, 1)

    def _transition(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        self.time = self.time + 1.0
        is_over = th.tensor([[True], [False]]) & (self.time == 2.0)
        return th.ones(2, 2), is_over.expand(2, 2) if self.terminates_early else None

    def _infos(self) -> Mapping[str, th.Tensor]:
        return {self.renamed: 10.0 * th.arange(4.0).view(2, 2) + self.time, "idle": th.full((2, 2), -1.0)}


class GradedEnv(DiceEnv):
    """The dice, four steps an episode, whose infos hold ten times the agent's number plus the step."""

    info_keywords: Any = ("grade",)
    named = "grade"

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        *rest, _ = super().step(actions)
        return *rest, {agent: {self.named: 10 * i + self.t, "text": "idle"} for i, agent in enumerate(self.possible_agents)}


def columns(model: IPPO, folder: Any, n_rollouts: int = 1) -> dict[str, float]:
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(n_rollouts * 12 * model.n_envs)
    header, *rows = (folder / "progress.csv").read_text().splitlines()
    return dict(zip(header.split(","), map(float, (cell or "nan" for cell in rows[-1].split(","))), strict=True))


def test_every_step_of_a_tensor_environment_has_its_own_infos() -> None:
    env = Clocks()
    env.reset()
    for t in (1, 2, 3, 4, 1):
        infos = env.step(np.zeros(4, int))[3]
        assert [info["clock"] for info in infos] == [t, 10 + t, 20 + t, 30 + t]
        assert {info["idle"] for info in infos} == {-1.0}


def test_copies_that_end_on_their_own_show_the_step_before_the_restart() -> None:
    env = Clocks(terminates_early=True)
    env.reset()
    seen = [[info["clock"] for info in env.step(np.zeros(4, int))[3]] for _ in range(3)]
    assert seen == [[1, 11, 21, 31], [2, 12, 22, 32], [1, 11, 23, 33]]


@pytest.mark.parametrize("terminates_early", [False, True])
def test_an_episodes_result_holds_the_last_value_of_what_the_environment_names(terminates_early: bool) -> None:
    env = Clocks(terminates_early=terminates_early)
    statistics = DeviceEpisodeStatistics(env)
    env.reset_tensor()
    found: list[tuple[int, int, float]] = []
    for t in range(1, 5):
        infos, _ = statistics.record(env.step_tensor(th.zeros(2, 2, dtype=th.int64)))
        assert infos[0].keys() >= {"clock", "idle"}
        found += [(t, slot, info["episode"]["clock"]) for slot, info in enumerate(infos) if "episode" in info]
        assert all("idle" not in info["episode"] for info in infos if "episode" in info)
    early = [(2, 0, 2.0), (2, 1, 12.0), (4, 0, 2.0), (4, 1, 12.0)] if terminates_early else [(4, 0, 4.0), (4, 1, 14.0)]
    assert sorted(found) == sorted([*early, (4, 2, 24.0), (4, 3, 34.0)])


def test_the_log_has_the_mean_over_episodes_of_a_tensor_environment(tmp_path: Any) -> None:
    model = IPPO("MlpPolicy", Clocks(), **SMALL)
    row = columns(model, tmp_path)
    # Three episodes of each slot, which end at 4, 14, 24 and 34.
    assert row["rollout/ep_clock_mean"] == 19.0
    assert row["rollout/ep_rew_mean"] == row["rollout/ep_len_mean"] == 4.0
    assert [episode["clock"] for episode in model.ep_info_buffer] == [4.0, 14.0, 24.0, 34.0] * 3


def test_only_episodes_that_are_over_are_averaged(tmp_path: Any) -> None:
    model = IPPO("MlpPolicy", Clocks(terminates_early=True), **SMALL)
    # Copy 0 ends six times, at 2 and 12, and copy 1 three times, at 24 and 34.
    assert columns(model, tmp_path)["rollout/ep_clock_mean"] == pytest.approx((6 * (2 + 12) + 3 * (24 + 34)) / 18)


def test_mpe2s_tasks_are_read_on_the_short_way_too() -> None:
    env = simple_spread_v3.parallel_env(N=2, max_cycles=3)
    env.info_keywords = ("size",)
    venv = ParallelVecEnv(env)
    venv.reset()
    for agent in env.possible_agents:
        env.unwrapped.infos[agent]["size"] = 0.15
    for _ in range(3):
        infos = venv.step(np.zeros(2, int))[3]
    assert [info["episode"]["size"] for info in infos] == [0.15, 0.15]


def test_a_statistics_window_cuts_all_columns_alike(tmp_path: Any) -> None:
    model = IPPO("MlpPolicy", Clocks(), stats_window_size=3, **SMALL)
    # The last three of the slots' episodes.
    assert columns(model, tmp_path)["rollout/ep_clock_mean"] == pytest.approx((14 + 24 + 34) / 3)


@pytest.mark.parametrize("cls", [ParallelVecEnv, SubprocParallelVecEnv])
def test_the_log_has_the_mean_over_episodes_of_a_pettingzoo_environment(cls: type, tmp_path: Any) -> None:
    env = cls(GradedEnv(), 2)
    try:
        model = IPPO("MlpPolicy", env, **SMALL)
        row = columns(model, tmp_path)
    finally:
        env.close()
    assert row["rollout/ep_grade_mean"] == (4 + 14) / 2
    assert {episode["grade"] for episode in model.ep_info_buffer} == {4.0, 14.0}


def test_sb3s_monitor_reads_the_infos_too(tmp_path: Any) -> None:
    env = VecMonitor(Clocks(), info_keywords=("clock",))
    assert columns(IPPO("MlpPolicy", env, **SMALL), tmp_path)["rollout/ep_clock_mean"] == 19.0


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_what_is_no_number_in_a_result_is_not_averaged(tmp_path: Any) -> None:
    env = VecMonitor(ParallelVecEnv(GradedEnv()), info_keywords=("text", "grade"))
    row = columns(IPPO("MlpPolicy", env, **SMALL), tmp_path)
    assert "rollout/ep_text_mean" not in row
    assert row["rollout/ep_grade_mean"] == 9.0


def test_results_survive_saving(tmp_path: Any) -> None:
    model = IPPO("MlpPolicy", Clocks(), **SMALL).learn(12 * 4)
    model.save(tmp_path / "model")
    loaded = IPPO.load(tmp_path / "model", env=Clocks())
    assert [episode["clock"] for episode in loaded.ep_info_buffer] == [4.0, 14.0, 24.0, 34.0] * 3


def test_a_name_that_no_info_has_is_an_error() -> None:
    model = IPPO("MlpPolicy", Clocks(renamed="watch"), **SMALL)
    with pytest.raises(ValueError, match=r"`info_keywords` of Clocks names 'clock', but `_infos` returns \['idle', 'watch'\]"):
        model.learn(12 * 4)

    class Misspelt(GradedEnv):
        named = "great"

    env = ParallelVecEnv(Misspelt())
    env.reset()
    message = r"`info_keywords` of .* names 'grade', but the last info of agent 'left' has only \['great', 'text'\]"
    for _ in range(3):
        env.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=message):
        env.step(np.zeros((2, 2)))


@pytest.mark.parametrize("names", ["grade", 3, (1, 2), ("grade", "t")])
def test_names_that_are_none_or_sb3s_are_an_error_when_the_environment_is_made(names: Any) -> None:
    class Odd(Clocks):
        info_keywords = names

    env = GradedEnv()
    env.info_keywords = names
    for make in (Odd, lambda: ParallelVecEnv(env)):
        with pytest.raises(ValueError, match=r"`info_keywords` of .* make it a tuple of names .* other than 'r', 'l', 't'"):
            make()


def test_values_that_are_no_numbers_are_an_error_with_the_agent() -> None:
    class Words(GradedEnv):
        info_keywords = ("text",)

    env = ParallelVecEnv(Words())
    env.reset()
    for _ in range(3):
        env.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="`text` in the info of agent 'left' is 'idle'; return a number"):
        env.step(np.zeros((2, 2)))


def test_an_agent_that_vanishes_without_an_info_has_a_result_without_it() -> None:
    class Vanishing(RelayEnv):
        info_keywords = ("step",)

        def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
            *results, infos = super().step(actions)
            results.append({agent: {"step": self.t} for agent in infos})
            if self.t == 2:
                for result in results:
                    result.pop("a", None)
            return tuple(results)

    env = ParallelVecEnv(Vanishing())
    env.reset()
    episodes = {}
    for t in range(1, 6):
        infos = env.step(np.zeros(3, int))[3]
        episodes |= {(t, slot): info["episode"].get("step") for slot, info in enumerate(infos) if "episode" in info}
    assert episodes == {(2, 0): None, (5, 1): 5.0, (5, 2): 5.0}
