"""Recorded behaviour, from whatever file or object it comes, as tensors that offline learners draw from."""

from otbaselines.common.datasets.dataset import OfflineDataset
from otbaselines.common.datasets.transitions import OfflineSamples, Transitions

__all__ = ["OfflineDataset", "OfflineSamples", "Transitions"]
