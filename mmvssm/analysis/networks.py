"""Models of the three libraries as networks: from an image to what their heads give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

#: Image sizes at which the papers count, by what :func:`task_of` says.
SHAPES = {
    "backbone": (224, 224),
    "classifier": (224, 224),
    "detector": (800, 1280),
    "segmentor": (512, 2048),
}
#: Regions that pass the heads of a two-stage detector: number and side of boxes and masks.
REGIONS = {"bbox_head": (1000, 7), "mask_head": (100, 14)}


def task_of(model: nn.Module) -> str:
    """Return what a model is, a key of :data:`SHAPES`.

    Raises:
        ValueError: If a model of a library has none of the heads that can be counted.
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
        "the model must have a head, a decode_head, a bbox_head or a roi_head, got a"
        f" {type(model).__name__}"
    )


def channels_of(model: nn.Module) -> int:
    """Return how many channels the images have that a model takes."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def run_network(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Run what a prediction runs between the image and the decoding of what the heads give.

    Args:
        model: See :func:`task_of`; of a segmentor the auxiliary heads are left out, the heads of a
            two-stage detector get the :data:`REGIONS` of each image, of features that are zero.
        images: ``(B, C, H, W)``, normalised.

    Returns:
        All tensors that come out of it.
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
