"""
How many agent-steps a CPU second buys: the learners, the cost of consensus, and the environments alone.

Contenders take turns within one process, so that whatever else the machine does falls on all of them alike. A CPU second is
one of ``time.process_time``; with one torch thread it is a second of one core. Run by ``python -m zoo.benchmark``.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import supersuit as ss
import torch as th
from mpe2 import simple_spread_v3
from pettingzoo.utils.wrappers import BaseParallelWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from otbaselines import IPPO, WBC, ParallelVecEnv, TensorVecEnv, make_vec_env
from zoo.drawing.tables import Table

SPREAD = "otbaselines/SimpleSpread-v0"
NAVIGATION = "otbaselines/Navigation-v0"
REFERENCE = "SB3 PPO on SuperSuit, mpe2"
NATIVE_IPPO = "IPPO on the native spread"
# CPU seconds of a turn. A machine is now faster, now slower, for seconds on end: many short rounds, whose contenders fall into
# the same moment, say more than a few long ones.
SHORT = 0.2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """
    One training set-up, the same for every contender.

    :param n_agents: N
    :param n_copies: copies of the environment
    :param n_steps: environment steps per copy and rollout
    :param n_minibatches: gradient steps per epoch
    :param n_epochs: passes over each rollout
    :param max_cycles: length of an episode
    """

    n_agents: int = 3
    n_copies: int = 80
    n_steps: int = 25
    n_minibatches: int = 10
    n_epochs: int = 5
    max_cycles: int = 25

    @property
    def rollout(self) -> int:
        """Agent-steps per rollout."""
        return self.n_agents * self.n_copies * self.n_steps

    def learner(self) -> dict[str, Any]:
        """Arguments that SB3's PPO and this package's learners share."""
        return {
            "n_steps": self.n_steps,
            "batch_size": self.rollout // self.n_minibatches,
            "n_epochs": self.n_epochs,
            "policy_kwargs": {"net_arch": [64, 64]},
        }


@dataclass(frozen=True)
class Contender:
    """
    :param name: in the table
    :param build: makes the model
    :param rollout: agent-steps per iteration
    """

    name: str
    build: Callable[[], BaseAlgorithm]
    rollout: int


def native(
    setting: Setting, algorithm: type[BaseAlgorithm], *, env: str = SPREAD, device: str = "cpu", **options: Any
) -> BaseAlgorithm:
    """
    A learner on a batched environment of this package.

    :param setting: the set-up
    :param algorithm: the learner's class
    :param env: id of the environment
    :param device: where environment and learner live
    :param options: further arguments of the learner
    :return: the model
    """
    # The spread has the argument names of mpe2.
    env_kwargs = {"N" if env == SPREAD else "n_agents": setting.n_agents}
    venv = make_vec_env(env, setting.n_copies, seed=0, device=device, backend="tensor", env_kwargs=env_kwargs)
    return algorithm("MlpPolicy", venv, seed=0, device=device, **setting.learner(), **options)


def _sb3_on_supersuit(setting: Setting) -> BaseAlgorithm:
    env = simple_spread_v3.parallel_env(N=setting.n_agents, max_cycles=setting.max_cycles)
    env = ss.pettingzoo_env_to_vec_env_v1(env)
    env = ss.concat_vec_envs_v1(env, setting.n_copies, num_cpus=1, base_class="stable_baselines3")
    # No seed: SuperSuit's vector environment does not know SB3's `seed` method.
    return PPO("MlpPolicy", env, device="cpu", **setting.learner())


def _mpe2_spread(n_copies: int, *, plain: bool = False, **env_kwargs: Any) -> VecEnv:
    """mpe2's spread; ``plain`` goes all the way through PettingZoo's converter, which other tasks do."""
    if not plain:
        return make_vec_env("mpe2/simple_spread_v3", n_copies, seed=0, backend="parallel", env_kwargs=env_kwargs)
    # Any wrapper will do: the shorter way is taken where there is none.
    makers = [lambda: BaseParallelWrapper(simple_spread_v3.parallel_env(**env_kwargs))] * n_copies
    return ParallelVecEnv(makers, seed=0)


def _ippo_on_mpe2(setting: Setting, *, plain: bool = False) -> BaseAlgorithm:
    env = _mpe2_spread(setting.n_copies, plain=plain, N=setting.n_agents, max_cycles=setting.max_cycles)
    return IPPO("MlpPolicy", env, seed=0, device="cpu", **setting.learner())


def throughput_contenders(quick: bool = False) -> list[Contender]:
    """
    Everybody trains on simple_spread with the same network, minibatches and gradient steps.

    :param quick: a tenth of the rollout and of the copies
    :return: the contenders; the first is the reference
    """
    few = Setting(n_copies=4, n_steps=50) if quick else Setting(n_copies=16, n_steps=125)
    many = Setting(n_copies=8) if quick else Setting()
    builders: dict[str, Callable[[], BaseAlgorithm]] = {
        f"{REFERENCE}, {few.n_copies} copies": partial(_sb3_on_supersuit, few),
        f"IPPO on ParallelVecEnv, mpe2, {few.n_copies} copies": partial(_ippo_on_mpe2, few),
        "the same through PettingZoo's converter": partial(_ippo_on_mpe2, few, plain=True),
        f"SB3 PPO on the native spread, {few.n_copies} copies": partial(native, few, PPO),
        f"SB3 PPO on the native spread, {many.n_copies} copies": partial(native, many, PPO),
        f"IPPO on the native spread, {few.n_copies} copies": partial(native, few, IPPO),
        NATIVE_IPPO: partial(native, many, IPPO),
        "IPPO, shared parameters": partial(native, many, IPPO, share_parameters=True),
        "WBC": partial(native, many, WBC),
        "WBC, KL consensus": partial(native, many, WBC, estimator="kl"),
    }
    return [Contender(name, build, many.rollout) for name, build in builders.items()]


@dataclass
class Record:
    """
    What one contender did.

    :param rates: agent-steps per CPU second, one for each turn
    :param transport_share: share of each turn's last iteration that its learner logged as transport; zeros without
    """

    rates: list[float] = field(default_factory=list)
    transport_share: list[float] = field(default_factory=list)


def measure(contenders: Sequence[Contender], *, rounds: int, min_seconds: float) -> dict[str, Record]:
    """
    Let the contenders train in turns.

    :param contenders: who
    :param rounds: turns of each
    :param min_seconds: CPU seconds that a turn lasts at least; whole iterations are made
    :return: the records by name
    """
    models: dict[str, BaseAlgorithm] = {}
    for contender in contenders:
        with warnings.catch_warnings():
            # PettingZoo and SuperSuit warn of deprecations, the learners of rollouts that no minibatch divides.
            warnings.simplefilter("ignore")
            models[contender.name] = at_the_start(contender.build()).learn(contender.rollout)
    records = {contender.name: Record() for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            model, done, seconds, start = models[contender.name], 0, 0.0, time.process_time()
            while done == 0 or seconds < min_seconds:
                model.learn(contender.rollout, reset_num_timesteps=False)
                done += contender.rollout
                seconds = time.process_time() - start
            record = records[contender.name]
            record.rates.append(done / seconds)
            # The update's records are still there: SB3 dumps them at the end of the next rollout.
            record.transport_share.append(float(model.logger.name_to_value.get("time/transport_share", 0.0)))
    for model in models.values():
        env = model.get_env()
        if env is not None:
            env.close()
    return records


def at_the_start(model: BaseAlgorithm) -> BaseAlgorithm:
    """
    Keep all schedules where they begin.

    Every turn would otherwise be the end of a short run, where annealed consensus costs nothing because it is off.

    :param model: changed in place
    :return: the same
    """
    setattr(model, "_update_current_progress_remaining", lambda num_timesteps, total_timesteps: None)  # noqa: B010
    return model


def rate_cell(record: Record) -> str:
    """Median and range of the rates, in thousands."""
    rates = [rate / 1e3 for rate in record.rates]
    return f"{statistics.median(rates):.1f} ({min(rates):.1f}-{max(rates):.1f})"


def ratio_cell(record: Record, reference: Record) -> str:
    """Median over the rounds of one contender's rate over another's in the same round."""
    return f"{statistics.median(a / b for a, b in zip(record.rates, reference.rates, strict=True)):.2f}"


def share_cell(record: Record) -> str:
    """Median share of the iteration in transport."""
    return f"{statistics.median(record.transport_share):.1%}"


def throughput_table(*, quick: bool = False, rounds: int = 15) -> Table:
    """Agent-steps per CPU second of every stack; little of it when ``quick``."""
    contenders = throughput_contenders(quick)
    records = measure(contenders, rounds=2 if quick else rounds, min_seconds=0.0 if quick else SHORT)
    reference, ippo = records[contenders[0].name], records[NATIVE_IPPO]
    table = Table(
        f"Training on simple_spread: N = 3, 25 steps, net 2x64, rollout of {contenders[0].rollout // 3:,} env-steps, "
        "5 epochs, 10 minibatches, one thread",
        ("stack", "thousand agent-steps/CPU-s, median (range)", "over SB3 on SuperSuit", "over IPPO"),
    )
    for name, record in records.items():
        table.rows.append((name, rate_cell(record), ratio_cell(record, reference), ratio_cell(record, ippo)))
    return table


def _pair(setting: Setting) -> list[Contender]:
    return [
        Contender("IPPO", partial(native, setting, IPPO), setting.rollout),
        Contender("WBC", partial(native, setting, WBC), setting.rollout),
    ]


def growth_table(*, quick: bool = False, rounds: int = 15) -> Table:
    """How the rates grow with the team and with the number of copies; little of it when ``quick``."""
    teams = [Setting(n_agents=n) for n in (3, 8, 16, 32, 64)]
    copies = [Setting(n_copies=c, n_steps=max(25, 2000 // c)) for c in (16, 256, 1024, 4096)]
    settings = [Setting(n_agents=2, n_copies=8), Setting(n_copies=16)] if quick else [*teams, *copies]
    table = Table(
        "Growth: simple_spread, ten minibatches a rollout, 5 epochs, one thread",
        ("N", "copies", "rollout, agent-steps", "IPPO, thousand agent-steps/CPU-s", "WBC", "WBC / IPPO", "transport"),
    )
    for setting in settings:
        # An iteration of the largest takes several seconds, in which slow and fast moments of a machine even out.
        turns = 1 if quick else max(3, min(rounds, 300_000 // setting.rollout))
        records = measure(_pair(setting), rounds=turns, min_seconds=0.0 if quick else SHORT)
        ippo, wbc = records["IPPO"], records["WBC"]
        cells = (str(setting.n_agents), f"{setting.n_copies:,}", f"{setting.rollout:,}")
        table.rows.append((*cells, rate_cell(ippo), rate_cell(wbc), ratio_cell(wbc, ippo), share_cell(wbc)))
    return table


#: The forms of consensus whose price is compared.
FORMS: dict[str, dict[str, Any]] = {
    "KL": {"estimator": "kl"},
    "conditional (default)": {},
    "pooled": {"estimator": "pooled"},
    "own": {"estimator": "own"},
    "own, sampled, plan (as printed)": {
        "estimator": "sampled",
        "estimator_kwargs": {"gradient": "plan", "debiased": False},
    },
    "own, sampled, sliced": {"estimator": "sliced", "estimator_kwargs": {"gradient": "plan"}},
}


def consensus_tables(*, quick: bool = False, rounds: int = 9) -> list[Table]:
    """What consensus costs by team and support, and by its form; little of it when ``quick``."""
    turns, seconds = (1, 0.0) if quick else (rounds, SHORT)
    supports = (24, 96, 384)
    grid = Table(
        "Cost of consensus: transport's share of an iteration | WBC's rate over IPPO's, by N and `n_support`",
        ("N", *(f"{n} states a minibatch" for n in supports)),
    )
    for n_agents in (2,) if quick else (3, 8, 16):
        setting = Setting(n_agents=n_agents, n_copies=8 if quick else 80)
        contenders = [_pair(setting)[0]]
        for n in supports:
            contenders.append(
                Contender(str(n), partial(native, setting, WBC, estimator_kwargs={"n_support": n}), setting.rollout)
            )
        records = measure(contenders, rounds=turns, min_seconds=seconds)
        cells = [f"{share_cell(records[str(n)])} / {ratio_cell(records[str(n)], records['IPPO'])}" for n in supports]
        grid.rows.append((str(n_agents), *cells))
    forms = Table(
        "Cost of the forms of consensus: N = 3, `n_support` = 64",
        ("form", "thousand agent-steps/CPU-s", "over IPPO", "transport's share of an iteration"),
    )
    setting = Setting(n_copies=8 if quick else 80)
    contenders = [_pair(setting)[0]]
    for name, options in FORMS.items():
        contenders.append(Contender(name, partial(native, setting, WBC, **options), setting.rollout))
    records = measure(contenders, rounds=turns, min_seconds=seconds)
    for name, record in records.items():
        forms.rows.append((name, rate_cell(record), ratio_cell(record, records["IPPO"]), share_cell(record)))
    return [grid, forms]


def environment_table(*, quick: bool = False, rounds: int = 5) -> Table:
    """
    Environments alone, stepped with actions that were drawn beforehand.

    :param quick: few steps
    :param rounds: turns of each environment
    :return: environment steps per CPU second
    """
    table = Table(
        "Environments alone, N = 3: thousand env-steps/CPU-s (all agents of one copy move), median (range)",
        ("environment", "copies", "thousand env-steps/CPU-s", "over mpe2"),
    )
    sizes = (8, 16) if quick else (80, 1024, 16384)
    steppers: dict[tuple[str, int], Callable[[], int]] = {("mpe2 simple_spread, one copy", 1): _mpe2_stepper()}
    steppers["ParallelVecEnv, mpe2 simple_spread", 16] = _vec_env_stepper(_mpe2_spread(16))
    steppers["the same through PettingZoo's converter", 16] = _vec_env_stepper(_mpe2_spread(16, plain=True))
    for env_id, label in ((SPREAD, "native spread"), (NAVIGATION, "Navigation")):
        for n_copies in sizes:
            venv = make_vec_env(env_id, n_copies, seed=0, backend="tensor")
            assert isinstance(venv, TensorVecEnv)
            steppers[label, n_copies] = _tensor_stepper(venv)
    records = {key: Record() for key in steppers}
    for turn in range(1 + (2 if quick else rounds)):
        for key, stepper in steppers.items():
            done, seconds, start = 0, 0.0, time.process_time()
            while done == 0 or seconds < (0.0 if quick else 0.2):
                done += stepper()
                seconds = time.process_time() - start
            if turn > 0:  # the first turn warms up
                records[key].rates.append(done / seconds)
    reference = next(iter(records.values()))
    for (label, n_copies), record in records.items():
        table.rows.append((label, f"{n_copies:,}", rate_cell(record), ratio_cell(record, reference)))
    return table


def _mpe2_stepper() -> Callable[[], int]:
    env = simple_spread_v3.parallel_env()
    rng = np.random.default_rng(0)

    def episode() -> int:
        env.reset(seed=0)
        steps = 0
        while env.agents:
            env.step(dict(zip(env.agents, rng.integers(5, size=3).tolist(), strict=True)))
            steps += 1
        return steps

    return episode


def _vec_env_stepper(venv: VecEnv) -> Callable[[], int]:
    actions = np.random.default_rng(0).integers(5, size=(25, venv.num_envs))
    venv.reset()

    def episode() -> int:
        for row in actions:
            venv.step(row)
        return len(actions) * (venv.num_envs // 3)

    return episode


def _tensor_stepper(venv: TensorVecEnv) -> Callable[[], int]:
    actions = th.randint(5, (25, venv.n_copies, venv.n_agents), device=venv.device)
    venv.reset_tensor()

    def episode() -> int:
        for row in actions:
            venv.step_tensor(row)
        return len(actions) * venv.n_copies

    return episode
