"""What ``tools/train.py`` and ``tools/test.py`` share: options, checks, launching.

Every function that finds the user's input wrong ends the program with one sentence and exit
status 1, before any work is done (wrong options: argparse's usage text and status 2).
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
    # that of a package that is run by ``python -m``
    if program.name == "__main__.py":
        program = program.parent
    raise SystemExit(f"{program.name}: error: {message}")


def add_import_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--import MODULE``, for :func:`import_modules`.

    Args:
        parser: The parser.
        what: What a user's module brings, in words.
    """
    parser.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help=f"import this module of your own first, which brings {what}; may be given several"
        " times (custom_imports of a config are imported, too)",
    )


def import_modules(modules: Sequence[str]) -> None:
    """Import modules of the user's, from the working directory or where Python finds them."""
    sys.path.insert(0, "")
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the module raises
            fail(f"--import must name a module that can be imported, got {module!r}: {error}")


class _Options(DictAction):
    """``KEY=VALUE`` pairs; what MMEngine cannot read is a usage error instead of a traceback."""

    def __call__(self, parser, namespace, values, option_string=None):
        for pair in values:
            key, equals, value = pair.partition("=")
            if not equals:
                parser.error(f"argument {option_string}: expected KEY=VALUE, got {pair!r}")
            if _DICT.fullmatch(value.strip()):
                parser.error(
                    f"argument {option_string}: {key} cannot be given as a dict: give each entry by"
                    f" itself as {key}.NAME=VALUE, as in model.backbone.init_cfg.type=Pretrained"
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
    """Add the options that change the config, for :func:`load_config`."""
    parser.add_argument(
        "--option",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="lay training options over the config, before --cfg-options: "
        f"{', '.join(option_names())} (docs/options.md), or the path of a config fragment",
    )
    add_cfg_options(parser)


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing have in common."""
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
        help="do not load batches into page-locked memory (pinned by default where a GPU is)",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="what started the processes; dist_*.sh and slurm_*.sh set it (default: none)",
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
        help="change single settings of the config, before all other options are applied, e.g. "
        "train_dataloader.batch_size=32 randomness.seed=0 model.backbone.out_indices=0,1,2,3 "
        "'key=[(a,b),(c,d)]' (quote brackets, no blanks)",
    )


def load_config(path: str, options: dict, fragments: Sequence[str] = ()) -> Config:
    """Read the config at ``path``; lay ``--option`` over it, then ``--cfg-options``."""
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
    """Choose the work folder: ``--work-dir``, else the config's, else by the config's name."""
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(args.config).stem)


def require_checkpoint(path: str) -> None:
    """Check that a checkpoint is there, and get one that is named ``mmvssm://NAME``.

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
    """Return the device to run on: the one that ``--device`` names, else a GPU, if there is one."""
    name = name or get_device()
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name!r} cannot be used: {str(error).splitlines()[0]}")
    return name


def require_weights(cfg: Config) -> None:
    """Get all checkpoints named ``mmvssm://NAME`` that a training starts from."""
    for name in {cfg.get("load_from"), *_checkpoints_in(cfg.model)}:
        if name is not None and name.startswith(SCHEME):
            require_checkpoint(name)


def _checkpoints_in(node: object) -> Iterator[str]:
    """Yield what the entries ``checkpoint`` below ``node`` name, as those of init_cfg."""
    if isinstance(node, dict):
        if isinstance(node.get("checkpoint"), str):
            yield node["checkpoint"]
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from _checkpoints_in(value)


def require_place(path: Path) -> None:
    """Check that a file can be put at ``path``."""
    if path.is_dir():
        fail(f"{str(path)!r} is a folder")
    if not path.parent.is_dir():
        fail(f"there is no folder {str(path.parent)!r}")


def saved_checkpoints(work_dir: str) -> list[str]:
    """Return the checkpoints of a run, the newest first; none where nothing was saved yet.

    A run may be killed after it saved a checkpoint and before it noted so, and its folder may
    have been moved since: what it noted comes first where it is there.
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
    """Return the newest checkpoint of a run that is whole, or None where nothing was saved yet.

    Damaged ones are named; where all are, the program ends.
    """
    damaged = []
    for path in saved_checkpoints(work_dir):
        try:
            require_whole(path)
        except CheckpointError as error:
            damaged.append(path)
            print(f"Not resumed from, as it is damaged: {error}", flush=True)
        else:
            return path
    if damaged:
        fail(
            f"all checkpoints in {work_dir!r} are damaged: move them away to start anew,"
            f" {join_names(damaged, 3)}"
        )
    return None


def require_whole(checkpoint: str) -> None:
    """Raise CheckpointError unless a file is a checkpoint, and every byte as it was written."""
    read_checkpoint(checkpoint)
    if zipfile.is_zipfile(checkpoint):
        with zipfile.ZipFile(checkpoint) as archive:
            if part := archive.testzip():
                raise CheckpointError(f"{checkpoint!r} is damaged: {part} has another checksum")


def seed_of(checkpoint: str) -> int | None:
    """Return the random seed of the run that saved a local checkpoint."""
    if "://" in checkpoint:
        return None
    meta = read_checkpoint(checkpoint).get("meta")
    return meta.get("seed") if isinstance(meta, dict) else None


def type_name(node: dict) -> str:
    """Return the last word of a config's ``type``, which may be a name with a scope or a class."""
    kind = node.get("type", "")
    return (kind if isinstance(kind, str) else kind.__name__).split(".")[-1]


def leaf_datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """Return the datasets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    if "datasets" in dataset:
        for part in dataset.datasets:
            yield from leaf_datasets(part)
    elif "dataset" in dataset:
        yield from leaf_datasets(dataset.dataset)
    else:
        yield dataset


def set_up_loaders(cfg: Config, args: argparse.Namespace, *loaders: str) -> None:
    """Apply memory pinning, and drop worker settings where there are no workers."""
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
    """Return the library that a config belongs to, by its ``default_scope``."""
    scope = cfg.get("default_scope")
    if scope not in LIBRARIES:
        fail(f"{need} needs default_scope to be one of {', '.join(LIBRARIES)}, got {scope!r}")
    return scope


def set_up_launch(cfg: Config, args: argparse.Namespace) -> None:
    """Prepare the runner for one or several processes, on GPUs or on the CPU.

    MMEngine joins processes only on accelerators. Without one the process group is opened here
    with gloo, and the config is freed of what works on GPUs alone.
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
        print(f"No GPU found: {processes} processes run on the CPU and talk by gloo.", flush=True)
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
        **(cfg.get("model_wrapper_cfg") or {}) | dict(device_ids=None),
    )
    if cfg.get("strategy"):
        _shard_on_cpu(cfg.strategy)
    if _revert_sync_bn(cfg.model) and distributed.get_rank() == 0:
        print("SyncBN needs GPUs: each process normalises by its own batch (BN).", flush=True)


def _close_group() -> None:
    """Leave the process group once its threads are idle.

    They need the interpreter to let go of the tensors that were sent last, and abort the process
    if it is ending by then.
    """
    time.sleep(0.2)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _shard_on_cpu(strategy: ConfigDict) -> None:
    """Configure FSDP for the CPU, where a model needs no offloading and does not work with it."""
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
    """Turn every ``type='SyncBN'`` below ``node`` into ``'BN'``; returns how many there were."""
    if isinstance(node, dict):
        own = node.get("type") == "SyncBN"
        if own:
            node["type"] = "BN"
        return own + sum(_revert_sync_bn(value) for value in node.values())
    if isinstance(node, (list, tuple)):
        return sum(_revert_sync_bn(value) for value in node)
    return 0


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config names, by default MMEngine's own."""
    try:
        with missing_library_named("this config"):
            return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    except MissingLibraryError as error:
        fail(str(error))


@contextmanager
def foreign_weights_refused() -> Iterator[None]:
    """End the program with one sentence where a checkpoint is not of the config's backbone.

    Likewise where it cannot be read.
    """
    try:
        yield
    except ForeignWeightsError as error:
        fail(f"the checkpoint does not fit the config: {error}")
    except CheckpointError as error:
        fail(str(error))


class CompleteWeightsHook(Hook):
    """Ends a test whose checkpoint leaves parameters of the model at random values.

    The models themselves say what of a file they take: tables of another grid, for instance, are
    resized while they are loaded. Parameters that nothing was written to were not taken.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note how often each parameter has been written to, before the file's are loaded."""
        self._writes = {
            name: parameter._version for name, parameter in _inner_parameters(runner.model)
        }

    def before_test(self, runner: Runner) -> None:
        """Check that each parameter has been written to since."""
        missing = [
            name
            for name, parameter in _inner_parameters(runner.model)
            if parameter._version == self._writes[name]
        ]
        if missing:
            fail(
                f"the checkpoint does not fit the config: {len(missing)} parameters are absent or "
                f"have another shape, e.g. {', '.join(missing[:3])}"
            )


def _inner_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of a model inside wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model.named_parameters()
