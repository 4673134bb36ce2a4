"""What runs at the server."""

import json
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from gridfederation.worlds import support
from otbaselines.fedirl.flower import FusionStrategy, from_record, to_record

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator,unused-ignore]
def main(grid: Grid, context: Context) -> None:
    """All rounds; the fused parameters are written as JSON."""
    config = context.run_config
    shared, n_clients = support(int(config["size"])), int(config["n-clients"])
    strategy = FusionStrategy(
        shared,
        quorum=int(config["quorum"]),
        fusion_kwargs={"fusion": str(config["fusion"])},
        min_train_nodes=n_clients,
        min_available_nodes=n_clients,
    )
    start = to_record(np.zeros(shared.features.shape[1]))
    found = strategy.start(grid=grid, initial_arrays=start, num_rounds=int(config["n-rounds"]))
    Path(str(config["out"])).write_text(json.dumps({"theta": from_record(found.arrays).tolist()}))
