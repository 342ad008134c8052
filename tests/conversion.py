"""Helpers of the tests of tools/convert_ema.py: cases, a small network, reading of outputs."""

import json
import re
from pathlib import Path

import torch

from verifier import fill_value

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "convert_ema.py"
GOLDEN = ROOT / "tests" / "golden"
MICRO = dict(embed_dims=8, depths=(1, 1, 1, 1))
CONFIG = f"""default_scope = 'mmdet'
model = dict(backbone=dict(type='mmvssm.VMamba', arch={MICRO}, out_indices=(3,)))
"""
#: What MMEngine stores about a network that has no name.
META = dict(cfg=CONFIG)


def read_case(name):
    meta = json.loads((GOLDEN / f"{name}.json").read_text())
    weights = {
        key: torch.from_numpy(fill_value(key, shape, dtype))
        for key, shape, dtype in meta["state_dict"]
    }
    return meta, weights


def product_of(output):
    """Return the file that the last line names."""
    return re.fullmatch(r"wrote    (\S+), [\d.]+ MB", output.splitlines()[-1])[1]


def weights_in(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal(weights, expected):
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())
