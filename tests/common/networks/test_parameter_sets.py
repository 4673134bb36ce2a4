"""Sets of parameters that sit out a step keep every bit."""

import torch as th

from otbaselines.common.networks.parameter_sets import RunningSets


def _stopped(optimizer):
    sets = RunningSets(optimizer, 2)
    sets.stop([False, True])
    return sets


def test_a_set_that_sits_out_the_first_step_has_no_moments_of_it():
    stacked = th.nn.Parameter(th.ones(2, 3))
    optimizer = th.optim.Adam([stacked])
    stacked.grad = th.ones(2, 3)
    _stopped(optimizer).step(optimizer, [stacked], [])
    for name in ("exp_avg", "exp_avg_sq"):
        assert (optimizer.state[stacked][name][0] > 0).all()
        assert (optimizer.state[stacked][name][1] == 0).all()


def test_the_extractor_of_a_set_that_sits_out_stands_still():
    apart = [th.nn.Parameter(th.ones(3)) for _ in range(2)]
    optimizer = th.optim.Adam(apart, lr=0.1)
    for parameter in apart:
        parameter.grad = th.ones(3)
    _stopped(optimizer).step(optimizer, [], [apart])
    assert (apart[0] < 1).all()
    assert (apart[1] == 1).all()
