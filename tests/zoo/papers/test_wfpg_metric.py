"""The solvers beside each other on values that are known."""

import numpy as np
import pytest
import torch as th

from zoo import plots
from zoo.papers.wfpg.metric import PROBLEMS, Problem, left_over


def test_problems_are_as_ill_scaled_as_they_say():
    for inputs, actions in ((1.0, 1.0), (100.0, 1.0), (1.0, 100.0)):
        found = Problem(inputs, actions).make(th.Generator().manual_seed(0))
        assert float(th.linalg.cond(found.mixing)) == pytest.approx(inputs, rel=1e-4)
        assert float(found.weights[0] / found.weights[1]) == pytest.approx(actions)
        observations, best = found.states(5)
        states = observations @ th.linalg.inv(found.mixing)
        np.testing.assert_allclose(best, (states @ found.gain).tanh(), atol=1e-4)


def test_the_natural_step_minds_the_scale_of_observations_less_than_other_steps():
    left = {
        solver: left_over(PROBLEMS["ill-scaled observations"], solver, rate, net_arch=[], seed=0, steps=150)[0]
        for solver, rate in (("first_order", 1e-2), ("cg", 0.3))
    }
    assert left["cg"] < 0.5 * left["first_order"]


def test_a_table_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").touch()
    for path, said in ((tmp_path, "is a folder"), (tmp_path / "file" / "table.md", "file")):
        with pytest.raises(SystemExit):
            plots.main(["wfpg-metric", "--tables", str(path)])
        assert said in capsys.readouterr().err
