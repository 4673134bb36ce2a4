"""Learners that take gradient steps on data, and act in no environment."""

from otbaselines.common.offline.algorithm import DatasetAlgorithm
from otbaselines.common.offline.loop import OfflineAlgorithm, spaces_only_env

__all__ = ["DatasetAlgorithm", "OfflineAlgorithm", "spaces_only_env"]
