"""Baheri (2025), *Wasserstein-barycenter consensus*: its theorems, measured."""
