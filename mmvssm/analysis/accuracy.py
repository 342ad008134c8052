"""The metrics of a model on a config's test data, at any image size."""

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
#: Transforms that set the size of an image, before the last crop.
_RESIZING = ("ResizeEdge", "Resize")


def pipeline_at(pipeline: Sequence[Step], size: int) -> list[dict[str, Any]]:
    """Return the test pipeline of a classifier for images of ``size`` x ``size``.

    As the papers do, the image is resized in the proportion of the pipeline, and cropped. One that
    does not crop resizes to the size.

    Raises:
        ValueError: If the pipeline crops, but does not resize before.
    """
    steps = [deepcopy(dict(step)) for step in pipeline]
    kinds = [str(step["type"]).rpartition(".")[2] for step in steps]
    if "CenterCrop" not in kinds:
        last = next((i for i, kind in enumerate(kinds) if kind.startswith("Pack")), len(kinds))
        resized = dict(type="mmpretrain.Resize", scale=(size, size), interpolation="bicubic")
        return [*steps[:last], resized, *steps[last:]]
    crop = kinds.index("CenterCrop")
    resize = next((step for step, kind in zip(steps[:crop], kinds) if kind in _RESIZING), None)
    if resize is None or not isinstance(resize["scale"], int):
        raise ValueError(
            "the test pipeline must resize to one number before it crops, got"
            f" {resize and resize['scale']}"
        )
    old = steps[crop]["crop_size"]
    resize["scale"] = int(resize["scale"] / old * size)
    steps[crop]["crop_size"] = size
    return steps


def evaluate(
    model: BaseModel, cfg: Config, progress: Callable[[int, int], object] = lambda done, total: None
) -> dict[str, float]:
    """Return the metrics of a model on the test data of a config.

    Args:
        model: The config's model, with its weights, on the device to use.
        cfg: Config with ``test_dataloader`` and ``test_evaluator``.
        progress: Is told how many batches of how many are done.
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
