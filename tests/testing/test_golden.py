import copy
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvssm import ops
from mmvssm.ops.backend import built_devices
from mmvssm.testing import Tolerance, find_cases, verify_file
from mmvssm.testing.compare import Comparison, MalformedCase, UnsupportedCase
from mmvssm.testing.families.vmamba import read_forward_type

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
MICRO = GOLDEN / "vmamba" / "micro_v0_pad_45x37.json"
TIGHT = Tolerance.of_backend("torch")
# minutes without compiled kernels, and the same network as vmambav0_tiny_64x96 under other names
SLOW_IN_TORCH = ("vmambav0_tiny_renamed_64x96",)
needs_cpu_kernels = pytest.mark.skipif(
    "cpu" not in built_devices(), reason="the CPU kernels are not built"
)


def all_cases(backend, *marks):
    for path in find_cases([GOLDEN]):
        more = [pytest.mark.slow] if backend == "torch" and path.stem in SLOW_IN_TORCH else []
        yield pytest.param(
            path, backend, id=f"{backend}-{path.parent.name}-{path.stem}", marks=[*marks, *more]
        )


@pytest.mark.parametrize(
    ("path", "backend"),
    [
        *all_cases("torch"),
        *all_cases("cpu", needs_cpu_kernels),
        *all_cases("cuda", pytest.mark.gpu),
    ],
)
def test_parity(path, backend):
    results = list(verify_file(path, backend))
    assert results
    assert [r for r in results if r.status != "passed"] == []


def test_every_given_case_is_found():
    names = [result.name for path in find_cases([GOLDEN / "ops"]) for result in verify_file(path)]
    assert len(names) == 1 + 3 + 16
    assert len(find_cases([GOLDEN])) == 13 + 4 + 4 + 8 + 5 + 3


def test_cases_come_in_the_order_of_their_folders(tmp_path):
    for name in ("b/1", "b/0", "a/2"):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"case": "x"}')
    found = find_cases([tmp_path / "b", tmp_path / "a", tmp_path / "b" / "0.json"])
    assert [f"{path.parent.name}/{path.stem}" for path in found] == ["b/0", "b/1", "a/2"]


def test_tolerances():
    assert Tolerance.of_backend("torch") == Tolerance(1e-5, 5e-5)
    for backend in ("auto", "cpu", "cuda"):
        assert Tolerance.of_backend(backend) == Tolerance(1e-4, 1e-4)


class Case:
    """A copy of a given case that tests change."""

    def __init__(self, folder, source):
        self.path = folder / source.name
        self.meta = json.loads(source.read_text())
        with np.load(source.with_suffix(".npz")) as arrays:
            self.data = {key: arrays[key] for key in arrays.files}

    def verify(self, tolerance=TIGHT):
        self.path.write_text(json.dumps(self.meta))
        np.savez(self.path.with_suffix(".npz"), **self.data)
        (result,) = verify_file(self.path, "auto", tolerance)
        return result


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path, MICRO)


def test_unchanged_copy_passes(case):
    result = case.verify()
    assert (result.name, result.status) == ("vmamba/micro_v0_pad_45x37", "passed")
    assert "of 89 compared" in result.detail


@pytest.mark.parametrize(
    ("name", "factor"),
    [("stage0", 1.00003), ("stage3", 1.00003), ("logits", 1.00003), ("grad.input", 1.00003)],
)
def test_changed_tensors_fail(case, name, factor):
    case.data[name] = (case.data[name] * factor).astype(np.float32)
    result = case.verify()
    assert result.status == "failed" and name in result.detail


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("layers.0.blocks.0.self_attention.A_logs", lambda v: v * 1.0002),
        ("layers.3.blocks.0.self_attention.A_logs", lambda v: v + 1e-3),  # stored as 0
        ("head.bias", lambda v: float("nan")),
    ],
)
def test_changed_gradient_norms_fail(case, key, change):
    values = dict(zip(case.data["gradnorm.keys"].tolist(), case.data["gradnorm.values"]))
    values[key] = change(values[key])
    case.data["gradnorm.values"] = np.array(list(values.values()))
    result = case.verify()
    assert result.status == "failed" and f"gradnorm {key}" in result.detail


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("micro_v0_pad_45x37", dict(odd_size="crop")),
        ("micro_v05_32x48", dict(forward_type="v05_nozact")),
        ("micro_v05_32x48", dict(forward_type="v05_oact")),
        ("micro_v05_32x48", dict(forward_type="v05", ssm_act="gelu")),
        ("micro_v05_32x48", dict(mlp_act="silu")),
        ("micro_v051d_noz_32x48", dict(forward_type="v05_noz")),
        ("micro_v052d_noz_32x48", dict(forward_type="v051d_noz")),
        ("micro_v052dc_noz_32x48", dict(forward_type="v05_noz")),
        ("micro_v05_onsoftmax_noz_32x48", dict(forward_type="v05_onsigmoid_noz")),
    ],
)
def test_another_description_fails(tmp_path, source, change):
    case = Case(tmp_path, GOLDEN / "vmamba" / f"{source}.json")
    case.meta["build"].update(change)
    result = case.verify()
    assert result.status == "failed" and result.detail.startswith("worst")


def swapped_routes(height, width, device):
    return ops.routes.cross2d(height, width, device)[[0, 2, 1, 3]].contiguous()


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        (
            "mmvssm.models.layers.ss2d.ROUTE_TABLES",
            dict(cross2d=swapped_routes),
        ),
        (
            "torch.nn.GELU.forward",
            lambda self, x: F.gelu(x, approximate="tanh"),
        ),
        (
            "torch.nn.LayerNorm.forward",
            lambda self, x: F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-6),
        ),
        (
            "mmvssm.models.layers.ss2d.F.linear",
            lambda x, weight: nn.functional.linear(x, weight.roll(1, 0)),
        ),
    ],
    ids=["routes", "gelu", "eps", "projections"],
)
def test_wrong_code_fails(monkeypatch, tmp_path, target, wrong):
    case = Case(tmp_path, GOLDEN / "vmamba" / "micro_v05_32x48.json")
    if target.endswith("F.linear"):
        real = torch.nn.functional.linear
        monkeypatch.setattr(target, lambda x, weight: real(x, weight.roll(1, 0)))
    else:
        monkeypatch.setattr(target, wrong)
    assert case.verify().status == "failed"


def test_wrong_scan_fails(monkeypatch):
    real = ops.selective_scan

    def wrong(*args, **kwargs):
        y, state = real(*args, **kwargs)
        return y * 1.00003, state

    monkeypatch.setattr("mmvssm.testing.op_cases.selective_scan", wrong)
    results = list(verify_file(GOLDEN / "ops" / "selective_scan.json", "auto", TIGHT))
    assert len(results) == 16 and all(r.status == "failed" for r in results)


def test_last_map_where_there_are_no_logits(case):
    case.meta["outputs"] = ["stage0", "stage3", "grad.input"]
    del case.data["gradnorm.keys"], case.data["gradnorm.values"]
    result = case.verify()
    assert result.status == "failed" and "grad.input, of 3 compared" in result.detail
    case.meta["outputs"] = ["stage0", "stage3"]
    assert case.verify().status == "passed"


def test_classifier_alone(case):
    case.meta["outputs"] = ["pooled", "logits", "grad.input"]
    case.meta["state_dict"] = [e for e in case.meta["state_dict"] if "outnorm" not in e[0]]
    assert case.verify().status == "passed"


def test_float64(case):
    case.meta["dtype"] = "float64"
    assert case.verify(Tolerance(4e-6, 4e-6)).status == "passed"


def remove(*path):
    def change(case):
        target = case.meta
        for name in path[:-1]:
            target = target[name]
        target.pop(path[-1])

    return change


def update(**fields):
    return lambda case: case.meta.update(fields)


def update_build(**fields):
    return lambda case: case.meta["build"].update(fields)


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (remove("build"), "failed", "'build' is missing"),
        (remove("build", "dims"), "failed", "'dims' is missing"),
        (remove("state_dict", 3), "failed", "1 key(s) missing in state_dict"),
        (update_build(forward_type="v06"), "failed", "unknown core 'v06'"),
        (update_build(forward_type="v05_fast"), "failed", "unknown suffix 'fast'"),
        (update_build(patch_embed="v9"), "failed", "patch_embed must be one of v1, v2, got 'v9'"),
        (update_build(ssm_ratio=1.0), "failed", "key(s) of another shape"),
        (update_build(norm_eps=1e-6), "unsupported", "norm_eps"),
        (update_build(post_norm=True), "unsupported", "post_norm"),
        (update_build(forward_type="xv1a_noz"), "unsupported", "xv1a"),
        (update(params=5), "failed", "269210 parameters, the case says 5"),
        (update(mode="train"), "failed", "mode must be 'eval'"),
        (update(input_shape=[1, 3, 2, 2]), "failed", "at least 4x4 pixels"),
        (update(family="resnet"), "unsupported", "family 'resnet' is not built; built are"),
        (update(outputs=["erf", "attn.a0.CB"]), "unsupported", "stores erf, attn.a0.CB"),
        (update(family="ops", case="fft"), "unsupported", "operator 'fft' is not built"),
        (update(family="ops", case="selective_scan"), "failed", "'cases' is missing"),
        (lambda case: case.data.pop("stage1"), "failed", "'stage1' is missing"),
    ],
)
def test_reasons(case, change, status, reason):
    change(case)
    result = case.verify()
    assert result.status == status and reason in result.detail, result


def test_broken_files_fail(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"family": "vmamba", "case": "b"}')
    shutil.copy(MICRO.with_suffix(".npz"), tmp_path / "c.npz")
    (tmp_path / "d.json").write_text("[1]")
    (tmp_path / "d.npz").write_text("no archive")
    (tmp_path / "table.json").write_text('{"maps": []}')
    paths = find_cases([tmp_path])
    assert [path.stem for path in paths] == ["a", "b", "c", "d"]
    assert [r.status for path in paths for r in verify_file(path)] == ["failed"] * 4


@pytest.mark.parametrize(
    ("forward_type", "expected"),
    [
        ("v0", dict(gate=True, force_fp32=True)),
        ("v3_noz", dict(gate=False, force_fp32=False)),
        ("v05_noz_oact", dict(gate=False, force_fp32=False, out_act=True)),
        ("v05_oact_noz", dict(gate=False, force_fp32=False, out_act=True)),
        ("v01_no32_nozact", dict(gate=True, force_fp32=False, gate_act=False)),
        ("v2_oncnorm", dict(gate=True, force_fp32=True, out_norm="cnorm")),
        ("v32dc_noz", dict(gate=False, force_fp32=False, scan="cascade")),
        ("m0_noz", dict(gate=False, scalar_decay=True)),
    ],
)
def test_forward_types(forward_type, expected):
    assert read_forward_type(forward_type) == expected


@pytest.mark.parametrize("forward_type", ["v0_noz", "v05_noz_noz", "v05_onnone_oncnorm", "v05noz"])
def test_contradicting_forward_types(forward_type):
    with pytest.raises(MalformedCase, match=forward_type):
        read_forward_type(forward_type)
    with pytest.raises(UnsupportedCase, match="gate"):
        read_forward_type("m0")


def test_norms_next_to_zero_are_compared_absolutely():
    comparison = Comparison(Tolerance(1e-5, 5e-5))
    comparison.norms({"large": 100.0, "tiny": 1e-9, "zero": 0.0}, dict(large=100.0, tiny=0, zero=0))
    errors = {name: error for name, error, _ in comparison.errors}
    assert errors == pytest.approx(
        {"gradnorm large": 0, "gradnorm tiny": 1e-4, "gradnorm zero": 0}, abs=1e-12
    )
    assert not Comparison(Tolerance(1e-5, 5e-5)).passed


TOOL = ROOT / "tools" / "verify_golden.py"


def test_tool(tmp_path, case):
    bad = copy.deepcopy(case)
    bad.path = tmp_path / "bad.json"
    bad.data["logits"] = bad.data["logits"] * 1.001
    bad.verify()
    case.meta["family"] = "resnet"
    case.verify()
    done = subprocess.run(
        [sys.executable, TOOL, tmp_path, GOLDEN / "ops" / "cross_scan.json", "--backend", "torch"],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert [line.split()[0] for line in lines[:-1]] == ["failed", "unsupported", "passed"]
    assert lines[-1] == "1 passed, 1 failed, 1 unsupported"


def run_tool(monkeypatch, capsys, *arguments):
    """Exit status, output and errors of the tool, run in this process."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_tool_with_tolerance(monkeypatch, capsys, case):
    case.data["logits"] = case.data["logits"] * 1.001
    case.verify()
    assert run_tool(monkeypatch, capsys, case.path)[0] == 1
    status, out, _ = run_tool(monkeypatch, capsys, case.path, "--tol", "0.01")
    assert status == 0 and out.splitlines()[-1] == "1 passed, 0 failed, 0 unsupported"
    status, _, _ = run_tool(monkeypatch, capsys, case.path, "--tol", "0")
    assert status == "--tol must be positive, got 0.0"


def test_tool_without_cases(monkeypatch, capsys, tmp_path):
    status, out, err = run_tool(monkeypatch, capsys, tmp_path)
    assert status == 1 and "no golden case below" in err
    assert out.splitlines()[-1] == "0 passed, 0 failed, 0 unsupported"
    status, _, _ = run_tool(monkeypatch, capsys, tmp_path / "missing")
    assert "no such file or folder" in status and "missing" in status
