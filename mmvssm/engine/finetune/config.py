"""Adaptation of a recipe to a custom dataset: datasets, evaluation, and the number of classes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from mmvssm.engine.cli import type_name

from .data import OwnData, Split
from .segmentation import IGNORED

Leaf = Callable[[ConfigDict, Split, bool], dict]


def fit_to_data(cfg: Config, data: OwnData) -> Config:
    """Return a recipe adapted to a custom dataset.

    Pipelines, samplers and batch sizes are kept. A repeated or concatenated dataset is replaced by
    the custom dataset; other wrappers are kept. The metric is that of the task: top-1 accuracy (and
    top-5 for more than five classes), COCO's average precision, or mIoU.

    Args:
        cfg: A recipe of mmpretrain, mmdet or mmseg, by its ``default_scope``; it is not changed.
        data: Description of the data.

    Raises:
        ValueError: If the recipe's model or its losses do not support another number of classes.
    """
    cfg = deepcopy(cfg)
    make_leaf, evaluator = _TASKS[cfg.default_scope](cfg, data)
    for name, split in (("train", data.train), ("val", data.val)):
        loader = cfg.get(f"{name}_dataloader")
        if loader is None:
            raise ValueError(f"the recipe has no {name}_dataloader")
        leaf = _first_leaf(loader.dataset)
        new = dict(make_leaf(leaf, split, name == "val"), pipeline=leaf.pipeline)
        if "_scope_" in leaf:
            new["_scope_"] = leaf["_scope_"]
        loader.dataset = _replaced(loader.dataset, new)
    cfg.test_dataloader = deepcopy(cfg.val_dataloader)
    cfg.val_evaluator, cfg.test_evaluator = evaluator, deepcopy(evaluator)
    for name in ("val_cfg", "test_cfg"):
        if cfg.get(name) is None:
            cfg[name] = {}
    count = len(data.classes)
    changed = _set_num_classes(cfg.model, count)
    if cfg.get("data_preprocessor") is not None:
        _set_num_classes(cfg.data_preprocessor, count)
    if not changed:
        raise ValueError("the recipe's model has no num_classes to set")
    return cfg


def _classification(cfg: Config, data: OwnData) -> tuple[Leaf, dict]:
    def leaf(old: ConfigDict, split: Split, validates: bool) -> dict:
        return dict(
            type="mmpretrain.CustomDataset",
            data_prefix=split.images,
            ann_file=split.ann_file,
            metainfo=dict(classes=data.classes),
        )

    topk = (1, 5) if len(data.classes) > 5 else (1,)
    if "topk" in cfg.model.get("head", {}):
        cfg.model.head.topk = topk
    return leaf, dict(type="mmpretrain.Accuracy", topk=topk)


def _detection(cfg: Config, data: OwnData) -> tuple[Leaf, dict]:
    def leaf(old: ConfigDict, split: Split, validates: bool) -> dict:
        new = dict(
            type="mmdet.CocoDataset",
            ann_file=split.ann_file,
            data_prefix=dict(img=f"{split.images}/"),
            # the dataset's own palette has a colour for each class of COCO
            metainfo=dict(classes=data.classes, palette=None),
        )
        if validates:
            new["test_mode"] = True
        elif old.get("filter_cfg") is not None:
            new["filter_cfg"] = old.filter_cfg
        return new

    has_masks = (cfg.model.get("roi_head") or {}).get("mask_head") is not None
    if has_masks and not data.masks:
        cfg.model.roi_head.update(mask_head=None, mask_roi_extractor=None)
        for name in ("train_dataloader", "val_dataloader"):
            for step in _steps(cfg[name].dataset, "LoadAnnotations"):
                step.with_mask = False
    metric = ["bbox", "segm"] if has_masks and data.masks else ["bbox"]
    return leaf, dict(type="mmdet.CocoMetric", ann_file=data.val.ann_file, metric=metric)


def _segmentation(cfg: Config, data: OwnData) -> tuple[Leaf, dict]:
    def leaf(old: ConfigDict, split: Split, validates: bool) -> dict:
        return dict(
            type="mmseg.BaseSegDataset",
            data_prefix=dict(img_path=split.images, seg_map_path=split.maps),
            ann_file=split.ann_file,
            img_suffix=split.suffixes[0],
            seg_map_suffix=split.suffixes[1],
            ignore_index=IGNORED,
            reduce_zero_label=data.reduce_zero_label,
            metainfo=dict(classes=data.classes),
        )

    # ADE's recipes also set it in the pipeline, where it could contradict the dataset
    for name in ("train_dataloader", "val_dataloader"):
        for step in _steps(cfg[name].dataset, "LoadAnnotations"):
            step.pop("reduce_zero_label", None)
    return leaf, dict(type="mmseg.IoUMetric", iou_metrics=["mIoU"])


_TASKS = {"mmpretrain": _classification, "mmdet": _detection, "mmseg": _segmentation}


def _first_leaf(dataset: ConfigDict) -> ConfigDict:
    """Return the dataset inside wrappers, or the first of several."""
    while "datasets" in dataset or "dataset" in dataset:
        dataset = dataset.datasets[0] if "datasets" in dataset else dataset.dataset
    return dataset


def _replaced(dataset: ConfigDict, leaf: dict) -> dict:
    """Put ``leaf`` inside the wrappers that change images, and drop the others."""
    if "datasets" in dataset:
        return _replaced(dataset.datasets[0], leaf)
    if "dataset" not in dataset:
        return leaf
    inner = _replaced(dataset.dataset, leaf)
    return inner if type_name(dataset) == "RepeatDataset" else dict(dataset, dataset=inner)


def _steps(node: Any, kind: str) -> list[ConfigDict]:
    """Return all pipeline steps of a type, at any depth."""
    if isinstance(node, dict):
        own = [node] if "type" in node and type_name(node) == kind else []
        return own + [step for value in node.values() for step in _steps(value, kind)]
    if isinstance(node, (list, tuple)):
        return [step for value in node for step in _steps(value, kind)]
    return []


def _set_num_classes(node: Any, count: int, place: str = "model") -> int:
    """Set every ``num_classes`` except that of proposals; return their number."""
    changed = 0
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "num_classes":
                node[name] = count
                changed += 1
            elif name == "class_weight" and isinstance(value, (list, tuple)):
                if len(value) != count + ("bbox_head" in place):
                    raise ValueError(
                        f"{place}.class_weight has {len(value)} weights, but the data have {count} "
                        f"classes: give as many, or --cfg-options {place}.class_weight=None"
                    )
            elif name != "rpn_head":
                changed += _set_num_classes(value, count, f"{place}.{name}")
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            changed += _set_num_classes(value, count, f"{place}.{number}")
    return changed
