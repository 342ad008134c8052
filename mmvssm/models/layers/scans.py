"""Base class of the mixers: the parameters of selective scans, and the call of the op."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvssm.ops import selective_scan_2d
from mmvssm.ops.precision import compute_dtype
from mmvssm.ops.routes import RouteSet, Scan, read_scan, route_set
from mmvssm.ops.tracers import between_graphs
from mmvssm.registry import MODELS

from .checks import at_least, known_arguments, one_of

INITS = ("v0", "v0-first", "v1", "v2", "linear")


@dataclass(frozen=True)
class Route:
    """One route of a mixer, for figures and analysis.

    Attributes:
        name: Caption of the route.
        size: Map ``(H, W)`` that it visits.
        steps: int64 ``(L,)``: flat row-major index of the pixel visited at each step, -1 for a zero
            token, ``H * W + t`` for class token ``t``.
        cls_places: Index of the pixel before which each class token is inserted; ``H * W`` for the
            end.
        starts: Steps, besides the first, at which the state is reset.
        first: Number of steps of the same scan before this route, if it is a part of one.
        total: Number of steps of all parts of the scan; None if ``steps`` is the entire scan.
    """

    name: str
    size: tuple[int, int]
    steps: Tensor
    cls_places: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    first: int = 0
    total: int | None = None


def name_routes(
    scan: Scan, height: int, width: int, cls_positions: Sequence[int] = ()
) -> list[Route]:
    """Return the routes of a scan over a map.

    Args:
        scan: The scan.
        height: Rows of the map.
        width: Columns of the map.
        cls_positions: Ascending positions of class tokens among the tokens.

    Raises:
        ValueError: If the scan was registered with another number of titles than it has routes.
    """
    positions = tuple(cls_positions)
    table = route_set(scan, height, width, cls_positions=positions).read
    num_pixels = height * width
    pixels = list(range(num_pixels))
    for t, position in enumerate(positions):
        pixels.insert(position, num_pixels + t)
    # index -1 selects the last entry, -1
    table = torch.tensor([*pixels, -1])[table.long()]
    titles = scan.titles or [f"route {k}" for k in range(len(table))]
    if len(titles) != len(table):
        raise ValueError(
            f"titles of scan {scan.name!r} must name its {len(table)} routes, got {len(titles)}"
        )
    places = tuple(position - t for t, position in enumerate(positions))
    return [Route(title, (height, width), steps, places) for title, steps in zip(titles, table)]


def mixer_class(options: Mapping, default: type) -> type:
    """Return the class of a mixer.

    Names are looked up only in ``mmvssm.registry.MODELS``. MMEngine's own lookup would import the
    module of a dotted name, and archs may come from untrusted files.

    Args:
        options: Arguments of the mixer, optionally with its ``type``: a registered name or a class.
        default: The class if ``options`` has no ``type``.

    Raises:
        ValueError: If no mixer is registered under the type.
    """
    kind = options.get("type", default)
    if isinstance(kind, str):
        kind = MODELS.module_dict.get(kind.removeprefix("mmvssm."))
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ValueError(
            "the type of mixer must be registered in mmvssm.registry.MODELS, got"
            f" {options['type']!r}"
        )
    return kind


def check_mixer(options: Mapping, default: type, fixed: Iterable[str] = ()) -> None:
    """Check the arguments of a mixer.

    Args:
        options: See :func:`mixer_class`.
        default: See :func:`mixer_class`.
        fixed: Arguments that must not be given, besides ``embed_dims``.

    Raises:
        ValueError: If ``options`` is not a dict, or has an unknown type or argument.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"mixer must be a dict, got {options!r}")
    given = {name: value for name, value in options.items() if name != "type"}
    known_arguments("mixer", given, mixer_class(options, default), fixed)


def build_mixer(default: type, embed_dims: int, options: Mapping) -> nn.Module:
    """Build a mixer of ``embed_dims`` channels; see :func:`mixer_class`."""
    cls = mixer_class(options, default)
    return cls(embed_dims, **{k: v for k, v in options.items() if k != "type"})


class SelectiveScans(BaseModule):
    """Base class of the mixers: selective scans along K routes, each with its own parameters.

    The projections to step, B and C act on each pixel alone, so one matrix product in pixel order
    serves all routes; the scan reads and writes through route tables.

    Args:
        embed_dims: Channels C of input and output.
        scan: The routes; see :func:`mmvssm.ops.routes.read_scan`.
        output_order: See :func:`mmvssm.ops.routes.read_scan`.
        d_state: States N per channel.
        ssm_ratio: Inner width ``Di = int(ssm_ratio * C)``.
        dt_rank: Rank R of the step projection; None for ``ceil(C / 16)``.
        extra_routes: Number of parameter sets in addition to those of the routes of ``scan``.
        force_fp32: Cast the scan's inputs to float32 under autocast. False leaves them in
            autocast's precision; state and output of the scan are float32 in both cases.
        ssm_init: Initial values of the scan's parameters: ``'v0'`` (as in Mamba: decays
            1..N, log-uniform step sizes), ``'v0-first'`` (the same for the first route, step bias 0
            for the others), ``'v1'`` (normal), ``'v2'`` (zero and uniform) or ``'linear'`` (decays
            as in ``'v0'``, projections like other linear layers: truncated normal weights of std
            0.02, bias 0).
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If ``scan`` or ``ssm_init`` is unknown, or a size is not positive.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            cls.forward = between_graphs(cls.forward)  # type: ignore[method-assign]

    def __init__(
        self,
        embed_dims: int,
        scan: str | Sequence[str] | Scan,
        output_order: str = "inverse",
        *,
        d_state: int,
        ssm_ratio: float,
        dt_rank: int | None = None,
        extra_routes: int = 0,
        force_fp32: bool = False,
        ssm_init: str = "v0",
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.scan = read_scan(scan, output_order)
        self.num_routes = self.scan.num_routes
        self.inner_dims = int(ssm_ratio * embed_dims)
        if self.inner_dims < 1:
            raise ValueError(
                f"int(ssm_ratio * embed_dims) must be at least 1, got {self.inner_dims}"
            )
        self.d_state = d_state
        self.dt_rank = math.ceil(embed_dims / 16) if dt_rank is None else dt_rank
        at_least(1, d_state=self.d_state, dt_rank=self.dt_rank)
        self.num_param_sets = self.num_routes + extra_routes
        self.force_fp32 = force_fp32
        self.ssm_init = one_of("ssm_init", ssm_init, INITS)
        self.build_ssm_parameters()
        # the published code sets this attribute, too; the config decides whether it is used
        for parameter in (self.A_logs, self.Ds):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_ssm_parameters()

    def build_ssm_parameters(self) -> None:
        """Create the scan's parameters, uninitialised."""
        sets, inner = self.num_param_sets, self.inner_dims
        self.x_proj_weight = nn.Parameter(torch.empty(sets, self.dt_rank + 2 * self.d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(sets, inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(sets, inner))
        self.A_logs = nn.Parameter(torch.empty(sets * inner, self.d_state))
        self.Ds = nn.Parameter(torch.empty(sets * inner))

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """Initialise the scan's parameters."""
        bound = self.x_proj_weight.shape[-1] ** -0.5
        self.x_proj_weight.uniform_(-bound, bound)
        self.Ds.fill_(1.0)
        steps = (self.dt_projs_bias, self.dt_projs_weight)
        if self.ssm_init == "v1":
            self.A_logs.normal_()
            for parameter in steps:
                parameter.normal_().mul_(0.1)
        elif self.ssm_init == "v2":
            self.A_logs.zero_()
            for parameter in steps:
                parameter.uniform_().mul_(0.1)
        else:
            self._reset_as_mamba()

    def _reset_as_mamba(self) -> None:
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32)
        self.A_logs.copy_(states.log().expand_as(self.A_logs))
        bound = self.dt_rank**-0.5
        self.dt_projs_weight.uniform_(-bound, bound)
        # the inverse softplus of log-uniform step sizes
        low, high = math.log(1e-3), math.log(1e-1)
        step = torch.empty_like(self.dt_projs_bias).uniform_(low, high).exp_().clamp_(min=1e-4)
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))
        if self.ssm_init == "v0-first":
            self.dt_projs_bias[1:].zero_()
        elif self.ssm_init == "linear":
            self.dt_projs_bias.zero_()
            for weight in (self.x_proj_weight, self.dt_projs_weight):
                nn.init.trunc_normal_(weight, std=0.02, a=-0.1, b=0.1)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; the scan's parameters keep their own rule."""
        super().init_weights()
        self.reset_ssm_parameters()

    @property
    def param_dtype(self) -> torch.dtype:
        """Dtype of the model: 16 bits if the entire model was cast to half precision."""
        return self.Ds.dtype

    def name_routes(
        self, height: int, width: int, cls_positions: Sequence[int] = ()
    ) -> list[Route]:
        """Return all routes of the mixer over a map, in the order of its parameters.

        Args:
            height: Rows of the map.
            width: Columns of the map.
            cls_positions: Ascending positions of class tokens among the tokens.
        """
        return name_routes(self.scan, height, width, cls_positions)

    def routes_over(self, x: Tensor) -> RouteSet:
        """Return the routes of ``scan`` over a map ``x (B, H, W, Di)``.

        Raises:
            ValueError: If their number differs from that over other maps.
        """
        height, width = x.shape[1:3]
        routes = route_set(self.scan, height, width, device=x.device)
        self.check_number(routes, height, width)
        return routes

    def check_number(self, routes: RouteSet, height: int, width: int) -> None:
        """Raise ValueError unless there is one parameter set for each route."""
        if routes.num_routes != self.num_routes:
            raise ValueError(
                f"scan {self.scan.name!r} must have {self.num_routes} routes over every map, got"
                f" {routes.num_routes} over {height}x{width} pixels"
            )

    def run_scan(
        self,
        x: Tensor,
        routes: RouteSet,
        *,
        merge: str = "sum",
        param_sets: slice = slice(None),
    ) -> Tensor:
        """Scan a map along routes.

        Args:
            x: ``(B, P, Di)``, or ``(B, P, K, Di)`` with an input per route.
            routes: K routes over P pixels.
            merge: ``'sum'`` adds the routes, ``'none'`` keeps them separate.
            param_sets: Parameter sets to use, one per route.

        Returns:
            float32 ``(B, Q, Di)``, or ``(B, Q, K, Di)`` for ``merge='none'``.
        """
        x, x_dbl, A, dt_weight, dt_bias, D = self.scan_inputs(x, routes, param_sets)
        return selective_scan_2d(
            x,
            x_dbl,
            routes,
            A,
            dt_weight,
            dt_bias,
            D,
            merge=merge,
            # the scan's output is never narrower than float32
            out_dtype=compute_dtype(x.dtype),
        )

    def scan_inputs(
        self, x: Tensor, routes: RouteSet, param_sets: slice = slice(None)
    ) -> tuple[Tensor, ...]:
        """Return the arguments of :meth:`run_scan` for :func:`mmvssm.ops.selective_scan_2d`.

        Args:
            x: See :meth:`run_scan`.
            routes: See :meth:`run_scan`.
            param_sets: See :meth:`run_scan`.

        Returns:
            ``x``, ``x_dbl``, ``A``, ``dt_weight``, ``dt_bias`` and ``D``.
        """
        x_dbl = self._project(x, routes, self.x_proj_weight[param_sets])
        if self.force_fp32:
            precision = compute_dtype(x.dtype)
            x, x_dbl = x.to(precision), x_dbl.to(precision)
        A, dt_weight, dt_bias, D = self.scan_parameters()
        sets = (self.num_param_sets, -1)
        return (
            x,
            x_dbl,
            A.unflatten(0, sets)[param_sets].flatten(0, 1),
            dt_weight[param_sets],
            dt_bias[param_sets],
            D.unflatten(0, sets)[param_sets].flatten(),
        )

    def _project(self, x: Tensor, routes: RouteSet, weight: Tensor) -> Tensor:
        """Project pixels to low-rank steps, B and C: ``(B, P, K or 1, R + 2N)``."""
        if x.dim() == 4:
            return torch.einsum("bpkd,ked->bpke", x, weight)
        if routes.is_disjoint and routes.num_routes > 1:
            return routes.project_once(x, weight)[:, :, None]
        return F.linear(x, weight.flatten(0, 1)).unflatten(-1, (weight.shape[0], -1))

    def scan_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the parameters of the op.

        Returns:
            ``A (K*Di, N)``, step weight ``(K, Di, R)``, step bias ``(K, Di)`` and ``D (K*Di,)``.
        """
        A = -torch.exp(self.A_logs.to(compute_dtype(self.A_logs.dtype)))
        return A, self.dt_projs_weight, self.dt_projs_bias, self.Ds
