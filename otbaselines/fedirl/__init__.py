"""Federated inverse reinforcement learning with barycentric reward fusion."""
