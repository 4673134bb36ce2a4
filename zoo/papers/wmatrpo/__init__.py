"""Salgarkar and Baheri (2025), *When Distance Matters* (W-MATRPO with CAATR): its game, measured."""
