"""The parameters of selective scans along routes, and the call of the op: what all mixers share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvssm.ops import selective_scan_2d

from .checks import one_of

INITS = ("v0", "v1", "v2", "vim", "linear")


class SelectiveScans(BaseModule):
    """Selective scans of a map along K routes, each with parameters of its own.

    The projections to step, B and C act on each pixel alone, so one matrix product in pixel order
    serves all routes; the scan reads and writes through route tables.

    Args:
        num_routes: Number of parameter sets K.
        inner_dims: Channels Di of the map.
        d_state: States N per channel.
        dt_rank: Rank R of the step projection.
        scalar_decay: One decay per head instead of per channel and state, with R heads
            of ``Di / R`` channels and no step projection.
        force_fp32: Cast the scan's inputs to float32 under autocast. False leaves them in
            autocast's precision; state and output of the scan are float32 either way.
        ssm_init: Initial values of the scan's parameters: ``'v0'`` (as Mamba: decays
            1..N, log-uniform steps), ``'v1'`` (normal), ``'v2'`` (zero and uniform), ``'vim'`` (as
            ``'v0'``, but only the first route's steps: those of the others have bias 0) or
            ``'linear'`` (decays as ``'v0'``, projections as those of other linear layers:
            truncated normal weights of std 0.02, bias 0).
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If a size is not positive, ``ssm_init`` unknown, or the heads of
            ``scalar_decay`` do not divide the width.
    """

    def __init__(
        self,
        num_routes: int,
        inner_dims: int,
        d_state: int,
        dt_rank: int,
        scalar_decay: bool = False,
        force_fp32: bool = False,
        ssm_init: str = "v0",
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for name, value in dict(inner_dims=inner_dims, d_state=d_state, dt_rank=dt_rank).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if scalar_decay and inner_dims % dt_rank:
            raise ValueError(
                f"scalar_decay needs dt_rank heads that divide the inner width {inner_dims},"
                f" got {dt_rank}"
            )
        if scalar_decay and ssm_init not in ("v1", "v2"):
            raise ValueError(f"ssm_init must be 'v1' or 'v2' with scalar_decay, got {ssm_init!r}")
        self.num_routes = num_routes
        self.d_state = d_state
        self.dt_rank = dt_rank
        self.scalar_decay = scalar_decay
        self.force_fp32 = force_fp32
        self.ssm_init = one_of("ssm_init", ssm_init, INITS)

        self.x_proj_weight = nn.Parameter(
            torch.empty(num_routes, dt_rank + 2 * d_state, inner_dims)
        )
        if scalar_decay:
            self.dt_projs_bias = nn.Parameter(torch.empty(num_routes, dt_rank))
            self.A_logs = nn.Parameter(torch.empty(num_routes, dt_rank))
            self.Ds = nn.Parameter(torch.empty(num_routes, dt_rank, inner_dims // dt_rank))
        else:
            self.dt_projs_weight = nn.Parameter(torch.empty(num_routes, inner_dims, dt_rank))
            self.dt_projs_bias = nn.Parameter(torch.empty(num_routes, inner_dims))
            self.A_logs = nn.Parameter(torch.empty(num_routes * inner_dims, d_state))
            self.Ds = nn.Parameter(torch.empty(num_routes * inner_dims))
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
        if self.ssm_init in ("v0", "vim", "linear"):
            states = torch.arange(1, self.d_state + 1, dtype=torch.float32)
            self.A_logs.copy_(states.log().expand_as(self.A_logs))
            bound = self.dt_rank**-0.5
            self.dt_projs_weight.uniform_(-bound, bound)
            # the inverse of softplus at log-uniform steps
            low, high = math.log(1e-3), math.log(1e-1)
            step = torch.empty_like(self.dt_projs_bias).uniform_(low, high).exp_().clamp_(min=1e-4)
            self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))
            if self.ssm_init == "vim":
                self.dt_projs_bias[1:].zero_()
            elif self.ssm_init == "linear":
                self.dt_projs_bias.zero_()
                for weight in (self.x_proj_weight, self.dt_projs_weight):
                    nn.init.trunc_normal_(weight, std=0.02, a=-0.1, b=0.1)
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

    def project(self, x: Tensor, used: slice = slice(None)) -> Tensor:
        """The routes' steps (in their low rank), B and C at every pixel.

        Args:
            x: ``(B, P, Di)``, or ``(B, P, K, Di)`` with an input per route.
            used: Parameter sets to take.

        Returns:
            ``(B, P, K, R + 2N)``.
        """
        weight = self.x_proj_weight[used]
        if x.dim() == 4:
            return torch.einsum("bpkd,ked->bpke", x, weight)
        return F.linear(x, weight.flatten(0, 1)).unflatten(-1, (weight.shape[0], -1))

    def run_scan(
        self,
        x: Tensor,
        table: Tensor,
        x_dbl: Tensor | None = None,
        *,
        target: Tensor | None = None,
        num_out: int | None = None,
        merge: str = "sum",
        used: slice = slice(None),
    ) -> Tensor:
        """Scan ``x`` along the routes of ``table``.

        Args:
            x: ``(B, P, Di)``, or ``(B, P, K, Di)`` with an input per route.
            table: int32 ``(K, L)``, see :mod:`mmvssm.ops.routes`.
            x_dbl: Projections of ``x``; None for :meth:`project`.
            target: Where outputs go, None for where inputs came from.
            num_out: Positions of the output, None for P.
            merge: ``'sum'`` or ``'none'``.
            used: Parameter sets to take, one per route.

        Returns:
            float32 ``(B, num_out, Di)``, for ``merge='none'`` ``(B, num_out, K, Di)``.
        """
        if x_dbl is None:
            x_dbl = self.project(x, used)
        precision = torch.promote_types(x.dtype, torch.float32)
        if self.force_fp32:
            x, x_dbl = x.to(precision), x_dbl.to(precision)
        A, dt_weight, dt_bias, D = self._scan_parameters()
        sets = (self.num_routes, -1)
        return selective_scan_2d(
            x,
            x_dbl,
            table,
            A.unflatten(0, sets)[used].flatten(0, 1),
            dt_weight[used],
            dt_bias[used],
            D.unflatten(0, sets)[used].flatten(),
            out_routes=target,
            num_out=num_out,
            merge=merge,
            out_dtype=precision,
        )

    def _scan_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``A (K*Di, N)``, step weight ``(K, Di, R)``, step bias ``(K, Di)`` and ``D (K*Di,)``."""
        A = -torch.exp(self.A_logs.to(torch.promote_types(self.A_logs.dtype, torch.float32)))
        if not self.scalar_decay:
            return A, self.dt_projs_weight, self.dt_projs_bias, self.Ds
        # channel r * P + p of a route takes the step and the decay of head r
        head_dim = self.Ds.shape[-1]
        A = A.repeat_interleave(head_dim, dim=1).view(-1, 1).expand(-1, self.d_state)
        heads = torch.eye(self.dt_rank, dtype=A.dtype, device=A.device)
        dt_weight = heads.repeat_interleave(head_dim, dim=0).expand(self.num_routes, -1, -1)
        dt_bias = self.dt_projs_bias.repeat_interleave(head_dim, dim=1)
        return A, dt_weight, dt_bias, self.Ds.flatten()
