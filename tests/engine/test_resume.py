"""Exact resuming inside MMEngine's loops, with a model that is all randomness."""

import os

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mmvssm.engine import ResumableBatchSampler, SeededDataset, make_resumable
from mmvssm.engine.resume import WholeFileBackend, _PassedOver

BATCHES = 5


class NoisyNumbers(Dataset):
    """Ten samples, each different on every read; counts the reads."""

    def __init__(self):
        self.metainfo = dict(classes=("noise",))
        self.readings = 0

    def __len__(self):
        return 2 * BATCHES

    def __getitem__(self, index):
        self.readings += 1
        return dict(x=index + torch.rand(3) + np.random.rand())


class Dropping(BaseModel):
    """A linear layer behind strong dropout."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x, mode="tensor"):
        x = torch.dropout(torch.stack(list(x)), 0.5, self.training)
        return dict(loss=self.layer(x).square().mean())


@pytest.fixture(autouse=True)
def _registered():
    for registry, kind in ((DATASETS, NoisyNumbers), (MODELS, Dropping)):
        registry.register_module(module=kind, force=True)
    yield
    DATASETS.module_dict.pop("NoisyNumbers")
    MODELS.module_dict.pop("Dropping")


def make_config(work_dir, by_iteration, workers):
    """Return a config of ten steps, with a checkpoint every three, thus inside epochs of five."""
    if by_iteration:
        loop, sampler = dict(type="IterBasedTrainLoop", max_iters=10), "InfiniteSampler"
    else:
        loop, sampler = dict(type="EpochBasedTrainLoop", max_epochs=2), "DefaultSampler"
    cfg = Config(
        dict(
            default_scope="mmengine",
            experiment_name=str(work_dir),
            work_dir=str(work_dir),
            model=dict(type="Dropping"),
            train_cfg=loop,
            train_dataloader=dict(
                batch_size=2,
                num_workers=workers,
                persistent_workers=workers > 0,
                sampler=dict(type=sampler, shuffle=True),
                dataset=dict(type="NoisyNumbers"),
            ),
            optim_wrapper=dict(optimizer=dict(type="Adam", lr=0.1)),
            default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=3)),
            randomness=dict(seed=3),
        )
    )
    make_resumable(cfg)
    return cfg


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("by_iteration", [False, True], ids=["epochs", "iterations"])
@pytest.mark.parametrize("step", [3, 6])
def test_resumed_inside_an_epoch_ends_alike(tmp_path, by_iteration, workers, step):
    whole = Runner.from_cfg(make_config(tmp_path / "whole", by_iteration, workers))
    whole.train()
    cfg = make_config(tmp_path / "rest", by_iteration, workers)
    cfg.resume, cfg.load_from = True, str(tmp_path / f"whole/iter_{step}.pth")
    # whatever was random before must not matter
    rest = Runner.from_cfg(cfg)
    torch.rand(5)
    np.random.rand(5)
    rest.train()
    assert rest.iter == whole.iter == 10
    assert rest.message_hub.get_scalar("train/loss").data[0].size == 10
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], weight)
    if workers == 0:
        # batches that were already trained on are skipped without loading them
        assert rest.train_dataloader.dataset.readings == 2 * (10 - step)


def test_epochs_of_another_length_start_anew(tmp_path):
    """With twice the batch size, iteration 6 of epoch 1 does not exist in the data."""
    Runner.from_cfg(make_config(tmp_path / "whole", False, 0)).train()
    cfg = make_config(tmp_path / "rest", False, 0)
    cfg.train_dataloader.batch_size = 10
    cfg.resume, cfg.load_from = True, str(tmp_path / "whole/iter_6.pth")
    rest = Runner.from_cfg(cfg)
    rest.train()
    assert rest.train_dataloader.dataset.readings == 10


def draws(sampler, **where):
    for name, value in where.items():
        setattr(sampler, name, value)
    return list(sampler)


def test_seeds_depend_on_run_batch_and_place():
    def sampler(seed):
        torch.manual_seed(seed)
        return ResumableBatchSampler(DefaultSampler(range(6), shuffle=False), batch_size=2)

    first, second = draws(sampler(0)), draws(sampler(0), position=3)
    assert [[draw.index for draw in batch] for batch in first] == [[0, 1], [2, 3], [4, 5]]
    seeds = {draw.seed for batch in (*first, *second) for draw in batch}
    assert len(seeds) == 12
    assert draws(sampler(0)) == first
    assert draws(sampler(0), resume_at=2) == first[2:]
    assert seeds.isdisjoint(draw.seed for batch in draws(sampler(1)) for draw in batch)


def test_samples_do_not_depend_on_workers():
    def batches(workers):
        torch.manual_seed(0)
        dataset = SeededDataset(NoisyNumbers())
        sampler = ResumableBatchSampler(DefaultSampler(dataset, seed=0), batch_size=2)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
        return torch.cat([batch["x"] for batch in loader])

    assert torch.equal(batches(0), batches(2))


def test_configured_batch_sampler_is_kept():
    cfg = Config(
        dict(
            train_dataloader=dict(
                batch_size=2,
                drop_last=True,
                sampler=dict(type="DefaultSampler"),
                dataset=dict(type="NoisyNumbers"),
            ),
            custom_hooks=[dict(type="EMAHook")],
        )
    )
    make_resumable(cfg)
    once = cfg.to_dict()
    make_resumable(cfg)
    assert cfg.to_dict() == once
    hooks = ["EMAHook", "mmvssm.ExactResumeHook", "mmvssm.PlainCheckpointHook"]
    assert [hook["type"] for hook in cfg.custom_hooks] == hooks
    cfg.train_dataloader.batch_size = 3
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    assert [len(batch) for batch in loader.batch_sampler] == [3, 3, 3] and len(loader) == 3
    assert loader.dataset.metainfo == dict(classes=("noise",))


def test_infinite_sampler_goes_on_over_epochs():
    sampler = ResumableBatchSampler(InfiniteSampler(range(4), seed=0), batch_size=4)
    batches = iter(sampler)
    orders = [[draw.index for draw in next(batches)] for _ in range(3)]
    assert [sorted(order) for order in orders] == [[0, 1, 2, 3]] * 3
    assert sampler.position == 3


def test_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    backend, path = WholeFileBackend(), tmp_path / "new" / "epoch_1.pth"
    backend.put(b"old", path)

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        backend.put(b"new", path)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_outdated_checkpoint_goes_when_the_next_is_there(tmp_path):
    first, second = tmp_path / "epoch_1.pth", tmp_path / "epoch_2.pth"
    WholeFileBackend().put(b"1", first)
    WholeFileBackend().remove(first)
    assert first.exists()
    WholeFileBackend().put(b"2", second)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_2.pth"]


def test_runs_write_through_the_backend(tmp_path):
    cfg = make_config(tmp_path, False, 0)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    runner = Runner.from_cfg(cfg)
    runner.train()
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    assert isinstance(hook.file_backend, WholeFileBackend)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["iter_10.pth"]


def test_loop_that_asks_for_skipped_batches():
    """The loop of onedl-mmengine; MMEngine's own requests the batches one by one."""
    batches = _PassedOver(iter("abcdef"), loaded=2, count=3)
    batches.skip_iter(5)  # two that workers had loaded, three that nobody loads
    assert list(batches) == ["c", "d", "e", "f"]
