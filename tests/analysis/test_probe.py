"""Linear probes: the features, the classifier on them, and the tool on the demo digits."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config

from mmvssm.analysis import Features, extract_features, train_probe
from mmvssm.hub import load_weights
from mmvssm.zoo import build_model

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "analysis_tools" / "linear_probe.py"
DIGITS = ROOT / "configs" / "demo" / "vmamba-micro_digits-cls.py"


def blobs(number, width=5, scale=1.0, shift=0.0):
    """Three classes whose means differ in the first three features."""
    labels = torch.arange(number) % 3
    values = 0.1 * torch.randn(number, width)
    values[torch.arange(number), labels] += 1
    return Features(values * scale + shift, labels)


def test_separable_features_are_separated():
    probe = train_probe(blobs(60), blobs(30), epochs=50, batch_size=16, lr=0.5)
    assert probe.train_accuracy == probe.test_accuracy == 100
    assert probe.class_accuracy == (100, 100, 100)
    assert len(probe.losses) == 50 and probe.losses[-1] < 0.2 * probe.losses[0]


def test_scale_and_shift_of_features_do_not_matter():
    torch.manual_seed(0)
    train, test = blobs(60), blobs(30)
    moved = [Features(100 * f.values - 7, f.labels) for f in (train, test)]
    first, second = train_probe(train, test), train_probe(*moved)
    assert second.losses == pytest.approx(first.losses, rel=1e-3)
    # the classifier takes features as they are
    scores, same = first.classifier(test.values), second.classifier(moved[1].values)
    torch.testing.assert_close(scores, same, rtol=1e-2, atol=1e-2)


def test_loss_of_the_first_step_and_the_gradient_by_hand():
    """All scores start at 0, and one step goes against the gradient."""
    values = torch.tensor([[1.0], [-1.0]])  # standardised already
    data = Features(values, torch.tensor([0, 1]))
    probe = train_probe(data, data, epochs=1, batch_size=2, lr=0.5)
    assert probe.losses == pytest.approx([torch.tensor(2.0).log().item()])
    # of class 0: mean of (1/2 - 1) * 1 and (1/2) * -1
    expected = torch.tensor([[0.25], [-0.25]])
    torch.testing.assert_close(probe.classifier.weight.detach(), expected)


def test_classes_that_test_data_lack_are_nan():
    test = Features(torch.ones(2, 5), torch.tensor([0, 0]))
    first, *others = train_probe(blobs(9), test, epochs=1).class_accuracy
    assert first == first and all(value != value for value in others)


@pytest.mark.parametrize("wrong", [dict(epochs=0), dict(lr=0.0), dict(batch_size=0)])
def test_refuses(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        train_probe(blobs(6), blobs(6), **wrong)
    wide = Features(torch.zeros(6, 9), blobs(6).labels)
    with pytest.raises(ValueError, match="the same width, got 5 and 9"):
        train_probe(blobs(6), wide)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Some demo digits, and two checkpoints: random weights, and weights that are all zero."""
    folder = tmp_path_factory.mktemp("probe")
    tool = ROOT / "tools" / "make_demo_data.py"
    command = [sys.executable, tool, folder / "data", "--task", "cls"]
    subprocess.run(command, check=True, capture_output=True)
    for split, most in (("train", 25), ("val", 10)):
        for digit in (folder / "data/digits-cls" / split).iterdir():
            for file in sorted(digit.iterdir())[most:]:
                file.unlink()
    torch.manual_seed(0)
    model = build_model(Config.fromfile(DIGITS))
    torch.save(dict(state_dict=model.state_dict()), folder / "random.pth")
    blind = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    torch.save(dict(state_dict=blind), folder / "blind.pth")
    return folder


def test_features_are_those_of_the_head(place, monkeypatch):
    """Images come in order and with the test pipeline, for the training data as well."""
    monkeypatch.chdir(place)
    cfg = Config.fromfile(DIGITS)
    model = build_model(cfg)
    load_weights(model.backbone, "random.pth", "backbone.")
    found = extract_features(model, cfg, "train")
    files = sorted(Path("data/digits-cls/train").glob("*/*.png"))
    assert found.values.shape == (len(files), 256)
    assert found.labels.tolist() == [int(file.parent.name) for file in files]
    assert found.classes == tuple("0123456789")
    for i in (0, 100, len(files) - 1):
        image = torch.from_numpy(cv2.imread(str(files[i]))).permute(2, 0, 1).float()
        with torch.no_grad():
            (expected,) = model.backbone((image[None] - 80) / 95)
        torch.testing.assert_close(found.values[i], expected.mean((2, 3))[0], atol=1e-4, rtol=1e-4)


def test_tool(place, run_tool, monkeypatch):
    """Random features separate the digits; constant features do not."""
    monkeypatch.chdir(place)
    files = ["p.json", "p.png", "p.svg"]
    options = ["--batch-size", 50, "--epochs", 20]
    status, streams = run_tool(TOOL, DIGITS, "random.pth", *options, "--out", *files)
    assert status == 0, status
    found = json.loads(Path("p.json").read_text())
    assert f"accuracy on the test data: {found['test_accuracy']:.2f} %" in streams.out
    assert found["test_accuracy"] > 50
    assert len(found["class_accuracy"]) == len(found["classes"]) == 10
    assert Path("p.png").stat().st_size and "<svg" in Path("p.svg").read_text()
    status, streams = run_tool(TOOL, DIGITS, "blind.pth", *options, "--out", "blind.json")
    assert json.loads(Path("blind.json").read_text())["test_accuracy"] < 20


def test_tool_refuses(place, run_tool, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    seg = ROOT / "configs/demo/vmamba-micro_upernet_digits-seg.py"
    assert "needs the config of a classifier" in run_tool(TOOL, seg, "random.pth")[0]
    other = ROOT / "configs/demo/vim-micro_digits-cls.py"
    assert "does not fit the config" in run_tool(TOOL, other, "random.pth")[0]
    monkeypatch.chdir(tmp_path)
    assert "no checkpoint file" in run_tool(TOOL, DIGITS, "random.pth")[0]
    assert "no data folder" in run_tool(TOOL, DIGITS, place / "random.pth")[0]
