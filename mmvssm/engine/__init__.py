"""Hooks, samplers and command-line support for MMEngine's runner."""

from .direction_search import DirectionSearchHook
from .resume import ExactResumeHook, ResumableBatchSampler, SeededDataset, make_resumable

__all__ = [
    "DirectionSearchHook",
    "ExactResumeHook",
    "ResumableBatchSampler",
    "SeededDataset",
    "make_resumable",
]
