"""Backbones, necks and layers; importing this module registers them.

The registry is :data:`mmvssm.registry.MODELS`.
"""

from typing import TYPE_CHECKING

import mmengine.runner.checkpoint  # noqa: F401  has the registry of URL schemes

from mmvssm.complexity import register_with_counters
from mmvssm.scheme import register_scheme

from . import backbones
from .backbones import *  # noqa: F403
from .layers import (
    MS2D,
    SS2D,
    CascadeSS2D,
    FlippedCascadeSS2D,
    HalfScanMixer,
    MambaMixer,
    ScalarDecaySS2D,
)
from .necks import SimpleFeaturePyramid

if TYPE_CHECKING:  # type checkers cannot follow the discovery of backbones
    from .backbones.efficient_vmamba import EfficientVMamba as EfficientVMamba
    from .backbones.local_vim import LocalVim as LocalVim
    from .backbones.local_vmamba import LocalVMamba as LocalVMamba
    from .backbones.mambavision import MambaVision as MambaVision
    from .backbones.msvmamba import MSVMamba as MSVMamba
    from .backbones.vim import Vim as Vim
    from .backbones.vmamba import VMamba as VMamba

register_scheme()
register_with_counters()

__all__ = [
    "MS2D",
    "SS2D",
    "CascadeSS2D",
    "FlippedCascadeSS2D",
    "HalfScanMixer",
    "MambaMixer",
    "ScalarDecaySS2D",
    "SimpleFeaturePyramid",
    *backbones.__all__,
]
