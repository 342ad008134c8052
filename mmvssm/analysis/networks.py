"""Running models of the three libraries from images to the outputs of their heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

#: Image sizes at which the papers count FLOPs, by the result of :func:`task_of`.
SHAPES = {
    "backbone": (224, 224),
    "classifier": (224, 224),
    "detector": (800, 1280),
    "segmentor": (512, 2048),
}
#: Regions for the heads of a two-stage detector: number per image, and side of their features.
REGIONS = {"bbox_head": (1000, 7), "mask_head": (100, 14)}


def task_of(model: nn.Module) -> str:
    """Return the task of a model, a key of :data:`SHAPES`.

    Raises:
        ValueError: If a model of a library has no known head.
    """
    if not hasattr(model, "extract_feat"):
        return "backbone"
    if hasattr(model, "decode_head"):
        return "segmentor"
    if hasattr(model, "bbox_head") or hasattr(model, "roi_head"):
        return "detector"
    if hasattr(model, "head"):
        return "classifier"
    raise ValueError(
        "the model must have a head, a decode_head, a bbox_head or a roi_head, got"
        f" {type(model).__name__}"
    )


def channels_of(model: nn.Module) -> int:
    """Return the number of input channels of a model."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def run_network(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Run a model as in a prediction, from the image to the raw outputs of its heads.

    Auxiliary heads of segmentors are not run. The heads of a two-stage detector get
    :data:`REGIONS` with features of zero for each image.

    Args:
        model: A model (see :func:`task_of`).
        images: ``(B, C, H, W)``, normalised.

    Returns:
        All output tensors.
    """
    task = task_of(model)
    if task == "backbone":
        return list(_tensors(model(images)))
    features = model.extract_feat(images)
    if task == "classifier":
        return list(_tensors(model.head(features)))
    if task == "segmentor":
        return list(_tensors(model.decode_head(features)))
    if not hasattr(model, "roi_head"):
        return list(_tensors(model.bbox_head(features)))
    found = [model.rpn_head(features)]
    for name, (number, side) in REGIONS.items():
        head = getattr(model.roi_head, name, None)
        stages = head if isinstance(head, nn.ModuleList) else filter(None, [head])
        size = (number * len(images), features[0].shape[1], side, side)
        found += [stage(features[0].new_zeros(size)) for stage in stages]
    return list(_tensors(found))


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested sequences."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)
