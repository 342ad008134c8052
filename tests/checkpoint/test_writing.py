"""Checkpoints are written atomically, with the digits of their hash in the name."""

import hashlib
import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmvssm.checkpoint import write_checkpoint

TOOL = Path(__file__).parents[2] / "tools" / "convert_ema.py"
CONTENT = dict(meta=dict(a=[1, "b"]), state_dict={"x": torch.randn(64, 64), "y": torch.arange(3)})


def test_torch_file(tmp_path):
    product = write_checkpoint(tmp_path / "net.pth", CONTENT)
    digest = hashlib.sha256(product.read_bytes()).hexdigest()
    assert product.name == f"net-{digest[:8]}.pth" and list(tmp_path.iterdir()) == [product]
    loaded = torch.load(product, weights_only=True)
    assert loaded["meta"] == CONTENT["meta"] and loaded["state_dict"].keys() == {"x", "y"}
    assert all(torch.equal(loaded["state_dict"][k], v) for k, v in CONTENT["state_dict"].items())
    # the same content has the same name elsewhere, in a folder that is created
    assert write_checkpoint(tmp_path / "new" / "deep" / "net.pth", CONTENT).name == product.name


def test_safetensors_file(tmp_path):
    x = CONTENT["state_dict"]["x"]
    weights = {**CONTENT["state_dict"], "same": x, "turned": x.t(), "part": x[:2]}
    product = write_checkpoint(tmp_path / "net.safetensors", dict(CONTENT, state_dict=weights))
    assert re.fullmatch(r"net-[0-9a-f]{8}\.safetensors", product.name)
    with safe_open(product, "pt") as file:
        assert json.loads(file.metadata()["meta"]) == CONTENT["meta"]
        assert all(torch.equal(file.get_tensor(name), weights[name]) for name in weights)


def test_views_are_written_without_the_rest_of_their_storage(tmp_path):
    large = torch.randn(1000, 1000)
    content = dict(state_dict={"row": large[0], "column": large[:, 0]})
    product = write_checkpoint(tmp_path / "net.pth", content)
    assert product.stat().st_size < 20_000
    loaded = torch.load(product, weights_only=True)["state_dict"]
    assert torch.equal(loaded["column"], large[:, 0]) and loaded["column"].is_contiguous()


def test_entries_that_share_weights_hold_them_once(tmp_path):
    weights = {"x": torch.randn(1000, 100)}
    product = write_checkpoint(tmp_path / "net.pth", dict(model=weights, model_ema=weights))
    assert product.stat().st_size < 1.1 * weights["x"].nbytes
    loaded = torch.load(product, weights_only=True)
    assert torch.equal(loaded["model"]["x"], loaded["model_ema"]["x"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_nothing_is_replaced_unless_forced(tmp_path, suffix):
    product = write_checkpoint(tmp_path / f"net{suffix}", CONTENT)
    product.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=rf"{product.name}' exists already: --force"):
        write_checkpoint(tmp_path / f"net{suffix}", CONTENT)
    assert product.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [product]
    assert write_checkpoint(tmp_path / f"net{suffix}", CONTENT, force=True) == product
    assert product.stat().st_size > 10_000


def test_what_is_replaced_is_not_written_to(tmp_path):
    """A hard link to the old file keeps its content."""
    product = write_checkpoint(tmp_path / "net.pth", CONTENT)
    product.write_bytes(b"mine")
    (tmp_path / "other").hardlink_to(product)
    write_checkpoint(tmp_path / "net.pth", CONTENT, force=True)
    assert (tmp_path / "other").read_bytes() == b"mine"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, small_disk, suffix):
    content = dict(meta={}, state_dict={"x": torch.randn(1000, 1000)})
    with pytest.raises(OSError, match="File too large"):
        write_checkpoint(tmp_path / f"net{suffix}", content)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_seen_before_writing(tmp_path):
    content = dict(state_dict={"x": torch.empty(2**60, dtype=torch.uint8, device="meta")})
    with pytest.raises(OSError, match=r"1152921504607 MB are needed, \d+ MB are free"):
        write_checkpoint(tmp_path / "new" / "net.pth", content)
    assert list(tmp_path.iterdir()) == []


def test_progress(tmp_path):
    content = dict(state_dict={"x": torch.randn(2**20), "y": torch.randn(2**20)})
    calls = []
    write_checkpoint(tmp_path / "net.pth", content, progress=lambda *call: calls.append(call))
    done = [done / total for done, total in calls]
    assert done == sorted(done) and done[0] < 0.1 and done[-1] == 1
    assert any(0.2 < part < 0.3 for part in done) and any(0.7 < part < 0.8 for part in done)
    # safetensors reports no progress while it writes, so the bar must appear before
    calls.clear()
    content["meta"] = {}
    write_checkpoint(tmp_path / "a.safetensors", content, progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 2**23) and calls[1][0] >= 2**22 and calls[-1][0] == calls[-1][1]


def test_places(tmp_path):
    output_path = runpy.run_path(str(TOOL))["output_path"]
    assert output_path(tmp_path / "a.pth", "x.ckpt") == tmp_path / "a.pth"
    assert output_path(tmp_path, "deep/net-0123abcd.ckpt") == tmp_path / "net.pth"
    assert output_path(f"{tmp_path}/new/deep/", "net.ckpt") == tmp_path / "new" / "deep" / "net.pth"
    with pytest.raises(ValueError, match=r"must end in \.pth, .*, or in a slash for a folder"):
        output_path(tmp_path / "absent", "x.pth")
    (tmp_path / "file").touch()
    for target in ("file/a.pth", "file/", "file/new/a.pth"):
        with pytest.raises(ValueError, match=r"file' is a file or .*: name a folder to write"):
            output_path(f"{tmp_path}/{target}", "x.pth")
    (tmp_path / "link").symlink_to("absent")
    with pytest.raises(ValueError, match=r"link' is a file or a broken link"):
        output_path(tmp_path / "link" / "a.pth", "x.pth")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}
