"""Loading of a config's model and the weights of a checkpoint, without a runner."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, init_default_scope

from mmvssm.checkpoint.reading import Inert
from mmvssm.hub import read_weights_file
from mmvssm.libraries import MissingLibraryError, missing_library_named
from mmvssm.messages import join_names

from .cli import fail, foreign_weights_refused, leaf_datasets, library_of, require_checkpoint


def load_model(cfg: Config, checkpoint: str, need: str) -> BaseModel:
    """Build the model of a config and load its weights, without running code of the file.

    A wrong checkpoint or a missing library ends the program with one sentence (see
    :mod:`mmvssm.engine.cli`).

    Args:
        cfg: A config of one of the three libraries.
        checkpoint: A file, or ``mmvssm://NAME``.
        need: What needs the model, for the message about a config of another library.

    Returns:
        The model in evaluation mode on the CPU. Its ``dataset_meta`` holds the names of the classes
        (``classes``, and for segmentation ``palette``) if they are known.
    """
    library = library_of(cfg, need)
    try:
        with missing_library_named(need):
            import_module(library)
    except MissingLibraryError as error:
        fail(str(error))
    require_checkpoint(checkpoint)
    try:
        content = read_weights_file(checkpoint)
    except ValueError as error:
        fail(str(error))
    weights = content.get("state_dict")
    if not isinstance(weights, dict):
        fail(f"{checkpoint!r} has no state_dict: convert it with tools/convert_ema.py FILE DST")

    init_default_scope(library)
    if cfg.get("data_preprocessor") is not None:
        cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)
    model = MODELS.build(cfg.model)
    _load_weights(model, weights)
    meta = content.get("meta")
    model.dataset_meta = _dataset_meta(cfg, meta if isinstance(meta, dict) else {}, model)
    return model.eval()


def _load_weights(model: BaseModel, weights: dict[str, Any]) -> None:
    """Load a state dict; end the program if it lacks parameters."""
    tensors = {
        name.removeprefix("module."): value
        for name, value in weights.items()
        if isinstance(value, torch.Tensor)
    }
    with foreign_weights_refused():
        try:
            missing = model.load_state_dict(tensors, strict=False).missing_keys
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            wrong = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
            fail(f"the checkpoint does not fit the config: {wrong[0]}")
    parameters = dict(model.named_parameters())
    absent = [name for name in missing if name in parameters]
    if absent:
        fail(
            f"the checkpoint does not fit the config: it lacks {len(absent)} parameters,"
            f" {join_names(absent, 3)}"
        )


def _dataset_meta(cfg: Config, meta: dict, model: BaseModel) -> dict[str, Any]:
    """Return names and colours of the classes, from the checkpoint or the config's dataset."""
    found: dict[str, Any] = {}
    if cfg.get("test_dataloader"):
        dataset = next(leaf_datasets(cfg.test_dataloader.dataset))
        known = DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
        found = {**getattr(known, "METAINFO", {}), **(dataset.get("metainfo") or {})}
    saved = meta.get("dataset_meta")
    for name, value in (saved if isinstance(saved, dict) else {}).items():
        if not isinstance(value, Inert):
            found[str(name).lower()] = value
    number = getattr(getattr(model, "decode_head", None), "num_classes", None)
    if number is not None:
        if len(found.get("classes") or ()) != number:
            found = dict(classes=[str(label) for label in range(number)])
        if len(found.get("palette") or ()) != number:
            colors = np.random.default_rng(0).integers(0, 256, (number, 3))
            found["palette"] = colors.tolist()
    return found
