"""Descriptions of MSVMamba: what they say reaches the model, and which are refused."""

import json
from pathlib import Path

import pytest

from mmvssm.ops import routes
from mmvssm.testing.compare import MalformedCase, UnsupportedCase
from mmvssm.testing.families import msvmamba
from mmvssm.testing.golden import verify_file

GOLDEN = Path(__file__).parents[1] / "golden" / "msvmamba"
NANO = GOLDEN / "nano_91x65.json"
V3 = GOLDEN / "v3_gated_mini_64x96.json"


@pytest.fixture
def build():
    return json.loads(NANO.read_text())["build"]


def test_other_sizes(build):
    build.update(
        dims=[24, 32, 40],
        depths=[1, 2, 1],
        dt_rank=[2, 2, 3],
        d_state=4,
        ssm_ratio=1.0,
        d_conv=5,
        gate="none",
        in_chans=1,
    )
    options = msvmamba.read_msvmamba(build)
    assert options == dict(
        arch=dict(
            embed_dims=[24, 32, 40],
            depths=[1, 2, 1],
            stem="patch",
            downsample="patch_merge",
            mlp_ratio=2.0,
            mlp_norm="pre",
            mixer=dict(
                d_state=4,
                ssm_ratio=1.0,
                dt_rank=None,
                d_conv=5,
                gate=False,
                norm_position="before_sum",
                upsample="bilinear",
                full_first=False,
                force_fp32=True,
            ),
        ),
        in_channels=1,
    )


def test_words_are_not_needed(build):
    needed = ("generation", "dims", "depths", "ssm_ratio", "d_state", "gate", "num_classes")
    short = {name: build[name] for name in needed}
    assert msvmamba.read_msvmamba(short) == msvmamba.read_msvmamba(build)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(generation="v2"), MalformedCase, "generation must be one of v1, v3, got 'v2'"),
        (dict(gate="gelu"), MalformedCase, "gate must be one of silu, none, got 'gelu'"),
        (dict(param_index=dict(full=0, small=1)), MalformedCase, "param_index must be .*'v1'"),
        (dict(small_scans=2), UnsupportedCase, "small_scans 2: only 3 is built"),
        (dict(full_scans=2), UnsupportedCase, "full_scans 2: only 1 is built"),
        (dict(se_reduction=4), UnsupportedCase, "se_reduction 4: only 8 is built"),
        (dict(dt_rank=[3, 4, 5, 6]), UnsupportedCase, r"dt_rank \[3, 4, 5, 6\]"),
    ],
)
def test_refused(build, change, error, message):
    with pytest.raises(error, match=message):
        msvmamba.read_msvmamba({**build, **change})


@pytest.mark.parametrize(
    ("case", "mixer"),
    [
        (NANO, dict(norm_position="after_sum")),
        (NANO, dict(upsample="nearest")),
        (NANO, dict(full_first=True)),
        (V3, dict(norm_position="before_sum")),
        (V3, dict(upsample="bilinear")),
        (V3, dict(full_first=False)),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value.stem,
)
def test_cases_see_the_generations_apart(monkeypatch, case, mixer):
    right = msvmamba.MSVMamba

    def wrong(arch, **options):
        return right(dict(arch, mixer={**arch["mixer"], **mixer}), **options)

    monkeypatch.setattr(msvmamba, "MSVMamba", wrong)
    (result,) = verify_file(case)
    assert result.status == "failed" and result.detail.startswith("worst")


@pytest.mark.parametrize("case", [NANO, V3], ids=["v1", "v3"])
def test_cases_see_the_order_of_the_small_scans(monkeypatch, case):
    right = routes.three_orders

    def swapped(height, width, **options):
        return right(height, width, **options).view(3, -1)[[1, 0, 2]].reshape(1, -1)

    monkeypatch.setattr(routes, "three_orders", swapped)
    (result,) = verify_file(case)
    assert result.status == "failed" and result.detail.startswith("worst")
