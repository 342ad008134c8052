"""Reading checkpoints: what trainings save, in every container, and files of other kinds."""

import argparse
import bz2
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import nn

from abilities import optional, saves
from mmvssm.checkpoint import read_checkpoint
from mmvssm.checkpoint.reading import CheckpointError, HostileFileError, Inert

WEIGHTS = OrderedDict(
    half=torch.randn(3, 2).half(),
    counter=torch.tensor(5),
    view=torch.arange(12.0).view(3, 4).t()[1:],
    empty=torch.zeros(0, 3),
    one=torch.ones(2, 1, 3)[:, :, :1],
)
BASE = torch.randn(4, 6)
FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])


def save(content, path, is_zip=True, protocol=2):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)


def assert_same(got, expected):
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert type(got[name]) is torch.Tensor and got[name].dtype == value.dtype, name
        assert got[name].shape == value.shape and got[name].stride() == value.stride(), name
        assert torch.equal(got[name], value), name


@FORMATS
@pytest.mark.parametrize("protocol", range(1, 6))
def test_every_protocol(tmp_path, is_zip, protocol):
    save(dict(state_dict=WEIGHTS, epoch=3), tmp_path / "a.pth", is_zip, protocol)
    got = read_checkpoint(tmp_path / "a.pth")
    assert_same(got["state_dict"], WEIGHTS)
    assert got["epoch"] == 3


FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@FORMATS
@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
        *(torch.complex64, torch.complex128),
        *(optional(t, saves(t), "torch.save does not know it") for t in FLOAT8),
    ],
    ids=str,
)
def test_every_dtype(tmp_path, is_zip, dtype):
    value = torch.arange(6).to(dtype).view(2, 3)
    # in the old format, the odd byte puts what follows it at an odd address
    save(dict(a=torch.ones(1, dtype=torch.uint8), b=value), tmp_path / "a.pth", is_zip)
    got = read_checkpoint(tmp_path / "a.pth")["b"]
    assert got.dtype == dtype and got.shape == (2, 3)
    assert torch.equal(got.view(torch.uint8), value.view(torch.uint8))


@FORMATS
def test_values_stay_shared_and_the_file_as_it_is(tmp_path, is_zip):
    save(dict(base=BASE, row=BASE[2], again=BASE), tmp_path / "a.pth", is_zip)
    before = (tmp_path / "a.pth").read_bytes()
    got = read_checkpoint(tmp_path / "a.pth")
    assert got["base"] is got["again"]
    got["base"][2] = 7
    assert got["row"].tolist() == [7] * 6
    assert (tmp_path / "a.pth").read_bytes() == before


@FORMATS
def test_checkpoint_of_a_runner(tmp_path, is_zip):
    """Log buffers, numpy numbers and random states are stored with the weights."""
    hub = MessageHub.get_instance("of a runner")
    hub.update_scalar("train/loss", torch.tensor(1.5))
    hub.update_info("iter", 30)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = dict(
        meta=dict(epoch=3, seed=7, cfg="text", hook_msgs=dict(best=np.float64(0.5))),
        state_dict=WEIGHTS,
        message_hub=hub.state_dict(),
        optimizer=optimizer.state_dict(),
        random=(np.random.get_state(), torch.get_rng_state()),
    )
    save(checkpoint, tmp_path / "epoch_3.pth", is_zip)
    got = read_checkpoint(tmp_path / "epoch_3.pth")
    assert_same(got["state_dict"], WEIGHTS)
    assert got["meta"]["epoch"] == 3 and got["meta"]["cfg"] == "text"
    assert got["message_hub"]["runtime_info"]["iter"] == 30
    assert isinstance(got["message_hub"]["log_scalars"]["train/loss"], Inert)
    state = optimizer.state_dict()
    assert_same(got["optimizer"]["state"][0], state["state"][0])
    assert got["optimizer"]["param_groups"] == state["param_groups"]
    assert torch.equal(got["random"][1], checkpoint["random"][1])


class Layer(torch.Tensor):
    """A tensor of a class of its own."""


class Packed:
    """Tensor that reading cannot rebuild in this way."""

    def __reduce__(self):
        storage = torch.zeros(8, dtype=torch.uint8).untyped_storage()
        arguments = (storage, 0, (2,), (1,), False, OrderedDict(), torch.qint8)
        return torch._utils._rebuild_tensor_v3, arguments


def test_tensors_of_other_kinds(tmp_path):
    noted = nn.Parameter(torch.randn(2))
    noted.note = "for the optimizer"
    content = dict(
        layer=torch.ones(2).as_subclass(Layer),
        noted=noted,
        sparse=torch.eye(2).to_sparse(),
        conjugated=torch.ones(2, dtype=torch.complex64).conj(),
        quantised=torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    )
    if hasattr(torch._utils, "_rebuild_tensor_v3"):
        content["packed"] = Packed()
    torch.save(content, tmp_path / "a.pth")
    got = read_checkpoint(tmp_path / "a.pth")
    assert type(got["layer"]) is torch.Tensor and got["layer"].tolist() == [1, 1]
    assert not got["noted"].requires_grad and torch.equal(got["noted"], noted)
    for name in content.keys() - {"layer", "noted"}:
        assert isinstance(got[name], Inert), name


def test_safetensors(tmp_path):
    tensors = {name: value.contiguous() for name, value in WEIGHTS.items()}
    path = tmp_path / "a.pth"  # recognised by its content
    safetensors.torch.save_file(tensors, path, dict(arch="tiny"))
    got = read_checkpoint(path)
    assert got["meta"] == dict(arch="tiny")
    assert_same(dict(sorted(got["state_dict"].items())), dict(sorted(tensors.items())))


def test_plain_pickle(tmp_path):
    """Files of Detectron2 hold arrays of numpy."""
    content = dict(model=dict(a=np.arange(3.0)), __author__="x", matching_heuristics=True)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    got = read_checkpoint(tmp_path / "a.pkl")
    assert got["__author__"] == "x" and got["model"]["a"].tolist() == [0, 1, 2]


@FORMATS
def test_arrays_beside_tensors(tmp_path, is_zip):
    save(dict(model=dict(a=np.float32([[1, 2]]), b=torch.ones(2))), tmp_path / "a.pth", is_zip)
    got = read_checkpoint(tmp_path / "a.pth")["model"]
    assert_same(got, dict(a=torch.tensor([[1.0, 2.0]]), b=torch.ones(2)))


def test_checksums(tmp_path):
    torch.save(dict(a=torch.zeros(3_000_000)), tmp_path / "a.pth")
    calls = []
    read_checkpoint(tmp_path / "a.pth", progress=lambda *call: calls.append(call))
    assert len(calls) > 2 and calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] > 12_000_000
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[6_000_000] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged .Bad CRC-32 for file 'a/data/0'"):
        read_checkpoint(tmp_path / "a.pth")


def test_files_without_checksums(tmp_path):
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_checkpoint(tmp_path / "a.pth"), WEIGHTS)


# Code in files


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class HostileState(Hostile):
    def __reduce__(self):
        code = f"open({str(self.path)!r}, 'w')"
        return argparse.Namespace, (), None, iter([eval]), iter([(exec, code)])


class Nested(Hostile):
    """`torch.storage._load_from_bytes` would unpickle freely."""

    def __reduce__(self):
        inner = io.BytesIO()
        torch.save(Hostile(self.path), inner)
        return torch.storage._load_from_bytes, (inner.getvalue(),)


RUN = [(Hostile, f"{open.__module__}.open"), (HostileState, "builtins.eval")]
RUN += [(Nested, "torch.storage._load_from_bytes")]


@FORMATS
@pytest.mark.parametrize(("kind", "name"), RUN)
def test_no_code_is_run(tmp_path, is_zip, kind, name):
    touched, path = tmp_path / "touched", tmp_path / "a.pth"
    save(dict(state_dict=WEIGHTS, extra=kind(touched)), path, is_zip)
    message = f"a.pth' asks to run {name} when it is loaded; nothing was run; do not use this file"
    with pytest.raises(HostileFileError, match=message):
        read_checkpoint(path)
    assert not touched.exists()


@FORMATS
def test_trusted(tmp_path, is_zip):
    touched, path = tmp_path / "touched", tmp_path / "a.pth"
    net = nn.Linear(2, 2)
    save(dict(state_dict=WEIGHTS, extra=Hostile(touched), ema=net), path, is_zip)
    with pytest.warns(UserWarning, match="runs any code in it"):
        got = read_checkpoint(path, trust=True)
    assert touched.exists()
    assert_same(got["state_dict"], WEIGHTS)
    assert_same(got["ema"], net.state_dict())


@pytest.mark.filterwarnings("ignore:.*runs any code:UserWarning")
def test_trusted_network_and_damage(tmp_path):
    net, path = nn.Linear(2, 2), tmp_path / "a.pth"
    torch.save(net, path)
    assert_same(read_checkpoint(path, trust=True)["state_dict"], net.state_dict())
    path.write_bytes(pickle.dumps(dict(a=1)))
    with pytest.raises(CheckpointError, match=r"a.pth' cannot be read by torch.load: Inv"):
        read_checkpoint(path, trust=True)


# Other files


def content(value):
    return lambda path: path.write_bytes(value if isinstance(value, bytes) else value.encode())


def saved(value, is_zip=True):
    return lambda path: save(value, path, is_zip)


def cut(write, count):
    def write_cut(path):
        write(path)
        path.write_bytes(path.read_bytes()[:-count])

    return write_cut


def other_zip(path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.txt", "text")


def big_endian(path):
    save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, b"big" if name.endswith("/byteorder") else data)


def tar(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"))


def script(path):
    torch.jit.script(nn.Identity()).save(str(path))


def safe(path):
    safetensors.torch.save_file(dict(a=torch.ones(30)), path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.mkdir(), "is a folder: name the checkpoint file in it"),
        (lambda path: os.mkfifo(path), "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (content(b""), "is empty: download"),
        (content("<!DOCTYPE html><p>"), "is a web page"),
        (content(b"\xef\xbb\xbf\r\n <HTML>"), "is a web page"),
        (content("<?xml version='1.0'?><Error>"), "is a web page"),
        (content(json.dumps(dict(message="Not Found"))), "is text, not a checkpoint"),
        (content("Not Found"), "is not a checkpoint: it begins with 'Not Found'"),
        (content("cannot be found\nhere\n"), "is not a checkpoint: it begins with 'cannot"),
        (content(b"\xff\x00" * 50), "is not a checkpoint"),
        (content("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
        (content(gzip.compress(b"a")), "compressed by gzip"),
        (content(bz2.compress(b"a")), "compressed by bzip2"),
        (tar, "is a tar archive"),
        (other_zip, "a zip archive, but not from torch.save: it has no single data.pkl"),
        (lambda path: other_zip(path, zipfile.ZIP_DEFLATED), "member a.txt is compressed"),
        (cut(saved(WEIGHTS), 200), "is cut off or damaged .*: download"),
        (cut(saved(WEIGHTS, False), 10), "is cut off or damaged .*: download"),
        (cut(saved(WEIGHTS, False), 500), "is cut off or damaged .*: download"),
        (cut(safe, 10), "is cut off or damaged .as safetensors"),
        (lambda path: path.write_bytes(struct.pack("<Q", 900) + b'{"a'), "is cut off or damaged"),
        (script, "is a TorchScript program"),
        (big_endian, "in the byte order of another machine"),
        (saved([1, 2]), "holds a value of type list, not a dict: save the state_dict"),
        (saved(torch.ones(2)), "holds a value of type Tensor, not a dict"),
        (saved(nn.Linear(2, 2)), "holds an object of torch.nn.modules.linear.Linear, not a dict"),
        (saved(nn.Linear(2, 2), False), "holds an object of torch.nn"),
        (saved(HistoryBuffer()), "holds an object of mmengine.*HistoryBuffer, not a dict"),
        (saved(argparse.Namespace), "holds a reference to argparse.Namespace, not a dict"),
        (content(pickle.dumps(1)), "holds a value of type int, not a dict"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Couldn't retrieve source")
def test_other_files(tmp_path, write, message):
    write(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"^'.*a\.pth' .*{message}"):
        read_checkpoint(tmp_path / "a.pth")


def test_directories_and_headers_larger_than_any_checkpoint_has(tmp_path):
    """Reading them would take many times the memory of the file."""
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for i in range(300):
            archive.writestr(f"{i:05}{'a' * 30_000}", "")
    with pytest.raises(CheckpointError, match=r"directory of 9\d+ bytes, more than 8388608"):
        read_checkpoint(tmp_path / "a.pth")
    empty = torch.empty(0)
    tensors = {f"{i:05}{'a' * 30_000}": empty.clone() for i in range(200)}
    safetensors.torch.save_file(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"header of 6\d+ bytes, more than 4194304"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("link", [False, True])
def test_missing_file(tmp_path, link):
    if link:
        (tmp_path / "a.pth").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint file '.*a\.pth'"):
        read_checkpoint(tmp_path / "a.pth")
