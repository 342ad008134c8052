"""The demo as a user runs it, cut short; and its pictures for all three tasks."""

import importlib.util
import json
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmvssm  # noqa: F401  makes `mmvssm::` known to MMEngine

SHORT = [
    "randomness.seed=0",
    "train_dataloader.dataset.indices=64",
    "val_dataloader.dataset.indices=64",
]


@pytest.fixture(scope="module")
def demo(root):
    spec = importlib.util.spec_from_file_location("demo", root / "tools" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo"]


@pytest.fixture
def run(demo, root, data, monkeypatch, capfd):
    """Runs the demo next to its data; returns the output, its tools' included, and exit status."""
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["demo.py", *arguments])
        status = demo.main()
        return "".join(capfd.readouterr()), status

    return run


def commands(output):
    return [line.split()[2] for line in output.splitlines() if line.startswith("$ python")]


def test_trains_resumes_and_repeats_nothing(run, data):
    folder = data.parent / "work_dirs" / "demo-cls"
    make, train, test = (f"tools/{name}.py" for name in ("make_demo_data", "train", "test"))

    output, status = run("cls", "--cfg-options", *SHORT, "train_cfg.max_epochs=1")
    assert status == 0, output
    assert commands(output) == [make, train, test]
    assert (folder / "epoch_1.pth").is_file()

    # as after an interruption: one of two epochs is there
    output, status = run("cls", "--cfg-options", *SHORT, "train_cfg.max_epochs=2")
    assert status == 0 and commands(output) == [make, train, test]
    assert "Epoch(train) [2]" in output and "Epoch(train) [1]" not in output
    results = ("epoch_2.pth", "metrics.json", "curves.png", "predictions.png")
    assert all((folder / name).is_file() for name in results)
    accuracy = json.loads((folder / "metrics.json").read_text())["accuracy/top1"]
    report = output[output.rindex("accuracy/top1") :]
    assert f"{accuracy:.4g} on images that training never saw" in report
    assert ("missed" if accuracy < 95 else "reached") + " goal" in report
    assert all(f"work_dirs/demo-cls/{name}" in report for name in results[2:])

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    output, status = run("cls", "--cfg-options", *SHORT, "train_cfg.max_epochs=2")
    assert status == 0 and commands(output) == [make]
    assert f"{accuracy:.4g} on images that training never saw" in output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_failure_of_a_step_is_named(run):
    output, status = run("seg", "--cfg-options", "model.type=Nothing")
    assert status == 1 and "train.py failed" in output
    assert commands(output) == ["tools/make_demo_data.py", "tools/train.py"]


def test_unknown_task(run, capfd):
    with pytest.raises(SystemExit, match="2"):
        run("pose")
    assert "invalid choice: 'pose'" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["cls", "det", "seg"])
def test_pictures(demo, root, data, name, tmp_path, monkeypatch):
    """Predictions equal to the annotations give the same panel twice, and no red title."""
    monkeypatch.chdir(data.parent)
    task = demo.TASKS[name]
    cfg = Config.fromfile(root / "configs" / "demo" / task.config)
    init_default_scope(cfg.default_scope)
    checkpoint = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, checkpoint)
    samples = demo.predict(cfg, str(checkpoint), 4 if name != "cls" else 8)
    for sample in samples:
        assert sample.image.shape == ((32, 32, 3) if name == "cls" else (128, 128, 3))
        assert 0 <= sample.image.min() < sample.image.max() <= 1
        perfect(sample.result)
    path = tmp_path / "predictions.png"
    task.draw(path, samples)
    picture = cv2.imread(str(path)).astype(int)
    colours = picture[..., ::-1].reshape(-1, 3)
    assert not (colours == (255, 0, 0)).all(1).any()
    if name != "cls":
        blue = np.round(255 * np.array(demo.COLOURS[0])).astype(int)
        assert (np.abs(colours - blue).max(1) < 3).any()  # at least in the legend
    assert [item.name for item in tmp_path.iterdir() if "part" in item.name] == []


def perfect(result):
    """Turn the annotation into the prediction."""
    if "gt_label" in result:
        result.set_pred_label(result.gt_label)
    elif "gt_sem_seg" in result:
        result.pred_sem_seg = result.gt_sem_seg
    else:
        truth = result.gt_instances
        result.pred_instances = type(truth)(
            bboxes=truth.bboxes,
            labels=truth.labels,
            scores=torch.ones(len(truth)),
            masks=torch.from_numpy(truth.masks.masks.astype(bool)),
        )
