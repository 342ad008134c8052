"""Pictures of routes match the layers: mmvssm/analysis and analysis_tools/routes.py."""

import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmvssm.analysis import build_backbone, draw_routes, routes_of
from mmvssm.families import FAMILIES, arch_names
from mmvssm.models import LocalVim, Vim, VMamba
from mmvssm.models.layers import CheckpointedBlock, SelectiveScans
from mmvssm.ops.routes import rows

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "analysis_tools" / "routes.py"
SCAN = torch.ops.mmvssm.selective_scan_2d.default


class Recorder(TorchDispatchMode):
    """Records where each scan writes, which in all mixers is where its tokens come from."""

    def __init__(self):
        super().__init__()
        self.tables = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is SCAN:
            self.tables.append(args[3].clone())
        return func(*args, **(kwargs or {}))


def recorded(backbone, layer, size, num_class=0):
    """Return the tables of the scans that a layer runs."""
    block = [m for m in backbone.modules() if isinstance(m, CheckpointedBlock)][layer]
    mixer = next(m for m in block.modules() if isinstance(m, SelectiveScans)).eval()
    dims = mixer.in_proj.in_features
    with Recorder() as recorder, torch.no_grad():
        if hasattr(backbone, "cls_positions"):
            positions = (size[0] * size[1] // 2,) if num_class else ()
            mixer(torch.rand(1, size[0] * size[1] + num_class, dims), size, positions)
        else:
            mixer(torch.rand(1, *size, dims))
    return recorder.tables


@pytest.mark.parametrize("name", ["vmamba-v0-tiny", "efficient-vmamba-tiny", "local-vmamba-tiny"])
@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_routes_of_maps_are_those_of_the_scan(name, size):
    backbone = build_backbone(name)
    (table,) = recorded(backbone, 1, size)
    found = routes_of(backbone, 1, *size)
    assert torch.equal(torch.stack([route.steps for route in found]), table.long())
    assert {route.size for route in found} == {size}


@pytest.mark.parametrize("name", ["msvmamba-nano", "msvmamba-v3-tiny"])
def test_orders_of_the_half_map_are_one_scan(name):
    backbone = build_backbone(name)
    full, small = recorded(backbone, 0, (5, 7))
    first, *parts = routes_of(backbone, 0, 5, 7)
    assert torch.equal(first.steps, full[0].long())
    # the first version writes every visit separately
    assert torch.equal(torch.cat([part.steps for part in parts]), small[0].long() % 12)
    assert [(part.size, part.first, part.total) for part in parts] == [
        ((3, 4), 12 * i, 36) for i in range(3)
    ]


@pytest.mark.parametrize(
    "backbone",
    [
        LocalVim("tiny", img_size=64),
        LocalVim("tiny-mid-cls", img_size=64),
        Vim("tiny", img_size=64),
    ],
    ids=["LocalVim", "LocalVim with class token", "Vim"],
)
def test_routes_of_tokens_are_those_of_the_scan(backbone):
    size, num_class = (5, 3), len(backbone.cls_token) if backbone.cls_token is not None else 0
    (table,) = recorded(backbone, 0, size, num_class)
    # in the sequence the class token comes before pixel 7
    sequence = torch.tensor([*range(15), -1])
    if num_class:
        sequence = torch.tensor([*range(7), 15, *range(7, 15), -1])
    found = routes_of(backbone, 0, *size)
    assert torch.equal(torch.stack([route.steps for route in found]), sequence[table.long()])
    assert found[0].cls_places == (7,) * num_class


def one_block(**mixer):
    return VMamba(dict(embed_dims=16, depths=(1,), mixer=mixer), out_indices=(0,))


def test_cascade_begins_anew_at_every_line():
    backbone = one_block(type="CascadeSS2D")
    rows, rows_back, columns, columns_back = routes_of(backbone, 0, 2, 3)
    assert rows.steps.tolist() == [0, 1, 2, 3, 4, 5] and rows.starts == (3,)
    assert rows_back.steps.tolist() == [2, 1, 0, 5, 4, 3] and rows_back.starts == (3,)
    assert columns.steps.tolist() == [0, 3, 1, 4, 2, 5] and columns.starts == (2, 4)
    assert columns_back.steps.tolist() == [3, 0, 4, 1, 5, 2] and columns_back.starts == (2, 4)


def test_every_scan_can_be_drawn():
    """Also routes that stand still, skip everything or begin with a class token."""
    scans = ("cross2d", "unidi", "bidi", "atrous", ("h", "w7_flip"), lambda h, w: rows(h, w)[:1])
    for mixer in (*(dict(scan=scan) for scan in scans), dict(type="CascadeSS2D")):
        backbone = one_block(**mixer)
        for size in ((1, 1), (1, 3), (4, 5)):
            draw_routes(routes_of(backbone, 0, *size)).canvas.draw()
    for place in ("none", "head", "double"):
        backbone = Vim(dict(embed_dims=16, num_layers=1), cls_token=place, img_size=32)
        draw_routes(routes_of(backbone, 0, 3, 4)).canvas.draw()


def test_names_of_variants():
    names = arch_names()
    assert len([name for name in names if not name.endswith("-search")]) == 35 + 9
    assert names["vmamba-v0-tiny"] == (FAMILIES["vmamba"], "v0-tiny")
    assert names["local-vim-tiny-mid-cls"] == (FAMILIES["local_vim"], "tiny-mid-cls")


@pytest.fixture
def run(run_here):
    return partial(run_here, TOOL)


def test_picture_of_a_variant(run):
    status, out, _ = run("vmamba-tiny-s1l8", "--grid", 2, 3, "--out", "cross.png")
    assert status == 0
    assert out.splitlines() == [
        "rows: 6 steps over 2x3",
        "columns: 6 steps over 2x3",
        "rows reversed: 6 steps over 2x3",
        "columns reversed: 6 steps over 2x3",
        "wrote cross.png",
    ]
    picture = cv2.imread("cross.png")
    # four panels side by side, each with the colours from first to last
    assert picture.shape[1] > 3 * picture.shape[0]
    for panel in np.array_split(picture, 4, axis=1):
        assert len(np.unique(panel.reshape(-1, 3), axis=0)) > 12


def test_picture_of_several_variants_over_an_image(run):
    cv2.imwrite("red.png", np.full((20, 40, 3), (0, 0, 255), np.uint8))
    # the first layers of the last one have no scan
    names = ["vmamba-tiny-s1l8", "vim-tiny", "mambavision-tiny"]
    status, out, _ = run(*names, "--image", "red.png", "--out", "rows.png")
    assert status == 0
    lines = out.splitlines()
    assert lines[-2:] == ["mambavision-tiny, rows: 64 steps over 8x8", "wrote rows.png"]
    assert [line.partition(",")[0] for line in lines[:-2]] == [names[0]] * 4 + [names[1]] * 2
    picture = cv2.imread("rows.png").astype(int)
    # a row each, of at most four panels, in which the image can be seen
    assert picture.shape[0] > 0.7 * picture.shape[1]
    blue, green, red = picture.transpose(2, 0, 1)
    assert (red - np.maximum(blue, green) > 20).mean() > 0.1


def test_models_share_rows_where_they_fit(run):
    cv2.imwrite("red.png", np.full((20, 40, 3), (0, 0, 255), np.uint8))
    names = ["vmamba-tiny-s1l8", "local-vmamba-tiny", "vim-tiny"]
    options = ["--layer", 0, 1, 0, "--image", "red.png", "--columns", 8]
    status, out, _ = run(*names, *options, "--out", "grid.png")
    assert status == 0 and "local-vmamba-tiny, w2: 2x2 windows: 64 steps over 8x8" in out
    picture = cv2.imread("grid.png").astype(int)
    # four and four panels, then two: wider than high, and the image can be seen
    assert picture.shape[1] > 2 * picture.shape[0]
    blue, green, red = picture.transpose(2, 0, 1)
    seen = red - np.maximum(blue, green) > 20
    assert seen.mean() > 0.1
    half, width = seen.shape[0] // 2, seen.shape[1]
    assert (
        seen[:half, width * 7 // 8 :].any()
        and not seen[half:, width * 3 // 10 : width * 8 // 10].any()
    )


def test_labels_of_models_of_one_class_differ(run):
    status, _, _ = run("vim-tiny", "vim-small", "--columns", 4, "--out", "vims.svg")
    assert status == 0
    text = Path("vims.svg").read_text()
    assert "vim-tiny" in text and "vim-small" in text and "class token" not in text


def test_panels_need_a_column():
    routes = routes_of(build_backbone("vim-tiny"), 0, 2, 2)
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        draw_routes({"Vim": routes}, columns=0)


def test_picture_of_a_config(run):
    config = ROOT / "configs" / "demo" / "efficient-vmamba-micro_digits-cls.py"
    status, out, _ = run(config, "--grid", 5, 5, "--out", "atrous.svg")
    assert status == 0 and "odd rows, odd columns: 9 steps over 5x5" in out
    assert "zero tokens" in Path("atrous.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["vmamba-tiny"], 1, "nor one of these variants: efficient-vmamba-tiny,"),
        (["absent.py"], 1, "there is no config file 'absent.py'"),
        (["plain.py"], 1, "one of the families efficient_vmamba, .*, got the type 'ResNet'"),
        (["vmamba-v0-tiny", "--layer", 15], 1, "layer must be from 0 to 14, got 15"),
        (["efficient-vmamba-tiny", "--layer", 4], 1, "layers with one: 0, 1, 2, 3"),
        (["vmamba-v0-tiny", "--grid", 0, 3], 1, "at least one pixel, got 0x3"),
        (["vmamba-v0-tiny", "--image", "no.jpg"], 1, "there is no image 'no.jpg'"),
        (["vmamba-v0-tiny", "--out", "no/a.png"], 1, "there is no folder 'no'"),
        (["vmamba-v0-tiny", "--columns", 0], 2, "--columns must be at least 1, got 0"),
        (
            ["vmamba-v0-tiny", "--layer", 0, 1],
            2,
            "--layer takes one number or one for each model, got 2",
        ),
        (["vmamba-v0-tiny", "--out", "a.jpeg"], 2, "--out must end in .png or .pdf or .svg"),
    ],
)
def test_refusals(run, arguments, status, message):
    Path("plain.py").write_text("model = dict(backbone=dict(type='ResNet'))\n")
    got, out, err = run(*arguments[:1], "--out", "a.png", *arguments[1:])
    assert re.search(message, err if status == 2 else got) and (status == 1 or got == 2)
    assert out == "" and not list(Path().glob("*.png"))


def test_help(run):
    status, out, _ = run("--help")
    assert status == 0
    for part in ("MODEL", "--layer N", "--grid H W", "zero tokens", "vmamba-tiny-s1l8"):
        assert part in out
