"""Policy optimisation as a Wasserstein gradient flow (Dus 2026)."""

from otbaselines.wfpg.particles import ParticleFlow
from otbaselines.wfpg.policies import FlowPolicy as MlpPolicy
from otbaselines.wfpg.wfpg import WassersteinFlowPG

__all__ = ["MlpPolicy", "ParticleFlow", "WassersteinFlowPG"]
