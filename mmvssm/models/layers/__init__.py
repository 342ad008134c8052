from .basic import (
    ACTIVATIONS,
    ChannelGate,
    DepthwiseConv,
    Mlp,
    PointwiseConv,
    RMSNorm,
    SqueezeExcite,
    apply_norm,
    build_norm,
)
from .block import CheckpointedBlock, MixerBlock
from .directions import SEARCH_DIRECTIONS, DirectionMerge, direction_tables, top_directions
from .mamba_mixer import MambaMixer
from .ms2d import MS2D
from .patch import ConvDownsample, ConvStem, PatchEmbed, PatchMerging
from .scans import SelectiveScans
from .ss2d import SS2D

__all__ = [
    "ACTIVATIONS",
    "MS2D",
    "SEARCH_DIRECTIONS",
    "SS2D",
    "ChannelGate",
    "CheckpointedBlock",
    "ConvDownsample",
    "ConvStem",
    "DepthwiseConv",
    "DirectionMerge",
    "MambaMixer",
    "MixerBlock",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "PointwiseConv",
    "RMSNorm",
    "SelectiveScans",
    "SqueezeExcite",
    "apply_norm",
    "build_norm",
    "direction_tables",
    "top_directions",
]
