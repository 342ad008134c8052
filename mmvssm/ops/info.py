"""What was built, and which backend would run."""

from __future__ import annotations

import torch

from ..version import __version__
from .backend import built_devices, current_backend, missing_reason
from .extension import EXTENSION


def info() -> dict[str, str]:
    """Facts on the ops of this installation, as printed by ``python -m mmvssm.ops``.

    Returns:
        Name and value of each fact, in the order to print them.
    """
    module = EXTENSION
    facts = {"mmvssm": __version__, "torch": torch.__version__}
    if module is None:
        facts["compiled kernels"] = f"none: {missing_reason('cpu')}"
    else:
        facts["compiled kernels"] = ", ".join(built_devices())
        facts["extension"] = str(module.__file__)
        facts["cpu instruction set"] = f"{module.cpu_capability()} (of {module.cpu_variants()})"
        facts["cuda architectures"] = module.cuda_architectures() or missing_reason("cuda")
    facts["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        facts["gpu"] = f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
    else:
        facts["gpu"] = "none visible to torch"
    facts["backend chosen"] = current_backend()
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for device in devices:
        runs = device in built_devices() and current_backend() in ("auto", device)
        facts[f"runs for {device} tensors"] = (
            f"{device} kernels" if runs else "torch (PyTorch path)"
        )
    return facts
