"""Metrics of a model on a config's test data, at any image size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

Step = Mapping[str, Any]
#: Transforms that set the size of an image.
_RESIZING = ("ResizeEdge", "Resize")
#: Main metrics; the name of a metric ends with one of these.
MAIN_METRICS = ("accuracy/top1", "bbox_mAP", "segm_mAP", "mIoU")


def pipeline_at(pipeline: Sequence[Step], size: int) -> list[dict[str, Any]]:
    """Return a test pipeline changed to another image size, with the same proportions.

    A classifier's pipeline that crops gets the crop ``size``, and its resize is scaled by the same
    factor, as in the papers. In other pipelines, the shorter side of the resize becomes ``size``. A
    pipeline without resize gets one: to a square for classifiers, else by the shorter side, before
    annotations are loaded.

    Args:
        pipeline: Steps of the pipeline; they are not changed.
        size: New size in pixels.

    Raises:
        ValueError: If the pipeline crops without resizing before, or resizes by a factor.
    """
    steps = [deepcopy(dict(step)) for step in pipeline]
    kinds = [str(step["type"]).rpartition(".")[2] for step in steps]
    crop = kinds.index("CenterCrop") if "CenterCrop" in kinds else len(steps)
    resize = next((step for step, kind in zip(steps[:crop], kinds) if kind in _RESIZING), None)
    if resize is None and crop == len(steps):
        dense = "LoadAnnotations" in kinds
        last = (i for i, kind in enumerate(kinds) if kind.startswith(("LoadAnnotations", "Pack")))
        place = next(last, len(steps))
        steps.insert(place, dict(type="Resize", scale=(size, size), keep_ratio=dense))
        return steps
    scale = None if resize is None else resize.get("scale")
    if resize is None or scale is None:
        raise ValueError(
            f"the test pipeline must resize to a size{' before it crops' * (crop < len(steps))},"
            f" got {resize}"
        )
    sides = (scale,) if isinstance(scale, int) else tuple(scale)
    whole = min(sides)
    if crop < len(steps):
        whole, steps[crop]["crop_size"] = steps[crop]["crop_size"], size
    sides = tuple(side * size // whole for side in sides)
    resize["scale"] = sides[0] if isinstance(scale, int) else sides
    return steps


def main_metrics(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the main metrics; see :data:`MAIN_METRICS`."""
    return [name for name in metrics if name.endswith(MAIN_METRICS)]


def evaluate(
    model: BaseModel, cfg: Config, progress: Callable[[int, int], object] = lambda done, total: None
) -> dict[str, float]:
    """Return the metrics of a model on the test data of a config.

    Args:
        model: The config's model, with its weights, on the device to use.
        cfg: Config with ``test_dataloader`` and ``test_evaluator``.
        progress: Called with the number of batches so far and in total.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
        loader = Runner.build_dataloader(deepcopy(cfg.test_dataloader))
        evaluator = Evaluator(deepcopy(cfg.test_evaluator))
        evaluator.dataset_meta = getattr(loader.dataset, "metainfo", None)
        model.eval()
        for i, batch in enumerate(loader):
            evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
            progress(i + 1, len(loader))
        return evaluator.evaluate(len(loader.dataset))
