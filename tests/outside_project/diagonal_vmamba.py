"""A user's project: a scan of two routes, and a family of backbones that scans along them."""

from typing import ClassVar

import torch

from mmvssm.families import Family, register_family
from mmvssm.models import SS2D
from mmvssm.models.backbones.hierarchical import HierarchicalBackbone
from mmvssm.models.layers import MixerBlock
from mmvssm.ops.routes import register_routes
from mmvssm.registry import MODELS


@register_routes("diagonals", titles=("diagonals", "diagonals reversed"))
def diagonals(height, width):
    """Visit the map diagonal by diagonal, from either end: int32 ``(2, height * width)``."""
    row, column = torch.arange(height)[:, None], torch.arange(width)
    order = ((row + column) * height + row).flatten().argsort().int()
    return torch.stack([order, order.flip(0)])


@MODELS.register_module()
class DiagonalVMamba(HierarchicalBackbone):
    """Stages of SS2D blocks whose scans run along the diagonals."""

    arch_settings: ClassVar[dict] = {"tiny": dict(embed_dims=16, depths=(1, 1, 1, 1))}
    arch_defaults: ClassVar[dict] = dict(
        embed_dims=None, depths=None, stem="conv", downsample="conv3", d_state=1
    )

    def build_block(self, arch, embed_dims, stage, layer, **options):
        """Build a block of one mixer; see :meth:`HierarchicalBackbone.build_block`."""
        mixer = SS2D(embed_dims, scan="diagonals", d_state=arch["d_state"])
        return MixerBlock(embed_dims, mixer, **options)


register_family(Family(name="diagonal_vmamba", backbone=DiagonalVMamba))
