"""Every published recipe reports missing data, in the layout that the data page shows."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text()
# By benchmark: a config, what it reads in training and in test, in the order of looking.
IMAGENET = ["data/imagenet", "data/imagenet/train", "data/imagenet/val"]
COCO = [
    "data/coco/",
    "data/coco/annotations/instances_train2017.json",
    "data/coco/train2017/",
    "data/coco/annotations/instances_val2017.json",
    "data/coco/val2017/",
]
ADE = "data/ade/ADEChallengeData2016"
BENCHMARKS = {
    "vmamba-tiny-s1l8_8xb128_in1k": IMAGENET,
    "mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco": COCO,
    "vmamba-tiny-s1l8_upernet_4xb4-160k_ade20k-512x512": [
        ADE,
        *(f"{ADE}/{kind}/{split}" for split in ("training", "validation")
          for kind in ("images", "annotations")),
    ],
}  # fmt: skip


@pytest.fixture
def complaint(tmp_path, monkeypatch):
    """Run a tool in an empty folder up to its refusal; returns the message."""
    monkeypatch.chdir(tmp_path)
    for name in ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")

    def run(tool, *args):
        monkeypatch.setattr(sys, "argv", [tool, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
        assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
        return stop.value.code

    return run


def folders_of_the_page(block):
    """Return the paths in a tree on the page."""
    root, *lines = block.splitlines()
    paths, above = {root}, [root]
    for line in lines:
        indent, _, name = re.match(r"([│ ]*)([├└]── )(\S+)", line).groups()
        above[len(indent) // 4 + 1 :] = [name]
        paths.add("/".join(above))
    return paths


TREES = [folders_of_the_page(tree) for tree in re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)]


@pytest.mark.parametrize(("name", "paths"), BENCHMARKS.items(), ids=["in1k", "coco", "ade20k"])
def test_each_missing_path_is_named_and_on_the_page(complaint, tmp_path, name, paths):
    config = ROOT / "configs" / "vmamba" / f"{name}.py"
    (tree,) = (tree for tree in TREES if paths[0].rstrip("/") in tree)
    for path in paths:
        message = complaint("train.py", config)
        kind = "annotation file" if path.endswith(".json") else "data folder"
        assert f"there is no {kind} {path!r} (" in message
        assert f"i.e. {str(tmp_path / path.rstrip('/'))!r}" in message.replace("/'", "'")
        assert path.rstrip("/") in tree
        if kind == "data folder":
            (tmp_path / path).mkdir(parents=True)
        else:
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).touch()


def test_test_looks_before_it_reads_the_checkpoint(complaint, tmp_path):
    torch.save(dict(state_dict={}, meta={}), tmp_path / "empty.pth")
    config = ROOT / "configs" / "vmamba" / "vmamba-tiny-s1l8_8xb128_in1k.py"
    message = complaint("test.py", config, "empty.pth")
    assert "there is no data folder 'data/imagenet' (test_dataloader of the config)" in message
    assert "--cfg-options test_dataloader.dataset.data_root=DIR" in message
