"""analysis_tools/influence.py: maps of an image, as pictures and numbers."""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmvssm.analysis import build_backbone, influence

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path(__file__).parent / "configs"
VIM = ROOT / "configs" / "demo" / "vim-micro_digits-cls.py"


@pytest.fixture
def run(run_here, tmp_path):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "noise.png"), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    return partial(run_here, ROOT / "tools" / "analysis_tools" / "influence.py")


def save(config):
    torch.manual_seed(1)
    backbone = build_backbone(str(config)).eval()
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}), "trained.pth")
    return backbone


@pytest.mark.parametrize(
    ("library", "mean", "std"),
    [("cls", [128] * 3, [64] * 3), ("det", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])],
)
def test_maps_of_an_image(run, library, mean, std):
    config = CONFIGS / f"{library}.py"
    status, text, _ = run(config, "noise.png", "--size", 48, 64, "--out", "map.json")
    backbone = save(config)
    before = json.loads(Path("map.json").read_text())
    out = ("map.png", "map.svg", "map.json")
    status, text, _ = run(
        config, "noise.png", "--checkpoint", "trained.pth", "--size", 48, 64, "--layer", 1,
        "--query", 0.2, 0.9, "--device", "cpu", "--out", *out,
    )  # fmt: skip
    assert status == 0 and text.endswith("wrote map.png, map.svg, map.json\n")
    assert text.startswith("rows: 6x8 pixels, the largest contributes ")
    image = cv2.imread("noise.png")
    if library == "det":
        image = image[..., ::-1]
    x = ((image - np.array(mean)) / np.array(std)).transpose(2, 0, 1)[None]
    expected = influence(backbone, torch.from_numpy(x).float(), 1, (0.2, 0.9))
    found = json.loads(Path("map.json").read_text())
    assert [part["name"] for part in found["routes"]] == [part.name for part in expected.routes]
    assert found["merged"]["query"] == [1, 7]
    assert np.allclose(found["merged"]["values"], expected.merged.values, rtol=1e-4)
    assert np.shape(before["merged"]["values"]) == (12, 16)
    assert cv2.imread("map.png").std() > 10 and "<svg" in Path("map.svg").read_text()


def test_a_class_token_asks(run):
    args = ("noise.png", "--size", 32, "--layer", 2, "--query-token", 0, "--kind", "decay")
    status, text, _ = run(VIM, *args, "--out", "token.json")
    assert status == 0 and "all routes: 8x8 pixels" in text
    found = json.loads(Path("token.json").read_text())
    assert found["merged"]["query"] is None and found["kind"] == "decay"
    # nothing of 16 states has decayed where the token reads itself, on two ways
    assert found["merged"]["class_tokens"] == [32.0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent.png"], "there is no image 'absent.png'"),
        (["text.png"], "'text.png' cannot be read as an image"),
        (["noise.png", "--layer", "9"], "layer must be from 0 to 3, got 9"),
        (["noise.png", "--query", "2", "0"], "query must be two fractions from 0 to 1"),
        (
            ["noise.png", "--query-token", "1"],
            "query must be below 1, the number of class tokens, got 1",
        ),
        (["noise.png", "--checkpoint", "absent.pth"], "no checkpoint file 'absent.pth'"),
    ],
)
def test_refuses(run, args, message):
    Path("text.png").write_text("no picture")
    status, _, _ = run(VIM, *args, "--size", 32, "--out", "map.png")
    assert status.startswith("influence.py: error: ") and message in status
    assert not Path("map.png").exists()
