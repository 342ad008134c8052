"""tools/analysis_tools/search_result.py: from a super-net's checkpoint to a config."""

import argparse
import math
import re
from collections import OrderedDict
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from mmvssm.models import SS2D, LocalVim, LocalVMamba
from mmvssm.models.layers import SEARCH_DIRECTIONS, RouteMerge

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "analysis_tools" / "search_result.py"
MICRO = dict(embed_dims=8, depths=(1, 1, 11, 1), mixer=dict(d_state=2))


@pytest.fixture
def run(run_here):
    return partial(run_here, TOOL)


def preferences(layers):
    """Search weights that differ by layer, and the four best directions of each."""
    weights = torch.randn(layers, 8, generator=torch.Generator().manual_seed(1))
    best = [
        [name for name, w in zip(SEARCH_DIRECTIONS, row) if w in sorted(row)[-4:]]
        for row in weights.tolist()
    ]
    return weights, best


def trained(backbone):
    """Weights of a classifier around a backbone, and the four best directions of each layer."""
    merges = [module for module in backbone.modules() if isinstance(module, RouteMerge)]
    weights, best = preferences(len(merges))
    for merge, row in zip(merges, weights):
        merge.weights.data = row.view(8, 1, 1, 1)
    state_dict = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    return {**state_dict, "head.fc.bias": torch.zeros(10)}, best


def local_vmamba():
    weights, best = trained(LocalVMamba(MICRO, directions="search"))
    loss = HistoryBuffer()
    loss.update(0.5)
    hub = dict(log_scalars=OrderedDict({"train/loss": loss}))
    return dict(meta=dict(epoch=1), state_dict=weights, message_hub=hub), best


def local_vim():
    arch = dict(embed_dims=16, num_layers=12)
    weights, best = trained(LocalVim(arch, img_size=32, directions="search"))
    return dict(state_dict=weights), best


def raw():
    """A super-net as the LocalMamba project saves it, with layers in alphabetical order."""
    weights, best = preferences(12)
    keys = {f"layers.{i}.mixer.multi_scan.weights": row for i, row in enumerate(weights)}
    keys = {f"module.{key}": keys[key].view(8, 1, 1, 1) for key in sorted(keys)}
    keys["module.layers.0.mixer.dt_proj_0.weight"] = torch.zeros(2, 3)
    return dict(model=keys, epoch=99, args=argparse.Namespace(lr=1e-3)), best


@pytest.mark.parametrize("make", [local_vmamba, local_vim, raw])
def test_table_snippet_and_picture(run, make):
    checkpoint, best = make()
    torch.save(checkpoint, "epoch_1.pth")
    before = Path("epoch_1.pth").read_bytes()
    status, out, _ = run("epoch_1.pth", "--out", "found.py", "--picture", "found.png")
    assert status == 0
    assert Config.fromfile("found.py").directions == best
    namespace = {}
    exec(out[out.index("directions = ") : out.index("wrote")], namespace)
    assert namespace["directions"] == best

    lines = [line.split() for line in out.splitlines()]
    header = lines.index(["layer", *SEARCH_DIRECTIONS])
    rows = [line for line in lines[header + 1 :] if len(line) == 9][: len(best)]
    assert [int(row[0]) for row in rows] == list(range(len(best)))
    for layer, row in enumerate(rows):
        starred = [name for name, cell in zip(SEARCH_DIRECTIONS, row[1:]) if cell.endswith("*")]
        assert starred == best[layer]
        assert sum(float(cell.rstrip("*")) for cell in row[1:]) == pytest.approx(1, abs=0.005)

    picture = cv2.imread("found.png")
    assert min(picture.shape[:2]) > 300 and picture.std() > 20
    assert sorted(path.name for path in Path().iterdir()) == [
        "epoch_1.pth",
        "found.png",
        "found.py",
    ]
    assert Path("epoch_1.pth").read_bytes() == before


def test_probabilities_are_those_of_the_softmax(run):
    weights = torch.tensor([3.0, 0, 1, 0, 0, 2, 0, 0])
    torch.save({"stages.0.blocks.0.mixer.merge.weights": weights}, "a.pth")
    _, out, _ = run("a.pth", "--top", "1")
    expected = (weights.exp() / weights.exp().sum()).tolist()
    cells = [f"{p:.3f}" + "*" * (i == 0) for i, p in enumerate(expected)]
    assert ["0", *cells] in [line.split() for line in out.splitlines()]
    entropy = -sum(p * math.log(p) for p in expected)
    assert f"mean entropy {entropy:.3f}, even: 2.079" in out
    assert 'directions = [\n    ["h"],  # layer 0\n]\n' in out


@pytest.mark.parametrize("top", [1, 2, 8])
def test_number_of_directions(run, top):
    checkpoint, _ = local_vmamba()
    torch.save(checkpoint, "a.pth")
    assert run("a.pth", "--top", top, "--out", "found.py")[0] == 0
    directions = Config.fromfile("found.py").directions
    assert {len(row) for row in directions} == {top}
    assert all(row == sorted(row, key=SEARCH_DIRECTIONS.index) for row in directions)


def test_snippet_builds_the_final_network(run):
    checkpoint, best = local_vmamba()
    torch.save(checkpoint, "a.pth")
    run("a.pth", "--out", "found.py")
    Path("net.py").write_text(f"model = dict(backbone=dict(arch={MICRO}))")
    Path("final.py").write_text(
        "_base_ = ['net.py', 'found.py']\n"
        "model = dict(backbone=dict(directions=_base_.directions))\n"
    )
    model = LocalVMamba(**Config.fromfile("final.py").model.backbone)
    assert [list(m.scan.directions) for m in model.modules() if isinstance(m, SS2D)] == best


def test_drawn_dots_follow_the_choice(run):
    """The heat map has the same layout whatever the numbers: only the dots may move."""
    pictures = []
    for name in ("h", "w7_flip"):
        weights = torch.zeros(8)
        weights[SEARCH_DIRECTIONS.index(name)] = 2
        torch.save({"stages.0.blocks.0.mixer.merge.weights": weights}, "a.pth")
        assert run("a.pth", "--top", 1, "--picture", f"{name}.png")[0] == 0
        pictures.append(cv2.imread(f"{name}.png").astype(int))
    columns = np.flatnonzero(np.abs(pictures[0] - pictures[1]).max((0, 2)))
    assert columns.min() < 200 and columns.max() > 400
    assert np.abs(pictures[0] - pictures[1])[:, 200:400].max() == 0


def save(content):
    return lambda path: torch.save(content, path)


WEIGHTS = torch.zeros(8, 1, 1, 1)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no checkpoint file 'a.pth'"),
        (lambda path: path.write_text("<html>"), "'a.pth' is a web page, not a checkpoint"),
        (save(dict(epoch=1)), "no weights at its top or under .*epoch"),
        (
            save({"fc.weight": WEIGHTS}),
            "directions='search'; the first of its 1 weights is 'fc.weight'",
        ),
        (save({"a.0.merge.weights": WEIGHTS[:4]}), "'a.0.merge.weights' must hold 8 finite"),
        (save({"a.0.merge.weights": WEIGHTS / 0}), "'a.0.merge.weights' must hold 8 finite"),
    ],
)
def test_checkpoints_of_something_else(run, write, message):
    write(Path("a.pth"))
    status, out, _ = run("a.pth", "--out", "found.py", "--picture", "found.png")
    assert out == "" and status.startswith("search_result.py: error: ")
    assert re.search(message, status), status
    assert not list(Path().glob("*found*"))


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--top", 0], 2, "--top must be from 1 to 8, got 0"),
        (["--top", 9], 2, "--top must be from 1 to 8, got 9"),
        (["--out", "found.txt"], 2, "--out must end in .py, got 'found.txt'"),
        (["--picture", "found"], 2, "--picture must end in .png or .pdf or .svg, got 'found'"),
        (["--out", "no/found.py"], 1, "there is no folder 'no'"),
        (["--picture", "no/found.png"], 1, "there is no folder 'no'"),
        (["--out", "folder.py"], 1, "'folder.py' is a folder"),
    ],
)
def test_bad_options(run, options, status, message):
    Path("folder.py").mkdir()
    torch.save({"a.0.merge.weights": WEIGHTS}, "a.pth")
    got, out, err = run("a.pth", "--out", "first.py", *options)
    assert message in (err if status == 2 else got) and (status == 1 or got == 2)
    assert out == "" and not list(Path().glob("*first*"))


def test_nothing_stays_of_a_file_that_could_not_be_written(run, monkeypatch):
    torch.save({"a.0.merge.weights": WEIGHTS}, "a.pth")
    Path("found.py").write_text("old")

    def refuse(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    status, _, _ = run("a.pth", "--out", "found.py")
    assert status == "search_result.py: error: cannot write: disk full"
    assert Path("found.py").read_text() == "old"
    assert sorted(path.name for path in Path().iterdir()) == ["a.pth", "found.py"]


def test_help(tools):
    text = tools.run("analysis_tools/search_result.py", "--help")
    for part in ("directions='search'", "--top K", "--out FILE.py", "--picture FILE.png"):
        assert part in text
    assert "search" in text and "_base_" in text


@pytest.mark.slow
def test_from_search_to_final_network(tools):
    """The procedure in the help of the tool, shortened, with the commands that it names."""
    configs = ROOT / "configs" / "demo"
    tools.run("make_demo_data.py", "data", "--task", "cls")
    short = ["--cfg-options", "train_cfg.max_epochs=1"]
    search = "local-vmamba-micro-search_digits-cls"
    output = tools.run("train.py", configs / f"{search}.py", *short)
    assert "Directions at iteration 23, mean entropy" in output
    assert len(tools.scalars(f"work_dirs/{search}", "directions/layer04/w7_flip")) == 1
    output = tools.run(
        "analysis_tools/search_result.py", f"work_dirs/{search}/epoch_1.pth", "--out", "found.py",
        "--picture", "found.png",
    )  # fmt: skip
    assert "wrote found.py" in output and (tools.folder / "found.png").is_file()
    (tools.folder / "final.py").write_text(
        f"_base_ = ['{configs}/local-vmamba-micro_digits-cls.py', 'found.py']\n"
        "model = dict(backbone=dict(directions=_base_.directions))\n"
    )
    tools.run("train.py", "final.py", *short)
    assert tools.scalars("work_dirs/final", "accuracy/top1")[-1] > 50
    config = Config.fromstring(tools.load("work_dirs/final/epoch_1.pth")["meta"]["cfg"], ".py")
    assert config.model.backbone.directions == Config.fromfile(tools.folder / "found.py").directions
