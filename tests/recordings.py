"""Small recordings whose right values are known: an observation is (episode, step), a reward is the step."""

import numpy as np

# Lengths of the episodes, and how each ends.
LENGTHS, TERMINATES = (3, 1, 4), (True, False, False)


def recording(lengths=LENGTHS, terminates=TERMINATES):
    """Columns of whole episodes by name; the action is a tenth of the step, in a box from -1 to 1."""
    steps = np.concatenate([np.arange(length) for length in lengths])
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    observations = np.stack([numbers, steps], 1).astype(np.float32)
    last = np.append(np.diff(numbers) != 0, True)
    ends = np.repeat(terminates, lengths)
    return {
        "observations": observations,
        "actions": steps[:, None].astype(np.float32) / 10,
        "rewards": steps.astype(np.float32),
        "next_observations": observations + np.array([0, 1], np.float32),
        "terminations": last & ends,
        "truncations": last & ~ends,
    }


def d4rl(columns, *, successors=False):
    """The same under D4RL's names."""
    names = {"terminations": "terminals", "truncations": "timeouts"}
    renamed = {names.get(name, name): values for name, values in columns.items()}
    if not successors:
        del renamed["next_observations"]
    return renamed


def write_hdf5(path, columns, **options):
    """Write columns at the top of an HDF5 file."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values, **options)
    return path
