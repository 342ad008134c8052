"""The choice of implementation, its reports, and mmcv's entry points to the ops."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mmvssm import ops

backend_module = sys.modules["mmvssm.ops.backend"]

native = pytest.mark.skipif("cpu" not in ops.built_devices(), reason="no compiled kernels")

# code that hides the compiled extension, as on a machine without a compiler
HIDDEN = """
import importlib.util, warnings
find_spec = importlib.util.find_spec
hidden = "mmvssm._vssm_ext"
importlib.util.find_spec = lambda name, *a: None if name == hidden else find_spec(name, *a)
from mmvssm import ops
"""


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def scan_arguments():
    return [
        torch.randn(1, 2, 5),
        torch.randn(1, 2, 5),
        -torch.rand(2, 1),
        *torch.randn(2, 1, 1, 1, 5),
    ]


def test_setter_and_context_manager():
    assert ops.current_backend() == "auto"
    with ops.backend("torch") as name:
        assert name == ops.current_backend() == "torch"
    assert ops.current_backend() == "auto"
    ops.backend("torch")
    assert ops.current_backend() == "torch"
    ops.backend("auto")
    assert ops.current_backend() == "auto"


def test_context_manager_restores_after_an_error():
    with pytest.raises(KeyError), ops.backend("torch"):
        raise KeyError
    assert ops.current_backend() == "auto"


def test_unknown_backend():
    with pytest.raises(ValueError, match="one of auto, cuda, nvrtc, cpu, torch, got 'triton'"):
        ops.backend("triton")


@native
def test_the_choice_is_what_runs(monkeypatch):
    def fail(*args):
        raise AssertionError("the PyTorch path ran")

    scan_module = sys.modules["mmvssm.ops.selective_scan"]
    monkeypatch.setattr(scan_module, "selective_scan_chunked", fail)
    ops.selective_scan(*scan_arguments())
    with ops.backend("torch"), pytest.raises(AssertionError, match="PyTorch path ran"):
        ops.selective_scan(*scan_arguments())


@pytest.mark.skipif("cuda" in ops.built_devices(), reason="cuda kernels are built")
def test_backend_that_is_not_built():
    with pytest.raises(RuntimeError, match=r"backend 'cuda' is not built: .*no-build-isolation"):
        ops.backend("cuda")
    assert ops.current_backend() == "auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nvrtc_without_a_gpu():
    with pytest.raises(RuntimeError, match="backend 'nvrtc' cannot run: torch sees no GPU"):
        ops.backend("nvrtc")
    assert ops.current_backend() == "auto"


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("8.0 9.0", (9, 0), True),
        ("8.0 9.0", (8, 9), True),
        ("8.6 9.0", (8, 0), False),
        ("8.0 9.0", (7, 5), False),
        ("8.0 9.0", (12, 0), False),
        ("8.0 9.0+PTX", (12, 0), True),
        ("9.0a 10.0f", (9, 0), True),
        ("", (9, 0), False),
    ],
)
def test_gpus_that_compiled_kernels_run_on(architectures, capability, runs):
    assert backend_module.covers(architectures, capability) == runs


@pytest.fixture
def gpu(monkeypatch):
    """Fakes a GPU of capability 9.0; returns a function that sets which kernels exist."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: (9, 0))
    caches = (backend_module.compiled_missing, backend_module._nvrtc_missing)

    def choose(built, nvrtc_reason):
        extension = SimpleNamespace(
            cuda_architectures=lambda: built or "",
            build_note=lambda: "nvcc was not found",
            cpu_capability=lambda: "avx2",
            cpu_variants=lambda: "avx2",
            __file__="ext.so",
            **{f"selective_scan{form}_{way}": None
               for form in ("", "_2d") for way in ("forward", "backward")},
        )  # fmt: skip
        devices = ("cpu", "cuda") if built is not None else ("cpu",)
        for module in (backend_module, sys.modules["mmvssm.ops.info"]):
            monkeypatch.setattr(module, "EXTENSION", extension)
        monkeypatch.setattr(backend_module, "DEVICES", devices)
        monkeypatch.setattr(backend_module.nvrtc, "missing_reason", lambda index: nvrtc_reason)
        monkeypatch.setattr(backend_module.nvrtc, "register", lambda *a: None)
        for function in caches:
            function.cache_clear()

    yield choose
    for function in caches:
        function.cache_clear()


@pytest.mark.parametrize(
    ("built", "nvrtc_reason", "runs", "why"),
    [
        ("8.0 9.0", "", "cuda", ""),
        (None, "", "nvrtc", r"compiled without CUDA kernels \(nvcc was not found\)"),
        ("8.0 12.0", "", "nvrtc", "compiled for 8.0 12.0, and this GPU is 9.0; build them with"),
        (None, "NVRTC does not load", "torch", "cannot compile them now: NVRTC does not load"),
    ],
)
def test_kernels_of_a_gpu(gpu, built, nvrtc_reason, runs, why):
    gpu(built, nvrtc_reason)
    chosen, reason = backend_module.gpu_kernels(0)
    assert chosen == runs
    assert re.search(why, reason)
    words = ops.info()["runs for cuda:0 tensors"]
    assert re.match(
        {"cuda": "compiled CUDA", "nvrtc": "CUDA kernels that NVRTC"}.get(runs, "PyTorch"), words
    )
    assert bool(reason) == (", because " in words)
    tensor = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    if runs == "torch":
        with pytest.warns(UserWarning, match="slower PyTorch scan: .*NVRTC does not load"):
            assert backend_module.resolve(tensor) == "torch"
    else:
        assert backend_module.resolve(tensor) == "native"
    assert backend_module._serves_nvrtc(tensor.device) == (runs == "nvrtc")
    if not nvrtc_reason:
        with ops.backend("nvrtc"):
            assert backend_module._serves_nvrtc(tensor.device)
            tensor.dtype = torch.float64
            with pytest.raises(TypeError, match="got float64"):
                backend_module.resolve(tensor)


def test_without_extension_warns_once_and_computes():
    result = python(
        HIDDEN
        + """
import torch
assert ops.built_devices() == ()
args = [torch.ones(1, 2, 5), torch.ones(1, 2, 5), -torch.ones(2, 1), *torch.ones(2, 1, 1, 1, 5)]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = [ops.selective_scan(*args) for _ in range(3)][0]
messages = [str(w.message) for w in caught if "mmvssm" in str(w.message)]
assert len(messages) == 1 and "slower PyTorch scan" in messages[0], messages
torch.testing.assert_close(y, ops.selective_scan_reference(*args)[0])
"""
    )
    assert result.returncode == 0, result.stderr


def test_without_extension_insisting_on_it_is_an_error():
    result = python(HIDDEN + "ops.backend('cpu')")
    assert result.returncode != 0
    assert (
        "backend 'cpu' is not built: mmvssm was installed without compiled kernels" in result.stderr
    )


def test_report_of_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "mmvssm.ops"], capture_output=True, text=True, check=True
    )
    facts = dict(line.split(":", 1) for line in result.stdout.splitlines())
    assert facts["torch"].strip() == torch.__version__
    assert facts["check on cpu"].strip().startswith("ok, relative error")
    built = ", ".join(ops.built_devices())
    assert facts["compiled kernels"].strip().startswith(built or "none")


@native
def test_mmcv_finds_the_extension_and_the_function():
    pytest.importorskip("mmcv.ops", reason="needs mmcv with its ops")
    import mmcv.ops
    from mmcv.utils import ext_loader

    extension = ext_loader.load_ext(
        "_vssm_ext", ["selective_scan_forward", "selective_scan_2d_forward"]
    )
    y, _, _ = extension.selective_scan_forward(*scan_arguments(), None, None, False, None, False)
    assert y.shape == (1, 2, 5)
    assert mmcv.ops.selective_scan is ops.selective_scan
    assert mmcv.ops.nms.__module__.startswith("mmcv.")


@native
@pytest.mark.parametrize("variant", ["avx2", "baseline"])
def test_plainer_instruction_sets(variant):
    """Run the tests of the ops again, on kernels that this processor would not choose by itself."""
    from mmvssm import _vssm_ext

    if variant not in _vssm_ext.cpu_variants().split(", "):
        pytest.skip(f"this processor cannot run {variant}")
    folder = os.path.dirname(__file__)
    names = ("selective_scan", "scan_2d", "merging")
    tests = [os.path.join(folder, f"test_{name}.py") for name in names]
    chosen = "cpu and (float32 or extreme or memory)"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", chosen, *tests],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.dirname(folder)),
        env={**os.environ, "MMVSSM_CPU_CAPABILITY": variant, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert (
        f"cpu instruction set {variant}"
        in python(
            "from mmvssm import ops; print(*(f'{k} {v}' for k, v in ops.info().items()))",
            MMVSSM_CPU_CAPABILITY=variant,
        ).stdout
    )


@native
def test_unknown_instruction_set():
    result = python(
        "import torch; from mmvssm import ops; BC = torch.ones(2, 1, 1, 1, 5);"
        "ops.selective_scan(*torch.ones(2, 1, 2, 5), -torch.ones(2, 1), *BC)",
        MMVSSM_CPU_CAPABILITY="sse9",
    )
    assert "ValueError: MMVSSM_CPU_CAPABILITY must be one of" in result.stderr
