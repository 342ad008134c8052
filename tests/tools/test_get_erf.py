"""analysis_tools/get_erf.py: models side by side, before and after training."""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmvssm.analysis import build_backbone

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path(__file__).parent / "configs"


@pytest.fixture
def run(run_here):
    return partial(run_here, ROOT / "tools" / "analysis_tools" / "get_erf.py")


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        image = rng.integers(0, 256, (50 + i, 90, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.png"), image)
    return tmp_path / "photos"


def save(config, path, **entries):
    backbone = build_backbone(str(config))
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    torch.save(dict(state_dict=state, **entries), path)


@pytest.mark.parametrize("library", ["cls", "det", "seg"])
def test_before_and_after_training(run, photos, tmp_path, library):
    config = CONFIGS / f"{library}.py"
    save(config, tmp_path / "trained.pth", message_hub=Path("an object"))
    out = ("erf.png", "erf.svg", "erf.json") if library == "cls" else ("erf.json",)
    status, text, _ = run(
        f"{config}=trained.pth", CONFIGS / "cls.py", "--images", "photos",
        "--size", 32, 64, "--num", 2, "--device", "cpu", "--out", *out,
    )  # fmt: skip
    assert status == 0
    assert text.count("before training: 20% within") == 2
    assert text.count("after training: 20% within") == 1
    assert text.endswith(f"wrote {', '.join(out)}\n")
    found = json.loads((tmp_path / "erf.json").read_text())
    assert found["size"] == [32, 64] and found["source"] == "photos"
    assert [field["checkpoint"] for field in found["fields"]] == [None, "trained.pth", None]
    for field in found["fields"]:
        assert field["images"] == 2
        assert np.shape(field["contribution"]) == (32, 64) and np.max(field["contribution"]) > 0
    before, after, _ = (field["contribution"] for field in found["fields"])
    assert not np.allclose(before, after)
    if library == "cls":
        assert cv2.imread("erf.png").std() > 10 and "<svg" in Path("erf.svg").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["vmamba-tiny-s1l9"], "'vmamba-tiny-s1l9' is neither a config file (.py) nor one of"),
        (["vmamba-tiny-s1l8=absent.pth"], "there is no checkpoint file 'absent.pth'"),
        (["vmamba-tiny-s1l8=mmvssm://vmamba-tinny"], "vmamba-tiny"),
        (["efficient-vmamba-tiny=other.pth"], "'other.pth' does not fit"),
        (["vmamba-tiny-s1l8", "--images", "absent"], "there is no folder 'absent'"),
        ([CONFIGS / "cls.py", "--images", "empty"], "there are no images"),
        ([CONFIGS / "cls.py", "--out", "erf.txt"], "--out must end in .json or .png or .svg or"),
    ],
)
def test_refuses(run, tmp_path, args, message):
    (tmp_path / "empty").mkdir()
    save(CONFIGS / "cls.py", tmp_path / "other.pth")
    status, _, _ = run(*args, *([] if "--out" in args else ["--out", "erf.png"]))
    assert status.startswith("get_erf.py: error: ") and message in status
    assert not (tmp_path / "erf.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "erf.png", "--num", "0"], "--num must be at least 1"),
        (["--out", "erf.png", "--power", "0"], "--power must be positive"),
        (["--out", "erf.png", "--size", "1", "2", "3"], "--size must be one side"),
        (["--out", "erf.png", "--device", "abacus"], "abacus"),
    ],
)
def test_usage(run, args, message):
    status, _, errors = run("vmamba-tiny-s1l8", *args)
    assert status == 2 and message in errors
