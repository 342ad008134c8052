"""What a scan launches: found out by the host code of the CUDA sources, once for each size.

``csrc/cuda`` decides in C++ which kernels run, over how many blocks, with how much shared memory
and which parameters. NVRTC compiles that code, too, as a kernel of one thread, which writes its
decisions down instead of starting anything (``csrc/nvrtc/launch_plan.h``). So they stand in one
place, and nothing here knows a particular kernel.

The plan is made with made-up addresses in place of the tensors'. It is made twice, with other
ones; what differs, is an address.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .sources import program

#: Positions of the addresses' last bits that kernels look at: alignment to 16 bytes.
ALIGNMENT = 16

_RUNS = 2
_MAX_LAUNCHES, _MAX_NAME, _MAX_PARAMS = 32, 512, 1024


class _Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_char * _MAX_NAME),
        ("blocks", ctypes.c_int64),
        ("threads", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
        ("bytes", ctypes.c_int64),
        ("padding", ctypes.c_int64),
        ("params", ctypes.c_uint64 * (_MAX_PARAMS // 8)),
    )


class _Plan(ctypes.Structure):
    _fields_ = (
        ("status", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("workspace_bytes", ctypes.c_int64),
        ("launches", _Launch * _MAX_LAUNCHES),
    )


@dataclass(frozen=True)
class Launch:
    """One kernel to start, or memory to clear."""

    kernel: str  # C++ expression; '' clears `size` bytes at the only address
    blocks: int
    threads: int
    shared_bytes: int
    size: int  # of the parameters, or of what to clear
    params: bytes
    # (where in the parameters, which address, bytes behind it); the last address is the workspace
    addresses: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Plan:
    """What one call launches, in this order."""

    status: int  # a cudaError_t
    workspace_bytes: int
    launches: tuple[Launch, ...]


def planner_name(scan: str) -> str:
    """The kernel of :func:`planner_source`."""
    return f"mmvssm::cuda::plan_{scan}"


def planner_source(scan: str, args: str, fields: Sequence[str]) -> str:
    """Source of the kernel that plans the calls of a scan.

    Args:
        scan: As of :func:`~.sources.program`.
        args: Struct of ``csrc/cuda/scan_cuda.h`` that the scan takes.
        fields: Its fields, in the order of the values of :func:`request`.
    """
    sets = "\n".join(f"    set_field(args.{name}, values[{i}]);" for i, name in enumerate(fields))
    return f"""{program(scan)}
#include "nvrtc/planner.h"

namespace mmvssm::cuda {{

static_assert(sizeof(PlannedLaunch) == {ctypes.sizeof(_Launch)}, "plans.py differs");
static_assert(sizeof(LaunchPlan) == {ctypes.sizeof(_Plan)}, "plans.py differs");

extern "C" __global__ void plan_{scan}(const PlannerParams p) {{
  device_attributes = p.attributes;
#pragma unroll 1
  for (int run = 0; run < {_RUNS}; ++run) {{
    const int64_t* values = p.values + run * {len(fields) + 1};
    {args} args{{}};
{sets}
    make_plan({scan}, args, values[{len(fields)}], p.plans[run]);
  }}
}}

}}  // namespace mmvssm::cuda
"""


def request(fields: Mapping[str, int | None], pointers: Mapping[str, int | None]) -> torch.Tensor:
    """Values of the fields for both runs, the workspace's address last: int64 ``(2, fields + 1)``.

    Args:
        fields: Value of each field, in the planner's order.
        pointers: Those of them that are addresses, each modulo :data:`ALIGNMENT`, or None.
    """
    rows = []
    for run in range(_RUNS):
        addresses = dict(zip(pointers, range(len(pointers))))
        row = []
        for name, value in fields.items():
            if name not in addresses:
                row.append(int(value))
            else:
                low = pointers[name]
                row.append(0 if low is None else _address(addresses[name], run) + low)
        rows.append([*row, _address(len(pointers), run)])
    return torch.tensor(rows, dtype=torch.int64)


def _address(index: int, run: int) -> int:
    return (index + 1) * _STEP * (run + 1)


# Both halves of an address differ between the runs: left-overs between the fields of a struct,
# which may hold half an address, are never taken for one.
_STEP = 2**40 + 2**20


def empty_reply(device: torch.device) -> torch.Tensor:
    """Memory for what the planner writes."""
    return torch.empty(_RUNS * ctypes.sizeof(_Plan), dtype=torch.uint8, device=device)


def read_reply(reply: torch.Tensor, pointers: Mapping[str, int | None]) -> Plan:
    """The plan that the planner wrote.

    Args:
        reply: As of :func:`empty_reply`, filled.
        pointers: As given to :func:`request`.

    Raises:
        RuntimeError: If the two runs disagree in more than addresses.
    """
    memory = reply.cpu().numpy().tobytes()
    first, second = (_Plan * _RUNS).from_buffer_copy(memory)
    lows = [*pointers.values(), 0]
    launches = tuple(
        _launch(first.launches[i], second.launches[i], lows) for i in range(first.count)
    )
    if (first.status, first.count, first.workspace_bytes) != (
        second.status,
        second.count,
        second.workspace_bytes,
    ):
        raise RuntimeError("the plan of the CUDA kernels depends on where tensors lie")
    return Plan(first.status, first.workspace_bytes, launches)


def _launch(first: _Launch, second: _Launch, lows: Sequence[int | None]) -> Launch:
    kernel = _kernel_name(first.kernel.decode())
    size = first.bytes
    words = range((size + 7) // 8 if kernel else 1)
    addresses = []
    for word in words:
        number, rest = divmod(second.params[word] - first.params[word], _STEP)
        if rest == 0 and 0 < number <= len(lows):
            index = number - 1
            addresses.append((8 * word, index, first.params[word] - _address(index, 0)))
    params = bytes(first.params)[: 8 * len(words)]
    addresses = tuple((at, i, offset - (lows[i] or 0)) for at, i, offset in addresses)
    sizes = (first.blocks, first.threads, first.shared_bytes, size)
    return Launch(kernel, *sizes, params, addresses)


def _kernel_name(text: str) -> str:
    """The type in ``... [with Kernel = TYPE]`` or ``... [with Kernel=TYPE]``, as an expression."""
    if not text:
        return ""
    found = re.search(r"\[with .*?Kernel ?= ?([^;\]]+)", text)
    if found is None:
        raise RuntimeError(f"no kernel is named in {text!r}")
    return f"mmvssm::cuda::run_kernel<{found[1]}>"
