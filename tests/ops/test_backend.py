"""The choice of implementation, what is reported of it, and mmcv's doors to the ops."""

import os
import subprocess
import sys

import pytest
import torch

from mmvssm import ops

native = pytest.mark.skipif("cpu" not in ops.built_devices(), reason="no compiled kernels")

# Python code that hides the compiled extension, as on a machine without a compiler.
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
    with pytest.raises(ValueError, match="one of auto, cuda, cpu, torch, got 'triton'"):
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
    """The scan tests again, on kernels that this processor would not choose by itself."""
    from mmvssm import _vssm_ext

    if variant not in _vssm_ext.cpu_variants().split(", "):
        pytest.skip(f"this processor cannot run {variant}")
    folder = os.path.dirname(__file__)
    tests = [os.path.join(folder, f"test_{name}.py") for name in ("selective_scan", "scan_2d")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "cpu and float32", *tests],
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
