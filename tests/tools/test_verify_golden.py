"""The tool, the format of cases, and the options of every family."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from verifier import Comparison, MalformedCase, Tolerance, UnsupportedCase, find_cases, verify_file
from verifier.readers import efficient_vmamba, mambavision, msvmamba, vmamba

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
TOOL = ROOT / "tools" / "verify_golden.py"
MICRO = GOLDEN / "vmamba" / "micro_v0_pad_45x37.json"
TIGHT = Tolerance(1e-5, 5e-5)


class Copy:
    """Copy of a given case, for tests to change."""

    def __init__(self, path, source=MICRO):
        self.path, self.meta = path, json.loads(source.read_text())
        with np.load(source.with_suffix(".npz")) as arrays:
            self.data = {key: arrays[key] for key in arrays.files}

    def verify(self, tolerance=TIGHT):
        self.path.write_text(json.dumps(self.meta))
        np.savez(self.path.with_suffix(".npz"), **self.data)
        (result,) = verify_file(self.path, "auto", tolerance)
        return result


@pytest.fixture
def case(tmp_path):
    return Copy(tmp_path / MICRO.name)


def build_of(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["build"]


def test_cases_come_in_the_order_of_their_folders(tmp_path):
    for name in ("b/1", "b/0", "a/2"):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"case": "x"}')
    found = find_cases([tmp_path / "b", tmp_path / "a", tmp_path / "b" / "0.json"])
    assert [f"{path.parent.name}/{path.stem}" for path in found] == ["b/0", "b/1", "a/2"]


def test_tolerances_and_norms():
    assert Tolerance.of_backend("torch") == TIGHT
    for backend in ("auto", "cpu", "cuda"):
        assert Tolerance.of_backend(backend) == Tolerance(1e-4, 1e-4)
    comparison = Comparison(TIGHT)
    assert not comparison.passed
    # norms next to zero are compared absolutely
    comparison.norms({"large": 100.0, "tiny": 1e-9, "zero": 0.0}, dict(large=100.0, tiny=0, zero=0))
    errors = [error for _, error, _ in comparison.errors]
    assert errors == pytest.approx([0, 1e-4, 0], abs=1e-12)


def test_unchanged_copy_passes(case):
    result = case.verify()
    assert (result.name, result.status) == ("vmamba/micro_v0_pad_45x37", "passed")
    assert "of 89 compared" in result.detail
    case.meta["dtype"] = "float64"
    assert case.verify(Tolerance(4e-6, 4e-6)).status == "passed"


@pytest.mark.parametrize("name", ["stage0", "stage3", "logits", "grad.input"])
def test_changed_tensors_fail(case, name):
    case.data[name] = (case.data[name] * 1.00003).astype(np.float32)
    result = case.verify()
    assert result.status == "failed" and name in result.detail


@pytest.mark.parametrize(
    ("key", "factor", "offset"),
    [
        ("layers.0.blocks.0.self_attention.A_logs", 1.0002, 0),
        ("layers.3.blocks.0.self_attention.A_logs", 1, 1e-3),  # stored as 0
        ("head.bias", float("nan"), 0),
    ],
)
def test_changed_gradient_norms_fail(case, key, factor, offset):
    case.data["gradnorm.values"] = case.data["gradnorm.values"].copy()
    case.data["gradnorm.values"][case.data["gradnorm.keys"].tolist().index(key)] *= factor
    case.data["gradnorm.values"][case.data["gradnorm.keys"].tolist().index(key)] += offset
    result = case.verify()
    assert result.status == "failed" and f"gradnorm {key}" in result.detail


def test_cases_of_some_outputs(case):
    case.meta["outputs"] = ["pooled", "logits", "grad.input"]
    case.meta["state_dict"] = [e for e in case.meta["state_dict"] if "outnorm" not in e[0]]
    assert case.verify().status == "passed"


def test_last_map_where_there_are_no_logits(case):
    case.meta["outputs"] = ["stage0", "stage3", "grad.input"]
    del case.data["gradnorm.keys"], case.data["gradnorm.values"]
    result = case.verify()
    assert result.status == "failed" and "grad.input, of 3 compared" in result.detail
    case.meta["outputs"] = ["stage0", "stage3"]
    assert case.verify().status == "passed"


@pytest.mark.parametrize(
    ("place", "change", "status", "reason"),
    [
        ("meta", dict(build=None), "failed", "'build' is missing"),
        ("build", dict(dims=None), "failed", "'dims' is missing"),
        ("build", dict(forward_type="v06"), "failed", "unknown core 'v06'"),
        ("build", dict(forward_type="v05_fast"), "failed", "unknown suffix 'fast'"),
        ("build", dict(patch_embed="v9"), "failed", "patch_embed must be one of v1, v2, got 'v9'"),
        ("build", dict(ssm_ratio=1.0), "failed", "key(s) of another shape"),
        ("build", dict(norm_eps=1e-6), "unsupported", "norm_eps 1e-06: only 1e-05 is built"),
        ("build", dict(post_norm=True), "unsupported", "post_norm"),
        ("build", dict(forward_type="xv1a_noz"), "unsupported", "xv1a"),
        ("meta", dict(params=5), "failed", "269210 parameters, the case says 5"),
        ("meta", dict(mode="train"), "failed", "mode must be 'eval'"),
        ("meta", dict(input_shape=[1, 3, 2, 2]), "failed", "at least 4x4 pixels"),
        ("meta", dict(family="resnet"), "unsupported", "family 'resnet' is not built; built are"),
        ("meta", dict(outputs=["erf", "attn.a0.CB"]), "unsupported", "stores erf, attn.a0.CB"),
        ("meta", dict(family="ops", case="fft"), "unsupported", "operator 'fft' is not built"),
        ("meta", dict(family="ops", case="selective_scan"), "failed", "'cases' is missing"),
        ("data", dict(stage1=None), "failed", "'stage1' is missing"),
    ],
)
def test_reasons(case, place, change, status, reason):
    target = case.meta["build"] if place == "build" else getattr(case, place)
    for name, value in change.items():
        target[name] = value
        if value is None:
            del target[name]
    result = case.verify()
    assert result.status == status and reason in result.detail, result


def test_incomplete_state_dict(case):
    del case.meta["state_dict"][3]
    assert "1 key(s) missing in state_dict" in case.verify().detail


def test_broken_files_fail(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"family": "vmamba", "case": "b"}')
    shutil.copy(MICRO.with_suffix(".npz"), tmp_path / "c.npz")
    (tmp_path / "d.json").write_text("[1]")
    (tmp_path / "d.npz").write_text("no archive")
    (tmp_path / "e.json").write_text('{"family": "ops", "case": "selective_scan", "cases": []}')
    (tmp_path / "table.json").write_text('{"maps": []}')
    paths = find_cases([tmp_path])
    assert [path.stem for path in paths] == ["a", "b", "c", "d", "e"]
    assert [r.status for path in paths for r in verify_file(path)] == ["failed"] * 5


@pytest.mark.parametrize(
    ("forward_type", "expected"),
    [
        ("v0", dict(gate=True, force_fp32=True)),
        ("v3_noz", dict(gate=False, force_fp32=False)),
        ("v05_noz_oact", dict(gate=False, force_fp32=False, out_act=True)),
        ("v05_oact_noz", dict(gate=False, force_fp32=False, out_act=True)),
        ("v01_no32_nozact", dict(gate=True, force_fp32=False, gate_act=False)),
        ("v2_oncnorm", dict(gate=True, force_fp32=True, out_norm="cnorm")),
    ],
)
def test_forward_types(forward_type, expected):
    assert vmamba.read_forward_type(forward_type) == expected


@pytest.mark.parametrize("forward_type", ["v0_noz", "v05_noz_noz", "v05_onnone_oncnorm", "v05noz"])
def test_contradicting_forward_types(forward_type):
    with pytest.raises(MalformedCase, match=forward_type):
        vmamba.read_forward_type(forward_type)
    with pytest.raises(UnsupportedCase, match="gate"):
        vmamba.read_forward_type("m0")


def test_sizes_of_efficient_vmamba():
    given = dict(dims=[24, 32, 40], depths=[1, 2, 1], mlp_ratio=3.0)
    given["stage_types"] = ["es2d", "inverted_residual", "es2d"]
    mixer = dict(d_state=4, ssm_ratio=1.0)
    other = dict(embed_dim=24, dt_rank=[2, 3], ir_expand=2, ir_se_ratio=0.25, in_chans=1)
    build = {**build_of("efficient_vmamba/tiny_64x96"), **given, **mixer, **other}
    options = efficient_vmamba.arguments(build)
    assert options.pop("in_channels") == 1 and options.pop("drop_path_rate") == 0
    given["embed_dims"] = given.pop("dims")
    more = dict(downsample="patch_merge", patch_size=4, expand_ratio=2, se_ratio=0.25)
    mixer = dict(mixer, dt_rank=None, d_conv=3)
    assert options == dict(arch=dict(given, **more, mixer=mixer))
    ranks = efficient_vmamba.arguments(dict(build, dt_rank=[5, 5]))["arch"]["mixer"]["dt_rank"]
    assert ranks == 5


def test_sizes_of_msvmamba():
    build = build_of("msvmamba/nano_91x65")
    needed = ("generation", "dims", "depths", "ssm_ratio", "d_state", "gate", "num_classes")
    short = {name: build[name] for name in needed}
    assert msvmamba.arguments(short) == msvmamba.arguments(build)
    mixer = dict(d_state=4, ssm_ratio=1.0, d_conv=5)
    build.update(mixer, dims=[24, 32, 40], depths=[1, 2, 1], dt_rank=[2, 2, 3], gate="none")
    mixer.update(msvmamba.MIXERS["v1"], dt_rank=None, gate=False)
    arch = dict(msvmamba.GENERATIONS["v1"], embed_dims=[24, 32, 40], depths=[1, 2, 1], mixer=mixer)
    assert msvmamba.arguments({**build, "in_chans": 1}) == dict(arch=arch, in_channels=1)


@pytest.mark.parametrize(
    ("reader", "change", "error", "message"),
    [
        (efficient_vmamba, dict(scan_step=3), UnsupportedCase, "scan_step 3: only 2 is built"),
        (efficient_vmamba, dict(norm="LayerNorm eps 1e-6"), UnsupportedCase, "norm 'LayerNorm"),
        (efficient_vmamba, dict(block_gate_ratio=0.25), UnsupportedCase, "block_gate_ratio 0.25"),
        (efficient_vmamba, dict(dt_rank=[3, 4]), UnsupportedCase, r"dt_rank \[3, 4\]"),
        (efficient_vmamba, dict(downsample="conv3x3"), MalformedCase, "one of patch_merging"),
        (efficient_vmamba, dict(embed_dim=64), MalformedCase, "embed_dim 64 is not the first"),
        (msvmamba, dict(generation="v2"), MalformedCase, "one of v1, v3, got 'v2'"),
        (msvmamba, dict(gate="gelu"), MalformedCase, "one of silu, none, got 'gelu'"),
        (msvmamba, dict(param_index=dict(full=0, small=1)), MalformedCase, "must be .*'v1'"),
        (msvmamba, dict(small_scans=2), UnsupportedCase, "small_scans 2: only 3 is built"),
        (msvmamba, dict(full_scans=2), UnsupportedCase, "full_scans 2: only 1 is built"),
        (msvmamba, dict(se_reduction=4), UnsupportedCase, "se_reduction 4: only 8 is built"),
        (msvmamba, dict(dt_rank=[3, 4, 5, 6]), UnsupportedCase, r"dt_rank \[3, 4, 5, 6\]"),
        (mambavision, dict(qk_norm=True), UnsupportedCase, "qk_norm True: only False is built"),
        (mambavision, dict(depths=[1, 1, 1, 1]), UnsupportedCase, "attention_blocks .*: only"),
        (mambavision, dict(dt_rank=[0, 0, 4, 5]), UnsupportedCase, r"dt_rank \[4, 5\]"),
        (mambavision, dict(d_inner=[0, 0, 9, 9]), UnsupportedCase, r"d_inner \[9, 9\]: only"),
    ],
)
def test_refused(reader, change, error, message):
    name = {
        efficient_vmamba: "efficient_vmamba/tiny_64x96",
        msvmamba: "msvmamba/nano_91x65",
        mambavision: "mambavision/micro_64x96",
    }
    with pytest.raises(error, match=message):
        reader.arguments({**build_of(name[reader]), **change})


def run_tool(monkeypatch, capsys, *arguments):
    """Run the tool in this process; return exit status, lines and errors."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOL), run_name="__main__")
    captured = capsys.readouterr()
    return stop.value.code, captured.out.splitlines(), captured.err


READER = """
from functools import partial
from verifier import UnsupportedCase, make_input, register_reader
import torch

@register_reader("sums")
def read(case):
    if case.meta["case"] == "later":
        raise UnsupportedCase("later is not built")
    return {shape["name"]: partial(compare, case, shape["sides"]) for shape in case.meta["shapes"]}

def compare(case, sides, comparison):
    different = int(torch.from_numpy(make_input(sides)).numel() != case.meta["numel"])
    comparison.count("elements", different)
"""


def test_tool_with_other_readers(tmp_path):
    bad = Copy(tmp_path / "bad.json")
    bad.data["logits"] = bad.data["logits"] * 1.001
    bad.verify()
    shapes = [dict(name="wide", sides=[2, 3]), dict(name="long", sides=[7])]
    meta = dict(family="sums", case="numel", shapes=shapes, numel=6)
    (tmp_path / "numel.json").write_text(json.dumps(meta))
    (tmp_path / "later.json").write_text('{"family": "sums", "case": "later"}')
    (tmp_path / "sum_readers.py").write_text(READER)
    command = [sys.executable, TOOL, tmp_path, GOLDEN / "ops" / "cross_scan.json"]
    done = subprocess.run(
        [*command, "--backend", "torch", "--import", "sum_readers"],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["failed", "vmamba/micro_v0_pad_45x37:"],
        ["unsupported", "sums/later:"],
        ["passed", "sums/numel/wide:"],
        ["failed", "sums/numel/long:"],
        ["passed", "ops/cross_scan:"],
    ]
    assert lines[-1] == "2 passed, 2 failed, 1 unsupported"


def test_tool_with_tolerance(monkeypatch, capsys, case):
    case.data["logits"] = case.data["logits"] * 1.001
    case.verify()
    assert run_tool(monkeypatch, capsys, case.path)[0] == 1
    status, lines, _ = run_tool(monkeypatch, capsys, case.path, "--tol", "0.01")
    assert status == 0 and lines[-1] == "1 passed, 0 failed, 0 unsupported"


def test_what_the_tool_refuses(monkeypatch, capsys, tmp_path):
    status, lines, errors = run_tool(monkeypatch, capsys, tmp_path)
    assert status == 1 and "no golden case below" in errors
    assert lines[-1] == "0 passed, 0 failed, 0 unsupported"
    status, _, _ = run_tool(monkeypatch, capsys, tmp_path / "missing")
    assert "no such file or folder" in status and "missing" in status
    status, _, _ = run_tool(monkeypatch, capsys, tmp_path, "--tol", "0")
    assert status == "--tol must be positive, got 0.0"
    status, _, _ = run_tool(monkeypatch, capsys, tmp_path, "--import", "no_such_readers")
    assert status == "error: --import no_such_readers: No module named 'no_such_readers'"
