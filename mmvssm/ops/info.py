"""Facts about the installation: which kernels were built, and which backend would run."""

from __future__ import annotations

import torch

from ..version import __version__
from . import nvrtc
from .backend import built_devices, current_backend, gpu_kernels, missing_reason
from .extension import EXTENSION


def info() -> dict[str, str]:
    """Return the facts about the ops that ``python -m mmvssm.ops`` prints.

    Returns:
        Name and value of each fact, in printing order.
    """
    module = EXTENSION
    facts = {"mmvssm": __version__, "torch": torch.__version__}
    if module is None:
        facts["compiled kernels"] = f"none: {missing_reason('cpu')}"
    else:
        facts["compiled kernels"] = ", ".join(built_devices())
        facts["extension"] = str(module.__file__)
        facts["cpu instruction set"] = f"{module.cpu_capability()} (of {module.cpu_variants()})"
        note, architectures = module.build_note(), module.cuda_architectures()
        facts["cuda architectures"] = f"{architectures or 'none'}{note and ': '}{note}"
    facts["nvrtc"] = nvrtc.describe()
    facts["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        facts["gpu"] = f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
    else:
        facts["gpu"] = "none visible to torch"
    facts["backend chosen"] = current_backend()
    facts["runs for cpu tensors"] = _runs("cpu", "cpu" if "cpu" in built_devices() else "torch")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            kernels, reason = gpu_kernels(index)
            runs = _runs("cuda", kernels)
            why = f", because {reason}" if reason and current_backend() == "auto" else ""
            facts[f"runs for cuda:{index} tensors"] = runs + why
    return facts


_WORDS = {
    "cpu": "compiled CPU kernels",
    "cuda": "compiled CUDA kernels",
    "nvrtc": "CUDA kernels that NVRTC compiles when they are first used",
    "torch": "PyTorch, slower",
}


def _runs(device: str, automatic: str) -> str:
    choice = current_backend()
    if choice == "auto":
        return _WORDS[automatic]
    if choice == "torch" or device == ("cpu" if choice == "cpu" else "cuda"):
        return _WORDS[choice]
    return f"nothing: backend {choice!r} is chosen"
