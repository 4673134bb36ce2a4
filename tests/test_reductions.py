"""What an algorithm becomes when a part of it is switched off: its baseline, bit for bit."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from core_toys import WanderersEnv
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnvWrapper
from toy_teams import DiceEnv

from otbaselines import IPPO, MAPPO, WBC, ParallelVecEnv
from otbaselines.envs.navigation_tensor import NavigationVecEnv
from otbaselines.envs.simple_spread_tensor import SimpleSpreadVecEnv

pytestmark = pytest.mark.filterwarnings("ignore:the rollout of")
SMALL = {"n_steps": 12, "batch_size": 18, "n_epochs": 2, "seed": 0}


def _learn(model, rollouts=3):
    return model.learn(rollouts * model.n_steps * model.n_envs)


def _assert_same_bits(first, second):
    ours, theirs = first.policy.state_dict(), second.policy.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert th.equal(value, theirs[name]), name
    for name in ("observations", "actions", "rewards", "values", "advantages"):
        assert th.equal(getattr(first.rollout_buffer, name), getattr(second.rollout_buffer, name)), name


class SoloEnv(ParallelEnv):
    """A Gymnasium environment as a team with one member."""

    metadata = {"name": "solo"}  # noqa: RUF012

    def __init__(self, env_id: str) -> None:
        self.env = gym.make(env_id)
        self.possible_agents = ["agent_0"]
        self.agents: list[str] = []
        self.render_mode = None

    def observation_space(self, agent: str) -> spaces.Space:
        return self.env.observation_space

    def action_space(self, agent: str) -> spaces.Space:
        return self.env.action_space

    def reset(self, seed=None, options=None):
        self.agents = ["agent_0"]
        obs, info = self.env.reset(seed=seed)
        return {"agent_0": obs}, {"agent_0": info}

    def step(self, actions):
        result = self.env.step(actions["agent_0"])
        if result[2] or result[3]:
            self.agents = []
        return tuple({"agent_0": value} for value in result)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_team_of_one_is_the_single_agent(env_id):
    team = ParallelVecEnv([lambda: SoloEnv(env_id)] * 2)
    settings = {**SMALL, "n_steps": 120, "batch_size": 60}
    single = _learn(IPPO("MlpPolicy", _gymnasium(env_id), **settings), 2)
    _assert_same_bits(_learn(IPPO("MlpPolicy", team, **settings), 2), single)


def _gymnasium(env_id):
    from stable_baselines3.common.env_util import make_vec_env

    return make_vec_env(env_id, 2)


ALONE = {
    "sharing": (IPPO, {"share_parameters": True}),
    "consensus": (WBC, {"consensus_coef": 5.0}),
    "shared critic": (IPPO, {"critic": "shared"}),
    "central critic": (MAPPO, {}),
    "central critic, own actor": (MAPPO, {"share_parameters": False}),
}


@pytest.mark.parametrize("variant", ALONE)
@pytest.mark.parametrize("truncates", [False, True])
def test_one_agent_shares_with_nobody_and_agrees_with_itself(variant, truncates):
    def make():
        return ParallelVecEnv([lambda: WanderersEnv((5,), truncates=truncates)] * 2)

    alone = _learn(IPPO("MlpPolicy", make(), **SMALL))
    algorithm, kwargs = ALONE[variant]
    _assert_same_bits(_learn(algorithm("MlpPolicy", make(), **SMALL, **kwargs)), alone)


TEAMS = {
    "spread": lambda: SimpleSpreadVecEnv(n_copies=3, max_cycles=5),
    "spread_continuous": lambda: SimpleSpreadVecEnv(n_copies=3, max_cycles=5, continuous_actions=True),
    "navigation": lambda: NavigationVecEnv(n_copies=3),
    "leaving": lambda: ParallelVecEnv([WanderersEnv] * 2),
    "leaving_continuous": lambda: ParallelVecEnv([lambda: WanderersEnv(continuous=True, truncates=True)] * 2),
    "dice": lambda: ParallelVecEnv([DiceEnv] * 2),
}


@pytest.mark.parametrize("team", TEAMS)
@pytest.mark.parametrize("estimator", ["conditional", "kl"])
def test_wbc_without_consensus_is_ippo(team, estimator):
    independent = _learn(IPPO("MlpPolicy", TEAMS[team](), **SMALL))
    without = _learn(WBC("MlpPolicy", TEAMS[team](), consensus_coef=0.0, estimator=estimator, **SMALL))
    _assert_same_bits(without, independent)
    with_it = _learn(WBC("MlpPolicy", TEAMS[team](), consensus_coef=1.0, estimator=estimator, **SMALL))
    assert not th.equal(with_it.policy.action_net.weight, independent.policy.action_net.weight)


ESTIMATORS = {
    "pooled": {"estimator": "pooled"},
    "own": {"estimator": "own"},
    "sampled_potential": {"estimator": "sampled", "estimator_kwargs": {"support": "pooled"}},
    "sampled_plan": {"estimator": "sampled", "estimator_kwargs": {"gradient": "plan", "debiased": False}},
    "sliced": {"estimator": "sliced", "estimator_kwargs": {"gradient": "plan"}},
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_estimator_of_an_unused_consensus_disturbs_the_learner(estimator):
    independent = _learn(IPPO("MlpPolicy", TEAMS["spread"](), **SMALL), 2)
    without = _learn(WBC("MlpPolicy", TEAMS["spread"](), consensus_coef=0, **ESTIMATORS[estimator], **SMALL), 2)
    _assert_same_bits(without, independent)


def test_a_consensus_that_is_annealed_to_zero_ends_as_ippo_continues():
    # The last of four rollouts is trained at zero remaining progress: consensus off, as the learning rate would be.
    model = WBC("MlpPolicy", TEAMS["spread"](), consensus_coef="lin_1.0", **SMALL)
    _learn(model, 3)
    # A learner that only knows PPO takes over the parameters, the moments, the rollout and the random numbers.
    independent = IPPO("MlpPolicy", TEAMS["spread"](), **SMALL)
    # A copy, because torch's optimizers would otherwise share their moments.
    independent.set_parameters(copy.deepcopy(model.get_parameters()), exact_match=True)
    model._current_progress_remaining = 0.0
    for learner in (model, independent):
        learner.rollout_buffer = model.rollout_buffer
        learner.set_logger(configure(None, []))
        th.manual_seed(7)
        learner.train()
    assert model.logger.name_to_value["consensus/coef"] == 0.0
    _assert_same_bits(model, independent)
    # Before the end the coefficient has its line, and the pull is felt.
    model._current_progress_remaining = 0.25
    th.manual_seed(7)
    model.train()
    th.manual_seed(7)
    independent.train()
    assert model.logger.name_to_value["consensus/coef"] == 0.25
    assert not th.equal(model.policy.action_net.weight, independent.policy.action_net.weight)


# ---------------------------------------------------------------- two ways of collecting the same experience
class Disguise(VecEnvWrapper):
    """Hides from the learner that the environment lives on a device."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


@pytest.mark.parametrize(
    "make",
    [
        lambda: SimpleSpreadVecEnv(n_copies=3, max_cycles=5),
        lambda: SimpleSpreadVecEnv(n_copies=3, max_cycles=5, continuous_actions=True),
        lambda: SimpleSpreadVecEnv(n_copies=3, max_cycles=6, terminate_on_success=True),
        lambda: NavigationVecEnv(n_copies=3),
    ],
    ids=["discrete", "continuous", "early", "navigation"],
)
def test_a_rollout_is_the_same_on_the_device_and_through_rows(make, tmp_path):
    models = []
    for name, env in (("device", make()), ("rows", Disguise(make()))):
        model = IPPO("MlpPolicy", env, **{**SMALL, "n_steps": 30, "batch_size": 270, "n_epochs": 1})
        model.set_logger(configure(str(tmp_path / name), []))
        models.append(_learn(model, 1))
    on_device, in_rows = (model.rollout_buffer for model in models)
    for name in ("observations", "actions", "rewards", "dones", "log_probs", "values"):
        assert th.equal(getattr(on_device, name), getattr(in_rows, name)), name
    # Values of last observations are computed in other batches, where a sum may round differently.
    for name in ("bootstrap", "advantages", "returns"):
        th.testing.assert_close(getattr(on_device, name), getattr(in_rows, name), atol=1e-5, rtol=1e-5)
    assert bool((on_device.bootstrap != 0).any())
    for ours, theirs in zip(*(model.policy.parameters() for model in models), strict=True):
        th.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    # The disguised environment has no monitor, so only the device keeps episode statistics.
    assert len(models[0].ep_info_buffer) == int(on_device.dones.sum())


def test_shared_parameters_of_identical_agents_learn_as_one_agent_with_all_their_steps():
    # Three agents that share a network are three copies of one agent, as SB3 treats vectorised teams.
    class Crowd(ParallelVecEnv):
        pass

    team = Crowd([lambda: WanderersEnv((6, 6, 6))], seed=0)
    shared = IPPO("MlpPolicy", team, share_parameters=True, n_steps=12, batch_size=36, n_epochs=3, seed=0)
    shared.learn(36)
    single_env = ParallelVecEnv([lambda: WanderersEnv((6,))] * 3, seed=0)
    single = IPPO("MlpPolicy", single_env, n_steps=12, batch_size=36, n_epochs=3, seed=0)
    th.manual_seed(0)
    fresh = IPPO("MlpPolicy", single_env, n_steps=12, batch_size=36, n_epochs=3, seed=0)
    assert all(th.equal(a, b) for a, b in zip(fresh.policy.parameters(), single.policy.parameters(), strict=True))
    ours, theirs = shared.rollout_buffer, single.rollout_buffer
    for name in ("observations", "actions", "log_probs", "advantages", "returns", "values"):
        getattr(theirs, name).copy_(getattr(ours, name).transpose(1, 2))
    theirs.pos = 12
    single.set_logger(shared.logger)
    single.train()
    np.testing.assert_allclose(single.policy.action_net.weight.detach(), shared.policy.action_net.weight.detach(), atol=1e-6)
