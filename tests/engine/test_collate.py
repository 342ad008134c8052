"""Batches are stacked, whether the config is read by path or by name."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from torch.utils.data import TensorDataset

import mmvssm

IN1K = "vmamba/vmamba-tiny-s1l8_8xb128_in1k.py"


@pytest.mark.parametrize("base", [f"mmvssm::{IN1K}", mmvssm.config_path(IN1K)])
def test_loaders_of_a_config_stack(base, tmp_path):
    (tmp_path / "mine.py").write_text(f"_base_ = {base!r}\n")
    cfg = Config.fromfile(tmp_path / "mine.py")
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = dict(cfg[name], num_workers=0, persistent_workers=False, batch_size=4)
        loader["dataset"] = TensorDataset(torch.arange(8.0).reshape(4, 2))
        (batch,) = next(iter(Runner.build_dataloader(loader)))
        assert batch.shape == (4, 2)


def test_found_from_any_library():
    collate = FUNCTIONS.get("mmvssm.default_collate")
    assert torch.equal(collate([torch.zeros(2)] * 3, _scope_="mmdet"), torch.zeros(3, 2))
