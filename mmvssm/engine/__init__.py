"""Hooks, samplers, optimizer constructors and command-line support for MMEngine's runner."""

from .channels_last import ChannelsLastHook
from .collate import default_collate
from .cpu_amp import CPUAmpOptimWrapper
from .direction_search import DirectionSearchHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .mesa import MESAHook
from .plain_files import PlainCheckpointHook
from .plain_groups import PlainGroupsHook
from .resume import ExactResumeHook, ResumableBatchSampler, SeededDataset, make_resumable
from .schedule import CosineAnnealingLR, set_epochs

__all__ = [
    "CPUAmpOptimWrapper",
    "ChannelsLastHook",
    "CosineAnnealingLR",
    "DirectionSearchHook",
    "ExactResumeHook",
    "LayerDecayOptimWrapperConstructor",
    "MESAHook",
    "PlainCheckpointHook",
    "PlainGroupsHook",
    "ResumableBatchSampler",
    "SeededDataset",
    "default_collate",
    "make_resumable",
    "set_epochs",
]
