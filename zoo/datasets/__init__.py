"""Offline data: agents that behave well, less well and badly, and what they did."""
