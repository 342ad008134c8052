"""analysis_tools/cam.py: pictures and numbers of Grad-CAM."""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
VIM = ROOT / "configs" / "demo" / "vim-micro_digits-cls.py"


@pytest.fixture
def run(run_here, tmp_path):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "noise.png"), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    model = MODELS.build(Config.fromfile(VIM).model)
    torch.save(dict(state_dict=model.state_dict(), message_hub=Path("an object")), "model.pth")
    torch.save(dict(state_dict=model.backbone.state_dict()), "backbone.pth")
    return partial(run_here, ROOT / "tools" / "analysis_tools" / "cam.py")


def test_a_class_on_an_image(run):
    out = ("cam.png", "cam.svg", "cam.json")
    status, text, _ = run(VIM, "model.pth", "noise.png", "--label", 3, "--out", *out)
    assert status == 0 and text.startswith("class 3, score ")
    assert "a map of 12x16" in text and text.endswith("wrote cam.png, cam.svg, cam.json\n")
    found = json.loads(Path("cam.json").read_text())
    assert found["label"] == 3 and np.shape(found["values"]) == (12, 16)
    assert cv2.imread("cam.png").std() > 10 and "<svg" in Path("cam.svg").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent.py", "model.pth", "noise.png"], "there is no config file 'absent.py'"),
        ([VIM, "absent.pth", "noise.png"], "there is no checkpoint file 'absent.pth'"),
        ([VIM, "backbone.pth", "noise.png"], "'backbone.pth' does not fit"),
        ([VIM, "model.pth", "absent.png"], "there is no image 'absent.png'"),
        ([VIM, "model.pth", "noise.png", "--label", "10"], "label must be from 0 to 9, got 10"),
    ],
)
def test_refuses(run, args, message):
    status, _, _ = run(*args, "--out", "cam.png")
    assert status.startswith("cam.py: error: ") and message in status
    assert not Path("cam.png").exists()
