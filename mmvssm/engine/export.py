"""Models as graphs for other programs: ONNX, ``torch.export`` and AOTInductor."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from mmvssm.files import atomic_write
from mmvssm.ops.backend import built_devices, missing_reason, registered_ops
from mmvssm.ops.library import SCAN_2D

from .cli import fail

#: What a file format needs besides torch.
PACKAGES = {".onnx": ("onnx", "onnxscript"), ".pt2": ()}
#: The first torch whose graphs can leave sizes open within bounds.
LEAST_TORCH = "2.8"
#: Largest sides and batch that a graph is made for.
MAX_SIDE, MAX_BATCH = 8192, 4096
#: Batch and sides of the images that an open graph is traced with: a size of 1 would be kept.
_TRACED = (2, 256, 320)
_LEAST = 32


class Exported(nn.Module):
    """What is exported of a model: all that computes on whole maps, from pixels on.

    Of a classifier backbone, neck and head; of a segmentor backbone, neck and decode head, resized
    to the image; of a detector backbone, neck and the dense head (of two stages the first: what
    follows works on boxes one by one and stays outside).

    Args:
        model: Model of mmpretrain, mmdet or mmseg.
        library: Which of them.
    """

    def __init__(self, model: BaseModel, library: str) -> None:
        super().__init__()
        self.model, self.library = model, library
        processor = model.data_preprocessor
        # each library has its own name for it
        names = ("to_rgb", "_channel_conversion", "channel_conversion")
        self.swaps_channels = any(getattr(processor, name, False) for name in names)
        self.normalizes = getattr(processor, "_enable_normalize", False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``image (B, 3, H, W)`` with values 0 to 255, as the config's pipeline loads it (BGR)."""
        if self.swaps_channels:
            image = image.flip(1)
        if self.normalizes:
            processor = self.model.data_preprocessor
            image = (image - processor.mean) / processor.std
        maps = self.model.extract_feat(image)
        if self.library == "mmpretrain":
            return (self.model.head(maps),)
        if self.library == "mmseg":
            logits = self.model.decode_head(maps)
            logits = nn.functional.interpolate(
                logits,
                size=image.shape[2:],
                mode="bilinear",
                align_corners=self.model.align_corners,
            )
            return (logits,)
        heads = _dense_head(self.model)(maps)
        return (*maps, *(level for outputs in heads for level in outputs))

    def output_names(self, outputs: Sequence[Tensor], num_maps: int) -> list[str]:
        """Names of the outputs of :meth:`forward`, of which a detector's first are its maps."""
        if self.library != "mmdet":
            return ["logits"]
        names = [f"map_{level}" for level in range(num_maps)]
        rest = len(outputs) - num_maps
        head = _dense_head(self.model)
        kinds = ["scores", "boxes", "centerness" if hasattr(head, "loss_centerness") else "third"]
        return names + [f"{kinds[i // num_maps]}_{i % num_maps}" for i in range(rest)]


def _dense_head(model: BaseModel) -> nn.Module:
    return model.rpn_head if hasattr(model, "rpn_head") else model.bbox_head


@dataclass(frozen=True)
class Plan:
    """What will be exported; ``open_size`` says whether height and width stay open.

    Attributes:
        shape: Height and width that the graph is traced with.
        open_size: Whether other sizes can be used as well.
        notes: What is left out, and why.
    """

    shape: tuple[int, int]
    open_size: bool
    notes: tuple[str, ...]


def require_exporter(suffix: str, is_compiled: bool) -> None:
    """End the program where this machine lacks what a file is made with.

    Args:
        suffix: Suffix of the file, one of :data:`PACKAGES`.
        is_compiled: Whether it is to hold compiled code, by AOTInductor.
    """
    if digit_version(torch.__version__) < digit_version(LEAST_TORCH):
        fail(f"exporting needs torch {LEAST_TORCH} or later, this is torch {torch.__version__}")
    lacking = [name for name in PACKAGES[suffix] if find_spec(name) is None]
    if lacking:
        fail(f"{suffix} files need {', '.join(lacking)}: pip install -r requirements/export.txt")
    if suffix == ".pt2" and not built_devices():
        fail(f".pt2 files hold the package's own op: {missing_reason('cpu')}")
    if is_compiled:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            fail("--aot needs a C++ compiler: install g++, or name another in the variable CXX")


def plan_export(model: BaseModel, library: str, shape: tuple[int, int] | None) -> Plan:
    """Find what can be exported of a model, and end the program where nothing can.

    Args:
        model: The model.
        library: mmpretrain, mmdet or mmseg.
        shape: Height and width to fix; None to leave them open.
    """
    notes = []
    if library == "mmpretrain" and not (hasattr(model, "backbone") and model.with_head):
        fail(f"a {type(model).__name__} cannot be exported, but an ImageClassifier with a head")
    if library == "mmseg" and not hasattr(model, "decode_head"):
        fail(f"a {type(model).__name__} cannot be exported, but an EncoderDecoder")
    if library == "mmseg" and isinstance(model.decode_head, nn.ModuleList):
        fail("a cascade of decode heads cannot be exported")
    if library == "mmseg":
        head = model.decode_head
        try:
            inspect.signature(head.forward).bind(())
        except TypeError as error:
            fail(f"a {type(head).__name__} cannot be exported, it needs more than maps: {error}")
    if library == "mmdet":
        if not (hasattr(model, "rpn_head") or hasattr(model, "bbox_head")):
            fail(f"a {type(model).__name__} has no dense head that could be exported")
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

        head = _dense_head(model)
        if not isinstance(head, BaseDenseHead):
            fail(f"a {type(head).__name__} cannot be exported, but a head on whole maps")
        if hasattr(model, "roi_head"):
            notes.append("the second stage (roi_head) and the choice of boxes stay outside")
        else:
            notes.append("the choice of boxes (non-maximum suppression) stays outside")
    return Plan(shape or _TRACED[1:], shape is None, tuple(notes))


class _OpenPools(TorchFunctionMode):
    """Pools maps of any size to a fixed number of cells, which the exporters cannot, by products.

    With the cells of :func:`torch.nn.functional.adaptive_avg_pool2d`.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.adaptive_avg_pool2d:
            return self.pool(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def pool(x: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
        """Average ``(B, C, H, W)`` over the cells."""
        sides = (output_size,) * 2 if isinstance(output_size, int) else output_size
        rows, columns = (
            side if cells is None else cells for cells, side in zip(sides, x.shape[2:])
        )
        return _cell_weights(x, rows, 2) @ x @ _cell_weights(x, columns, 3).T


def _cell_weights(x: Tensor, cells: int, axis: int) -> Tensor:
    """Weights ``(cells, side)`` of the pixels of an axis in the mean of each cell."""
    side = x.shape[axis]
    first = torch.arange(cells, device=x.device)[:, None] * side
    pixel = torch.arange(side, device=x.device)
    inside = (pixel >= first // cells) & (pixel < (first + side + cells - 1) // cells)
    weights = inside.to(x.dtype)
    return weights / weights.sum(1, keepdim=True)


def trace(module: nn.Module, plan: Plan) -> ExportedProgram:
    """Trace a module for images of any batch, and of any size if the plan leaves that open."""
    dynamic = torch.export.Dim.DYNAMIC
    dims: dict[int, object] = {0: dynamic(min=1, max=MAX_BATCH)}
    if plan.open_size:
        dims |= {axis: dynamic(min=_LEAST, max=MAX_SIDE) for axis in (2, 3)}
    image = torch.rand(_TRACED[0], 3, *plan.shape) * 255
    with torch.no_grad(), registered_ops(), _OpenPools():
        return torch.export.export(module, (image,), dynamic_shapes=(dims,), strict=False)


def write_onnx(program: ExportedProgram, names: Sequence[str], path: Path) -> None:
    """Write a traced program as ONNX, with scans of standard operators.

    Args:
        program: A result of :func:`trace`.
        names: Names of the outputs.
        path: The file.
    """
    from .onnx_scan import scan_2d

    # the exporter reports its steps to standard output
    with contextlib.redirect_stdout(io.StringIO()):
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["image"],
            output_names=list(names),
            custom_translation_table={torch.ops.mmvssm.selective_scan_2d.default: scan_2d},
            verbose=False,
        )
    atomic_write(path, lambda part: made.save(str(part)))


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write a traced program for ``torch.export.load``, which needs ``import mmvssm.ops``."""
    atomic_write(path, lambda part: torch.export.save(program, str(part)))


def write_compiled(program: ExportedProgram, path: Path) -> None:
    """Compile a traced program by AOTInductor, for ``torch._inductor.aoti_load_package``."""
    # torch before 2.12 hands a wrong dtype to ops in packages (pytorch/pytorch#169157); None, which
    # means that of x, it hands on as it is
    x, out_dtype = (SCAN_2D.arguments.index(name) for name in ("x", "out_dtype"))
    for node in program.graph.nodes:
        is_scan = node.target is SCAN_2D.run and len(node.args) > out_dtype
        if is_scan and node.args[out_dtype] == node.args[x].meta["val"].dtype:
            node.update_arg(out_dtype, None)
    atomic_write(
        path,
        lambda part: torch._inductor.aoti_compile_and_package(program, package_path=str(part)),
    )


def load_file(path: Path, is_compiled: bool) -> Callable[[Tensor], Sequence[Tensor]] | None:
    """Return a function that runs a written file; None where ONNX Runtime is not installed.

    Args:
        path: The file.
        is_compiled: Whether it is one of :func:`write_compiled`.
    """
    if is_compiled:
        return torch._inductor.aoti_load_package(str(path))
    if path.suffix == ".pt2":
        return torch.export.load(str(path)).module()
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return lambda image: [
        torch.from_numpy(y) for y in session.run(None, {"image": np.asarray(image)})
    ]


def largest_difference(
    run: Callable[[Tensor], Sequence[Tensor]], module: nn.Module, plan: Plan
) -> float:
    """Compare a written file with the model, at another batch and size than it was traced with.

    Returns:
        The largest difference of an output, relative to its largest value or 1.
    """
    height, width = plan.shape
    if plan.open_size:
        height, width = height - 32, width // 2
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 3, height, width, generator=generator) * 255
    with torch.no_grad():
        return max(
            float((y - z).abs().max() / z.abs().max().clamp(min=1))
            for y, z in zip(run(image), module(image), strict=True)
        )
