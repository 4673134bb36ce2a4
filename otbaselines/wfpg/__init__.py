"""Policy optimisation as a Wasserstein gradient flow (Dus 2026)."""

from otbaselines.wfpg.particles import ParticleFlow

__all__ = ["ParticleFlow"]
