"""Training checkpoints of plain values, and safe reading of other ones.

torch >= 2.6 reads only tensors and plain values unless it is told to trust a file. MMEngine's
runner also saves its logs as objects (https://github.com/open-mmlab/mmengine/issues/1655), so that
scripts and inferencers cannot read the file. :class:`PlainCheckpointHook` saves only plain values;
:func:`read_files_safely` lets a program read files saved without it, without running their code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from mmvssm.checkpoint.reading import Checkpoint, CheckpointError, Inert, read_checkpoint
from mmvssm.messages import join_names
from mmvssm.registry import HOOKS

#: Entry of a checkpoint with the logs, and entries that a run needs to resume.
LOGS = "log_history"
_NEEDED = ("state_dict", "optimizer", "param_schedulers", "ema_state_dict")
_PLAIN = (str, bytes, bool, int, float, complex)
_OF_TORCH = (Tensor, torch.dtype, torch.device, torch.Size, type(None))


def plain(value: Any) -> Any:
    """Convert a value to types that ``torch.load(weights_only=True)`` reads.

    Configs and other mappings become dicts, arrays become lists, and NumPy numbers become Python
    numbers. Other objects are kept; :func:`foreign_parts` finds them.
    """
    if isinstance(value, _OF_TORCH):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    for kind in _PLAIN:
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, Mapping):
        items = [(plain(key), plain(item)) for key, item in value.items()]
        if type(value) is not OrderedDict:
            return dict(items)
        ordered = OrderedDict(items)
        if hasattr(value, "_metadata"):  # versions of the modules of a state dict
            ordered._metadata = plain(value._metadata)  # type: ignore[attr-defined]
        return ordered
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(map(plain, value))
    return value


def foreign_parts(value: Any, name: str = "") -> Iterator[str]:
    """Yield the places in a checkpoint whose objects are not plain values, each with its class."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from foreign_parts(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple, set)):
        for number, item in enumerate(value):
            yield from foreign_parts(item, f"{name}[{number}]")
    elif not isinstance(value, (*_OF_TORCH, *_PLAIN)):
        yield f"{name} ({value.origin if isinstance(value, Inert) else type(value).__name__})"


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Hook that saves checkpoints of plain values, which stock scripts and inferencers can read.

    The logs are stored in a separate entry, from which this hook restores them when a run resumes;
    without the hook, a run resumes without them. For training with a stock script::

        custom_hooks = [dict(type="mmvssm.PlainCheckpointHook")]
    """

    priority = "LOWEST"  # after hooks that add to a checkpoint

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Convert everything but tensors to plain values, in place."""
        hub = checkpoint.get("message_hub")
        if isinstance(hub, Mapping):
            logs, resumed = hub["log_scalars"], hub["resumed_keys"]
            checkpoint[LOGS] = {
                name: dict(
                    values=torch.from_numpy(np.array(buffer.data[0])),
                    counts=torch.from_numpy(np.array(buffer.data[1])),
                    max_length=buffer.max_length,
                    resumed=bool(resumed.get(name, True)),
                )
                for name, buffer in logs.items()
            }
            checkpoint["message_hub"] = dict(
                log_scalars={},
                runtime_info=hub["runtime_info"],
                resumed_keys={name: on for name, on in resumed.items() if name not in logs},
            )
        for name in list(checkpoint):
            checkpoint[name] = plain(checkpoint[name])
        foreign = list(foreign_parts(checkpoint))
        if foreign:
            print_log(
                f"checkpoints hold more than plain values, so stock scripts cannot read them:"
                f" {join_names(foreign, 3)}",
                logger="current",
                level=30,  # a warning
            )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Restore the logs to the entry where the runner looks for them."""
        if runner._resume and (lost := left_out(checkpoint)):
            raise CheckpointError(
                "the checkpoint stores state that a run needs to resume as objects, which are not"
                f" loaded: {join_names(lost, 3)}; if you trust it, resume with the library's own"
                " script and TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 in the environment, or start a new"
                " run from its weights: --cfg-options load_from=FILE"
            )
        hub = checkpoint.get("message_hub")
        if not isinstance(hub, Mapping):
            return
        logs = {k: v for k, v in hub["log_scalars"].items() if isinstance(v, HistoryBuffer)}
        runtime = {k: v for k, v in hub["runtime_info"].items() if not isinstance(v, Inert)}
        resumed = {k: on for k, on in hub["resumed_keys"].items() if k in logs or k in runtime}
        for name, saved in checkpoint.get(LOGS, {}).items():
            logs[name] = HistoryBuffer(
                saved["values"].numpy(), saved["counts"].numpy(), saved["max_length"]
            )
            resumed[name] = saved["resumed"]
        checkpoint["message_hub"] = dict(
            log_scalars=logs, runtime_info=runtime, resumed_keys=resumed
        )


def load_from_file(filename: str, map_location: Any = None) -> Checkpoint:
    """Read a checkpoint file for MMEngine's ``CheckpointLoader``; no code in it is run.

    Args:
        filename: Path.
        map_location: Ignored; tensors are on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is not a checkpoint, is damaged, or would run code.
    """
    return read_checkpoint(Path(filename).expanduser())


def load_from_url(filename: str, map_location: Any = None) -> Checkpoint:
    """Download a file to torch's cache, and read it as :func:`load_from_file` does."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(filename).path).name)
    if get_local_rank() == 0 and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(filename, str(path))
    barrier()
    return read_checkpoint(path)


def read_files_safely() -> None:
    """Make MMEngine's loader read files and URLs without running code in them, from now on.

    It then reads the files of all runners under any torch, without their objects.
    """
    CheckpointLoader.register_scheme("", load_from_file, force=True)
    CheckpointLoader.register_scheme(("http://", "https://"), load_from_url, force=True)


def left_out(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the parts that a run would lack if it resumed from a checkpoint as read."""
    return list(foreign_parts({k: v for k, v in checkpoint.items() if k in _NEEDED}))
