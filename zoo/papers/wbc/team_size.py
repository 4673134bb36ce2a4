"""
Larger teams, with critics of their own and shared ones: ``python -m zoo.plots wbc-agents --train``; and why agents that agree
learn more slowly than agents that share a network: ``python -m zoo.plots wbc-averaging --train``.

Every learner has the zoo's entry for three agents; nothing is searched for more. Every agent has as many steps of its own, and
as many in each minibatch, whatever the size of its team.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.drawing.tables import Table, paired_table, student_interval
from zoo.runs.comparison import Comparison, Method
from zoo.runs.played import PlayedBesideRandom

#: Of the whole team at once: each agent's own.
JOINT_STEPS = 40_000
MINIBATCH = 200
SIZES = (3, 8, 16)
NAVIGATION, SPREAD = "otbaselines/Navigation-v0", "otbaselines/SimpleSpread-v0"
SPEAKER_LISTENER = "mpe2/simple_speaker_listener-v4"
SHARED_CRITIC = {"critic": "shared"}
REFERENCE = "parameter sharing"
Runs = Mapping[str, Sequence[PlayedBesideRandom]]


def _rows(run: PlayedBesideRandom) -> tuple[float, float, float]:
    """Mean reward over training and over its last tenth, and the evaluated return."""
    tenth = max(1, len(run.rewards) // 10)
    return float(run.rewards.mean()), float(run.rewards[-tenth:].mean()), float(run.evaluation.mean())


#: What the tables have of a run, and how to write it.
MEASURES = {"training: mean reward": ".3f", "its last tenth": ".3f", "evaluation: return per agent": ".2f"}


def tables(title: str, runs: Runs, n_seeds: int) -> str:
    """
    :param title: of the task
    :param runs: by label
    :param n_seeds: how many there should be
    :return: means with Student's intervals, and paired differences from parameter sharing, as Markdown
    """
    values = {label: np.array([_rows(run) for run in seeds]) for label, seeds in runs.items()}
    steps = next(iter(runs.values()))[0].timesteps[-1]
    title = f"{title}, {steps:,.0f} agent-steps: mean with Student's 95 % interval"
    table = Table(title, ("learner", "seeds", *MEASURES, "CPU s per run"))
    for label, found in values.items():
        cells = [student_interval(column).text(form) for column, form in zip(found.T, MEASURES.values(), strict=True)]
        seconds = float(np.median([run.cpu_seconds for run in runs[label]]))
        table.rows.append((label, str(len(found)), *cells, f"{seconds:.0f}"))
    random = np.mean([run.random.mean() for seeds in runs.values() for run in seeds])
    table.rows.append(("uniformly random", "-", "-", "-", f"{random:.2f}", "-"))
    if REFERENCE not in runs:
        return table.markdown()
    forms = {name: f"+{form}" for name, form in MEASURES.items()}
    said = f"{REFERENCE} less the others, seed by seed, and what it says of {REFERENCE}"
    pairs = paired_table(values, REFERENCE, forms, n_seeds, title=said)
    return "\n\n".join(each.markdown() for each in (table, pairs) if each.rows)


def _report(title: str) -> Callable[[Runs, argparse.Namespace], str]:
    def report(runs: Runs, args: argparse.Namespace) -> str:
        return tables(title, runs, args.seeds)

    return report


def _both_critics(name: str, label: str, **options: Any) -> dict[str, Method]:
    return {
        name: Method(label=label, **options),
        f"{name}-shared": Method(label=f"{label}, shared critic", changes=SHARED_CRITIC, **options),
    }


METHODS: dict[str, Method] = {
    "sharing": Method(label=REFERENCE, algo="ippo", variants=("sharing",)),
    **_both_critics("wbc", "WBC", algo="wbc"),
    **_both_critics("kl", "KL consensus", algo="wbc", variants=("kl",)),
    **_both_critics("ippo", "IPPO", algo="ippo"),
}


def _task(
    name: str, title: str, env_id: str, changes: Mapping[str, Any], methods: Mapping[str, Method]
) -> tuple[str, Comparison[PlayedBesideRandom]]:
    """A comparison beside its name."""
    return name, Comparison(
        help=title,
        env_id=env_id,
        methods=methods,
        result=PlayedBesideRandom,
        report=_report(title),
        seeds=3,
        folder="runs/wbc-agents",
        changes=changes,
    )


def _size(n: int, /, **env_kwargs: Any) -> dict[str, Any]:
    return {"n_timesteps": JOINT_STEPS * n, "batch_size": MINIBATCH * n, "env_kwargs": env_kwargs}


# IPPO's entry for the task, which WBC has none for.
_SPEAKING = {
    "n_timesteps": 240_000,
    "n_envs": 16,
    "n_steps": 125,
    "batch_size": 400,
    "n_epochs": 10,
    "learning_rate": "lin_2.0e-3",
    "gamma": 0.95,
}
_EVERYBODY: dict[str, Any] = {"consensus_groups": [["speaker_0", "listener_0"]]}
_SPEAKERS: dict[str, Method] = {
    "sharing": Method(label=REFERENCE, algo="ippo", changes={"share_parameters": True}),
    "wbc": Method(label="WBC: nobody has an equal", algo="wbc"),
    "wbc-all": Method(label="WBC, both in one group", algo="wbc", changes=_EVERYBODY),
    "kl-all": Method(label="KL consensus, both in one group", algo="wbc", variants=("kl",), changes=_EVERYBODY),
    "ippo": METHODS["ippo"],
}
#: By name on the command line.
AGENT_TASKS: Mapping[str, Comparison[PlayedBesideRandom]] = dict(
    [
        *(
            _task(
                f"navigation-{n}",
                f"Cooperative navigation, {n} agents, team reward",
                NAVIGATION,
                _size(n, n_agents=n),
                METHODS,
            )
            for n in SIZES
        ),
        *(_task(f"spread-{n}", f"simple_spread, {n} agents", SPREAD, _size(n, N=n), METHODS) for n in SIZES),
        _task("speaker-listener", "mpe2 simple_speaker_listener", SPEAKER_LISTENER, _SPEAKING, _SPEAKERS),
    ]
)

_EIGHT = _size(8, n_agents=8)
# An entry's 32 copies and minibatches eight times over: each agent sees as much as a network that all share.
_EIGHTFOLD = {"n_envs": 256, "batch_size": 8 * _EIGHT["batch_size"], "n_timesteps": 8 * _EIGHT["n_timesteps"]}
_LEARNERS: dict[str, Method] = {
    "sharing": METHODS["sharing"],
    "gradients": Method(label="IPPO, equal starts, averaged gradients", algo="ippo", learner="averaged-gradients"),
    "scales": Method(
        label="IPPO, equal starts, Adam's scale of the averaged gradients", algo="ippo", learner="averaged-scales"
    ),
    "starts": Method(label="IPPO, equal starts", algo="ippo", learner="equal-starts"),
    "ippo": METHODS["ippo"],
    "wbc": METHODS["wbc"],
    "wbc-data": Method(label="WBC, eight times the copies", algo="wbc", changes=_EIGHTFOLD),
    "wbc-shared": METHODS["wbc-shared"],
    "wbc-rate": Method(label="WBC, twice the learning rate", algo="wbc", changes={"learning_rate": 4.0e-3}),
    "wbc-slow": Method(label="WBC, half the learning rate", algo="wbc", changes={"learning_rate": 1.0e-3}),
    "wbc-constant": Method(label="WBC, a coefficient of 50 throughout", algo="wbc", changes={"consensus_coef": 50.0}),
    "wbc-strong": Method(label="WBC, a coefficient of 100 throughout", algo="wbc", changes={"consensus_coef": 100.0}),
}
AVERAGING = Comparison(
    help="why agents that agree learn more slowly than agents that share a network",
    env_id=NAVIGATION,
    methods=_LEARNERS,
    result=PlayedBesideRandom,
    report=_report("Cooperative navigation, 8 agents, team reward"),
    seeds=3,
    folder="runs/wbc-averaging",
    changes=_EIGHT,
)
