"""Hooks, samplers, optimizer constructors and command-line support for MMEngine's runner."""

from .direction_search import DirectionSearchHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .resume import ExactResumeHook, ResumableBatchSampler, SeededDataset, make_resumable

__all__ = [
    "DirectionSearchHook",
    "ExactResumeHook",
    "LayerDecayOptimWrapperConstructor",
    "ResumableBatchSampler",
    "SeededDataset",
    "make_resumable",
]
