"""Shared code of the command-line tools: options, checks, launching.

Functions that find an error in the user's input end the program with one sentence and exit status
1, before any work is done (for wrong options: argparse's usage text and status 2).
"""

from __future__ import annotations

import argparse
import atexit
import datetime
import importlib
import os
import re
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import find_latest_checkpoint
from torch import distributed, nn

from mmvssm.checkpoint.reading import CheckpointError, read_checkpoint
from mmvssm.hub import ReleasedFileError, fetch
from mmvssm.libraries import MissingLibraryError, missing_library_named
from mmvssm.messages import join_names
from mmvssm.models.layers import ForeignWeightsError
from mmvssm.options import option_names, read_option
from mmvssm.scheme import SCHEME
from mmvssm.zoo import LIBRARIES

_DICT = re.compile(r"dict\(.*\)|\{.*:.*\}", re.DOTALL)


def fail(message: str) -> NoReturn:
    """End the program with ``message`` on standard error and exit status 1."""
    program = Path(sys.argv[0])
    # a package that is run with ``python -m``
    if program.name == "__main__.py":
        program = program.parent
    raise SystemExit(f"{program.name}: error: {message}")


def add_import_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--import MODULE``, for :func:`import_modules`.

    Args:
        parser: The parser.
        what: What the user's module provides, for the help text.
    """
    parser.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help=f"import your own module first, which provides {what}; may be given several times"
        " (custom_imports of a config are imported, too)",
    )


def import_modules(modules: Sequence[str]) -> None:
    """Import the user's modules, from the working directory or Python's search path."""
    sys.path.insert(0, "")
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a module may raise anything
            fail(f"--import must name a module that can be imported, got {module!r}: {error}")


class _Options(DictAction):
    """Action for ``KEY=VALUE`` pairs that reports unreadable values as usage errors."""

    def __call__(self, parser, namespace, values, option_string=None):
        for pair in values:
            key, equals, value = pair.partition("=")
            if not equals:
                parser.error(f"argument {option_string}: expected KEY=VALUE, got {pair!r}")
            if _DICT.fullmatch(value.strip()):
                parser.error(
                    f"argument {option_string}: {key} cannot be given as a dict: give its entries"
                    f" as {key}.NAME=VALUE, for example model.backbone.init_cfg.type=Pretrained"
                    " model.backbone.init_cfg.checkpoint=FILE"
                    " model.backbone.init_cfg.prefix=backbone."
                )
            try:
                super().__call__(parser, namespace, [pair], option_string)
            except (AssertionError, RecursionError):
                parser.error(
                    f"argument {option_string}: the value of {key} must be a number, a word or"
                    f" lists of them such as [(a,b),(c,d)], got {value!r}"
                )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--option`` and ``--cfg-options``, for :func:`load_config`."""
    parser.add_argument(
        "--option",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="apply training options to the config, before --cfg-options: "
        f"{', '.join(option_names())} (docs/options.md), or the path of a config fragment",
    )
    add_cfg_options(parser)


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options shared by training and testing."""
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        help="folder for logs, checkpoints and metrics; default: the config's work_dir, "
        "else work_dirs/<name of the config>",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--no-pin-memory",
        action="store_true",
        help="do not load batches into page-locked memory (the default if there is a GPU)",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="launcher of the processes; dist_*.sh and slurm_*.sh set it (default: none)",
    )
    # Older torch launchers pass the rank as an argument instead of a variable.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, for :func:`load_config`."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Options,
        default={},
        metavar="KEY=VALUE",
        help="change single settings of the config before all other options are applied, e.g. "
        "train_dataloader.batch_size=32 randomness.seed=0 model.backbone.out_indices=0,1,2,3 "
        "'key=[(a,b),(c,d)]' (quote brackets, no spaces)",
    )


def load_config(path: str, options: dict, fragments: Sequence[str] = ()) -> Config:
    """Read the config at ``path``, and apply ``--option``, then ``--cfg-options``."""
    if not os.path.isfile(path):
        fail(f"there is no config file {path!r}")
    try:
        with missing_library_named(f"config {path!r}"):
            cfg = Config.fromfile(path)
    except FileNotFoundError as error:
        fail(f"config {path!r} inherits a file that does not exist: {error}")
    except MissingLibraryError as error:
        fail(str(error))
    for name in fragments:
        try:
            cfg.merge_from_dict(read_option(name))
        except FileNotFoundError as error:
            fail(f"--option: {error}")
        except (KeyError, TypeError) as error:
            fail(f"--option {name} does not fit {path!r}: {error}")
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError, AssertionError) as error:
        fail(f"--cfg-options do not fit {path!r}: {error}")
    return cfg


def set_work_dir(cfg: Config, args: argparse.Namespace) -> None:
    """Set the work folder: ``--work-dir``, else the config's, else one named after the config."""
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(args.config).stem)


def require_checkpoint(path: str) -> None:
    """Check that a checkpoint exists, and download one that is named ``mmvssm://NAME``.

    URLs are left to MMEngine.
    """
    if path.startswith(SCHEME):
        try:
            fetch(path)
        except (ValueError, ReleasedFileError) as error:
            fail(str(error))
    elif "://" not in path and not os.path.isfile(path):
        fail(f"there is no checkpoint file {path!r}")


def choose_device(name: str | None) -> str:
    """Return the device to run on: that of ``--device``, else a GPU if there is one."""
    name = name or get_device()
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name!r} cannot be used: {str(error).splitlines()[0]}")
    return name


def require_weights(cfg: Config) -> None:
    """Download all checkpoints ``mmvssm://NAME`` that a training run starts from."""
    for name in {cfg.get("load_from"), *_checkpoints_in(cfg.model)}:
        if name is not None and name.startswith(SCHEME):
            require_checkpoint(name)


def _checkpoints_in(node: object) -> Iterator[str]:
    """Yield the values of all ``checkpoint`` entries below ``node``, such as those of init_cfg."""
    if isinstance(node, dict):
        if isinstance(node.get("checkpoint"), str):
            yield node["checkpoint"]
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from _checkpoints_in(value)


def require_place(path: Path) -> None:
    """Check that a file can be written to ``path``."""
    if path.is_dir():
        fail(f"{str(path)!r} is a folder")
    if not path.parent.is_dir():
        fail(f"there is no folder {str(path.parent)!r}")


def saved_checkpoints(work_dir: str) -> list[str]:
    """Return the checkpoints of a run, newest first; empty if none was saved yet.

    A run may be killed between saving a checkpoint and recording it, and its folder may have been
    moved since. The recorded checkpoint comes first if it exists.
    """
    saved = [*Path(work_dir).glob("epoch_*.pth"), *Path(work_dir).glob("iter_*.pth")]
    paths = list(map(str, sorted(saved, key=lambda path: path.stat().st_mtime, reverse=True)))
    named = find_latest_checkpoint(work_dir)
    if named:
        for path in (named, os.path.join(work_dir, os.path.basename(named))):
            if os.path.isfile(path):
                return [path, *(other for other in paths if not os.path.samefile(other, path))]
    return paths


def latest_checkpoint(work_dir: str) -> str | None:
    """Return the newest intact checkpoint of a run, or None if none was saved yet.

    Damaged checkpoints are reported; if all are damaged, the program ends.
    """
    damaged = []
    for path in saved_checkpoints(work_dir):
        try:
            require_whole(path)
        except CheckpointError as error:
            damaged.append(path)
            print(f"Skipping a damaged checkpoint: {error}", flush=True)
        else:
            return path
    if damaged:
        fail(
            f"all checkpoints in {work_dir!r} are damaged ({join_names(damaged, 3)}): move them"
            " away to start from scratch"
        )
    return None


def require_whole(checkpoint: str) -> None:
    """Raise CheckpointError unless a file is a checkpoint whose checksums match."""
    read_checkpoint(checkpoint)
    if zipfile.is_zipfile(checkpoint):
        with zipfile.ZipFile(checkpoint) as archive:
            if part := archive.testzip():
                raise CheckpointError(f"{checkpoint!r} is damaged: the checksum of {part} differs")


def seed_of(checkpoint: str) -> int | None:
    """Return the random seed of the run that saved a local checkpoint."""
    if "://" in checkpoint:
        return None
    meta = read_checkpoint(checkpoint).get("meta")
    return meta.get("seed") if isinstance(meta, dict) else None


def type_name(node: dict) -> str:
    """Return the class name in a config's ``type``, which may be a scoped name or a class."""
    kind = node.get("type", "")
    return (kind if isinstance(kind, str) else kind.__name__).split(".")[-1]


def leaf_datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """Yield the datasets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    if "datasets" in dataset:
        for part in dataset.datasets:
            yield from leaf_datasets(part)
    elif "dataset" in dataset:
        yield from leaf_datasets(dataset.dataset)
    else:
        yield dataset


def set_up_loaders(cfg: Config, args: argparse.Namespace, *loaders: str) -> None:
    """Apply memory pinning, and drop worker settings if there are no workers."""
    for name in loaders:
        loader = cfg.get(name)
        if loader is None:
            continue
        loader.setdefault("pin_memory", torch.cuda.is_available())
        if args.no_pin_memory:
            loader.pin_memory = False
        if loader.get("num_workers", 0) == 0:
            loader.persistent_workers = False
            loader.pop("prefetch_factor", None)


def library_of(cfg: Config, need: str) -> str:
    """Return the library of a config, its ``default_scope``; ``need`` names what requires it."""
    scope = cfg.get("default_scope")
    if scope not in LIBRARIES:
        fail(f"{need} needs default_scope to be one of {', '.join(LIBRARIES)}, got {scope!r}")
    return scope


def set_up_launch(cfg: Config, args: argparse.Namespace) -> None:
    """Prepare the runner for one or several processes, on GPUs or on the CPU.

    MMEngine initialises distributed training only on accelerators. Without one, this function
    initialises the process group with gloo and removes GPU-only settings from the config.
    """
    cfg.launcher = args.launcher
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    if args.launcher == "none":
        return
    if args.launcher == "pytorch" and "RANK" not in os.environ:
        fail("--launcher pytorch needs the variables of torchrun: start with tools/dist_*.sh")
    if get_device() != "cpu":
        gpus = torch.cuda.device_count()
        if torch.cuda.is_available() and int(os.environ["LOCAL_RANK"]) >= gpus:
            fail(f"more processes than GPUs on this machine ({gpus}): lower GPUS")
        return
    if args.launcher != "pytorch":
        fail("several processes without GPUs need --launcher pytorch: start with tools/dist_*.sh")
    timeout = cfg.get("env_cfg", {}).get("dist_cfg", {}).get("timeout", 1800)
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))
    atexit.register(_close_group)
    if distributed.get_rank() == 0:
        processes = distributed.get_world_size()
        print(f"No GPU found: {processes} processes run on the CPU (gloo backend).", flush=True)
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
        **(cfg.get("model_wrapper_cfg") or {}) | dict(device_ids=None),
    )
    if cfg.get("strategy"):
        _shard_on_cpu(cfg.strategy)
    if _revert_sync_bn(cfg.model) and distributed.get_rank() == 0:
        print("SyncBN needs GPUs: using BN, per process, instead.", flush=True)


def _close_group() -> None:
    """Leave the process group once its threads are idle.

    The threads need the interpreter to release the tensors sent last, and abort the process if it
    is already shutting down.
    """
    time.sleep(0.2)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _shard_on_cpu(strategy: ConfigDict) -> None:
    """Configure FSDP for the CPU, where offloading is useless and fails."""
    if type_name(strategy) != "FSDPStrategy":
        return
    strategy.setdefault("model_wrapper", {})["device_id"] = "cpu"
    if strategy.get("state_dict_cfg") == "full":
        strategy.state_dict_cfg = dict(
            state_dict_type="FULL_STATE_DICT",
            state_dict_config=dict(type="FullStateDictConfig", rank0_only=True),
            optim_state_dict_config=dict(type="FullOptimStateDictConfig", rank0_only=True),
        )


def _revert_sync_bn(node: object) -> int:
    """Replace every ``type='SyncBN'`` below ``node`` by ``'BN'``; return their number."""
    if isinstance(node, dict):
        own = node.get("type") == "SyncBN"
        if own:
            node["type"] = "BN"
        return own + sum(_revert_sync_bn(value) for value in node.values())
    if isinstance(node, (list, tuple)):
        return sum(_revert_sync_bn(value) for value in node)
    return 0


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config names; the default is MMEngine's own."""
    try:
        with missing_library_named("this config"):
            return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    except MissingLibraryError as error:
        fail(str(error))


@contextmanager
def foreign_weights_refused() -> Iterator[None]:
    """End the program with one sentence if a checkpoint is unreadable or of another backbone."""
    try:
        yield
    except ForeignWeightsError as error:
        fail(f"the checkpoint does not fit the config: {error}")
    except CheckpointError as error:
        fail(str(error))


class CompleteWeightsHook(Hook):
    """Hook that ends a test if the checkpoint leaves parameters at their random values.

    Models may transform weights while loading, for instance resize tables of another grid, so names
    cannot be compared beforehand. Instead, the hook checks which parameters were written to.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Record how often each parameter has been written to before the file's are loaded."""
        self._writes = {
            name: parameter._version for name, parameter in _inner_parameters(runner.model)
        }

    def before_test(self, runner: Runner) -> None:
        """Check that each parameter has been written to since then."""
        missing = [
            name
            for name, parameter in _inner_parameters(runner.model)
            if parameter._version == self._writes[name]
        ]
        if missing:
            fail(
                f"the checkpoint does not fit the config: {len(missing)} parameters are missing or "
                f"have another shape, e.g. {', '.join(missing[:3])}"
            )


def _inner_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield names and parameters of the model inside wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model.named_parameters()
