"""Reading checkpoints: what tools save, and files that try to run code."""

import argparse
import io
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmvssm.checkpoint import read_checkpoint, weights_of

WEIGHTS = OrderedDict(
    half=torch.randn(3, 2).half(),
    counter=torch.tensor(5),
    view=torch.arange(12.0).view(3, 4).t()[1:],
)


def assert_same(got, expected):
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


def test_checkpoint_of_a_runner(tmp_path):
    """Log buffers, numpy numbers and random states stand beside the weights."""
    buffer = HistoryBuffer()
    buffer.update(1.5)
    checkpoint = dict(
        meta=dict(epoch=3, seed=7, cfg="text", hook_msgs=dict(best=np.float64(0.5))),
        state_dict=WEIGHTS,
        message_hub=dict(log_scalars=OrderedDict({"train/loss": buffer})),
        optimizer=dict(state={0: dict(step=torch.tensor(2.0))}, param_groups=[dict(lr=1e-3)]),
    )
    torch.save(checkpoint, tmp_path / "epoch_3.pth")
    got = read_checkpoint(tmp_path / "epoch_3.pth")
    assert_same(weights_of(got), WEIGHTS)
    assert got["meta"]["epoch"] == 3 and got["meta"]["cfg"] == "text"
    assert got["optimizer"]["param_groups"] == [dict(lr=1e-3)]
    assert not isinstance(got["message_hub"]["log_scalars"]["train/loss"], HistoryBuffer)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: dict(model=weights, args=argparse.Namespace(lr=1), epoch=3),
        lambda weights: dict(model={f"module.{k}": v for k, v in weights.items()}),
        lambda weights: dict(state_dict={k: nn.Parameter(v, False) for k, v in weights.items()}),
        lambda weights: dict(state_dict=weights, model="a name"),
    ],
    ids=["bare", "research code", "parallel", "parameters", "both keys"],
)  # fmt: skip
def test_where_weights_stand(tmp_path, wrap):
    torch.save(wrap(WEIGHTS), tmp_path / "a.pth")
    assert_same(weights_of(read_checkpoint(str(tmp_path / "a.pth"))), WEIGHTS)


def test_checkpoint_without_weights():
    with pytest.raises(ValueError, match=r"no weights under 'state_dict' or 'model'.*'optimizer'"):
        weights_of(dict(optimizer={}, epoch=1))


class Hostile:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class HostileState:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        code = f"open({str(self.path)!r}, 'w')"
        return argparse.Namespace, (), None, iter([eval]), iter([(exec, code)])


@pytest.mark.parametrize("kind", [Hostile, HostileState])
def test_no_code_is_run(tmp_path, kind):
    touched = tmp_path / "touched"
    torch.save(dict(state_dict=WEIGHTS, extra=kind(touched)), tmp_path / "a.pth")
    assert_same(weights_of(read_checkpoint(tmp_path / "a.pth")), WEIGHTS)
    assert not touched.exists()


def test_nested_archives_stay_closed(tmp_path):
    """`torch.storage._load_from_bytes` would unpickle freely."""
    touched, inner = tmp_path / "touched", io.BytesIO()
    torch.save(Hostile(touched), inner)

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    torch.save(dict(state_dict=WEIGHTS, extra=Nested()), tmp_path / "a.pth")
    read_checkpoint(tmp_path / "a.pth")
    assert not touched.exists()


def cut(path):
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-200])


def legacy(path):
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")


def script(path):
    torch.jit.script(nn.Identity()).save(str(path))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "no checkpoint file"),
        (lambda path: path.write_text("<html></html>"), "no checkpoint file"),
        (lambda path: path.write_bytes(pickle.dumps(1)), "no checkpoint file"),
        (cut, "no checkpoint file"),
        (legacy, "no checkpoint file of torch 1.6 or later"),
        (other_zip, "cannot be read as a checkpoint"),
        (script, "cannot be read as a checkpoint: it is a TorchScript program"),
        (lambda path: torch.save([1, 2], path), "holds no dict, but list"),
        (lambda path: path.mkdir(), "there is no checkpoint file"),
        (lambda path: None, "there is no checkpoint file"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_files(tmp_path, write, message):
    write(tmp_path / "a.pth")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_checkpoint(tmp_path / "a.pth")
