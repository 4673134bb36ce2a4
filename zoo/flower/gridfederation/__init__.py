"""Clients and server of a federation of grid worlds."""
