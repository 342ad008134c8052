"""Time and memory of models side by side: what is run, in which order, and what is reported."""

import json
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmvssm.analysis import compare, run_network
from mmvssm.analysis.timing import measure, peak_memory
from mmvssm.zoo import build_model

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "analysis_tools" / "benchmark.py"
DEMO = ROOT / "configs" / "demo"


def test_models_alternate():
    order = []
    functions = {name: lambda name=name: order.append(name) for name in "ab"}
    measure(functions, "cpu", repetitions=4, warmups=1)
    assert "".join(order) == "ab" + "abbaabba"


def test_median_and_least_are_of_the_runs(monkeypatch):
    clock = iter([0.0, 9.0, *(t for ms in (5, 1, 3) for t in (0.0, ms / 1e3))])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    found = measure({"a": lambda: None}, "cpu", repetitions=3, warmups=1, budget=1e9)
    assert found["a"]["median_ms"] == pytest.approx(3)
    assert found["a"]["min_ms"] == pytest.approx(1) and found["a"]["repetitions"] == 3


def test_peak_memory_is_exact():
    x = torch.rand(1000, 1000)

    def run():
        a = x + 1
        b = a * 2
        del a
        return b @ b

    assert peak_memory(run, "cpu") == pytest.approx(2 * x.numel() * 4, abs=100)  # scalars
    kept = []
    assert peak_memory(lambda: kept.append(x + 1), "cpu") == pytest.approx(x.numel() * 4, abs=100)


class Recorder(nn.Module):
    """Model of one weight that records how it is run."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))
        self.seen = set()

    def forward(self, images):
        product = images.flatten(1) @ self.weight[:48].view(48, 1)
        self.seen.add((tuple(images.shape), self.training, torch.is_grad_enabled(), product.dtype))
        return product


def test_compiled_models_run_beside_themselves(monkeypatch):
    """Each setting is compiled separately, for its own sizes."""
    made, compiler = [], torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda *args, **kwargs: made.append(kwargs) or compiler(*args, backend="eager", **kwargs),
    )
    found = compare(
        {"a": Recorder(), "b": Recorder()},
        (4, 4),
        batch_sizes=(1, 2),
        repetitions=3,
        warmups=1,
        compiled=True,
    )
    assert [entry["model"] for entry in found] == ["a", "a compiled", "b", "b compiled"] * 2
    assert [entry["compile_s"] > 0 for entry in found if "compile_s" in entry] == [True] * 4
    assert made == [dict(dynamic=False)] * 4


def test_settings_are_what_is_run():
    models = {"a": Recorder(), "b": Recorder()}
    found = compare(
        models,
        (4, 4),
        batch_sizes=(1, 2),
        modes=("inference", "training"),
        precisions=("fp32", "bf16"),
        repetitions=3,
        warmups=1,
    )
    expected = {
        ((batch, 3, 4, 4), training, training, dtype)
        for batch in (1, 2)
        for training in (False, True)
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert models["a"].seen == models["b"].seen == expected
    assert len(found) == 16
    first, second = found[:2]
    assert (first["model"], second["model"], first["ratio"]) == ("a", "b", 1)
    assert second["ratio"] == second["median_ms"] / first["median_ms"]
    for entry in found:
        assert entry["images_per_s"] == 1e3 * entry["batch_size"] / entry["median_ms"]
        weights = 4000 / 2**20
        # a gradient of each weight is more than what an inference adds
        assert (entry["peak_mib"] > 2 * weights) == (entry["mode"] == "training")
    assert models["a"].weight.grad is None


def test_memory_that_is_missing_is_a_result():
    class Large(Recorder):
        def forward(self, images):
            raise torch.cuda.OutOfMemoryError("no more")

    first, second = compare({"large": Large(), "small": Recorder()}, (4, 4), repetitions=3)
    assert first["error"] == "out of memory" and "median_ms" not in first
    assert second["ratio"] == 1


def test_a_detector_is_run_with_its_regions():
    cfg = Config.fromfile(DEMO / "mask-rcnn_vmamba-micro_digits-det.py")
    with torch.device("meta"):
        outputs = run_network(build_model(cfg), torch.empty(2, 3, 64, 64))
    *of_rpn, scores, boxes, masks = outputs
    assert len(of_rpn) == 2 * cfg.model.neck.num_outs
    assert scores.shape == (2000, 11) and boxes.shape == (2000, 40)
    assert masks.shape == (200, 10, 28, 28)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(modes=("test",)), "modes must be of inference, training, got test"),
        (dict(precisions=("fp8",)), "precisions must be of fp32, bf16, fp16, got fp8"),
        (dict(batch_sizes=(0,)), "must be at least 1"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        compare({"a": Recorder()}, (4, 4), **settings)


def test_tool(run_tool, tmp_path):
    """Two classifiers in one run, written as numbers and as pictures."""
    names = ["vim-micro_digits-cls", "efficient-vmamba-micro_digits-cls"]
    files = [tmp_path / f"speed.{suffix}" for suffix in ("json", "png", "svg")]
    configs = [DEMO / f"{name}.py" for name in names]
    options = ["--shape", 32, 32, "--batch-sizes", 2, "--modes", "inference", "training"]
    status, streams = run_tool(TOOL, *configs, *options, "--repetitions", 3, "--out", *files)
    assert status == 0, status
    assert streams.out.count("1.00x") >= 2
    found = json.loads(files[0].read_text())
    assert [(entry["model"], entry["mode"]) for entry in found["results"]] == [
        (name, mode) for mode in ("inference", "training") for name in names
    ]
    assert all(entry["median_ms"] > 0 for entry in found["results"])
    assert found["machine"]["threads"] and len(found["load_after"]) == 3
    assert files[1].read_bytes().startswith(b"\x89PNG") and "<svg" in files[2].read_text()


def test_tool_refuses(run_tool):
    config = DEMO / "vim-micro_digits-cls.py"
    assert "given twice" in run_tool(TOOL, config, config)[0]
    assert "no config file 'a.py'" in run_tool(TOOL, "a.py")[0]
    assert "--repetitions must be at least 1" in run_tool(TOOL, config, "--repetitions", 0)[1].err
    assert "--out must end in .json or .png" in run_tool(TOOL, config, "--out", "a.txt")[0]
