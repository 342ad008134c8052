"""Launch plans of scans, made once per size by the host functions of the CUDA sources.

``csrc/cuda/*_host.cpp`` decide in C++ which kernels run, over how many blocks, with how much shared
memory and which parameters. NVRTC also compiles these functions, as a kernel of one thread that
records what the host would do instead of doing it (``csrc/nvrtc/plan_device.h``). The decisions
therefore exist only once, and this module knows no particular kernel.

The planner runs twice, with two different sets of made-up addresses in place of the tensors'.
Every parameter that differs between the two runs is an address.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

#: Bytes to which the host functions check the alignment of addresses.
ALIGNMENT = 16
#: Kinds of actions in a plan.
LAUNCH, FILL, MULTIPLY = range(3)

_RUNS = 2
_MAX_ACTS, _MAX_WORDS = 40, 128
# Both halves of an address differ between the runs. Padding between the fields of a struct may hold
# stale halves of addresses, which are thus never mistaken for an address.
_STEP = 2**40 + 2**20


class _Act(ctypes.Structure):
    _fields_ = (
        ("act", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
        ("value", ctypes.c_int32),
        ("blocks", ctypes.c_int64),
        ("bytes", ctypes.c_int64),
        ("header", ctypes.c_char * 64),
        ("kernel", ctypes.c_char * 160),
        ("params", ctypes.c_uint64 * _MAX_WORDS),
    )


class _Plan(ctypes.Structure):
    _fields_ = (
        ("fits", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("workspace_bytes", ctypes.c_int64),
        ("acts", _Act * _MAX_ACTS),
    )


@dataclass(frozen=True)
class Act:
    """One action of a plan: a kernel launch, a fill or a matrix product."""

    kind: int
    source: str  # for a launch: program that holds the kernel
    kernel: str  # for a launch: C++ expression that names the kernel
    blocks: int
    threads: int
    shared_bytes: int
    value: int  # for a fill: value of every byte
    size: int  # bytes of the parameters, or bytes to fill
    params: bytes
    # (offset in the parameters, index of the address, bytes past it); the last address is the
    # workspace's
    addresses: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Plan:
    """The actions of one call, in order."""

    fits: bool  # False if a block of this device has too little shared memory
    workspace_bytes: int
    acts: tuple[Act, ...]


def planner_name(scan: str) -> str:
    """Return the name of the kernel in :func:`planner_source`."""
    return f"mmvssm::cuda::plan_{scan}"


def planner_source(scan: str, args: str, fields: Sequence[str]) -> str:
    """Return the source of the kernel that plans the calls of a scan.

    Args:
        scan: Name of a host function of ``csrc/cuda/scan_cuda.h``.
        args: Name of the struct that it takes.
        fields: Fields of the struct, in the order of the values of :func:`request`.
    """
    form = scan.rpartition("_")[0]
    sets = "\n".join(f"    set_field(args.{name}, values[{i}]);" for i, name in enumerate(fields))
    return f"""#include "nvrtc/planner.h"
#include "cuda/scan_host.cpp"
#include "cuda/{form}_host.cpp"

namespace mmvssm::cuda {{

static_assert(sizeof(PlannedAct) == {ctypes.sizeof(_Act)}, "plans.py differs");
static_assert(sizeof(Plan) == {ctypes.sizeof(_Plan)}, "plans.py differs");

extern "C" __global__ void plan_{scan}(const PlannerParams p) {{
#pragma unroll 1
  for (int run = 0; run < {_RUNS}; ++run) {{
    const int64_t* values = p.values + run * {len(fields) + 3};
    {args} args{{}};
{sets}
    make_plan({scan}, args, values + {len(fields)}, p.plans[run]);
  }}
}}

}}  // namespace mmvssm::cuda
"""


def request(
    fields: Mapping[str, int | None],
    pointers: Mapping[str, int | None],
    multiprocessors: int,
    shared_limit: int,
) -> torch.Tensor:
    """Return the planner's input for both runs: int64 ``(2, fields + 3)``.

    Args:
        fields: Value of each field, in the planner's order.
        pointers: Fields that are addresses: each modulo :data:`ALIGNMENT`, or None for no tensor.
        multiprocessors: Multiprocessors of the device.
        shared_limit: Bytes of shared memory that a block may have.
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
        rows.append([*row, multiprocessors, shared_limit, _address(len(pointers), run)])
    return torch.tensor(rows, dtype=torch.int64)


def _address(index: int, run: int) -> int:
    return (index + 1) * _STEP * (run + 1)


def empty_reply(device: torch.device) -> torch.Tensor:
    """Allocate the memory that the planner writes to."""
    return torch.empty(_RUNS * ctypes.sizeof(_Plan), dtype=torch.uint8, device=device)


def read_reply(reply: torch.Tensor, pointers: Mapping[str, int | None]) -> Plan:
    """Return the plan that the planner wrote.

    Args:
        reply: The memory of :func:`empty_reply`, filled by the planner.
        pointers: The ``pointers`` given to :func:`request`.

    Raises:
        RuntimeError: If the two runs differ in more than addresses, or the plan was too long.
    """
    first, second = (_Plan * _RUNS).from_buffer_copy(reply.cpu().numpy().tobytes())
    sizes = (first.fits, first.count, first.workspace_bytes)
    if sizes != (second.fits, second.count, second.workspace_bytes):
        raise RuntimeError("the plan of the CUDA kernels depends on the addresses of tensors")
    too_long = any(a.act != FILL and a.bytes > 8 * _MAX_WORDS for a in first.acts[: first.count])
    if first.count > _MAX_ACTS or too_long:
        raise RuntimeError("the plan of the CUDA kernels is longer than plan_device.h has room for")
    lows = [low or 0 for low in (*pointers.values(), 0)]
    acts = (_act(*pair, lows) for pair in zip(first.acts[: first.count], second.acts))
    return Plan(bool(first.fits), first.workspace_bytes, tuple(acts))


def _act(first: _Act, second: _Act, lows: Sequence[int]) -> Act:
    words = 1 if first.act == FILL else (first.bytes + 7) // 8
    addresses = []
    for word in range(words):
        number, rest = divmod(second.params[word] - first.params[word], _STEP)
        if rest == 0 and 0 < number <= len(lows):
            index = number - 1
            offset = first.params[word] - _address(index, 0) - lows[index]
            addresses.append((8 * word, index, offset))
    is_launch = first.act == LAUNCH
    return Act(
        first.act,
        f'#include "{first.header.decode()}"\n' if is_launch else "",
        f"mmvssm::cuda::{first.kernel.decode()}" if is_launch else "",
        first.blocks,
        first.threads,
        first.shared_bytes,
        first.value,
        first.bytes,
        bytes(first.params)[: 8 * words],
        tuple(addresses),
    )
