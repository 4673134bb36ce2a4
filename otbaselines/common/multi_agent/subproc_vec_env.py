"""Teams stepped in several processes."""

from typing import Any
from otbaselines.common.multi_agent.vec_env import ParallelVecEnv


class SubprocParallelVecEnv(ParallelVecEnv):
    """Placeholder."""
