"""Small layers on channels-last maps ``(B, H, W, C)``: norms, convolutions, MLP, gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmvssm.ops.precision import autocast_cpu_dtype, autocast_enabled, compute_dtype
from mmvssm.ops.tracers import tracing

from .checks import one_of

#: Activations by the name that ``act`` arguments take; GELU is the exact (erf) form.
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU}

#: Hidden values that an MLP computes at a time on a CPU without gradients. They stay in the cache,
#: where a buffer of more than 32 MB would be made of new memory pages in every call.
MLP_BLOCK = 2**19


class RMSNorm(nn.LayerNorm):
    """Norm that divides by the root mean square of the channels, in float32 or wider.

    `Root Mean Square Layer Normalization <https://arxiv.org/abs/1910.07467>`_

    It is a subclass of ``nn.LayerNorm`` because MMEngine's ``norm_decay_mult`` recognises norms by
    their class.

    Args:
        num_features: Channels C.
        eps: Added to the mean square.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)`` in the dtype of the weight."""
        precise = x.to(compute_dtype(x.dtype))
        scale = torch.rsqrt(precise.square().mean(-1, keepdim=True) + self.eps)
        return (precise * scale).to(self.weight.dtype) * self.weight


#: Norm layers by name. Channels-first code calls a LayerNorm over the channels of each pixel
#: ``ln2d``; on channels-last maps it is LayerNorm itself.
NORMS = {"ln": nn.LayerNorm, "ln2d": nn.LayerNorm, "bn": nn.BatchNorm2d, "rms": RMSNorm}


def build_norm(kind: str, num_features: int) -> nn.Module:
    """Build a norm over channels for :func:`apply_norm`.

    Args:
        kind: ``'ln'`` (or its synonym ``'ln2d'``), ``'bn'`` or ``'rms'``.
        num_features: Number of channels.

    Raises:
        ValueError: If ``kind`` is unknown.
    """
    return NORMS[one_of("norm", kind, NORMS)](num_features, eps=1e-5)


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply ``norm`` over the last axis of ``x (B, H, W, C)``.

    Batch norms, including converted ``SyncBatchNorm`` layers, expect channels first, so they get a
    permuted view.
    """
    if isinstance(norm, _BatchNorm):
        return norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return norm(x)


class _ToMap(nn.Module):
    """Mixin for norms of ``(B, H, W, C)`` that returns a contiguous ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).permute(0, 3, 1, 2).contiguous()


class OutLayerNorm(_ToMap, nn.LayerNorm):
    """Layer norm ``(B, H, W, C) -> (B, C, H, W)``."""


class OutRMSNorm(_ToMap, RMSNorm):
    """RMS norm ``(B, H, W, C) -> (B, C, H, W)``."""


class OutIdentity(_ToMap, nn.Identity):
    """No norm, ``(B, H, W, C) -> (B, C, H, W)``."""


_OUT_NORMS = {"ln": OutLayerNorm, "ln2d": OutLayerNorm, "bn": nn.BatchNorm2d, "rms": OutRMSNorm}


def build_out_norm(kind: str | None, num_features: int) -> nn.Module:
    """Build the norm of a backbone's output for :func:`apply_out_norm`.

    These norms return ``(B, C, H, W)``, the layout that hooks for Grad-CAM or distillation expect.

    Args:
        kind: See :func:`build_norm`; None for none.
        num_features: Number of channels.

    Raises:
        ValueError: If ``kind`` is unknown.
    """
    if kind is None:
        return OutIdentity()
    return _OUT_NORMS[one_of("out_norm", kind, _OUT_NORMS)](num_features, eps=1e-5)


def apply_out_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm of :func:`build_out_norm`: ``(B, H, W, C)`` to contiguous ``(B, C, H, W)``."""
    if isinstance(norm, _BatchNorm):
        return norm(x.permute(0, 3, 1, 2)).contiguous()
    return norm(x)


def _half_precision_on_cpu(x: Tensor) -> torch.dtype | None:
    """Return the 16-bit dtype in which a layer would compute on the CPU, or None."""
    if x.device.type != "cpu":
        return None
    dtype = x.dtype
    if autocast_enabled("cpu") and dtype != torch.float64:
        dtype = autocast_cpu_dtype()
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def _trains_on_cpu(x: Tensor) -> bool:
    """Return whether a layer computes gradients on the CPU, and not in 16 bits."""
    on_cpu = x.device.type == "cpu"
    return on_cpu and torch.is_grad_enabled() and _half_precision_on_cpu(x) is None


class StridedConv2d(nn.Conv2d):
    """Convolution of any stride that is also correct in half precision on CPUs.

    For strided convolutions of maps that are a few columns wide, oneDNN (torch 2.11, AMX) returns
    wrong outputs (dense) or wrong weight gradients (depthwise). On CPUs, strided convolutions in
    half precision are therefore computed in float32 and rounded.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = None if max(self.stride) == 1 else _half_precision_on_cpu(x)
        if dtype is None:
            return super()._conv_forward(x, weight, bias)
        bias = None if bias is None else bias.float()
        with torch.autocast("cpu", enabled=False):
            y = super()._conv_forward(x.float(), weight.float(), bias)
        return y.to(dtype)


class DepthwiseConv(StridedConv2d):
    """Depthwise convolution of a channels-last map.

    Args:
        channels: Number of channels.
        kernel_size: Side of the kernel, an odd number; the padding is half of it, rounded down.
        bias: Whether to add a bias.
        stride: 1 keeps the size of the map, 2 halves it, rounding up.
    """

    def __init__(self, channels: int, kernel_size: int, bias: bool = True, stride: int = 1) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=channels,
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H', W', C)``; the permuted view has channels-last memory format."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SequenceConv(nn.Conv1d):
    """Depthwise convolution of zero-padded sequences.

    Args:
        channels: Channels C.
        kernel_size: Number of steps in the kernel; odd unless ``causal``.
        causal: Whether the kernel covers a step and those before it, instead of those around it.
        bias: Whether to add a bias.
    """

    def __init__(
        self, channels: int, kernel_size: int, causal: bool = False, bias: bool = True
    ) -> None:
        padding = kernel_size - 1 if causal else kernel_size // 2
        super().__init__(
            channels, channels, kernel_size, padding=padding, groups=channels, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, L, C) -> (B, L, C)``."""
        # torch 2.11's compiler merges the padding of a column with a gather before it, into C++
        # code that does not compile
        if _trains_on_cpu(x) and not tracing():
            return self._convolve_column(x)
        # the permuted view is a map of one row in channels-last memory format
        x, length = x.transpose(1, 2)[:, :, None], x.shape[1]
        padding = (0, self.padding[0])
        y = F.conv2d(x, self.weight[:, :, None], self.bias, padding=padding, groups=self.groups)
        return y[:, :, 0, :length].transpose(1, 2)

    def _convolve_column(self, x: Tensor) -> Tensor:
        """Convolve a map of one column, whose backward pass in oneDNN is eight times as fast.

        This needs an unpadded convolution, and strides that oneDNN recognises as channels-last. The
        forward pass takes twice as long as for a row.
        """
        before = self.padding[0]
        x = F.pad(x, (0, 0, before, self.kernel_size[0] - 1 - before))
        x = x[:, :, None].permute(0, 3, 1, 2)
        y = F.conv2d(x, self.weight[..., None], self.bias, groups=self.groups)
        return y.permute(0, 2, 3, 1).flatten(1, 2)


class PointwiseConv(nn.Conv2d):
    """1x1 convolution of a channels-last map, computed as a linear layer.

    It differs from ``nn.Linear`` for initialisers: it is a convolution with a 4-D weight.

    Args:
        in_channels: Channels C of the input.
        out_channels: Channels C' of the output.
        bias: Whether to add a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C')``."""
        return F.linear(x, self.weight.flatten(1), self.bias)


class Mlp(nn.Module):
    """Two linear layers around an activation, optionally gated or with a convolution.

    Args:
        embed_dims: Width of input and output.
        hidden_dims: Hidden width.
        act: Name of the activation.
        gated: Let the first layer return two halves ``u, g``, and activate by ``u * act(g)``.
        dwconv: Use 1x1 convolutions instead of linear layers, and add a depthwise 3x3 convolution
            of the hidden map to it before the activation (the "ConvFFN" of MSVMamba).
    """

    def __init__(
        self,
        embed_dims: int,
        hidden_dims: int,
        act: str = "gelu",
        gated: bool = False,
        dwconv: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_dims, self.gated = hidden_dims, gated
        linear = PointwiseConv if dwconv else nn.Linear
        self.fc1 = linear(embed_dims, 2 * hidden_dims if gated else hidden_dims)
        self.dwconv = DepthwiseConv(hidden_dims, 3) if dwconv else None
        self.act = ACTIVATIONS[one_of("mlp_act", act, ACTIVATIONS)]()
        self.fc2 = linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``; with ``dwconv``, ``(B, H, W, C) -> (B, H, W, C)``."""
        pixels = max(1, MLP_BLOCK // max(1, self.hidden_dims))
        if self._may_split(x) and x.shape[:-1].numel() > 2 * pixels:
            blocks = x.flatten(0, -2).split(pixels)
            return torch.cat([self._compute(block) for block in blocks]).unflatten(0, x.shape[:-1])
        return self._compute(x)

    def _may_split(self, x: Tensor) -> bool:
        """Return whether blocks of pixels cost less than all at once, and nobody sees them.

        Gradients need all hidden values; a tracer would record the number of blocks, and a hook
        would meet parts of the map.
        """
        if torch.is_grad_enabled() or self.dwconv is not None or x.device.type != "cpu":
            return False
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in self.children())
        return not (hooked or tracing() or torch.jit.is_tracing())

    def _compute(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        gate = None
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
        if self.dwconv is not None:
            x = x + self.dwconv(x)
        if gate is not None:
            return self.fc2(x * self.act(gate))
        return self.fc2(self.act(x))


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for random samples while training.

    `Deep Networks with Stochastic Depth <https://arxiv.org/abs/1603.09382>`_

    Args:
        drop_prob: Probability to drop the branch of a sample, in ``[0, 1)``. The other samples are
            scaled up to preserve the mean.

    Raises:
        ValueError: If ``drop_prob`` is out of range.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise ValueError(f"drop_prob must be at least 0 and below 1, got {drop_prob}")
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ...) -> (B, ...)`` in the same dtype."""
        if self.drop_prob == 0 or not self.training:
            return x
        drawn = torch.rand(len(x), *(1,) * (x.ndim - 1), device=x.device)
        return x / (1 - self.drop_prob) * (drawn >= self.drop_prob)


class LayerScale(nn.Module):
    """Learned scale of each channel.

    `Going deeper with Image Transformers <https://arxiv.org/abs/2103.17239>`_

    Args:
        num_features: Channels C.
        value: Initial value of the scales.
    """

    def __init__(self, num_features: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_features,), float(value)))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C) -> (..., C)``."""
        return x * self.weight


class ChannelGate(nn.Module):
    """Channel attention computed from the normalised input.

    This is the ``BiAttn`` of EfficientVMamba and LocalMamba.

    Args:
        channels: Channels C, at least 8; the hidden width is ``C // 8``.

    Raises:
        ValueError: If there are fewer than 8 channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 8:
            raise ValueError(
                f"channels must be at least 8 for a gate of hidden width C // 8, got {channels}"
            )
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.global_reduce = nn.Linear(channels, channels // 8)
        self.channel_select = nn.Linear(channels // 8, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        mean = self.norm(x).mean((1, 2), keepdim=True)
        return x * self.select(mean)

    def select(self, mean: Tensor) -> Tensor:
        """Return the weights of channels ``(..., C)``, from means of the normalised input."""
        return self.channel_select(F.gelu(self.global_reduce(mean))).sigmoid()


class SqueezeExcite(nn.Module):
    """Channel attention of `Squeeze-and-Excitation Networks <https://arxiv.org/abs/1709.01507>`_.

    Args:
        channels: Channels C.
        hidden_dims: Width of the bottleneck.
        conv: Use 1x1 convolutions with biases instead of linear layers without.
    """

    def __init__(self, channels: int, hidden_dims: int, conv: bool = False) -> None:
        super().__init__()
        linear = PointwiseConv if conv else nn.Linear
        self.fc1 = linear(channels, hidden_dims, bias=conv)
        self.fc2 = linear(hidden_dims, channels, bias=conv)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        mean = x.mean((1, 2), keepdim=True)
        return x * self.fc2(F.relu(self.fc1(mean))).sigmoid()
