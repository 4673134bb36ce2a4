"""What runs where the demonstrations are."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from gridfederation.worlds import client, learning
from otbaselines.fedirl.flower import client_app

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator,unused-ignore]
def train(message: Message, context: Context) -> Message:
    """One round of one client, with the sizes of the run's configuration."""
    size, n_episodes = int(context.run_config["size"]), int(context.run_config["n-episodes"])
    inner = client_app(lambda number, _: (learning(client(number, size, n_episodes)), n_episodes))
    return inner(message, context)
