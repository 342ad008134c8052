"""What the installed torch can do, found by trying it: tests skip what it came without."""

import functools
import inspect
import io
import re

import pytest
import torch
import torch.nn.functional as F

from mmvssm.ops.tracers import TRACES_ROUTES


@functools.cache
def computes_in_float16():
    """Whether layers and autocast on a CPU take float16."""
    x = torch.zeros(1, 2, 3, 3, dtype=torch.float16)
    try:
        F.conv2d(x, x[:, :, :1, :1])
        F.layer_norm(F.linear(x, x[0, 0]), (3,))
        with torch.autocast("cpu", torch.float16):
            F.linear(x, x[0, 0])
    except RuntimeError:
        return False
    return True


@functools.cache
def saves(dtype):
    """Whether ``torch.save`` knows a dtype that this torch has."""
    try:
        torch.save(torch.zeros(1).to(dtype), io.BytesIO())
    except (KeyError, RuntimeError):
        return False
    return True


def optional(value, able, reason):
    """A value of a parametrized test that is skipped unless torch is able to do it."""
    return pytest.param(value, marks=pytest.mark.skipif(not able, reason=reason))


HALF_PRECISIONS = [
    torch.bfloat16,
    optional(torch.float16, computes_in_float16(), "this torch has no float16 layers on a CPU"),
]
needs_opcheck = pytest.mark.skipif(
    not hasattr(torch.library, "opcheck"), reason="this torch has no torch.library.opcheck"
)
needs_strict = pytest.mark.skipif(
    "strict" not in inspect.signature(torch.export.export).parameters,
    reason="this torch.export traces in one way only",
)
#: Whether torch.compile makes one graph of a network; else it breaks the graph at every scan.
WHOLE_GRAPHS = TRACES_ROUTES
needs_whole_graphs = pytest.mark.skipif(
    not WHOLE_GRAPHS, reason="this torch breaks graphs at every scan"
)
needs_sharding = pytest.mark.skipif(
    not hasattr(torch.compiler, "set_stance"), reason="this torch resumes shards wrongly"
)


def without_noise(text):
    """Return what a tool wrote to stderr without the warning that torch 2.4 adds to MMEngine."""
    return re.sub(r"^.*DeprecationWarning: `TorchScript` support.*\n  .*\n", "", text, flags=re.M)
