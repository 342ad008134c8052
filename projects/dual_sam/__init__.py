"""Dual-SAM for mmsegmentation; importing this package registers its parts.

A config names it by ``custom_imports = dict(imports=["projects.dual_sam"])``.
"""

from . import connectivity, data, network, segmentor

__all__ = ["connectivity", "data", "network", "segmentor"]
