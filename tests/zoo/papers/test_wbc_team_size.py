"""Larger teams: the learners that average do what their labels say, and the tables compare the same seeds."""

from pathlib import Path

import numpy as np
import pytest
import torch as th

from otbaselines import IPPO, WBC
from zoo import plots
from zoo.papers.wbc.averaging import TeamAdam
from zoo.papers.wbc.team_size import AGENT_TASKS, AVERAGING, REFERENCE, SIZES, tables
from zoo.runs.played import PlayedBesideRandom

SMALL = {"n_envs": 2, "batch_size": 80, "n_timesteps": 800}


def _learned(method: str, tmp_path: Path) -> IPPO:
    job = AVERAGING.job(method, 0, tmp_path, overrides=SMALL)
    return job.build().learn(job.config.n_timesteps)  # type: ignore[return-value]


def _spread(model: IPPO) -> float:
    """Largest difference between two agents' parameters."""
    return max(float((p - p[:1]).detach().abs().max()) for p in model.policy.parameters())


def test_networks_that_start_alike_stay_alike_under_averaged_gradients_only(tmp_path: Path) -> None:
    assert _spread(_learned("gradients", tmp_path)) == 0.0
    assert _spread(_learned("scales", tmp_path)) > 1e-3
    assert _spread(_learned("starts", tmp_path)) > 1e-3


def test_averaged_gradients_are_torchs_adam_on_the_mean() -> None:
    th.manual_seed(0)
    start, gradients = th.randn(4, 3, dtype=th.float64), th.randn(6, 4, 3, dtype=th.float64)
    stacked, scaled, single = (th.nn.Parameter(x.clone()) for x in (start, start, start[0]))
    optimizers = [TeamAdam([stacked], lr=0.1, average="gradients"), TeamAdam([scaled], lr=0.1, average="scales")]
    plain = th.optim.Adam([single], lr=0.1, eps=1e-5)
    for gradient in gradients:
        stacked.grad, scaled.grad, single.grad = gradient.clone(), gradient.clone(), gradient.mean(0)
        for optimizer in (*optimizers, plain):
            optimizer.step()
    th.testing.assert_close((stacked - start)[2], single - start[0])
    # Adam is linear in the first moment, so the mean of the agents' steps is the step of the mean.
    th.testing.assert_close((scaled - start).mean(0), single - start[0])


@pytest.mark.filterwarnings("ignore:no two agents have equal spaces", "ignore:agents of a group have different")
@pytest.mark.parametrize("task", AGENT_TASKS)
def test_every_task_has_its_agents_and_its_critics(task: str, tmp_path: Path) -> None:
    comparison = AGENT_TASKS[task]
    models = {
        name: comparison.job(name, 0, tmp_path, overrides={"n_envs": 8, "n_steps": 25}).build() for name in comparison.methods
    }
    if task == "speaker-listener":
        assert [len(models[name]._consensus.groups) for name in ("wbc", "wbc-all", "kl-all")] == [0, 1, 1]
        return
    assert {model.layout.n_agents for model in models.values()} == {int(task.rpartition("-")[2])}
    assert all(model.critic == ("shared" if name.endswith("-shared") else "own") for name, model in models.items())
    assert [name for name, model in models.items() if model.share_parameters] == ["sharing"]
    assert [isinstance(models[name], WBC) for name in ("wbc", "kl-shared", "ippo")] == [True, True, False]


def test_the_tasks_are_of_the_sizes_that_they_name() -> None:
    assert {f"{task}-{n}" for task in ("navigation", "spread") for n in SIZES} | {"speaker-listener"} == {*AGENT_TASKS}


def test_the_tables_hold_what_the_runs_earned() -> None:
    def run(rewards: list[float], evaluation: float) -> PlayedBesideRandom:
        numbers, end = np.full(3, evaluation), np.array([100.0])
        return PlayedBesideRandom(
            timesteps=np.repeat(end, len(rewards)),
            rewards=np.array(rewards),
            evaluation=numbers,
            sampled=numbers - 50.0,
            random=numbers * 0.0 - 9.0,
            cpu_seconds=4.0,
            entry={},
        )

    # Of 20 rollouts the last tenth are two.
    sharing = [run([-2.0] * 18 + [-1.0] * 2, -4.0), run([-2.0] * 18 + [-1.0] * 2, -5.0)]
    others = [run([-3.0] * 18 + [-1.5] * 2, -6.0), run([-3.0] * 18 + [-1.5] * 2, -8.0)]
    lines = tables("A task", {REFERENCE: sharing, "WBC": others}, 2).splitlines()
    assert "-1.900 [-1.900, -1.900] | -1.000 [-1.000, -1.000] | -4.50 [-10.85, 1.85] | 4 |" in lines[4]
    assert lines[6] == "| uniformly random | - | - | - | -9.00 | - |"
    assert (
        "| WBC | +0.950 [+0.950, +0.950]: ahead | +0.500 [+0.500, +0.500]: ahead | +2.50 [-3.85, +8.85]: not told apart |"
        in lines
    )


def test_an_average_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="`average` must be 'gradients' or 'scales', got 'nonsense'"):
        TeamAdam([th.nn.Parameter(th.zeros(2))], average="nonsense")


def test_tables_of_one_run_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--jobs", "1", "--eval-episodes", "8", "-n", "1600", "--seeds", "1", "--out", str(tmp_path)]
    plots.main(["wbc-agents", "--train", "--tasks", "navigation-8", "--methods", "sharing", "wbc-shared", *few])
    printed = capsys.readouterr().out
    assert "8 agents, team reward" in printed
    assert "WBC, shared critic" in printed
    assert "one seed" in printed
    assert "wbc-agents --train --tasks navigation-8 --methods sharing wbc-shared --eval-episodes 8 -n 1600" in printed
    plots.main(["wbc-agents", "--tasks", "navigation-8", "--methods", "wbc-shared", *few])
    assert "parameter sharing less" not in capsys.readouterr().out
