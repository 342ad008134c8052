"""SS2D: the mixer of VMamba, selective scans of a map along several routes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvssm.ops import routes, selective_scan_2d
from mmvssm.registry import MODELS

from .basic import ACTIVATIONS, DepthwiseConv
from .checks import one_of

NUM_ROUTES = 4
ROUTE_TABLES = {"cross2d": routes.cross2d, "unidi": routes.unidi, "bidi": routes.bidi}
SCANS = (*ROUTE_TABLES, "cascade")
INITS = ("v0", "v1", "v2")


class _SpatialSoftmax(nn.Module):
    """Softmax over all pixels of each channel of ``(B, H, W, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).softmax(1).view_as(x)


#: What follows the scan: published models use the layer norm, the others are ablations.
OUT_NORMS = {
    "layernorm": lambda dim: nn.LayerNorm(dim, eps=1e-5),
    "none": lambda dim: nn.Identity(),
    "dwconv3": lambda dim: DepthwiseConv(dim, 3, bias=False),
    "cnorm": lambda dim: nn.Sequential(
        nn.LayerNorm(dim, eps=1e-5), DepthwiseConv(dim, 3, bias=False)
    ),
    "softmax": lambda dim: _SpatialSoftmax(),
    "sigmoid": lambda dim: nn.Sigmoid(),
}


@MODELS.register_module()
class SS2D(BaseModule):
    """2-D selective scan of `VMamba <https://arxiv.org/abs/2401.10166>`_.

    Linear layer in, depthwise convolution and activation, four selective scans along
    routes over the map added up, norm, optional gate, linear layer out. The
    projections to step, B and C act on each pixel alone, so one matrix product in
    pixel order serves all routes; the scan reads and writes through route tables.

    Args:
        embed_dims: Channels C of input and output.
        d_state: States N per channel.
        ssm_ratio: Inner width ``Di = int(ssm_ratio * C)``.
        dt_rank: Rank R of the step projection; None for ``ceil(C / 16)``.
        d_conv: Odd side of the depthwise convolution; below 2 there is none.
        conv_bias: Whether that convolution has a bias.
        act: Activation after it: ``'silu'``, ``'gelu'`` or ``'relu'``.
        scan: ``'cross2d'`` (rows, columns and both reversed), ``'unidi'`` (rows, four
            times), ``'bidi'`` (rows and reversed rows, twice each) or ``'cascade'``
            (each row both ways, then each column both ways, layer norms before both).
        cascade_flip: In the cascade, add the reversed scan at the pixels it read. False
            adds it unflipped, as the published code does.
        scalar_decay: One decay per head instead of per channel and state, with R heads
            of ``Di / R`` channels and no step projection ("m0").
        gate: Widen the input layer by Di channels that multiply the scan's output.
        gate_act: Whether the gate passes through ``act``.
        out_norm: What follows the scan: ``'layernorm'``, ``'none'``, ``'dwconv3'``
            (depthwise convolution), ``'cnorm'`` (layer norm, then that convolution),
            ``'softmax'`` (over all pixels) or ``'sigmoid'``.
        out_act: Whether a GELU follows ``out_norm``.
        force_fp32: Cast the scan's inputs to float32 under autocast. False leaves them in
            autocast's precision; state and output of the scan are float32 either way.
        ssm_init: Initial values of the scan's parameters: ``'v0'`` (as Mamba: decays
            1..N, log-uniform steps), ``'v1'`` (normal) or ``'v2'`` (zero and uniform).
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is not one of its choices, the inner width is zero,
            ``d_conv`` is even, or the heads of ``scalar_decay`` do not divide the width.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        dt_rank: int | None = None,
        d_conv: int = 3,
        conv_bias: bool = False,
        act: str = "silu",
        scan: str = "cross2d",
        cascade_flip: bool = False,
        scalar_decay: bool = False,
        gate: bool = False,
        gate_act: bool = True,
        out_norm: str = "layernorm",
        out_act: bool = False,
        force_fp32: bool = False,
        ssm_init: str = "v0",
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        inner = int(ssm_ratio * embed_dims)
        rank = math.ceil(embed_dims / 16) if dt_rank is None else dt_rank
        for name, value in (("int(ssm_ratio * embed_dims)", inner), ("d_state", d_state)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if rank < 1:
            raise ValueError(f"dt_rank must be at least 1, got {rank}")
        if d_conv > 1 and d_conv % 2 == 0:
            raise ValueError(f"d_conv must be odd to keep the map's size, got {d_conv}")
        if scalar_decay and inner % rank:
            raise ValueError(
                f"scalar_decay needs dt_rank heads that divide the inner width {inner}, got {rank}"
            )
        if scalar_decay and ssm_init == "v0":
            raise ValueError("ssm_init must be 'v1' or 'v2' with scalar_decay, got 'v0'")
        self.d_state = d_state
        self.dt_rank = rank
        self.scan = one_of("scan", scan, SCANS)
        self.cascade_flip = cascade_flip
        self.scalar_decay = scalar_decay
        self.force_fp32 = force_fp32
        self.ssm_init = one_of("ssm_init", ssm_init, INITS)

        act = ACTIVATIONS[one_of("act", act, ACTIVATIONS)]
        self.in_proj = nn.Linear(embed_dims, 2 * inner if gate else inner, bias=False)
        self.gate_act = (act() if gate_act else nn.Identity()) if gate else None
        self.conv2d = DepthwiseConv(inner, d_conv, conv_bias) if d_conv > 1 else nn.Identity()
        self.act = act()
        self.out_norm = OUT_NORMS[one_of("out_norm", out_norm, OUT_NORMS)](inner)
        self.out_act = nn.GELU() if out_act else nn.Identity()
        self.out_proj = nn.Linear(inner, embed_dims, bias=False)

        self.x_proj_weight = nn.Parameter(torch.empty(NUM_ROUTES, rank + 2 * d_state, inner))
        if scalar_decay:
            self.dt_projs_bias = nn.Parameter(torch.empty(NUM_ROUTES, rank))
            self.A_logs = nn.Parameter(torch.empty(NUM_ROUTES, rank))
            self.Ds = nn.Parameter(torch.empty(NUM_ROUTES, rank, inner // rank))
        else:
            self.dt_projs_weight = nn.Parameter(torch.empty(NUM_ROUTES, inner, rank))
            self.dt_projs_bias = nn.Parameter(torch.empty(NUM_ROUTES, inner))
            self.A_logs = nn.Parameter(torch.empty(NUM_ROUTES * inner, d_state))
            self.Ds = nn.Parameter(torch.empty(NUM_ROUTES * inner))
        # the marks of the published code; whether they are followed is the config's choice
        self.A_logs._no_weight_decay = True
        self.Ds._no_weight_decay = True
        self.reset_ssm_parameters()

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """Give the scan's parameters their initial values."""
        bound = self.x_proj_weight.shape[-1] ** -0.5
        self.x_proj_weight.uniform_(-bound, bound)
        self.Ds.fill_(1.0)
        steps = [self.dt_projs_bias]
        if not self.scalar_decay:
            steps.append(self.dt_projs_weight)
        if self.ssm_init == "v0":
            states = torch.arange(1, self.d_state + 1, dtype=torch.float32)
            self.A_logs.copy_(states.log().expand_as(self.A_logs))
            bound = self.dt_rank**-0.5
            self.dt_projs_weight.uniform_(-bound, bound)
            # the inverse of softplus at log-uniform steps
            low, high = math.log(1e-3), math.log(1e-1)
            step = torch.empty_like(self.dt_projs_bias).uniform_(low, high).exp_().clamp_(min=1e-4)
            self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))
        elif self.ssm_init == "v1":
            self.A_logs.normal_()
            for parameter in steps:
                parameter.normal_().mul_(0.1)
        else:
            self.A_logs.zero_()
            for parameter in steps:
                parameter.uniform_().mul_(0.1)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; the scan's parameters keep their own rule."""
        super().init_weights()
        self.reset_ssm_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        gate = None
        x = self.in_proj(x)
        if self.gate_act is not None:
            x, gate = x.chunk(2, dim=-1)
        x = self.act(self.conv2d(x)).contiguous()
        y = self._cascade(x) if self.scan == "cascade" else self._routes(x)
        # a model cast to half precision as a whole keeps its norm in half precision
        y = self.out_act(self.out_norm(y.to(self.Ds.dtype)).to(x.dtype))
        if gate is not None:
            y = y * self.gate_act(gate)
        return self.out_proj(y)

    def _routes(self, x: Tensor) -> Tensor:
        """Sum of the scans along the four routes over ``x (B, H, W, Di)``, in float32."""
        table = ROUTE_TABLES[self.scan](*x.shape[1:3], device=x.device)
        return self._scan(x.flatten(1, 2), table, table, slice(0, NUM_ROUTES)).view(x.shape)

    def _cascade(self, x: Tensor) -> Tensor:
        """Rows as sequences of their own with routes 0 and 1, then columns with 2 and 3."""
        dtype = x.dtype
        for first in (0, 2):
            sequences = F.layer_norm(x, x.shape[-1:]).to(dtype).flatten(0, 1)
            table = routes.forward_backward(sequences.shape[1], device=x.device)
            target = table if self.cascade_flip else table[:1].expand(2, -1).contiguous()
            y = self._scan(sequences, table, target, slice(first, first + 2))
            x = y.view(x.shape).transpose(1, 2).contiguous()
        return x

    def _scan(self, x: Tensor, table: Tensor, target: Tensor, used: slice) -> Tensor:
        """Scan ``x (B, P, Di)`` with the parameters of the ``used`` routes."""
        weight = self.x_proj_weight[used]
        num_routes = weight.shape[0]
        x_dbl = F.linear(x, weight.flatten(0, 1)).unflatten(-1, (num_routes, -1))
        precision = torch.promote_types(x.dtype, torch.float32)
        if self.force_fp32:
            x, x_dbl = x.to(precision), x_dbl.to(precision)
        A, dt_weight, dt_bias, D = self._scan_parameters()
        return selective_scan_2d(
            x,
            x_dbl,
            table,
            A.unflatten(0, (NUM_ROUTES, -1))[used].flatten(0, 1),
            dt_weight[used],
            dt_bias[used],
            D.unflatten(0, (NUM_ROUTES, -1))[used].flatten(),
            out_routes=target,
            out_dtype=precision,
        )

    def _scan_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``A (4*Di, N)``, step weight ``(4, Di, R)``, step bias ``(4, Di)`` and ``D (4*Di,)``."""
        A = -torch.exp(self.A_logs.to(torch.promote_types(self.A_logs.dtype, torch.float32)))
        if not self.scalar_decay:
            return A, self.dt_projs_weight, self.dt_projs_bias, self.Ds
        # channel r * P + p of a route takes the step and the decay of head r
        head_dim = self.Ds.shape[-1]
        A = A.repeat_interleave(head_dim, dim=1).view(-1, 1).expand(-1, self.d_state)
        heads = torch.eye(self.dt_rank, dtype=A.dtype, device=A.device)
        dt_weight = heads.repeat_interleave(head_dim, dim=0).expand(NUM_ROUTES, -1, -1)
        dt_bias = self.dt_projs_bias.repeat_interleave(head_dim, dim=1)
        return A, dt_weight, dt_bias, self.Ds.flatten()
