"""Metrics of minibatches: means of what each minibatch says, whenever it is summed up."""

import pytest
import torch as th

from otbaselines.common import training
from otbaselines.common.training import Metrics


def _summary(x, y):
    return {"x": x.mean(1), "y": y * 2}


@pytest.mark.parametrize("waiting", [0, 7, 10**6])
def test_rows_are_summed_up_minibatch_by_minibatch_however_long_they_wait(monkeypatch, waiting):
    """A short last minibatch counts as much as each of the others."""
    monkeypatch.setattr(training, "_WAITING", waiting)
    metrics, batches = Metrics(_summary), [th.randn(n) for n in (4, 4, 4, 2)]
    for k, batch in enumerate(batches):
        metrics.add_rows(batch, th.tensor(float(k)))
        metrics.add("z", th.tensor(float(k)))
    means = metrics.means()
    assert means["x"] == pytest.approx(float(th.stack([batch.mean() for batch in batches]).mean()), abs=1e-6)
    assert (means["y"], means["z"]) == (3.0, 1.5)


def test_nothing_added_is_nothing_told():
    assert Metrics(_summary).means() == {}
