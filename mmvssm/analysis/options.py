"""Command-line options shared by the analysis tools."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from mmengine.device import get_device
from torch import Tensor

from .output import PICTURES


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add the argument ``MODEL``."""
    parser.add_argument(
        "model", metavar="MODEL", help="a variant such as vmamba-tiny-s1l8, or a config file (.py)"
    )


def add_size_option(parser: argparse.ArgumentParser, default: int = 224) -> None:
    """Add ``--size``, one number or height and width."""

    class Size(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None):
            if len(values) > 2 or min(values) < 1:
                parser.error("--size must be one side or height and width, positive")
            setattr(namespace, self.dest, (values[0], values[-1]))

    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        action=Size,
        default=(default, default),
        metavar=("H", "W"),
        help=f"height and width of the images, or one number for both (default: {default}); images"
        " are scaled to cover this size, then cropped at the centre",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""

    def device(text: str) -> torch.device:
        try:
            return torch.device(text)
        except RuntimeError as error:
            raise argparse.ArgumentTypeError(str(error).split("\n", 1)[0]) from error

    parser.add_argument(
        "--device",
        type=device,
        default=get_device(),
        help="device, such as cpu or cuda:1 (default: a GPU if there is one)",
    )


def add_out_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, one or several files."""
    parser.add_argument(
        "--out",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help=f"files to write: figures ({' '.join(PICTURES)}), or numbers (.json)",
    )


def to_numbers(values: Tensor) -> list:
    """Return a tensor as nested lists of numbers with six significant digits, for JSON."""
    if values.dim() == 1:
        return [float(f"{value:.6g}") for value in values.tolist()]
    return [to_numbers(row) for row in values]
