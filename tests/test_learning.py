"""Does it learn? Several seeds each, against a baseline trained in the same run, with the zoo's hyperparameters."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from otbaselines import IPPO, WBC, make_vec_env
from zoo import compare_sb3
from zoo.config.entries import read_entry, split_entry

pytestmark = pytest.mark.slow

NAVIGATION = "otbaselines/Navigation-v0"
ALGORITHMS: dict[str, Any] = {"ippo": IPPO, "wbc": WBC}
SEEDS = range(5)


class _MeanReward(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rewards.append(float(self.locals["rollout_buffer"].rewards.mean()))


def _area_under_curve(algo: str, seed: int, *variants: str) -> float:
    """Mean reward per agent and step over the whole training on Navigation."""
    th.set_num_threads(1)
    config = split_entry(read_entry(algo, NAVIGATION, variants=variants))
    env = make_vec_env(NAVIGATION, n_copies=config.n_envs, seed=seed, env_kwargs=config.env_kwargs)
    model = ALGORITHMS[algo](env=env, seed=seed, device="cpu", **config.model_kwargs)
    curve = _MeanReward()
    model.learn(config.n_timesteps, callback=curve)
    return float(np.mean(curve.rewards))


def _permutation_p_value(better: list[float], worse: list[float]) -> float:
    """One-sided exact permutation test on the difference of the means."""
    pooled = np.array(better + worse)
    observed = np.mean(better) - np.mean(worse)
    splits = [np.isin(np.arange(len(pooled)), chosen) for chosen in combinations(range(len(pooled)), len(better))]
    return float(np.mean([pooled[split].mean() - pooled[~split].mean() >= observed - 1e-12 for split in splits]))


def test_wbc_learns_faster_than_independent_learners() -> None:
    wbc = [_area_under_curve("wbc", seed) for seed in SEEDS]
    ippo = [_area_under_curve("ippo", seed) for seed in SEEDS]
    assert _permutation_p_value(wbc, ippo) < 0.05, (wbc, ippo)


def test_wbc_beats_kl_and_sharing_where_agents_have_different_roles() -> None:
    wbc = [_area_under_curve("wbc", seed, "roles") for seed in SEEDS]
    kl = [_area_under_curve("wbc", seed, "roles", "kl") for seed in SEEDS]
    sharing = [_area_under_curve("ippo", seed, "roles", "sharing") for seed in SEEDS]
    assert _permutation_p_value(wbc, kl) < 0.05, (wbc, kl)
    assert _permutation_p_value(wbc, sharing) < 0.05, (wbc, sharing)


def test_shared_ippo_reaches_the_return_of_sb3_on_mpe2_simple_spread() -> None:
    # SB3's parameter-sharing PPO over SuperSuit reaches -19.4 per agent and episode after the same 300,000 agent-steps.
    pytest.importorskip("mpe2")
    returns = [compare_sb3.run(compare_sb3.Job(learner="IPPO", seed=seed)).most_probable for seed in SEEDS]
    print(returns)
    assert np.mean(returns) >= -19.4, returns


def test_a_team_of_one_learns_cart_pole() -> None:
    th.set_num_threads(1)
    env = make_vec_env("CartPole-v1", n_copies=8, seed=0)
    model = IPPO("MlpPolicy", env, seed=0, device="cpu", learning_rate=1e-3).learn(60_000)
    mean_return, _ = evaluate_policy(model, env, n_eval_episodes=20)
    assert mean_return >= 400.0
