"""One seed, many random streams: none of them starts where another does."""

import numpy as np

# In this order for ever: the place of a name is the key of its stream, so that new names are added at the end.
STREAMS = ("learner", "environment", "actions", "consensus", "slicing", "evaluation", "minibatches")


def child_seeds(seed: int, num_timesteps: int = 0) -> dict[str, int]:
    """
    The seeds of an algorithm's random streams, children of one ``np.random.SeedSequence(seed)``.

    - ``learner``: initial parameters, sampled actions, minibatches: torch's, NumPy's and Python's global generators;
    - ``environment``: the training environment, of which copy ``k`` gets this number plus ``k``;
    - ``actions``: ``action_space.sample()``, which off-policy learners use before they have learned anything;
    - ``consensus``: states and actions that a consensus draws;
    - ``slicing``: directions of sliced distances;
    - ``evaluation``: environments that are only evaluated on;
    - ``minibatches``: the rows of a dataset that each gradient step sees.

    A model that is loaded goes on with the streams of its ``num_timesteps``: it neither repeats what it has seen, nor
    differs from another load of the same file.

    :param seed: the user's, at least 0
    :param num_timesteps: steps after which the streams start
    :return: a number in [0, 2**31) for each name in ``STREAMS``
    """
    later = (num_timesteps,) if num_timesteps else ()
    children = (np.random.SeedSequence(seed, spawn_key=(key, *later)) for key in range(len(STREAMS)))
    return {name: int(child.generate_state(1)[0]) >> 1 for name, child in zip(STREAMS, children, strict=True)}
