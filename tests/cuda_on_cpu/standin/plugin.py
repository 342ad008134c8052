"""Pytest plugin: CPU tensors go through the path of the backend ``nvrtc``, over the stand-in.

Float64, which no CUDA kernel takes, stays with the compiled CPU kernels.
"""

import warnings

import torch

from cuda_on_cpu.standin import NoCompiler, StandIn, build
from mmvssm import ops
from mmvssm.ops.nvrtc import scans

calls = {name: 0 for name in scans.IMPLEMENTATIONS}
library = torch.library.Library("mmvssm", "IMPL")
device = StandIn(build(), NoCompiler())


def implementation(name):
    extension = {
        "selective_scan": ops.extension.EXTENSION.selective_scan_forward,
        "selective_scan_backward": ops.extension.EXTENSION.selective_scan_backward,
        "selective_scan_2d": ops.extension.EXTENSION.selective_scan_2d_forward,
        "selective_scan_2d_backward": ops.extension.EXTENSION.selective_scan_2d_backward,
    }[name]

    def run(*args):
        if any(isinstance(a, torch.Tensor) and a.dtype == torch.float64 for a in args):
            return extension(*args)
        calls[name] += 1
        return scans.IMPLEMENTATIONS[name](device, *args)

    return run


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in scans.IMPLEMENTATIONS:
        library.impl(name, implementation(name), "CPU")


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"through the stand-in: {calls}")
