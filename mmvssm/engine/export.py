"""Export of models to ONNX, ``torch.export`` programs and AOTInductor packages."""

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

#: Packages that a file format needs besides torch.
PACKAGES = {".onnx": ("onnx", "onnxscript"), ".pt2": ()}
#: First torch that supports bounded dynamic sizes.
LEAST_TORCH = "2.8"
#: Largest side and batch of a graph.
MAX_SIDE, MAX_BATCH = 8192, 4096
#: Batch and sides of the images for tracing dynamic graphs; a size of 1 would become constant.
_TRACED = (2, 256, 320)
_LEAST = 32


class Exported(nn.Module):
    """The exported part of a model, from pixels to its last dense layer.

    For a classifier, these are backbone, neck and head; for a segmentor, backbone, neck and decode
    head, resized to the image; for a detector, backbone, neck and dense head. The second stage of a
    detector works on single boxes and is not exported.

    Args:
        model: Model of mmpretrain, mmdet or mmseg.
        library: Name of the library.
    """

    def __init__(self, model: BaseModel, library: str) -> None:
        super().__init__()
        self.model, self.library = model, library
        processor = model.data_preprocessor
        # each library has its own name for this option
        names = ("to_rgb", "_channel_conversion", "channel_conversion")
        self.swaps_channels = any(getattr(processor, name, False) for name in names)
        self.normalizes = getattr(processor, "_enable_normalize", False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run the network on ``image (B, 3, H, W)`` in BGR with values from 0 to 255."""
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
        """Return the names of the outputs of :meth:`forward`; a detector's begin with its maps."""
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
    """Plan of an export.

    Attributes:
        shape: Height and width for tracing.
        open_size: Whether height and width are dynamic.
        notes: Parts that are not exported, a sentence each.
    """

    shape: tuple[int, int]
    open_size: bool
    notes: tuple[str, ...]


def require_exporter(suffix: str, is_compiled: bool) -> None:
    """End the program if this machine lacks the requirements of an export.

    Args:
        suffix: Suffix of the file, one of :data:`PACKAGES`.
        is_compiled: Whether the file holds code compiled by AOTInductor.
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
            fail("--aot needs a C++ compiler: install g++, or name another in the CXX variable")


def plan_export(model: BaseModel, library: str, shape: tuple[int, int] | None) -> Plan:
    """Plan the export of a model; end the program if it cannot be exported.

    Args:
        model: The model.
        library: mmpretrain, mmdet or mmseg.
        shape: Fixed height and width; None for dynamic sizes.
    """
    notes = []
    if library == "mmpretrain" and not (hasattr(model, "backbone") and model.with_head):
        fail(f"only an ImageClassifier with a head can be exported, got {type(model).__name__}")
    if library == "mmseg" and not hasattr(model, "decode_head"):
        fail(f"only an EncoderDecoder can be exported, got {type(model).__name__}")
    if library == "mmseg" and isinstance(model.decode_head, nn.ModuleList):
        fail("a cascade of decode heads cannot be exported")
    if library == "mmseg":
        head = model.decode_head
        try:
            inspect.signature(head.forward).bind(())
        except TypeError as error:
            fail(f"{type(head).__name__} cannot be exported, it needs more than maps: {error}")
    if library == "mmdet":
        if not (hasattr(model, "rpn_head") or hasattr(model, "bbox_head")):
            fail(f"{type(model).__name__} has no dense head to export")
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

        head = _dense_head(model)
        if not isinstance(head, BaseDenseHead):
            fail(f"only a dense head can be exported, got {type(head).__name__}")
        if hasattr(model, "roi_head"):
            notes.append("the second stage (roi_head) and the selection of boxes are not exported")
        else:
            notes.append("the selection of boxes (non-maximum suppression) is not exported")
    return Plan(shape or _TRACED[1:], shape is None, tuple(notes))


class _OpenPools(TorchFunctionMode):
    """Mode that replaces adaptive average pooling by matrix products.

    The exporters cannot pool maps of dynamic size to a fixed number of cells. The cells are those
    of :func:`torch.nn.functional.adaptive_avg_pool2d`.
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
    """Return the weights ``(cells, side)`` of the pixels along an axis in the mean of each cell."""
    side = x.shape[axis]
    first = torch.arange(cells, device=x.device)[:, None] * side
    pixel = torch.arange(side, device=x.device)
    inside = (pixel >= first // cells) & (pixel < (first + side + cells - 1) // cells)
    weights = inside.to(x.dtype)
    return weights / weights.sum(1, keepdim=True)


def trace(module: nn.Module, plan: Plan) -> ExportedProgram:
    """Trace a module for any batch size, and for any image size if the plan has dynamic sizes."""
    dynamic = torch.export.Dim.DYNAMIC
    dims: dict[int, object] = {0: dynamic(min=1, max=MAX_BATCH)}
    if plan.open_size:
        dims |= {axis: dynamic(min=_LEAST, max=MAX_SIDE) for axis in (2, 3)}
    image = torch.rand(_TRACED[0], 3, *plan.shape) * 255
    with torch.no_grad(), registered_ops(), _OpenPools():
        return torch.export.export(module, (image,), dynamic_shapes=(dims,), strict=False)


def write_onnx(program: ExportedProgram, names: Sequence[str], path: Path) -> None:
    """Write a traced program as ONNX, with scans made of standard operators.

    Args:
        program: A result of :func:`trace`.
        names: Names of the outputs.
        path: The file.
    """
    from .onnx_scan import scan_2d

    # the exporter prints its steps to standard output
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
    """Compile a traced program with AOTInductor, for ``torch._inductor.aoti_load_package``."""
    # torch before 2.12 passes a wrong dtype to ops in packages (pytorch/pytorch#169157); it passes
    # None, which means the dtype of x, correctly
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
    """Return a function that runs an exported file; None if it needs ONNX Runtime and lacks it.

    Args:
        path: The file.
        is_compiled: Whether :func:`write_compiled` wrote it.
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
    """Compare an exported file with the model, at another batch and size than in tracing.

    Returns:
        The largest difference of an output, relative to the larger of its largest value and 1.
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
