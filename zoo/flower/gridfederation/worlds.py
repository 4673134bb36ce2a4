"""What clients and server have agreed on, and what each of them holds."""

from otbaselines.envs import gridworld
from otbaselines.fedirl import Client
from otbaselines.fedirl.exact import ExactClients
from otbaselines.fedirl.fusion import Support, lattice_cost
from otbaselines.fedirl.maxent import Horizon

#: Layouts of the clients have the seeds 0, 1, ...; that of the server has this one.
SERVER_SEED = 10_000


def client(number: int, size: int, n_episodes: int) -> Client:
    """
    :param number: of the client
    :param size: cells along an edge
    :param n_episodes: that its demonstrator has
    :return: its world and demonstrations
    """
    world = gridworld.make(size, number)
    return Client(world, gridworld.expert(world, n_episodes, seed=number), name=f"client {number}")


def learning(member: Client) -> ExactClients:
    """
    :param member: one client
    :return: its inverse reinforcement learning
    """
    return ExactClients(
        [member],
        [member.name],
        horizon=Horizon(0.99),
        ends="absorbing",
        l2=0.01,
        n_iterations=[200],
        learning_rate=None,
        tol=1e-9,
    )


def support(size: int) -> Support:
    """
    :param size: cells along an edge
    :return: where the server compares rewards
    """
    features = gridworld.make(size, SERVER_SEED).tabular_model.features.flatten(0, 1)
    return Support(features, lattice_cost([size, size, 4], categorical=[False, False, True]))
