"""Shared parts of the tools that need no process of their own."""

import os

import pytest
from mmengine.config import ConfigDict

from mmvssm.engine.cli import latest_checkpoint, leaf_datasets


@pytest.fixture
def work_dir(tmp_path):
    """Checkpoints of two epochs, the first of them written later."""
    for name, age in (("epoch_1.pth", 10), ("epoch_2.pth", 20), ("best_top1_epoch_1.pth", 0)):
        path = tmp_path / name
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    return tmp_path


@pytest.mark.parametrize(
    ("note", "found"),
    [
        ("{here}/epoch_2.pth", "epoch_2.pth"),
        ("elsewhere/epoch_2.pth", "epoch_2.pth"),
        ("{here}/epoch_3.pth", "epoch_1.pth"),
        ("", "epoch_1.pth"),
        (None, "epoch_1.pth"),
    ],
    ids=["as noted", "folder moved", "noted one is gone", "note cut off", "no note"],
)
def test_latest_checkpoint(work_dir, note, found):
    if note is not None:
        (work_dir / "last_checkpoint").write_text(note.format(here=work_dir))
    assert latest_checkpoint(str(work_dir)) == str(work_dir / found)


def test_nothing_to_resume(tmp_path):
    assert latest_checkpoint(str(tmp_path)) is None


def test_leaf_datasets_are_found_in_any_wrapping():
    one, two, three = (dict(type="Set", ann_file=name) for name in "abc")
    wrapped = dict(
        type="ConcatDataset",
        datasets=[dict(type="RepeatDataset", times=2, dataset=one), two, dict(dataset=three)],
    )
    assert list(leaf_datasets(ConfigDict(wrapped))) == [one, two, three]
    assert list(leaf_datasets(ConfigDict(one))) == [one]
