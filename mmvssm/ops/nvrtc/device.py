"""One GPU: its loaded kernels, the plans of its calls, and how a plan runs."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from ctypes import c_void_p
from functools import lru_cache

import torch
from torch import Tensor

from . import plans
from .compiler import Compiler
from .driver import CAPABILITY_MAJOR, CAPABILITY_MINOR, Driver
from .plans import Plan
from .programs import compiled
from .sources import program

_INVALID_CONFIGURATION = 9  # cudaErrorInvalidConfiguration
#: Plans that are kept: a model has some 60 for each size of its images.
_MAX_PLANS = 8192


class Device:
    """A CUDA device.

    Args:
        index: Its number, as torch counts.
        compiler: What compiles its kernels.
        driver: What starts them.

    Raises:
        NvrtcError: If the compiler knows no code for this device.
    """

    def __init__(self, index: int, compiler: Compiler, driver: Driver) -> None:
        self.index, self.compiler, self.driver = index, compiler, driver
        self._attributes = driver.attributes(index)
        capability = 10 * self._attributes[CAPABILITY_MAJOR] + self._attributes[CAPABILITY_MINOR]
        self.target = compiler.target(capability)
        self._entries: dict[tuple[str, str], c_void_p] = {}
        self._shared: dict[str, int] = {}
        self._plan = lru_cache(maxsize=_MAX_PLANS)(self._make_plan)

    @property
    def torch_device(self) -> torch.device:
        """Where this device's tensors lie."""
        return torch.device("cuda", self.index)

    def guard(self) -> AbstractContextManager:
        """Make this the current device."""
        return torch.cuda.device(self.index)

    def stream(self) -> int:
        """Handle of torch's current stream on this device."""
        return torch.cuda.current_stream(self.index).cuda_stream

    def is_capturing(self) -> bool:
        """Whether a CUDA graph is captured from this stream."""
        return torch.cuda.is_current_stream_capturing()

    def run(self, scan: str, args: str, fields: Mapping[str, object]) -> None:
        """Run a scan's kernels on torch's current stream.

        Args:
            scan: Host function of ``csrc/cuda/scan_cuda.h``.
            args: Struct that it takes.
            fields: Its fields: numbers; tensors on this device, contiguous, or None.

        Raises:
            ValueError: If a block of this device has too little shared memory.
            RuntimeError: If something fails, or a call of new sizes comes while a stream is
                captured.
        """
        tensors = {n: t for n, t in fields.items() if t is None or isinstance(t, Tensor)}
        addresses = [0 if t is None or t.numel() == 0 else t.data_ptr() for t in tensors.values()]
        numbers = tuple((n, int(v)) for n, v in fields.items() if n not in tensors)
        lows = tuple(a % plans.ALIGNMENT if a else None for a in addresses)
        with self.guard():
            self.driver.ensure_context(self.index)
            pointers = tuple(zip(tensors, lows))
            plan = self._plan(scan, args, tuple(fields), numbers, pointers)
            if plan.status == _INVALID_CONFIGURATION:
                raise ValueError(
                    "the CUDA scan needs more shared memory than this device has for"
                    f" N = {fields['d_state']} and this step rank R; choose backend('torch')"
                )
            workspace = torch.empty(
                plan.workspace_bytes, dtype=torch.uint8, device=self.torch_device
            )
            self._start(scan, plan, [*addresses, workspace.data_ptr()])

    def _start(self, scan: str, plan: Plan, addresses: list[int]) -> None:
        stream = self.stream()
        for launch in plan.launches:
            params = bytearray(launch.params)
            for at, index, offset in launch.addresses:
                struct.pack_into("<Q", params, at, addresses[index] + offset)
            if not launch.kernel:
                self.driver.clear(*struct.unpack_from("<Q", params), launch.size, stream)
                continue
            entry = self._entry(program(scan), launch.kernel)
            sizes = (launch.blocks, launch.threads, launch.shared_bytes)
            self.driver.launch(entry, *sizes, stream, params)

    def _make_plan(self, scan, args, names, numbers, pointers) -> Plan:
        if self.is_capturing():
            raise RuntimeError(
                "this call's sizes are new, and its kernels cannot be got ready while a CUDA graph"
                " is captured: run it once before"
            )
        pointers = dict(pointers)
        values = {**dict(numbers), **pointers}
        request = plans.request({name: values[name] for name in names}, pointers)
        attributes = torch.tensor(self._attributes, dtype=torch.int32)
        request, attributes = request.to(self.torch_device), attributes.to(self.torch_device)
        reply = plans.empty_reply(self.torch_device)
        source = plans.planner_source(scan, args, names)
        planner = self._entry(source, plans.planner_name(scan))
        params = struct.pack("<3Q", *(t.data_ptr() for t in (request, attributes, reply)))
        self.driver.launch(planner, 1, 1, 0, self.stream(), bytearray(params))
        plan = plans.read_reply(reply, pointers)
        # Everything is loaded now: it could not be while a graph is captured.
        for launch in plan.launches:
            if launch.kernel:
                entry = self._entry(program(scan), launch.kernel)
                if launch.shared_bytes > self._shared.get(launch.kernel, 0):
                    self.driver.allow_shared_memory(entry, launch.shared_bytes)
                    self._shared[launch.kernel] = launch.shared_bytes
        return plan

    def _entry(self, source: str, kernel: str) -> c_void_p:
        """A loaded kernel of a program."""
        if (source, kernel) not in self._entries:
            name, code = compiled(self.compiler, source, self.target, kernel)
            self._entries[source, kernel] = self.driver.load(code, name)
        return self._entries[source, kernel]
