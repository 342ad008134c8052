"""Dual-SAM for mmsegmentation; importing this package registers its classes.

A config imports it with ``custom_imports = dict(imports=["projects.dual_sam"])``.
"""

from . import connectivity, data, network, segmentor

__all__ = ["connectivity", "data", "network", "segmentor"]
