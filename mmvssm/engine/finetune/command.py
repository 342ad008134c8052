"""The options of ``tools/train.py`` for custom datasets and the number of epochs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from rich.progress import track

from mmvssm.engine import cli
from mmvssm.engine.data_check import require_data
from mmvssm.engine.schedule import check_length, set_epochs
from mmvssm.messages import join_names

from .config import fit_to_data
from .data import DataError, Layout, T, unwatched
from .reading import read_data
from .start import set_start

SCRATCH = "scratch"
_PLACES = ("train_images", "train_annotations", "val_images", "val_annotations")
# Variables in which launchers store the number of processes and the rank.
_LAUNCHED = {
    "pytorch": ("WORLD_SIZE", "RANK"),
    "slurm": ("SLURM_NTASKS", "SLURM_PROCID"),
    "mpi": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of fine-tuning."""
    group = parser.add_argument_group("custom datasets and epochs (docs/finetuning.md)")
    group.add_argument(
        "--data",
        metavar="DIR",
        help="train on the data in DIR instead of the recipe's; classification: train/CLASS/*.jpg "
        "and val/CLASS/*.jpg; detection: annotations/instances_{train,val}.json and the images; "
        "segmentation: {images,annotations}/{training,validation}/* and classes.txt. "
        "Without validation data, a fifth is held out. Needs --epochs",
    )
    group.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="train for N epochs: warm-up, decay, validation and weight averaging are scaled "
        "accordingly, and the learning rate by the batch size",
    )
    group.add_argument(
        "--from",
        dest="start",
        metavar="START",
        help="weights to start from: a checkpoint, mmvssm://NAME for a released one, or "
        f"'{SCRATCH}' for random weights; default with --data: the released classifier of the arch",
    )
    group.add_argument(
        "--lr",
        type=float,
        metavar="RATE",
        help="learning rate, instead of the recipe's scaled by the batch size",
    )
    for name in _PLACES:
        split, _, what = name.partition("_")
        kind = "folder of images" if what == "images" else "COCO file, or folder of label maps,"
        group.add_argument(
            f"--{split}-{what}",
            metavar="DIR" if what == "images" else "PATH",
            help=f"{kind} to {'train' if split == 'train' else 'validate'} on, relative to --data,"
            " if it does not have the usual name",
        )
    group.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="in label maps, 0 is ignored and 1 is the first class, as in ADE20K",
    )


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with the usage text if options are wrong or conflict."""
    if args.epochs is not None and args.epochs < 1:
        parser.error(f"argument --epochs: must be at least 1, got {args.epochs}")
    if args.lr is not None and not 0 < args.lr < float("inf"):
        parser.error(f"argument --lr: must be positive, got {args.lr}")
    if args.data is not None and args.epochs is None:
        parser.error("argument --data: needs --epochs N")
    if args.lr is not None and args.epochs is None:
        parser.error(
            "argument --lr: needs --epochs N; without it, use"
            " --cfg-options optim_wrapper.optimizer.lr=RATE"
        )
    for name in (*_PLACES, "reduce_zero_label"):
        if getattr(args, name) and args.data is None:
            parser.error(f"argument --{name.replace('_', '-')}: needs --data DIR")


def processes(launcher: str) -> tuple[int, int]:
    """Return the number of processes that a launcher has started, and the rank of this one."""
    if launcher == "none":
        return 1, 0
    count, rank = _LAUNCHED[launcher]
    return int(os.environ.get(count, 1)), int(os.environ.get(rank, 0))


def set_up(
    cfg: Config, args: argparse.Namespace, released: Callable[[Config], str | None]
) -> Config:
    """Apply the options to the config and print a summary; end the program on errors.

    Args:
        cfg: The config, with its work folder.
        args: The command line.
        released: Function that returns the name of the weights released for a config's backbone.

    Returns:
        The changed config.
    """
    count, rank = processes(args.launcher)
    say = (lambda text: print(text, flush=True)) if rank == 0 else (lambda text: None)
    if args.data is not None:
        cfg = _use_data(cfg, args, say, show=rank == 0)
    if args.data is not None or args.start is not None:
        cfg = _start(cfg, args, released, say)
    if args.epochs is None:
        try:
            cut = check_length(cfg)
        except ValueError as error:
            cli.fail(f"{args.config!r}: {error}")
        if cut is not None:
            say(f"Note: {cut}")
        return cfg
    require_data(cfg, "train_dataloader")
    images = _count_images(cfg, own=args.data is not None)
    try:
        cfg = set_epochs(cfg, args.epochs, images, count, args.lr)
    except ValueError as error:
        cli.fail(f"--epochs: {error}")
    say(
        f"Training: {args.epochs} epochs of {images} images in batches of "
        f"{cfg.train_dataloader.batch_size}{f' on each of {count} processes' * (count > 1)}, "
        f"learning rate {cfg.optim_wrapper.optimizer.lr:.3g}."
    )
    return cfg


def _use_data(
    cfg: Config, args: argparse.Namespace, say: Callable[[str], None], show: bool
) -> Config:
    library = cli.library_of(cfg, "--data")
    layout = Layout(
        **{name: getattr(args, name) for name in _PLACES}, reduce_zero_label=args.reduce_zero_label
    )
    try:
        data = read_data(
            library, args.data, Path(cfg.work_dir) / "data", layout, _bar if show else unwatched
        )
        cfg = fit_to_data(cfg, data)
    except DataError as error:
        cli.fail(f"--data: {error}")
    except ValueError as error:
        cli.fail(f"--data does not fit {args.config!r}: {error}")
    except OSError as error:
        cli.fail(f"--data: {error}")
    for note in data.notes:
        say(note)
    say(
        f"{args.data}: {len(data.classes)} classes ({join_names(data.classes)}), "
        f"{data.train.count} images to train on, {data.val.count} to validate on."
    )
    return cfg


def _bar(items: Sequence[T], doing: str):
    return track(items, description=doing, transient=True)


def _start(
    cfg: Config,
    args: argparse.Namespace,
    released: Callable[[Config], str | None],
    say: Callable[[str], None],
) -> Config:
    """Choose the weights to start from, and check that they fit the backbone."""
    if cfg.model.get("backbone") is None:
        cli.fail(f"--from loads weights into a backbone, but the model of {args.config!r} has none")
    start = args.start
    if start is None and "load_from" in args.cfg_options:
        return cfg
    if start is None:
        own = cfg.model.backbone.get("init_cfg") or {}
        if cfg.default_scope != "mmpretrain" and own.get("prefix") == "backbone.":
            start = own.get("checkpoint")
        if start is None:
            start = released(cfg)
            if start is None and own.get("checkpoint"):
                say(f"Starting from the weights of the recipe: {own.checkpoint}.")
                return cfg
    if start is None:
        cli.fail(
            f"no weights were released for the backbone of {args.config!r}: name a file with "
            f"--from FILE, or start from random weights with --from {SCRATCH}"
        )
    if start == SCRATCH:
        say("Starting from random weights (--from scratch).")
        return set_start(cfg, None)
    try:
        cfg = set_start(cfg, start)
    except (OSError, RuntimeError, ValueError) as error:
        cli.fail(
            f"{'--from' if args.start else 'the weights to start from'}: {error}; for other "
            f"weights: --from FILE, for random weights: --from {SCRATCH}"
        )
    say(f"Starting from the weights of {start}; parameters that it lacks are random.")
    return cfg


def _count_images(cfg: Config, own: bool) -> int:
    """Return the number of images that the training dataset keeps after filtering."""
    init_default_scope(cfg.get("default_scope", "mmengine"))
    dataset = deepcopy(cfg.train_dataloader.dataset)
    if own:
        for leaf in cli.leaf_datasets(dataset):
            leaf.serialize_data = False  # serialization fails for an empty dataset
    images = len(DATASETS.build(dataset))
    if images == 0:
        cli.fail(
            "no image is left to train on: filter_cfg of train_dataloader.dataset skips images "
            "without boxes or smaller than its min_size"
        )
    return images
