"""One GPU: its loaded kernels, the plans of its calls, and the execution of a plan."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from ctypes import c_void_p
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from . import plans
from .compiler import Compiler
from .driver import (
    CAPABILITY_MAJOR,
    CAPABILITY_MINOR,
    MULTIPROCESSORS,
    SHARED_LIMIT,
    Driver,
)
from .plans import FILL, LAUNCH, Act, Plan
from .programs import compiled

# Layout of Product in csrc/cuda/scan_cuda.h: addresses of a, b and out; batch, rows, inner,
# columns.
_PRODUCT = struct.Struct("<3Q4q")
#: Plans to keep; a model has about 60 for each image size.
_MAX_PLANS = 8192


class Device:
    """A CUDA device.

    Args:
        index: Index of the GPU in torch.
        compiler: Compiler of its kernels.
        driver: Driver that launches them.

    Raises:
        NvrtcError: If the compiler does not support this device.
    """

    def __init__(self, index: int, compiler: Compiler, driver: Driver) -> None:
        self.index, self.compiler, self.driver = index, compiler, driver
        self._handle = driver.device(index)
        self._attributes = driver.attributes(self._handle)
        capability = 10 * self._attributes[CAPABILITY_MAJOR] + self._attributes[CAPABILITY_MINOR]
        self.target = compiler.target(capability)
        self._entries: dict[tuple[str, str], c_void_p] = {}
        self._shared: dict[str, int] = {}
        self._lock = Lock()
        self._plan = lru_cache(maxsize=_MAX_PLANS)(self._make_plan)

    @property
    def torch_device(self) -> torch.device:
        """The ``torch.device`` of this GPU."""
        return torch.device("cuda", self.index)

    def guard(self) -> AbstractContextManager:
        """Make this the current device."""
        return torch.cuda.device(self.index)

    def stream(self) -> int:
        """Return the handle of torch's current stream on this device."""
        return torch.cuda.current_stream(self.index).cuda_stream

    def is_capturing(self) -> bool:
        """Return whether the current stream is capturing a CUDA graph."""
        return torch.cuda.is_current_stream_capturing()

    def run(self, scan: str, args: str, fields: Mapping[str, object]) -> None:
        """Run a scan's kernels on torch's current stream.

        Args:
            scan: Name of a host function of ``csrc/cuda/scan_cuda.h``.
            args: Name of the struct that it takes.
            fields: Fields of the struct: numbers, contiguous tensors on this device, or None.

        Raises:
            ValueError: If a block of this device has too little shared memory.
            RuntimeError: If a CUDA call fails, or sizes are new while a CUDA graph is captured.
        """
        tensors = {n: t for n, t in fields.items() if t is None or isinstance(t, Tensor)}
        addresses = [0 if t is None or t.numel() == 0 else t.data_ptr() for t in tensors.values()]
        numbers = tuple((n, int(v)) for n, v in fields.items() if n not in tensors)
        lows = tuple(a % plans.ALIGNMENT if a else None for a in addresses)
        with self.guard():
            self.driver.ensure_context(self._handle)
            pointers = tuple(zip(tensors, lows))
            plan = self._plan(scan, args, tuple(fields), numbers, pointers)
            if not plan.fits:
                raise ValueError(
                    "the CUDA scan needs more shared memory than a block of this device has for"
                    f" N = {fields['d_state']} and this step rank R; choose backend('torch')"
                )
            workspace = torch.empty(
                plan.workspace_bytes, dtype=torch.uint8, device=self.torch_device
            )
            memory = [*tensors.values(), workspace]
            stream = self.stream()
            for act in plan.acts:
                self._do(act, memory, [*addresses, workspace.data_ptr()], stream)

    def _do(self, act: Act, memory: list, addresses: list[int], stream: int) -> None:
        if act.kind not in (LAUNCH, FILL):
            self._multiply(act, memory)
            return
        params = bytearray(act.params)
        for at, index, offset in act.addresses:
            struct.pack_into("<Q", params, at, addresses[index] + offset)
        if act.kind == FILL:
            (address,) = struct.unpack_from("<Q", params)
            self.driver.fill(address, act.value, act.size, stream)
            return
        entry = self._entry(act.source, act.kernel)
        self.driver.launch(entry, act.blocks, act.threads, act.shared_bytes, stream, params)

    @staticmethod
    def _multiply(act: Act, memory: list) -> None:
        """Multiply float32 matrices with the precision that torch is set to."""
        *_, batch, rows, inner, columns = _PRODUCT.unpack_from(act.params)
        shapes = ((rows, inner), (inner, columns), (rows, columns))
        matrices = []
        for (_, index, offset), shape in zip(act.addresses, shapes):
            flat = memory[index].detach().view(-1).view(torch.uint8)
            size = 4 * batch * shape[0] * shape[1]
            matrices.append(flat[offset : offset + size].view(torch.float32).view(batch, *shape))
        a, b, out = matrices
        with torch.no_grad():
            torch.bmm(a, b, out=out)

    def _make_plan(self, scan, args, names, numbers, pointers) -> Plan:
        if self.is_capturing():
            raise RuntimeError(
                "this call has new sizes, and its kernels cannot be prepared while a CUDA graph is"
                " captured; run the call once before the capture"
            )
        pointers = dict(pointers)
        values = {**dict(numbers), **pointers}
        request = plans.request(
            {name: values[name] for name in names},
            pointers,
            self._attributes[MULTIPROCESSORS],
            self._attributes[SHARED_LIMIT],
        ).to(self.torch_device)
        reply = plans.empty_reply(self.torch_device)
        source = plans.planner_source(scan, args, names)
        planner = self._entry(source, plans.planner_name(scan))
        params = struct.pack("<2Q", request.data_ptr(), reply.data_ptr())
        self.driver.launch(planner, 1, 1, 0, self.stream(), bytearray(params))
        plan = plans.read_reply(reply, pointers)
        # Load everything now: it would be impossible while a graph is captured. One thread at a
        # time, else another one might load a kernel anew or lower what this one allows.
        with self._lock:
            for act in plan.acts:
                if act.kind == LAUNCH:
                    entry = self._entry(act.source, act.kernel)
                    if act.shared_bytes > self._shared.get(act.kernel, 0):
                        self.driver.allow_shared_memory(entry, act.shared_bytes)
                        self._shared[act.kernel] = act.shared_bytes
        return plan

    def _entry(self, source: str, kernel: str) -> c_void_p:
        """Return a kernel of a program, loaded."""
        if (source, kernel) not in self._entries:
            name, code = compiled(self.compiler, source, self.target, kernel)
            self._entries[source, kernel] = self.driver.load(code, name)
        return self._entries[source, kernel]
