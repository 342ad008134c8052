"""Check, before any work is done, that the data of a config are on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mmengine.config import Config

from .cli import fail, type_name

# mmpretrain downloads these datasets if they are missing.
_FETCHED = ("CIFAR10", "CIFAR100", "FashionMNIST", "MNIST")


def require_data(cfg: Config, *loaders: str) -> None:
    """Check that folders and annotation files of data loaders and their evaluators exist.

    Only local paths are checked: no paths with a scheme (``s3://``), and no datasets that are read
    through a storage backend.

    Args:
        cfg: The config.
        *loaders: Keys of data loaders; those that the config lacks are skipped.
    """
    for loader in loaders:
        if cfg.get(loader) is None:
            continue
        for place, dataset in _leaves(cfg[loader].dataset, f"{loader}.dataset"):
            if type_name(dataset) not in _FETCHED and not _read_elsewhere(dataset):
                _require_dataset(dataset, loader, place)
        evaluator = loader.replace("dataloader", "evaluator")
        metrics = cfg.get(evaluator) or []
        listed = isinstance(metrics, (list, tuple))
        for number, metric in enumerate(metrics if listed else [metrics]):
            if not isinstance(metric, dict):
                continue
            path = metric.get("ann_file")
            if _is_local(path) and not _read_elsewhere(metric) and not os.path.exists(path):
                option = f"{evaluator}.{number}.ann_file" if listed else f"{evaluator}.ann_file"
                _missing("annotation file", path, evaluator, f"{option}=FILE")


def _leaves(dataset: dict, place: str) -> Iterator[tuple[str, dict]]:
    """Yield the datasets inside wrappers, each with its dotted key in the config."""
    if "datasets" in dataset:
        for number, part in enumerate(dataset["datasets"]):
            yield from _leaves(part, f"{place}.datasets.{number}")
    elif "dataset" in dataset:
        yield from _leaves(dataset["dataset"], f"{place}.dataset")
    else:
        yield place, dataset


def _require_dataset(dataset: dict, loader: str, place: str) -> None:
    root = dataset.get("data_root") or ""
    if root and not _is_local(root):
        return
    if root and not os.path.isdir(root):
        _missing("data folder", root, loader, f"{place}.data_root=DIR")
    annotations = dataset.get("ann_file")
    if _is_local(annotations) and not os.path.exists(os.path.join(root, annotations)):
        path = os.path.join(root, annotations)
        _missing("annotation file", path, loader, f"{place}.data_root=DIR")
    prefix = dataset.get("data_prefix")
    if not prefix and type_name(dataset) == "ImageNet":
        prefix = dataset.get("split")
    for part in prefix.values() if isinstance(prefix, dict) else [prefix]:
        if _is_local(part) and not os.path.isdir(os.path.join(root, part)):
            path = os.path.join(root, part)
            _missing("data folder", path, loader, f"{place}.data_root=DIR")


def _is_local(path: object) -> bool:
    return isinstance(path, str) and bool(path) and "://" not in path and not path.startswith("s3:")


def _read_elsewhere(part: dict) -> bool:
    """Return whether a dataset or metric, or a step of its pipeline, names a storage backend."""
    steps = [part, *(step for step in part.get("pipeline") or () if isinstance(step, dict))]
    for step in steps:
        for key in ("backend_args", "file_client_args"):
            backend = (step.get(key) or {}).get("backend", "local")
            if backend not in ("local", "disk"):
                return True
    return False


def _missing(kind: str, path: str, owner: str, option: str) -> None:
    there = "" if os.path.isabs(path) else f", i.e. {os.path.abspath(path)!r}"
    fail(
        f"there is no {kind} {path!r} ({owner} of the config){there}; docs/data.md describes the "
        f"layout of the data, --cfg-options {option} names another place"
    )
