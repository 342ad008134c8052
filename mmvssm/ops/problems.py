"""Scan problems of the published models: random inputs, and lower bounds on a device's work."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scan:
    """One scan problem: ``routes`` routes of ``channels`` channels over a map."""

    name: str
    batch: int
    channels: int
    d_state: int
    height: int
    width: int
    dt_rank: int
    routes: int = 4

    @property
    def length(self) -> int:
        """Steps of a route."""
        return self.height * self.width

    @property
    def elements(self) -> int:
        """Steps of all channels, routes and images together."""
        return self.batch * self.routes * self.channels * self.length

    def inputs_1d(self, dtype: torch.dtype, device: str, stress: bool = False) -> dict[str, Tensor]:
        """Return random inputs of ``selective_scan``.

        Args:
            dtype: Dtype of the activations.
            device: Device of the tensors.
            stress: Whether steps are in [1, 20] instead of [1e-3, 0.1].
        """
        rows = self.routes * self.channels
        low, high = (1.0, 20.0) if stress else (1e-3, 0.1)
        shape = (self.batch, rows, self.length)
        maps = (self.batch, self.routes, self.d_state, self.length)
        step = torch.empty(shape, device=device).uniform_(low, high)
        return {
            "u": torch.randn(shape, dtype=dtype, device=device),
            "delta": torch.log(torch.expm1(step)).to(dtype),
            "A": -torch.rand(rows, self.d_state, device=device) * self.d_state,
            "B": torch.randn(maps, dtype=dtype, device=device),
            "C": torch.randn(maps, dtype=dtype, device=device),
            "D": torch.randn(rows, device=device),
            "delta_bias": 0.01 * torch.randn(rows, device=device),
        }

    def inputs_2d(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        """Return random inputs of ``selective_scan_2d``, without the route table."""
        width, rows = self.dt_rank + 2 * self.d_state, self.routes * self.channels
        of_map = (self.batch, self.length)
        weights = torch.randn(self.routes, self.channels, self.dt_rank, device=device)
        return {
            "x": torch.randn(*of_map, self.channels, dtype=dtype, device=device),
            "x_dbl": torch.randn(*of_map, self.routes, width, dtype=dtype, device=device),
            "A": -torch.rand(rows, self.d_state, device=device) * self.d_state,
            "dt_weight": self.dt_rank**-0.5 * weights,
            "dt_bias": torch.randn(self.routes, self.channels, device=device) - 4.5,
            "D": torch.randn(rows, device=device),
        }

    def traffic(self, backward: bool, itemsize: int, out_itemsize: int) -> int:
        """Return the least number of bytes that one pass of the 1-D scan must move.

        The forward pass reads u, delta, B and C and writes y. The backward pass reads these and dy,
        and writes a gradient for each of the four.

        Args:
            backward: Whether to count the backward pass.
            itemsize: Bytes of an element of the inputs.
            out_itemsize: Bytes of an element of y.
        """
        maps = 2 * self.batch * self.routes * self.d_state * self.length * itemsize
        passes = 2 if backward else 1
        return self.elements * (2 * itemsize * passes + out_itemsize) + passes * maps

    def special(self) -> int:
        """Return the special-function evaluations of one pass: the decays, and two per softplus.

        The backward pass computes as many.
        """
        return self.elements * (self.d_state + 2)

    def floor_us(
        self,
        backward: bool,
        itemsize: int,
        out_itemsize: int,
        *,
        bandwidth: float,
        special: float,
    ) -> float:
        """Return the least time of one pass in microseconds, bound by memory or exponentials.

        Args:
            backward: Whether to count the backward pass.
            itemsize: Bytes of an element of the inputs.
            out_itemsize: Bytes of an element of y.
            bandwidth: Memory bandwidth of the device in bytes per second.
            special: Exponentials per second of the device.
        """
        moving = self.traffic(backward, itemsize, out_itemsize) / bandwidth
        return 1e6 * max(moving, self.special() / special)
