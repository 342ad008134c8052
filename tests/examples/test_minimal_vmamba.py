"""The example that explains VMamba in one file computes what the package's model does."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvssm.models import VMamba

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "minimal_vmamba.py"
#: Names of the example's parameters, and those of the package's.
NAMES = [
    (r"^stem\.0\.(\w+)", r"patch_embed.\g<1>1"),
    (r"^stem\.1\.(\w+)", r"patch_embed.\g<1>2"),
    (r"^stages\.(\d)\.(\d)", r"stages.\1.blocks.\2"),
    (r"mlp\.0", "mlp.fc1"),
    (r"mlp\.2", "mlp.fc2"),
    (r"^downsamples\.(\d)", r"stages.\1.downsample"),
    (r"^norm\.", "norm3."),
]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("minimal_vmamba", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_same_numbers_as_the_package(example):
    arch = dict(embed_dims=32, depths=(1, 1, 2, 1))
    ours = VMamba(arch, in_channels=1, out_indices=(3,), drop_path_rate=0.0).double().eval()
    minimal = example.VMamba(depths=arch["depths"]).double()
    # neither the scale nor the offset of a norm may hide a mistake
    values = {name: v + 0.1 * torch.randn_like(v) for name, v in minimal.state_dict().items()}
    minimal.load_state_dict(values)
    head = values.pop("head.weight"), values.pop("head.bias")
    for pattern, replacement in NAMES:
        values = {re.sub(pattern, replacement, name): v for name, v in values.items()}
    ours.load_state_dict(values)
    images = torch.randn(2, 1, 48, 64, dtype=torch.float64)
    expected = torch.nn.functional.linear(ours(images)[0].mean((2, 3)), *head)
    torch.testing.assert_close(minimal(images), expected, rtol=1e-6, atol=1e-6)


def test_short_enough_to_read():
    assert len(EXAMPLE.read_text().splitlines()) <= 150


@pytest.mark.slow
def test_learns_the_digits():
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--epochs", "8"], capture_output=True, text=True, check=True
    )
    accuracy = float(done.stdout.split()[-1].rstrip("%"))
    assert accuracy >= 97
