"""``python -m mmvssm.ops``: print what is built and check it with one small scan."""

from __future__ import annotations

import sys

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
    """Print the facts and the check; the exit status is 1 if the check fails."""
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
