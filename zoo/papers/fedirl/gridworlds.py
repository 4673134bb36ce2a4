"""Tables 1 and 2 of the FedIRL paper: success on grid worlds of local and fused rewards, each fusion under one protocol."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch as th

from otbaselines.common.saving.archive import atomic_write
from otbaselines.common.tabular import TabularModel, policy_transition, soft_values, stack_models
from otbaselines.envs import gridworld
from otbaselines.fedirl.fusion import FUSIONS, Support, aggregate, lattice_cost
from otbaselines.fedirl.maxent import Horizon, expert_features, fit, rewards_of
from zoo.config.entries import read_entry
from zoo.drawing.tables import Table, mean_and_interval
from zoo.papers.fedirl.results import read_result

#: Clients of each size, as in the paper.
N_CLIENTS = {5: 3, 10: 10, 20: 20}
#: In-distribution local, mean and barycenter, held-out mean and barycenter: success in per cent, as printed.
PRINTED = {5: (84.2, 85.1, 90.5, 78.4, 82.6), 10: (80.9, 81.6, 89.1, 76.1, 80.3), 20: (73.7, 73.5, 76.4, 75.3, 81.4)}
N_EPISODES = 50
#: Worlds that no client has seen.
N_HELD_OUT = 20
#: Steps of inverse reinforcement learning of a client and of a weak one: of BFGS, and of gradient ascent.
BFGS_STEPS, ASCENT_STEPS = (200, 1), (100, 5)
#: Of gradient ascent: that of the paper, and one that comes further in as many steps.
ASCENT_RATES = (0.005, 0.1)
#: Which action is taken: drawn from the soft-optimal policy, or its most probable one.
MODES = ("sampled", "most probable")


@dataclass(frozen=True)
class WorldsJob:
    """
    One seed of one cell of a table.

    :param size: cells along an edge
    :param n_clients: how many worlds take part
    :param seed: of worlds, demonstrations, and of who is weak
    :param weak_share: share of the clients whose learning is cut off after few steps
    :param learning_rate: of gradient ascent, as in the paper; BFGS, one step of which a weak client makes, when omitted
    """

    size: int
    n_clients: int
    seed: int
    weak_share: float = 0.0
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        ascent = "" if self.learning_rate is None else f"_ascent{self.learning_rate:g}"
        return f"size{self.size}_clients{self.n_clients}_weak{self.weak_share:g}{ascent}_seed{self.seed}"


@dataclass(frozen=True)
class WorldsResult:
    """
    Success in per cent, exact under each world's dynamics.

    :param local: every client under its own reward, by mode
    :param seen: under the fused reward in the clients' worlds, by fusion and mode
    :param held_out: in worlds that nobody has seen, by fusion and mode
    :param expert: the demonstrators'
    """

    local: dict[str, float] = field(default_factory=dict)
    seen: dict[str, dict[str, float]] = field(default_factory=dict)
    held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    expert: float = 0.0


def success(model: TabularModel, policy: th.Tensor, n_steps: int) -> float:
    """
    :param model: processes of grid worlds, shape ``(n, S, A, S)``
    :param policy: probabilities, shape ``(n, S, A)``
    :param n_steps: length of an episode
    :return: probability in per cent of having reached the goal, mean over the worlds
    """
    states, chain = model.initial.unsqueeze(-2), policy_transition(model.transition, policy)
    for _ in range(n_steps):
        states = states @ chain
    return 100 * float(states[..., -1].mean())


def success_by_mode(models: TabularModel, theta: th.Tensor, discount: float, n_steps: int) -> dict[str, float]:
    """
    :param models: absorbing processes, shape ``(n, S, A, S)``
    :param theta: parameters of one reward ``(k,)``, or one for each world ``(n, k)``
    :param discount: of the soft-optimal policy
    :param n_steps: length of an episode
    :return: success by mode
    """
    rewards = rewards_of(models, theta.expand(len(models.transition), -1))
    logs = soft_values(models, rewards, discount=discount).log_policy
    greedy = th.nn.functional.one_hot(logs.argmax(-1), models.n_actions).to(logs)
    return {mode: success(models, policy, n_steps) for mode, policy in zip(MODES, (logs.exp(), greedy), strict=True)}


def run_worlds(job: WorldsJob) -> WorldsResult:
    """
    Demonstrate, learn, fuse and judge.

    :param job: the seed
    :return: success of every fusion
    """
    entry = read_entry("fedirl", "otbaselines/GridWorld-v0")
    streams = np.random.SeedSequence([job.size, job.seed]).generate_state(job.n_clients + N_HELD_OUT + 2).tolist()
    worlds = [gridworld.make(job.size, seed) for seed in streams[: job.n_clients]]
    others = [gridworld.make(job.size, seed) for seed in streams[job.n_clients + 2 :]]
    probe, rng = gridworld.make(job.size, streams[job.n_clients]), np.random.default_rng(streams[job.n_clients + 1])
    demonstrations = [gridworld.expert(world, N_EPISODES, int(rng.integers(2**31))) for world in worlds]
    horizon = Horizon(float(entry["discount"]))
    models = stack_models([world.tabular_model.absorbing() for world in worlds])
    unseen = stack_models([world.tabular_model.absorbing() for world in others])
    expert = th.stack(
        [
            expert_features(world.tabular_model.absorbing(), episodes, horizon)
            for world, episodes in zip(worlds, demonstrations, strict=True)
        ]
    )
    usual, few = BFGS_STEPS if job.learning_rate is None else ASCENT_STEPS
    steps = th.full((job.n_clients,), usual)
    steps[rng.permutation(job.n_clients)[: round(job.weak_share * job.n_clients)]] = few
    ridge, rate = float(entry["l2"]), job.learning_rate
    theta = fit(models, expert, horizon=horizon, l2=ridge, n_iterations=steps, learning_rate=rate).theta
    support = support_of(probe)
    result = WorldsResult(
        local=success_by_mode(models, theta, horizon.discount, worlds[0].max_steps),
        expert=100 * float(np.mean([each.success for episodes in demonstrations for each in episodes])),
    )
    for fusion in FUSIONS:
        fused = aggregate(theta, support, fusion=fusion, reg=float(entry["reg"])).theta
        result.seen[fusion] = success_by_mode(models, fused, horizon.discount, worlds[0].max_steps)
        result.held_out[fusion] = success_by_mode(unseen, fused, horizon.discount, worlds[0].max_steps)
    return result


def support_of(world: gridworld.GridWorldEnv) -> Support:
    """
    :param world: whose layout the server takes for everybody's
    :return: its cells and actions: rows and columns in order, actions all equally far apart
    """
    features = world.tabular_model.features.flatten(0, 1)
    return Support(features, lattice_cost([len(axis) for axis in world.lattice_axes], categorical=[False, False, True]))


def finished(job: WorldsJob, folder: Path, *, train: bool) -> WorldsResult | None:
    """
    :param job: the seed
    :param folder: where results are kept
    :param train: whether to compute what is not there
    :return: the result, None where there is none
    """
    path = folder / f"{job.name}.json"
    if path.is_file():
        return read_result(WorldsResult, path, {"local": MODES, "seen": FUSIONS, "held_out": FUSIONS})
    if not train:
        return None
    result = run_worlds(job)
    with atomic_write(path) as file:
        file.write(json.dumps(asdict(result), indent=1).encode())
    return result


def table(results: dict[str, list[WorldsResult]], mode: str) -> Table:
    """
    :param results: of all seeds, by the name of the row
    :param mode: how actions are taken
    :return: success by fusion: mean, half of Student's 95 % interval, range
    """
    columns = ("worlds", "seeds", "demonstrations", "local", *(f"{where}, {name}" for where in WHERE for name in FUSIONS))
    found = Table(f"Success in per cent, {mode} actions", columns)
    for label, seeds in results.items():
        cells = [mean_and_interval([each.local[mode] for each in seeds], ".1f")]
        for attribute in WHERE.values():
            cells += [mean_and_interval([getattr(each, attribute)[name][mode] for each in seeds], ".1f") for name in FUSIONS]
        found.rows.append((label, str(len(seeds)), f"{np.mean([each.expert for each in seeds]):.1f}", *cells))
    return found


WHERE = {"seen": "seen", "held out": "held_out"}


def paired_table(results: dict[str, list[WorldsResult]], mode: str) -> Table:
    """
    :param results: of all seeds, by the name of the row
    :param mode: how actions are taken
    :return: by how much the barycenter is ahead of each other fusion, paired by seed
    """
    others = [name for name in FUSIONS if name != "barycenter"]
    columns = ("worlds", *(f"{where}, - {name}" for where in WHERE for name in others))
    found = Table(f"Barycenter minus the others, paired by seed, points, {mode} actions", columns)
    for label, seeds in results.items():
        cells = []
        for attribute in WHERE.values():
            for name in others:
                pairs: Sequence[dict[str, dict[str, float]]] = [getattr(each, attribute) for each in seeds]
                cells.append(mean_and_interval([each["barycenter"][mode] - each[name][mode] for each in pairs], "+.2f"))
        found.rows.append((label, *cells))
    return found
