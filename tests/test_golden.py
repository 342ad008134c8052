"""Parity with the reference on every golden case, and mistakes that the cases detect."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import verifier.readers.msvmamba
from mmvssm import ops
from mmvssm.models import layers
from mmvssm.ops import routes
from mmvssm.ops.backend import built_devices
from verifier import Tolerance, find_cases, verify_file

GOLDEN = Path(__file__).parent / "golden"
TIGHT = Tolerance(1e-5, 5e-5)
# minutes without compiled kernels, and the same network as vmambav0_tiny_64x96 under other names
SLOW_IN_TORCH = ("vmambav0_tiny_renamed_64x96",)
MARKS = {
    "torch": (),
    "cpu": pytest.mark.skipif("cpu" not in built_devices(), reason="the CPU kernels are not built"),
    "cuda": pytest.mark.gpu,
}


def all_cases():
    for backend, marks in MARKS.items():
        for path in find_cases([GOLDEN]):
            slow = backend == "torch" and path.stem in SLOW_IN_TORCH
            name = f"{backend}-{path.parent.name}-{path.stem}"
            yield pytest.param(path, backend, id=name, marks=[pytest.mark.slow] if slow else marks)


@pytest.mark.parametrize(("path", "backend"), list(all_cases()))
def test_parity(path, backend):
    results = list(verify_file(path, backend))
    assert results and [r for r in results if r.status != "passed"] == []


def test_every_given_case_is_found():
    names = [result.name for path in find_cases([GOLDEN / "ops"]) for result in verify_file(path)]
    assert len(names) == 1 + 3 + 16
    assert len(find_cases([GOLDEN])) == 14 + 4 + 4 + 8 + 5 + 3 + 8


def must_fail(path):
    """Assert that the errors are too large, and that nothing else is wrong with the case."""
    (result,) = verify_file(path, "auto", TIGHT)
    assert result.status == "failed" and result.detail.startswith("worst"), result


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vmamba/micro_v0_pad_45x37", dict(odd_size="crop")),
        ("vmamba/micro_v05_32x48", dict(forward_type="v05_nozact")),
        ("vmamba/micro_v05_32x48", dict(forward_type="v05_oact")),
        ("vmamba/micro_v05_32x48", dict(ssm_act="gelu")),
        ("vmamba/micro_v05_32x48", dict(mlp_act="silu")),
        ("vmamba/micro_v051d_noz_32x48", dict(forward_type="v05_noz")),
        ("vmamba/micro_v052d_noz_32x48", dict(forward_type="v051d_noz")),
        ("vmamba/micro_v052dc_noz_32x48", dict(forward_type="v05_noz")),
        ("vmamba/micro_v05_onsoftmax_noz_32x48", dict(forward_type="v05_onsigmoid_noz")),
        ("vim/vim_tiny_det__96x96", dict(if_divide_out=False)),
    ],
)
def test_another_description_fails(tmp_path, name, change):
    meta = json.loads((GOLDEN / f"{name}.json").read_text())
    meta["build"].update(change)
    (tmp_path / "case.json").write_text(json.dumps(meta))
    (tmp_path / "case.npz").symlink_to(GOLDEN / f"{name}.npz")
    must_fail(tmp_path / "case.json")


def row_major(height, width):
    """Return atrous routes that go through all four of their quarters row by row."""
    table = routes.atrous(height, width).clone()
    table[1::2] = table[1::2].unflatten(1, ((width + 1) // 2, -1)).transpose(1, 2).flatten(1)
    return table


def swapped(height, width):
    return routes.cross2d(height, width)[[0, 2, 1, 3]].contiguous()


def test_wrong_routes_fail(monkeypatch):
    assert row_major(4, 6)[1].tolist() == [6, 8, 10, 18, 20, 22]
    for name, wrong in {"atrous": row_major, "cross2d": swapped}.items():
        monkeypatch.setitem(routes.SCANS, name, replace(routes.SCANS[name], build=wrong))
    must_fail(GOLDEN / "efficient_vmamba" / "tiny_64x96.json")
    must_fail(GOLDEN / "vmamba" / "micro_v05_32x48.json")


@pytest.mark.parametrize("name", ["nano_91x65", "v3_gated_mini_64x96"])
def test_another_order_of_the_small_scans_fails(monkeypatch, name):
    def wrong(scan):
        assert scan == ("h_flip", "v", "v_flip")
        return routes.read_scan(("v", "h_flip", "v_flip"))

    monkeypatch.setattr("mmvssm.models.layers.ms2d.read_scan", wrong)
    must_fail(GOLDEN / "msvmamba" / f"{name}.json")


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("GELU", lambda self, x: F.gelu(x, approximate="tanh")),
        (
            "LayerNorm",
            lambda self, x: F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-6),
        ),
        ("Conv2d", lambda self, x: self._conv_forward(x, self.weight.roll(1, -1), self.bias)),
    ],
)
def test_wrong_layers_fail(monkeypatch, target, wrong):
    monkeypatch.setattr(getattr(torch.nn, target), "forward", wrong)
    must_fail(GOLDEN / "vmamba" / "micro_v05_32x48.json")


@pytest.mark.parametrize(
    ("name", "mixer"),
    [
        ("nano_91x65", dict(norm_position="after_sum")),
        ("nano_91x65", dict(upsample="nearest")),
        ("nano_91x65", dict(full_first=True)),
        ("v3_gated_mini_64x96", dict(norm_position="before_sum")),
        ("v3_gated_mini_64x96", dict(upsample="bilinear")),
        ("v3_gated_mini_64x96", dict(full_first=False)),
    ],
)
def test_the_mixer_of_another_generation_fails(monkeypatch, name, mixer):
    right = verifier.readers.msvmamba.MSVMamba

    def wrong(arch, **options):
        return right(dict(arch, mixer={**arch["mixer"], **mixer}), **options)

    monkeypatch.setattr(verifier.readers.msvmamba, "MSVMamba", wrong)
    must_fail(GOLDEN / "msvmamba" / f"{name}.json")


def by_columns(x, side):
    return layers.to_windows(x, side).transpose(1, 2)


def backwards(self, x, routes):
    return layers.SelectiveScans.run_scan(self, x.flip(1), routes).flip(1)


def causal(self, x, right=layers.SequenceConv.forward):
    return F.pad(right(self, x), (0, 0, 1, 0))[:, :-1]


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        # the bias of the steps once
        ("layers.HalfScanMixer.scan_parameters", layers.SelectiveScans.scan_parameters),
        ("layers.HalfScanMixer.run_scan", backwards),
        ("layers.SequenceConv.forward", causal),
        # of the blocks of convolutions
        ("backbones.mambavision.F.gelu", lambda x, approximate="none", right=F.gelu: right(x)),
        ("backbones.mambavision.BatchNormStem.forward", layers.ConvStem.forward),
        ("backbones.mambavision.to_windows", by_columns),
    ],
)
def test_wrong_rules_of_mambavision_fail(monkeypatch, target, wrong):
    monkeypatch.setattr(f"mmvssm.models.{target}", wrong)
    must_fail(GOLDEN / "mambavision" / "micro_win_64x96.json")


def test_wrong_scan_fails(monkeypatch):
    right = ops.selective_scan

    def wrong(*args, **kwargs):
        y, state = right(*args, **kwargs)
        return y * 1.00003, state

    monkeypatch.setattr("verifier.readers.ops.selective_scan", wrong)
    results = verify_file(GOLDEN / "ops" / "selective_scan.json", "auto", TIGHT)
    assert [r.status for r in results] == ["failed"] * 16
