"""Checkpoints of plain values, and reading checkpoints of other trainings without running code."""

import os
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from mmvssm.checkpoint import HostileFileError
from mmvssm.checkpoint.reading import CheckpointError
from mmvssm.engine import PlainCheckpointHook
from mmvssm.engine.plain_files import LOGS, foreign_parts, plain, read_files_safely


@pytest.fixture
def safely():
    """Makes reading safe, as the tools do, until the end of the test."""
    read_files_safely()


def checkpoint_of_a_runner():
    """Return what MMEngine passes to the hooks before it saves."""
    hub = MessageHub("robust")
    for loss in (3.0, 1.0):
        hub.update_scalar("train/loss", loss)
    hub.update_scalar("train/time", 0.5, resumed=False)
    hub.update_info("best_score", np.float64(0.5))
    hub.update_info("config", ConfigDict(a=[1, dict(b=(2, None))]))
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return dict(
        meta=dict(epoch=1, dataset_meta=dict(palette=np.array([[1, 2]]), root=Path("x"))),
        state_dict=model.state_dict(),
        message_hub=hub.state_dict(),
        optimizer=optimizer.state_dict(),
        param_schedulers=[dict(factors=defaultdict(list), last=np.float32(0.5))],
    )


def test_values():
    given = dict(a=np.float32(0.5), b=np.arange(2), c=ConfigDict(d=(1, {2}), e=[Path("f")]))
    given[np.int64(3)] = OrderedDict(g=torch.float16, h=b"i", j=None, k=True, size=torch.Size([1]))
    result = plain(given)
    assert result == {
        "a": 0.5, "b": [0, 1], "c": dict(d=(1, {2}), e=["f"]),
        3: OrderedDict(g=torch.float16, h=b"i", j=None, k=True, size=torch.Size([1])),
    }  # fmt: skip
    assert type(result["a"]) is float and type(result["c"]) is dict
    assert type(next(key for key in result if key == 3)) is int
    assert list(foreign_parts(result)) == []
    assert list(foreign_parts(dict(x=[0, object()]))) == ["x[1] (object)"]


def test_stock_readers_take_the_file(tmp_path):
    checkpoint, path = checkpoint_of_a_runner(), tmp_path / "epoch_1.pth"
    torch.save(checkpoint, path)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path, weights_only=True)
    expected = {k: v.clone() for k, v in checkpoint["state_dict"].items()}
    hook, runner = PlainCheckpointHook(), SimpleNamespace(_resume=True)
    hook.before_save_checkpoint(runner, checkpoint)
    torch.save(checkpoint, path)
    model = nn.Linear(2, 1)
    loaded = load_checkpoint(model, str(path), strict=True)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in expected.items())
    assert loaded["meta"]["dataset_meta"] == dict(palette=[[1, 2]], root="x")
    assert loaded["param_schedulers"] == [dict(factors={}, last=0.5)]

    # without the hook a resumed run has no earlier logs; with it, it is as if never interrupted
    hub = MessageHub("stock")
    hub.load_state_dict(loaded["message_hub"])
    assert hub.get_info("best_score") == 0.5 and not hub.log_scalars
    hook.after_load_checkpoint(runner, loaded)
    hub = MessageHub("ours")
    hub.load_state_dict(loaded["message_hub"])
    values, counts = hub.get_scalar("train/loss").data
    assert values.tolist() == [3.0, 1.0] and counts.tolist() == [1, 1]
    assert hub.get_scalar("train/loss").mean(2) == 2.0
    assert list(loaded[LOGS]) == ["train/loss"]  # the other is not a checkpoint to resume from


def test_a_file_that_cannot_be_plain_is_named(caplog, monkeypatch):
    said = []
    monkeypatch.setattr("mmvssm.engine.plain_files.print_log", lambda text, **_: said.append(text))
    PlainCheckpointHook().before_save_checkpoint(None, dict(meta=dict(x=object())))
    (text,) = said
    assert text.endswith("so stock scripts cannot read them: meta.x (object)")


def test_files_of_other_trainings_are_read_without_running_them(tmp_path, safely):
    checkpoint, path = checkpoint_of_a_runner(), tmp_path / "epoch_1.pth"
    checkpoint["param_schedulers"] = [dict(last=0.5)]
    torch.save(checkpoint, path)
    model = nn.Linear(2, 1)
    loaded = load_checkpoint(model, str(path), strict=True)
    assert torch.equal(model.weight, checkpoint["state_dict"]["weight"])
    PlainCheckpointHook().after_load_checkpoint(SimpleNamespace(_resume=True), loaded)
    assert not any(isinstance(v, HistoryBuffer) for v in loaded["message_hub"]["log_scalars"])
    assert loaded["message_hub"]["runtime_info"] == {}
    assert loaded["param_schedulers"] == [dict(last=0.5)]

    checkpoint["optimizer"]["state"][0]["step"] = nn.Identity()
    torch.save(checkpoint, path)
    loaded = load_checkpoint(model, str(path))
    PlainCheckpointHook().after_load_checkpoint(SimpleNamespace(_resume=False), loaded)
    message = r"optimizer.state.0.step \(.*\); if you trust it, resume with the library's own"
    with pytest.raises(CheckpointError, match=message):
        PlainCheckpointHook().after_load_checkpoint(SimpleNamespace(_resume=True), loaded)


class Command:
    """Runs a command when a pickle is loaded unsafely."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_hostile_files_run_nothing(tmp_path, safely):
    path = tmp_path / "epoch_1.pth"
    torch.save(dict(state_dict={}, meta=Command(f"touch {tmp_path}/run")), path)
    for name in (str(path), path.as_uri().replace("file", "http")):
        if name.startswith("http"):  # as if it had been downloaded before
            cached = Path(torch.hub.get_dir(), "checkpoints", path.name)
            if cached.exists():
                continue
            cached.parent.mkdir(parents=True, exist_ok=True)
            cached.write_bytes(path.read_bytes())
        try:
            with pytest.raises(HostileFileError, match=r"asks to run (posix|os).system"):
                load_checkpoint(nn.Linear(2, 1), name)
        finally:
            if name.startswith("http"):
                cached.unlink()
    assert not (tmp_path / "run").exists()
