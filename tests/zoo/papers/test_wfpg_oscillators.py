"""Chains of oscillators against their optimum: what the optimum costs, and what is told of a learner."""

import gymnasium as gym
import numpy as np
import pytest

import otbaselines.envs  # noqa: F401
from zoo import plots
from zoo.papers.wfpg.oscillators import ENV_ID, LinearRegulator


def test_the_linear_regulator_costs_what_the_riccati_equation_says():
    env = gym.make(ENV_ID, n=2, max_episode_steps=6000)
    system = env.unwrapped.regulator
    player = LinearRegulator(system)
    x, _ = env.reset(seed=0, options={"state": np.zeros(4)})
    costs = []
    for _ in range(6000):
        x, reward, *_ = env.step(player.predict(x[None])[0][0])
        costs.append(-reward)
    # Six hundred seconds; the mean of independent hundreds spreads by 2 % or so.
    assert np.mean(costs[100:]) == pytest.approx(system.lqr().average_cost, rel=0.06)


def test_a_learner_stands_over_the_optimum_from_the_same_starts(tmp_path, capsys):
    arguments = ["--tasks", "oscillators-2", "--methods", "sb3-td3", "--seeds", "1", "-n", "200", "--eval-episodes", "2"]
    plots.main(["wfpg-oscillators", "--train", *arguments, "--jobs", "1", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "| SB3's TD3 | 1 | 200 |" in text
    (path,) = tmp_path.rglob("*.npz")
    with np.load(path) as kept:
        assert (kept["evaluation"] <= kept["optimum"]).all()
        assert f"{100 * (kept['evaluation'].mean() / kept['optimum'].mean() - 1):.0f}" in text
