"""Small layers on channels-last maps ``(B, H, W, C)``: norms, depthwise convolution, MLP."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .checks import one_of

#: Activations by the names that ``act`` arguments take; GELU is the exact (erf) form.
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU}

#: Norm layers by name. ``ln2d`` is what channels-first code calls a LayerNorm over the
#: channels of each pixel; on channels-last maps it is LayerNorm itself.
NORMS = {"ln": nn.LayerNorm, "ln2d": nn.LayerNorm, "bn": nn.BatchNorm2d}


def build_norm(kind: str, num_features: int) -> nn.Module:
    """A norm over channels, to be called by :func:`apply_norm`.

    Args:
        kind: ``'ln'`` (or its synonym ``'ln2d'``) or ``'bn'``.
        num_features: Number of channels.

    Raises:
        ValueError: If ``kind`` is unknown.
    """
    return NORMS[one_of("norm", kind, NORMS)](num_features, eps=1e-5)


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply ``norm`` over the last axis of ``x (B, H, W, C)``.

    Batch norms (also those that a conversion to ``SyncBatchNorm`` put in place)
    want the channels second, so they see a permuted view.
    """
    if isinstance(norm, _BatchNorm):
        return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return norm(x)


class DepthwiseConv(nn.Conv2d):
    """Depthwise convolution of a channels-last map that keeps its size.

    Args:
        channels: Number of channels.
        kernel_size: Odd side of the kernel.
        bias: Whether to add a bias.
    """

    def __init__(self, channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``; the permuted view is channels-last memory format."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Two linear layers around an activation, optionally gated.

    Args:
        embed_dims: Width of input and output.
        hidden_dims: Width in between.
        act: Name of the activation.
        gated: Widen the first layer to two halves ``u, g`` and pass ``u * act(g)`` on.
    """

    def __init__(
        self, embed_dims: int, hidden_dims: int, act: str = "gelu", gated: bool = False
    ) -> None:
        super().__init__()
        self.gated = gated
        self.fc1 = nn.Linear(embed_dims, 2 * hidden_dims if gated else hidden_dims)
        self.act = ACTIVATIONS[one_of("mlp_act", act, ACTIVATIONS)]()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        x = self.fc1(x)
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
            return self.fc2(x * self.act(gate))
        return self.fc2(self.act(x))
