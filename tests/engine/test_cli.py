"""Shared parts of the tools that need no process of their own."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseTTAModel
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from mmvssm.engine.cli import (
    CompleteWeightsHook,
    latest_checkpoint,
    leaf_datasets,
)


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


class Doubled(nn.Linear):
    """Takes a weight of half its rows."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        key = f"{prefix}weight"
        if key in state_dict and 2 * len(state_dict[key]) == len(self.weight):
            state_dict[key] = state_dict[key].repeat(2, 1)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Model(nn.Sequential):
    def test_step(self, data):
        raise NotImplementedError


class Views(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        raise NotImplementedError


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"0.weight": torch.ones(2, 3), "1.running_mean": None, "more": torch.ones(1)}, None),
        ({"0.weight": torch.ones(3, 3)}, "1 parameters are absent or .* e.g. 0.weight$"),
        ({"0.bias": None, "1.bias": torch.ones(1)}, "2 parameters are absent .* 0.bias, 1.bias$"),
    ],
    ids=["complete", "made to fit", "another shape", "absent"],
)
def test_every_parameter_must_come_from_the_checkpoint(is_wrapped, changes, message):
    model = Model(Doubled(3, 4), nn.BatchNorm1d(4))
    weights = {k: v.clone() for k, v in model.state_dict().items()} | changes
    weights = {key: value for key, value in weights.items() if value is not None}
    runner = SimpleNamespace(model=Views(model) if is_wrapped else model)
    hook = CompleteWeightsHook()
    hook.after_load_checkpoint(runner, dict(state_dict=weights))
    load_state_dict(runner.model, weights)
    if message is None:
        hook.before_test(runner)
        return
    with pytest.raises(SystemExit, match=f"the checkpoint does not fit the config: {message}"):
        hook.before_test(runner)
