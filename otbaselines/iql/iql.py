"""Implicit Q-learning."""

from otbaselines.common.offline.implicit_q import ImplicitQLearning


class IQL(ImplicitQLearning):
    """
    Implicit Q-learning (Kostrikov et al. 2022): offline reinforcement learning that asks only for the value of actions in the
    data.
    """
