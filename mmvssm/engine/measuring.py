"""Options and error handling shared by the tools that measure models."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .cli import fail


def add_out_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--out FILE...`` of an analysis tool, for :func:`mmvssm.analysis.check_outputs`."""
    parser.add_argument(
        "--out", type=Path, nargs="+", default=[], metavar="FILE", help=f"files to write: {what}"
    )


@contextmanager
def refusals() -> Iterator[None]:
    """End the program with one sentence if a library function rejects the user's input."""
    try:
        yield
    except (OSError, ValueError) as error:
        fail(" ".join(str(error).split()))


def add_timing_options(parser: argparse.ArgumentParser) -> None:
    """Add options for device, repetitions and threads."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--repetitions", type=int, metavar="N", help="timed runs (default: 10, or 50 on a GPU)"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of torch (default: torch's choice)"
    )


def check_timing_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Reject a missing GPU and numbers out of range, and set defaults."""
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if args.repetitions is None:
        args.repetitions = 50 if args.device == "cuda" else 10
    for name in ("repetitions", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if args.threads:
        torch.set_num_threads(args.threads)
