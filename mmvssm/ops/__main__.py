"""``python -m mmvssm.ops``: print which kernels are built and which run, and check them.

Without options, one small scan is checked on each kind of device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from . import info, routes, selective_scan_2d, selective_scan_2d_reference

TOLERANCE = 1e-4


def check(device: str) -> float:
    """Return the relative error of a small cross scan on a device against float64."""
    generator = torch.Generator().manual_seed(0)
    height, width, channels, d_state, dt_rank = 5, 7, 24, 4, 3

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, x_dbl = (
        random(2, height * width, channels),
        random(2, height * width, 4, dt_rank + 2 * d_state),
    )
    table = routes.cross2d(height, width)
    A, D = -random(4 * channels, d_state).exp(), random(4 * channels)
    dt_weight, dt_bias = random(4, channels, dt_rank), random(4, channels) - 3
    expected = selective_scan_2d_reference(x, x_dbl, table, A, dt_weight, dt_bias, D)
    x, x_dbl, A, dt_weight, dt_bias, D = (
        t.float().to(device) for t in (x, x_dbl, A, dt_weight, dt_bias, D)
    )
    y = selective_scan_2d(x, x_dbl, table.to(device), A, dt_weight, dt_bias, D)
    return float((y.double().cpu() - expected).norm() / expected.norm())


def main() -> int:
    """Print the facts and the results of the checks; return 1 if a check fails."""
    parser = argparse.ArgumentParser(prog="python -m mmvssm.ops", description=__doc__)
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="check every kernel path on awkward shapes and time it (about two minutes on a GPU);"
        " print tables and write a JSON file to attach to a report",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("mmvssm-self-test.json"),
        metavar="FILE",
        help="the file that --self-test writes (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.self_test:
        from .self_test import self_test

        if not args.out.absolute().parent.is_dir():
            parser.error(f"--out: there is no folder {str(args.out.absolute().parent)!r}")
        return 0 if self_test(args.out) else 1
    for name, value in info().items():
        print(f"{name + ':':26}{value}")
    passed = True
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        error = check(device)
        good = error <= TOLERANCE
        passed &= good
        print(f"{f'check on {device}:':26}{'ok' if good else 'FAILED'}, relative error {error:.1e}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
