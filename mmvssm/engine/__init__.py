"""Hooks, samplers and command-line support for MMEngine's runner."""

from .resume import ExactResumeHook, ResumableBatchSampler, SeededDataset, make_resumable

__all__ = ["ExactResumeHook", "ResumableBatchSampler", "SeededDataset", "make_resumable"]
