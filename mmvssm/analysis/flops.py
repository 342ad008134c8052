"""Parameters and FLOPs of classifiers, detectors, segmentors and backbones, by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmvssm.complexity import ScanCost
from mmvssm.families import FAMILIES
from mmvssm.models import MambaMixer, ScalarDecaySS2D
from mmvssm.models.backbones.plain import PlainBackbone
from mmvssm.models.layers import Attention

from .networks import SHAPES, channels_of, run_network, task_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SCAN = torch.ops.mmvssm.selective_scan_2d
_aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """A module of a model: name, class, number of parameters, and multiply-adds per image."""

    name: str
    kind: str
    parameters: int
    macs: float


@dataclass(frozen=True)
class Complexity:
    """Parameters and multiply-adds of a model.

    Attributes:
        shape: Size ``(H, W)`` of the image.
        parameters: Number of all parameters, including heads that are only used in training.
        macs: Multiply-adds per image, which the papers call FLOPs.
        convention: Description of what is counted.
        layers: All counted modules, each before the modules inside it.
    """

    shape: tuple[int, int]
    parameters: int
    macs: float
    convention: str
    layers: tuple[Layer, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields in plain types, for JSON."""
        return asdict(self)


def count_flops(
    model: nn.Module, shape: Sequence[int] | None = None, cost: ScanCost | None = None
) -> Complexity:
    """Count the parameters of a model and the multiply-adds of a prediction.

    The count follows the published figures: matrix products, convolutions, norms, interpolation and
    scans. It excludes auxiliary heads of segmentors, and assumes 1000 boxes and 100 masks for
    two-stage detectors. Classifiers with a plain backbone are counted by their weights at every
    token, as Vim and LocalMamba do. The cost of a scan is that of its family (``Family.cost``).

    Args:
        model: A model of mmpretrain, mmdetection or mmsegmentation, or a backbone, on any device,
            also ``"meta"``. It is not changed, and nothing is computed.
        shape: Image size ``(H, W)``; None for that of the papers (see :data:`SHAPES`).
        cost: Cost of a scan; None for that of the family's authors.

    Raises:
        ValueError: See :func:`task_of`; or if the shape does not fit the model.
    """
    task = task_of(model)
    height, width = SHAPES[task] if shape is None else shape
    if min(height, width) < 1:
        raise ValueError(f"shape must be at least 1x1, got {height}x{width}")
    # a copy without data, so that the caller's model is not touched
    model = deepcopy(model).to("meta").eval()
    image = torch.empty(1, channels_of(model), height, width, device="meta")
    backbone = getattr(model, "backbone", model)
    is_plain = isinstance(backbone, PlainBackbone) and all(
        isinstance(layer.mixer, MambaMixer) for layer in backbone.layers
    )
    cost = cost or _published_cost(model, backbone, task)
    with torch.no_grad():
        if task == "classifier" and is_plain:
            counts = _of_weights(model, cost, image)
            convention = (
                "multiply-adds of convolutions, linear layers and scans at every token,"
                f" {cost} for a scanned element of N states"
            )
        else:
            counts = _of_operators(model, cost, image)
            convention = (
                "multiply-adds of matrix products, convolutions, norms, interpolation and scans,"
                f" {cost} for a scanned element of N states"
            )
    modules = dict(model.named_modules())
    layers = tuple(
        Layer(name, type(modules[name]).__name__, _parameters(modules[name]), counts[name])
        for name in modules
        if name in counts
    )
    return Complexity((height, width), _parameters(model), counts[""], convention, layers)


def _has_scalar_decay(model: nn.Module) -> bool:
    return any(isinstance(module, ScalarDecaySS2D) for module in model.modules())


def _published_cost(model: nn.Module, backbone: nn.Module, task: str) -> ScanCost:
    if _has_scalar_decay(model):
        return ScanCost(per_state=4)
    families = FAMILIES.values() if task == "classifier" else ()
    return next((f.cost for f in families if type(backbone) is f.backbone), ScanCost())


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _of_weights(model: nn.Module, cost: ScanCost, image: Tensor) -> dict[str, float]:
    """Count a classifier with a plain backbone by its weights."""
    backbone = model.backbone
    tokens, grid = backbone.embed(image)
    length, patches = tokens.shape[1], prod(grid)
    counts = {"backbone.patch_embed": float(patches * backbone.patch_embed.conv1.weight.numel())}
    for i, layer in enumerate(backbone.layers):
        counts[f"backbone.layers.{i}"] = _of_mixer(layer.mixer, cost, length)
    linear = [m.weight.numel() for m in model.head.modules() if isinstance(m, nn.Linear)]
    counts["backbone"] = sum(counts.values())
    counts["head"] = float(sum(linear))
    counts[""] = counts["backbone"] + counts["head"]
    return counts


def _of_mixer(mixer: MambaMixer, cost: ScanCost, length: int) -> float:
    inner, routes = mixer.out_proj.in_features, mixer.num_routes
    directions = 1 if cost.once else routes
    own = (mixer.conv1d.weight, mixer.x_proj_weight, mixer.dt_projs_weight)
    token = sum(weight.numel() for weight in own) * directions / routes
    # the published scripts add the width
    token += mixer.in_proj.in_features
    token += mixer.in_proj.weight.numel() + mixer.out_proj.weight.numel()
    total = length * (token + cost.macs(routes * inner, mixer.d_state))
    if mixer.merge is not None:
        gate = mixer.merge.attn
        weights = gate.global_reduce.weight, gate.channel_select.weight
        total += directions * sum(weight.numel() for weight in weights)
    return float(total)


def _formulas(cost: ScanCost, scalar_decay: bool) -> dict[Any, Callable[..., float]]:
    """Return formulas for operators that torch's counter omits or counts differently.

    They return twice the multiply-adds. Norms and interpolation are counted as by fvcore, which the
    published figures use.
    """

    def scan(x, x_dbl, routes, out_routes, A, dt_weight, *args, **kwargs):
        if scalar_decay:  # per head, without a step projection
            return 2 * cost.macs(x[0] * routes[1] * dt_weight[0] * dt_weight[1], A[1])
        return 2 * cost.scan_2d_macs(x, routes, A, dt_weight)

    def layer_norm(shape, normalized, weight, *args, **kwargs):
        return 2 * (5 if weight is not None else 4) * prod(shape)

    def batch_norm(shape, *args, **kwargs):
        return 2 * 2 * prod(shape)

    def bilinear(*args, out_shape=None, **kwargs):
        return 2 * 4 * prod(out_shape)

    def nearest(*args, out_shape=None, **kwargs):
        return 2 * prod(out_shape)

    return {
        _SCAN: scan,
        _aten.native_layer_norm: layer_norm,
        _aten._native_batch_norm_legit_no_training: batch_norm,
        _aten.native_batch_norm: batch_norm,  # what torch < 2.3 runs
        _aten.upsample_bilinear2d: bilinear,
        _aten.upsample_nearest2d: nearest,
    }


def _of_operators(model: nn.Module, cost: ScanCost, image: Tensor) -> Counter[str]:
    """Count the operators that run by the innermost module that runs them, and sum up."""
    formulas = _formulas(cost, _has_scalar_decay(model))
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    own: Counter[str] = Counter()  # of floats
    running = [""]

    def settle() -> None:
        own[running[-1]] += counter.get_total_flops() / 2 - own.total()

    for name, module in model.named_modules():

        def enter(*_, name: str = name) -> None:
            settle()
            running.append(name)

        def leave(*_) -> None:
            settle()
            running.pop()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    with counter:
        run_network(model, image)
    settle()
    for name, module in model.named_modules():
        if isinstance(module, Attention):  # exclude the zero padding for the kernels
            own[name] *= module.width / (module.width + module.padding)
    counts: Counter[str] = Counter()
    for name, macs in own.items():
        words = name.split(".") if name else []
        for depth in range(len(words) + 1):
            counts[".".join(words[:depth])] += macs
    return +counts


def draw_complexity(found: Complexity, depth: int = 3, title: str = "") -> Figure:
    """Draw FLOPs and parameters of a model's layers as bars that add up to the model.

    Args:
        found: Result of :func:`count_flops`.
        depth: Depth in the module tree to which layers are split, at least 1.
        title: Title of the figure.
    """
    from matplotlib.figure import Figure

    layers = _taken_apart(found, depth)
    figure = Figure(figsize=(8, 1.1 + 0.22 * len(layers)), layout="constrained", dpi=100)
    panels = figure.subplots(1, 2, sharey=True)
    rows = range(len(layers))
    unit, letter = (1e9, "G") if found.macs >= 1e8 else (1e6, "M")
    macs, parameters = ([getattr(layer, key) for layer in layers] for key in ("macs", "parameters"))
    for axes, name, values, size in (
        (panels[0], f"FLOPs ({letter})", macs, unit),
        (panels[1], "parameters (M)", parameters, 1e6),
    ):
        bars = axes.barh(rows, [value / size for value in values])
        total = sum(values)
        axes.bar_label(bars, [f"{value / total:.0%}" for value in values], fontsize=7, padding=2)
        axes.margins(x=0.12, y=0.5 / len(layers))
        axes.set_xlabel(name, fontsize=9)
        axes.tick_params(labelsize=8)
    panels[0].set_yticks(rows, [layer.name or layer.kind for layer in layers])
    panels[0].invert_yaxis()
    height, width = found.shape
    cost = f"{found.macs / unit:.3g} {letter}FLOPs, {found.parameters / 1e6:.3g} M parameters"
    figure.suptitle(f"{title}{': ' * bool(title)}{cost}, {height}x{width} pixels", fontsize=10)
    return figure


def _taken_apart(found: Complexity, depth: int) -> list[Layer]:
    """Return the layers at a depth, the leaves above it, and an entry for the rest."""
    levels = {layer.name: layer.name.count(".") + 1 if layer.name else 0 for layer in found.layers}
    outer = {layer.name.rpartition(".")[0] for layer in found.layers if layer.name}
    layers = [
        layer
        for layer in found.layers
        if levels[layer.name] == depth or (levels[layer.name] < depth and layer.name not in outer)
    ]
    macs = found.macs - sum(layer.macs for layer in layers)
    parameters = found.parameters - sum(layer.parameters for layer in layers)
    # operators of outer modules, and parameters of heads that are only used in training
    rest = [Layer("the rest", "", parameters, macs)] * (macs > 0.5 or parameters > 0)
    return layers + rest
