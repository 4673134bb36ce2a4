"""Training on recorded data: what is asked before it, and what is drawn and said after it."""

from typing import Any

import numpy as np

from zoo.datasets.references import reference
from zoo.drawing.curves import draw_evaluations
from zoo.runs.job import Job

CURVE = "learning_curve.png"


def check_dataset(job: Job) -> None:
    """
    :param job: any
    :raises ValueError: if it has no data and needs some, or has some and does not
    """
    has_data = job.entry.get("dataset") is not None
    if job.is_offline and not has_data:
        raise ValueError(
            f"{job.algo} learns from recorded data: name them by --dataset, a .npz or HDF5 file or the id of a Minari data "
            "set; `python -m zoo.datasets.make` makes some"
        )
    if has_data and not job.is_offline:
        raise ValueError(f"{job.algo} learns from its own experience; --dataset is for qdot, iql and bc")
    if job.is_offline and job.config.normalize is not None:
        raise ValueError(f"`normalize` is for environments; {job.algo} has `normalize_observations`, taken from the data")


def describe_data(model: Any) -> str:
    """
    :param model: that learns from data
    :return: what is in them, with normalised returns where there is a scale
    """
    return str(model.dataset.describe())


def score(env_id: str, returns: Any) -> str:
    """
    :param env_id: of the evaluation
    :param returns: of its episodes
    :return: mean and standard deviation, in per cent of the reference as well where there is one
    """
    returns, scale = np.asarray(returns, np.float64), reference(env_id)
    text = f"{returns.mean():.1f} +/- {returns.std():.1f} over {returns.size} episodes"
    if scale is None:
        return text
    normalized = scale.normalized(returns)
    return f"{text}; normalised {normalized.mean():.1f} +/- {normalized.std():.1f} ({scale.source})"


def draw_and_sum_up(job: Job) -> str:
    """
    Draw the evaluations of a run into its folder.

    :param job: that was trained
    :return: lines about the evaluations; empty where there were none
    """
    path = job.folder / "evaluations.npz"
    if not path.is_file():
        return ""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        timesteps, returns = stored["timesteps"], stored["results"]
    title = f"{job.algo.upper()} on {job.env_id}"
    draw_evaluations({job.algo.upper(): (timesteps, returns.mean(1))}, job.folder / CURVE, title=title, offline=True)
    best = int(returns.mean(1).argmax())
    lines = [
        f"last return   {score(job.env_id, returns[-1])}, after {timesteps[-1]:,} gradient steps",
        f"best return   {score(job.env_id, returns[best])}, after {timesteps[best]:,}, chosen by these very episodes",
        f"learning curve in {job.folder / CURVE}",
    ]
    return "\n".join([*lines, ""])
