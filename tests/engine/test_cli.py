"""Shared parts of the tools that can be tested in this process."""

import argparse
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseTTAModel
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from mmvssm.engine.cli import (
    CompleteWeightsHook,
    add_shared_arguments,
    latest_checkpoint,
    leaf_datasets,
    load_config,
)

CONFIG = Path(__file__).parents[2] / "configs/vim/mask-rcnn_vim-tiny_fpn_1x_coco.py"


@pytest.fixture
def work_dir(tmp_path):
    """Checkpoints of two epochs, the first of them written later."""
    for name, age in (("epoch_1.pth", 10), ("epoch_2.pth", 20), ("best_top1_epoch_1.pth", 0)):
        path = tmp_path / name
        torch.save(dict(meta={}, state_dict={}), path)
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


def test_damaged_checkpoints_are_passed_over(work_dir, capsys):
    newest, older = work_dir / "epoch_1.pth", work_dir / "epoch_2.pth"
    whole = newest.read_bytes()
    changed = bytearray(whole)
    changed[whole.index(b"state_dict")] ^= 1  # inside of what the archive has a checksum of
    for damaged in (b"", whole[:200], whole[: len(whole) // 2], bytes(len(whole)), bytes(changed)):
        newest.write_bytes(damaged)
        os.utime(newest, (2000, 2000))
        assert latest_checkpoint(str(work_dir)) == str(older)
        assert f"Skipping a damaged checkpoint: '{newest}'" in capsys.readouterr().out
    older.write_bytes(b"")
    message = r"all checkpoints in .* are damaged \(.*epoch_2.pth, .*epoch_1.pth.*\): move them"
    with pytest.raises(SystemExit, match=message):
        latest_checkpoint(str(work_dir))


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


def cfg_options(*words):
    """Return what ``--cfg-options`` makes of its arguments."""
    parser = argparse.ArgumentParser()
    add_shared_arguments(parser)
    return parser.parse_args(["--cfg-options", *words]).cfg_options


def test_entries_of_a_dict_are_given_one_by_one():
    key = "model.backbone.init_cfg"
    words = ["type=Pretrained", "checkpoint=dir/file.pth", "prefix=backbone."]
    options = cfg_options(*(f"{key}.{word}" for word in words), "a=[(1,b),(2.5,True)]", "c='d'")
    assert options["a"] == [(1, "b"), (2.5, True)]
    assert options["c"] == "d"
    expected = dict(type="Pretrained", checkpoint="dir/file.pth", prefix="backbone.")
    backbone = load_config(str(CONFIG), options).model.backbone
    assert backbone.type == "mmvssm.Vim"
    assert backbone.init_cfg == expected


@pytest.mark.parametrize(
    "value",
    [
        "dict(type='Pretrained', checkpoint='x', prefix='backbone.')",
        " dict(type=Pretrained)",
        "{'type': 'Pretrained', 'checkpoint': 'x'}",
    ],
)
def test_a_dict_as_a_value_is_a_usage_error(value, capsys):
    key = "model.backbone.init_cfg"
    with pytest.raises(SystemExit) as stop:
        cfg_options("a=1", f"{key}={value}")
    assert stop.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"argument --cfg-options: {key} cannot be given as a dict" in error
    assert f"{key}.type=Pretrained {key}.checkpoint=FILE {key}.prefix=backbone." in error


@pytest.mark.parametrize("value", ["f(a,b)", "[(1,2)", "(a,b),g[c,d]"])
def test_values_that_cannot_be_read_are_usage_errors(value, capsys):
    with pytest.raises(SystemExit) as stop:
        cfg_options(f"key={value}")
    assert stop.value.code == 2
    assert "the value of key must be a number, a word or lists of them" in capsys.readouterr().err


class Doubled(nn.Linear):
    """Loads a weight with half as many rows."""

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
        ({"0.weight": torch.ones(3, 3)}, "1 parameters are missing or .* e.g. 0.weight$"),
        ({"0.bias": None, "1.bias": torch.ones(1)}, "2 parameters are missing .* 0.bias, 1.bias$"),
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
