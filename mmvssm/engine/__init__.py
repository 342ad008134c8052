"""Hooks, samplers, optimizer constructors and command-line support for MMEngine's runner."""

from .collate import default_collate
from .direction_search import DirectionSearchHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .resume import ExactResumeHook, ResumableBatchSampler, SeededDataset, make_resumable

__all__ = [
    "DirectionSearchHook",
    "ExactResumeHook",
    "LayerDecayOptimWrapperConstructor",
    "ResumableBatchSampler",
    "SeededDataset",
    "default_collate",
    "make_resumable",
]
