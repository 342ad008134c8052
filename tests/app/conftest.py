"""Fixtures: networks of the demo's configs with their initial weights, and images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmvssm.analysis.models import default_scope
from mmvssm.app import Explorer
from mmvssm.engine.cli import load_config
from mmvssm.zoo import build_model

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Returns the config and a checkpoint of a demo, by the name of its config."""
    folder = tmp_path_factory.mktemp("weights")

    def save(name):
        path, weights = DEMO / f"{name}.py", folder / f"{name}.pth"
        if not weights.exists():
            cfg = load_config(str(path), {})
            torch.manual_seed(0)
            with default_scope(cfg):
                model = build_model(cfg)
            torch.save(dict(state_dict=model.state_dict(), meta={}), weights)
        return path, weights

    return save


@pytest.fixture(scope="session")
def explorer(checkpoint):
    """Returns the explorer of a demo's network, by the name of its config."""
    made = {}

    def make(name):
        if name not in made:
            path, weights = checkpoint(name)
            cfg = load_config(str(path), {})
            made[name] = Explorer(cfg, str(weights), config_path=str(path))
        return made[name]

    return make


@pytest.fixture
def image(tmp_path):
    """Writes an image of the given size whose pixels all differ; returns its path and pixels."""

    def write(height, width):
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path / "image.png"
        cv2.imwrite(str(path), pixels)
        return str(path), pixels

    return write
