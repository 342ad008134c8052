"""Descriptions of EfficientVMamba: what they say reaches the model, and which are refused."""

import json
from pathlib import Path

import pytest

from mmvssm.models.layers import ss2d
from mmvssm.testing.compare import MalformedCase, UnsupportedCase
from mmvssm.testing.families.efficient_vmamba import read_efficient_vmamba
from mmvssm.testing.golden import verify_file

CASE = Path(__file__).parents[1] / "golden" / "efficient_vmamba" / "tiny_64x96.json"


@pytest.fixture
def build():
    return json.loads(CASE.read_text())["build"]


def test_other_sizes(build):
    build.update(
        dims=[24, 32, 40],
        embed_dim=24,
        depths=[1, 2, 1],
        stage_types=["es2d", "inverted_residual", "es2d"],
        dt_rank=[2, 3],
        d_state=4,
        ssm_ratio=1.0,
        mlp_ratio=3.0,
        ir_expand=2,
        ir_se_ratio=0.25,
        in_chans=1,
    )
    options = read_efficient_vmamba(build)
    assert options.pop("in_channels") == 1 and options.pop("drop_path_rate") == 0
    assert options == dict(
        arch=dict(
            embed_dims=[24, 32, 40],
            depths=[1, 2, 1],
            stage_types=["es2d", "inverted_residual", "es2d"],
            downsample="patch_merge",
            patch_size=4,
            mixer=dict(d_state=4, ssm_ratio=1.0, dt_rank=None, d_conv=3),
            mlp_ratio=3.0,
            expand_ratio=2,
            se_ratio=0.25,
        )
    )


def test_one_rank_for_all_stages(build):
    assert read_efficient_vmamba(dict(build, dt_rank=[5, 5]))["arch"]["mixer"]["dt_rank"] == 5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(scan_step=3), UnsupportedCase, "scan_step 3: only 2 is built"),
        (dict(norm="LayerNorm eps 1e-6"), UnsupportedCase, "norm 'LayerNorm eps 1e-6'"),
        (dict(block_gate_ratio=0.25), UnsupportedCase, "block_gate_ratio 0.25"),
        (dict(dt_rank=[3, 4]), UnsupportedCase, r"dt_rank \[3, 4\]"),
        (dict(downsample="conv3x3"), MalformedCase, "downsample must be one of patch_merging"),
        (dict(embed_dim=64), MalformedCase, "embed_dim 64 is not the first of dims"),
    ],
)
def test_refused(build, change, error, message):
    with pytest.raises(error, match=message):
        read_efficient_vmamba({**build, **change})


@pytest.mark.parametrize(
    "change",
    [
        dict(stage_types=["es2d", "es2d", "inverted_residual", "mlp"]),
        dict(stage_types=["es2d", "es2d", "es2d", "inverted_residual"], dt_rank="auto"),
        dict(mlp_ratio=4.0),
        dict(d_state=8),
    ],
)
def test_descriptions_of_other_models_fail(change, tmp_path):
    meta = json.loads(CASE.read_text())
    meta["build"].update(change)
    (tmp_path / "case.json").write_text(json.dumps(meta))
    (tmp_path / "case.npz").write_bytes(CASE.with_suffix(".npz").read_bytes())
    (result,) = verify_file(tmp_path / "case.json")
    assert result.status == "failed"


def test_cases_see_the_order_of_a_route(monkeypatch):
    atrous = ss2d.ROUTE_TABLES["atrous"]

    def row_major(height, width, *, device):
        """All four routes row by row."""
        table = atrous(height, width, device=device).clone()
        columns = table[1::2].unflatten(1, ((width + 1) // 2, -1))
        table[1::2] = columns.transpose(1, 2).flatten(1)
        return table

    assert row_major(4, 6, device="cpu")[1].tolist() == [6, 8, 10, 18, 20, 22]
    monkeypatch.setitem(ss2d.ROUTE_TABLES, "atrous", row_major)
    (result,) = verify_file(CASE)
    assert result.status == "failed" and result.detail.startswith("worst")
