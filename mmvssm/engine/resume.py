"""Exact resuming: a killed and resumed run ends with the weights of an uninterrupted one.

MMEngine's checkpoints store weights, optimizer, schedules and counters, but neither the random
generators (for drop path, dropout, mixup and augmentation, also in the workers) nor the position in
the data within an epoch. Instead of storing these states, everything random in training is made a
function of the run's seed, the rank and the iteration:

* :class:`ExactResumeHook` seeds the generators before each iteration;
* :class:`ResumableBatchSampler` numbers the batches, assigns a seed to each sample, and skips
  batches that were already trained without loading them;
* :class:`SeededDataset` applies this seed where the sample is loaded, in any worker.

:func:`make_resumable` adds the three to a config; ``tools/train.py`` does so for every run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import DATA_SAMPLERS as ROOT_DATA_SAMPLERS
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import BatchSampler, Dataset, Sampler

from mmvssm.registry import DATA_SAMPLERS, DATASETS, HOOKS

# First key of a seed, so that data loading and training steps never share a random stream.
_DATA, _STEP = 0, 1


class Draw(NamedTuple):
    """One sample of a batch: its index in the dataset and the seed to load it with."""

    index: int
    seed: int


def _mix(*keys: int) -> int:
    """Hash non-negative integers to one well-spread 32-bit seed."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


def _seed_cpu(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed would also queue a call for a CUDA context that workers do not have.
    torch.default_generator.manual_seed(seed)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Dataset wrapper that seeds the generators before it loads a :class:`Draw`.

    Everything else (``metainfo``, ``get_data_info``, ``pipeline``, ...) is the wrapped dataset's.

    Args:
        dataset: Dataset or its config.
    """

    def __init__(self, dataset: Dataset | dict) -> None:
        self.dataset = ROOT_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __getattr__(self, name: str) -> Any:
        # 'dataset' is absent while unpickling in a spawned worker.
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Draw | int) -> Any:
        if isinstance(item, Draw):
            _seed_cpu(item.seed)
            item = item.index
        return self.dataset[item]


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(Sampler):
    """Batch sampler that numbers its batches and can skip the first ones.

    Args:
        sampler: Sampler of the data loader.
        batch_size: Samples in a batch.
        batch_sampler: Config of the batch sampler to wrap; None for torch's plain one.
        drop_last: Whether the plain batch sampler drops an incomplete last batch.

    Attributes:
        position: Number of the next batch since the start of training, over all epochs.
        resume_at: Batches with lower numbers are skipped.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        batch_sampler: dict | None = None,
        drop_last: bool = False,
    ) -> None:
        if batch_sampler is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batches = ROOT_DATA_SAMPLERS.build(
                batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size)
            )
        # MMEngine's sampler hook and learning-rate scaling look for these names.
        self.sampler = sampler
        self.batch_size = batch_size
        self.position = 0
        self.resume_at = 0
        # The runner has just seeded torch with the seed of the run.
        self._seed = torch.initial_seed()

    def __iter__(self) -> Iterator[list[Draw]]:
        rank = get_rank()
        for batch in self.batches:
            number = self.position
            self.position += 1
            if number >= self.resume_at:
                yield [
                    Draw(index, _mix(_DATA, self._seed, rank, number, place))
                    for place, index in enumerate(batch)
                ]

    def __len__(self) -> int:
        return len(self.batches)


class _PassedOver:
    """Iterator over ``loaded`` items of ``iterator``, ``count`` times None, then the rest."""

    def __init__(self, iterator: Iterator, loaded: int, count: int) -> None:
        self._iterator = iterator
        self._loaded = loaded
        self._count = count

    def __iter__(self) -> _PassedOver:
        return self

    def __next__(self) -> Any:
        # The workers prefetched these batches before the run was known to resume.
        if self._loaded > 0:
            self._loaded -= 1
            return next(self._iterator)
        if self._count > 0:
            self._count -= 1
            return None
        return next(self._iterator)

    def skip_iter(self, num_iters: int) -> None:
        """Pass over the trained batches; called by the loop of onedl-mmengine, not of MMEngine."""
        for _ in range(num_iters):
            next(self)


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Hook that seeds each iteration, restores the position in the data, and saves atomically."""

    priority = "VERY_HIGH"

    def before_run(self, runner) -> None:
        """Make the checkpoint hooks write local files atomically."""
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and _writes_plain_files(hook):
                hook.backend_args = dict(backend=WholeFileBackend.NAME)

    def before_train_epoch(self, runner) -> None:
        """Set the number of the first batch, and the number of batches already trained."""
        loop = runner.train_loop
        batches = loop.dataloader.batch_sampler
        if not isinstance(loop, IterBasedTrainLoop):
            start = loop.epoch * len(loop.dataloader)
            batches.position = start
            # A run resumed with another epoch length (more GPUs, more data) restarts its epoch.
            batches.resume_at = loop.iter if 0 < loop.iter - start < len(loop.dataloader) else start
        elif loop.iter > 0 and isinstance(batches.sampler, InfiniteSampler):
            # The loop requests the trained batches only to drop them, so do not load them.
            loaded = min(batches.position, loop.iter)
            batches.resume_at = loop.iter
            loop.dataloader_iterator = _PassedOver(
                loop.dataloader_iterator, loaded=loaded, count=loop.iter - loaded
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed drop path, dropout and batch augmentation of this iteration."""
        seed = _mix(_STEP, runner.seed, get_rank(), runner.iter)
        _seed_cpu(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed(seed)


def _writes_plain_files(hook: CheckpointHook) -> bool:
    chosen = hook.backend_args is not None or hook.file_client_args is not None
    return not chosen and "://" not in str(hook.out_dir or "")


class WholeFileBackend(LocalBackend):
    """File backend whose local checkpoints stay usable if a run is killed at any moment.

    A file is written under a temporary name and then renamed, and an outdated file is removed only
    when its successor exists (MMEngine removes it before).
    """

    NAME = "mmvssm_whole_file"
    # MMEngine removes and writes through different instances.
    _outdated: ClassVar[list[Path]] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` to ``filepath`` atomically."""
        target = Path(filepath)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.write_bytes(obj)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        for path in self._outdated:
            if path != target:
                path.unlink(missing_ok=True)
        self._outdated.clear()

    def remove(self, filepath: str | Path) -> None:
        """Schedule ``filepath`` for removal after the next file is written."""
        self._outdated.append(Path(filepath))


register_backend(WholeFileBackend.NAME, WholeFileBackend, force=True)


def make_resumable(cfg: Config) -> None:
    """Make training with ``cfg`` resume exactly; a second call changes nothing.

    The function wraps the training dataset and batch sampler, and adds :class:`ExactResumeHook` and
    :class:`~.plain_files.PlainCheckpointHook`, all under their full names, so that the config
    dumped by MMEngine also runs elsewhere.

    Args:
        cfg: Config to change in place.
    """
    loader = cfg.train_dataloader
    if loader.dataset.get("type") in ("mmvssm.SeededDataset", SeededDataset):
        return
    loader.dataset = dict(type="mmvssm.SeededDataset", dataset=loader.dataset)
    loader.batch_sampler = dict(
        type="mmvssm.ResumableBatchSampler",
        batch_sampler=loader.pop("batch_sampler", None),
        drop_last=loader.pop("drop_last", False),
    )
    hooks = [dict(type="mmvssm.ExactResumeHook"), dict(type="mmvssm.PlainCheckpointHook")]
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), *hooks]
