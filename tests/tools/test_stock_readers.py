"""The libraries' own scripts and inferencers read tools/train.py's files without any setting."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = Path(find_spec("mmpretrain").origin).parent / ".mim" / "tools"
INFER = """
import sys
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer
config = Config.fromfile(sys.argv[1])
# the inferencer looks for the name without a scope
config.test_dataloader.dataset.pipeline[0].type = "LoadImageFromFile"
inferencer = ImageClassificationInferencer(config, sys.argv[2], device="cpu")
(result,) = inferencer(sys.argv[3])
print("label", result["pred_label"], result["pred_class"])
"""


# the tools here take care of that
NO_WORKERS = ("val_dataloader.persistent_workers=False", "test_dataloader.persistent_workers=False")


@pytest.fixture
def stock(tools):
    """Runs Python with arguments next to the data, and returns its output."""
    environment = {k: v for k, v in tools.environment.items() if not k.startswith("TORCH_FORCE")}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tools.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_test_script(tools, stock, cls_checkpoint):
    stock(
        SCRIPTS / "test.py", "cls.py", cls_checkpoint, "--work-dir", "stock-test",
        "--cfg-options", *NO_WORKERS,
    )  # fmt: skip
    (found,) = (tools.folder / "stock-test").glob("*/*.json")
    expected = tools.scalars("work_dirs/cls", "accuracy/top1")[-1]
    assert json.loads(found.read_text())["accuracy/top1"] == pytest.approx(expected)


@pytest.mark.slow
def test_train_script_resumes(tools, stock, cls_checkpoint):
    output = stock(
        SCRIPTS / "train.py", "cls.py", "--work-dir", "stock-train", "--resume",
        tools.folder / cls_checkpoint, "--cfg-options", "train_cfg.max_epochs=4", *NO_WORKERS,
    )  # fmt: skip
    assert "resumed epoch: 3, iter: 9" in output and "Epoch(train) [4][3/3]" in output


@pytest.mark.slow
def test_inferencer(tools, stock, cls_checkpoint):
    image = next((tools.folder / "data/cls/val/red").iterdir())
    output = stock("-c", INFER, "cls.py", cls_checkpoint, image)
    label, name = output.split("label ")[-1].split()[:2]
    assert int(label) in range(3) and name in ("red", "green", "blue")
