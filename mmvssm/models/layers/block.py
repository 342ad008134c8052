"""Residual blocks of the backbones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmvssm.ops.tracers import compiling

from .basic import DropPath, LayerScale, RMSNorm, apply_norm, build_norm
from .checks import one_of
from .tokens import rotate


class CheckpointedBlock(BaseModule):
    """Block with optional gradient checkpointing.

    Args:
        with_cp: Recompute the block in the backward pass to save memory.
    """

    def __init__(self, with_cp: bool = False) -> None:
        super().__init__()
        self.with_cp = with_cp

    def forward(self, x: Tensor, *context: Any) -> Any:
        """Call ``_forward``, with gradient checkpointing if ``with_cp`` is set.

        Blocks of maps take and return ``(B, H, W, C)``.
        """
        if self.with_cp and x.requires_grad and compiling():
            # a compiled graph updates batch-norm statistics only once
            return checkpoint(self._forward, x, *context, use_reentrant=False)
        if self.with_cp and x.requires_grad:
            contexts = nullcontext(), self._recomputing()
            return checkpoint(
                self._forward, x, *context, use_reentrant=False, context_fn=lambda: contexts
            )
        return self._forward(x, *context)

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Keep the recomputation from updating the statistics of batch norms again."""
        norms = [
            (module, module.momentum)
            for module in self.modules()
            if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        ]
        for norm, _ in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked -= 1
        try:
            yield
        finally:
            for norm, momentum in norms:
                norm.momentum = momentum


class MixerBlock(CheckpointedBlock):
    """Residual block of a mixer over pixels and an MLP over channels; either may be absent.

    Args:
        embed_dims: Channels C.
        mixer: Module ``(B, H, W, C) -> (B, H, W, C)``; None for none.
        mlp: Module ``(B, H, W, C) -> (B, H, W, C)``; None for none.
        norm: Kind of norm.
        mlp_norm: Normalise the input (``'pre'``) or the output (``'post'``) of ``mlp``.
        layer_scale: Initial value of the layer scale of both branches; None for no layer scale.
        drop_path: Drop-path rate of both branches.
        with_cp: Recompute the block in the backward pass to save memory.
    """

    def __init__(
        self,
        embed_dims: int,
        mixer: nn.Module | None,
        mlp: nn.Module | None = None,
        norm: str = "ln",
        mlp_norm: str = "pre",
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        self.mlp_norm = one_of("mlp_norm", mlp_norm, ("pre", "post"))
        self.mixer = mixer
        self.mlp = mlp
        if mixer is not None:
            self.norm1 = build_norm(norm, embed_dims)
            self.layer_scale1 = build_layer_scale(embed_dims, layer_scale)
        if mlp is not None:
            self.norm2 = build_norm(norm, embed_dims)
            self.layer_scale2 = build_layer_scale(embed_dims, layer_scale)
        self.drop_path = DropPath(drop_path)

    def _forward(self, x: Tensor) -> Tensor:
        if self.mixer is not None:
            y = self.mixer(apply_norm(self.norm1, x))
            x = x + self.drop_path(self.layer_scale1(y))
        if self.mlp is not None:
            if self.mlp_norm == "pre":
                y = self.mlp(apply_norm(self.norm2, x))
            else:
                y = apply_norm(self.norm2, self.mlp(x))
            x = x + self.drop_path(self.layer_scale2(y))
        return x


def build_layer_scale(embed_dims: int, value: float | None) -> nn.Module:
    """Build a layer scale of ``(..., C)`` that starts at ``value``; the identity for None."""
    return nn.Identity() if value is None else LayerScale(embed_dims, value)


def norm_stream(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise a residual stream, which may have a wider dtype than the model."""
    if isinstance(norm, nn.LayerNorm) and not isinstance(norm, RMSNorm):
        x = x.to(norm.weight.dtype)
    return norm(x)


class PlainLayer(CheckpointedBlock):
    """Residual layer of a norm and a mixer.

    Args:
        embed_dims: Channels C.
        mixer: Module that maps ``(B, L, C)``, grid and class positions to ``(B, L, C)``.
        norm: ``'rms'`` or ``'ln'``.
        drop_path: Drop-path rate of the mixer's output.
        with_cp: Recompute the layer in the backward pass to save memory.
    """

    def __init__(
        self,
        embed_dims: int,
        mixer: nn.Module,
        norm: str = "rms",
        drop_path: float = 0.0,
        with_cp: bool = False,
    ) -> None:
        super().__init__(with_cp)
        self.norm = build_norm(norm, embed_dims)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path)

    def _forward(
        self,
        x: Tensor,
        size: tuple[int, int],
        positions: tuple[int, ...],
        rope: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the stream after the layer and the mixer's output, each ``(B, L, C)``."""
        if rope is not None:
            x = rotate(x, *rope)
        h = self.mixer(norm_stream(self.norm, x), size, positions)
        return x + self.drop_path(h), h
