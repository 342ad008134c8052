"""Parameters and FLOPs: against sums by hand and against the libraries' own counters.

That they are those of README and of the model zoo is tested in tests/configs/test_metafiles.py.
"""

import json
import re
import runpy
import sys
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from torch import nn

from mmvssm.analysis import build_without_weights, count_flops, draw_complexity
from mmvssm.complexity import ScanCost, register_with_counters
from mmvssm.models import LocalVim, MSVMamba, Vim, VMamba
from mmvssm.zoo import build_model

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "analysis_tools" / "get_flops.py"
CONFIGS = ROOT / "configs"


def test_scan_by_hand():
    """A route that visits a pixel several times projects it as many times."""
    batch, pixels, channels, states, rank, routes = 2, 12, 5, 3, 2, 4
    shapes = (routes * channels, states), (routes, channels, rank)
    once = routes * channels * ((9 * states + 1) + rank)
    macs = ScanCost().scan_2d_macs((batch, pixels, channels), (routes, 12), *shapes)
    assert macs == batch * 12 * once
    again = routes * channels * (rank + 2 * states)
    macs = ScanCost().scan_2d_macs((batch, pixels, channels), (routes, 20), *shapes)
    assert macs == batch * (20 * once + 8 * again)


def test_block_by_hand():
    """One block of 16 channels on a map of 8x8, layer by layer."""
    backbone = VMamba(
        dict(
            embed_dims=16,
            depths=(1,),
            stem="patch",
            mixer=dict(ssm_ratio=2.0, d_state=4, dt_rank=2),
            mlp_ratio=0.0,
        ),
        out_indices=(0,),
        out_norm=False,
    )
    found = count_flops(backbone, (32, 32))
    layers = {layer.name: layer for layer in found.layers}
    pixels, inner = 64, 32
    mixer = layers["stages.0.blocks.0.mixer"]
    module = backbone.stages[0].blocks[0].mixer
    linear = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
    convolution = inner * 9
    projection = module.x_proj_weight.numel()
    norm = 5 * inner
    scan = 4 * inner * (9 * 4 + 1 + 2)
    assert mixer.macs == pixels * (linear + convolution + projection + norm + scan)
    assert mixer.parameters == sum(p.numel() for p in module.parameters())
    assert layers["patch_embed.conv1"].macs == pixels * 16 * 3 * 4 * 4
    assert layers[""].macs == found.macs
    assert (
        layers[""].parameters == found.parameters == sum(p.numel() for p in backbone.parameters())
    )


def test_layers_add_up():
    with torch.device("meta"):
        cfg = Config.fromfile(CONFIGS / "vmamba/mask-rcnn_vmamba-v0-tiny_fpn_1x_coco.py")
        model = build_model(cfg)
    found = count_flops(model)
    macs = {layer.name: layer.macs for layer in found.layers}
    assert found.shape == (800, 1280)
    assert macs["backbone"] + macs["neck"] + macs["rpn_head"] + macs["roi_head"] == found.macs
    assert macs["roi_head.mask_head"] > macs["roi_head.bbox_head"] > 0
    stages = sum(macs[f"backbone.stages.{i}"] for i in range(4))
    norms = sum(macs[f"backbone.norm{i}"] for i in range(4))
    assert stages + norms + macs["backbone.patch_embed"] == macs["backbone"]


def test_bars_make_up_the_model():
    """At any depth; modules outside such layers, or used only in training, are the rest."""
    cfg = Config.fromfile(CONFIGS / "demo/vmamba-micro_upernet_digits-seg.py")
    found = count_flops(build_without_weights(cfg), (128, 128))
    unit = 1e9 if found.macs > 1e8 else 1e6
    for depth in (1, 3, 9):
        panels = draw_complexity(found, depth, "title").axes
        for axes, total in zip(panels, (found.macs / unit, found.parameters / 1e6)):
            assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(total)
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert "backbone.stages.0.blocks.0.mixer.in_proj" in names and names[-1] == "the rest"
    assert "backbone.stages.0" not in names and len(set(names)) == len(names)


def test_cost_follows_the_image_and_leaves_the_model_alone():
    backbone = VMamba(dict(embed_dims=16, depths=(1, 1, 1, 1))).train()
    weight = backbone.patch_embed.conv1.weight
    small, large = (count_flops(backbone, shape).macs for shape in ((64, 96), (128, 192)))
    assert large == 4 * small
    assert backbone.training and weight is backbone.patch_embed.conv1.weight
    assert weight.device.type == "cpu" and not backbone._forward_hooks


def test_of_plain_classifiers_follows_the_image():
    """All but the head grows with the number of patches: 4x4, then 8x8."""
    head = dict(type="LinearClsHead", num_classes=10, in_channels=32)
    arch = dict(embed_dims=32, num_layers=2)
    backbone = dict(type="mmvssm.LocalVim", arch=arch, img_size=64)
    model = dict(type="ImageClassifier", backbone=backbone, head=head)
    built = build_model(Config(dict(default_scope="mmpretrain", model=model)))
    small, large = count_flops(built, (64, 64)), count_flops(built, (128, 128))
    gate = sum(
        weight.numel()
        for layer in built.backbone.layers
        for weight in (
            layer.mixer.merge.attn.global_reduce.weight,
            layer.mixer.merge.attn.channel_select.weight,
        )
    )
    assert large.macs - 320 - gate == 4 * (small.macs - 320 - gate)


@pytest.mark.parametrize("shape", [(0, 32), (32, -1)])
def test_refuses_no_image(shape):
    with pytest.raises(ValueError, match=f"at least 1x1, got {shape[0]}x{shape[1]}"):
        count_flops(VMamba(dict(embed_dims=16, depths=(1,)), out_indices=(0,)), shape)


MICRO = dict(embed_dims=16, depths=(1, 1, 1, 1))


@pytest.mark.parametrize(
    "backbone",
    [VMamba(MICRO), MSVMamba(MICRO), VMamba(dict(MICRO, mixer=dict(type="CascadeSS2D")))],
    ids=["VMamba", "MSVMamba", "cascade"],
)
def test_mmengine_counts_the_scans(backbone):
    register_with_counters()
    found = get_model_complexity_info(
        backbone.eval(), (3, 64, 96), show_table=False, show_arch=False
    )
    own = count_flops(backbone, (64, 96))
    # MMEngine also counts the pooling of squeeze gates
    assert own.macs <= found["flops"] <= 1.001 * own.macs
    assert found["params"] == own.parameters


@pytest.mark.parametrize("cls", [Vim, LocalVim])
def test_mmengine_counts_the_scans_of_tokens(cls):
    """By the papers' formula, for any family."""
    backbone = cls(dict(embed_dims=32, num_layers=1), img_size=64).eval()
    found = get_model_complexity_info(backbone, (3, 64, 64), show_table=False, show_arch=False)
    scans = [m for m in backbone.modules() if hasattr(m, "scan_parameters")]
    tokens = 16 + (0 if backbone.cls_token is None else len(backbone.cls_token))
    (mixer,) = scans
    least = tokens * mixer.num_routes * mixer.inner_dims * (9 * mixer.d_state + 1)
    assert found["flops"] > least
    assert "selective_scan" not in str(found["out_table"])


def test_fvcore_counts_the_scans():
    fvcore = pytest.importorskip("fvcore.nn", reason="needs fvcore")
    backbone = VMamba(MICRO).eval()
    found = fvcore.FlopCountAnalysis(backbone, torch.rand(1, 3, 64, 96))
    assert found.total() == count_flops(backbone, (64, 96)).macs
    assert not any("mmvssm" in name for name in found.unsupported_ops())


def test_stock_tool_gives_the_figure_of_readme(monkeypatch, capsys):
    """The unmodified tool of mmpretrain, which omits the head: 0.81 G."""
    tool = Path(mmpretrain.__file__).parent / ".mim/tools/analysis_tools/get_flops.py"
    config = CONFIGS / "efficient_vmamba/efficient-vmamba-tiny_8xb128_in1k.py"
    monkeypatch.setattr(sys, "argv", [str(tool), str(config)])
    runpy.run_path(str(tool), run_name="__main__")
    (flops,) = re.findall(r"^Flops: (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert flops.endswith("G") and round(float(flops[:-1]), 2) == 0.81


@pytest.fixture
def tool(run_tool):
    return lambda *args: run_tool(TOOL, *args)


def test_tool_prints_what_the_page_of_the_family_says(tool, tmp_path):
    page = (CONFIGS / "vmamba" / "README.md").read_text()
    row = re.search(r"\| \[v0-tiny\]\(\S+_in1k.py\) \| (.*?) M \| (.*?) G \|", page)
    out, *pictures = (tmp_path / f"cost.{suffix}" for suffix in ("json", "png", "svg"))
    config = CONFIGS / "vmamba/vmamba-v0-tiny_8xb128_in1k.py"
    status, streams = tool(config, "--out", out, *pictures)
    assert status == 0
    assert f"FLOPs: {row[2]} G at 224x224\n" in streams.out
    assert "backbone       VMamba" in streams.out
    found = json.loads(out.read_text())
    assert round(found["macs"] / 1e9, 2) == float(row[2])
    assert round(found["parameters"] / 1e6, 1) == float(row[1])
    assert found["layers"][0]["macs"] == found["macs"] and len(found["layers"]) > 100
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    assert "backbone.stages.2" in pictures[1].read_text()


def test_tool_counts_at_the_size_of_the_tests(tool):
    config = CONFIGS / "mambavision/mambavision-large2-512_in21k-pre_8xb128_in1k.py"
    assert "G at 512x512\n" in tool(config, "--depth", 0)[1].out


def test_tool_of_a_config_of_a_library_alone(tool, tmp_path):
    """Swin-T without anything from this package: 4.5 G in its paper, including norms."""
    config = tmp_path / "swin.py"
    config.write_text("_base_ = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'\n")
    out = tool(config, "--depth", 0)[1].out
    assert "parameters: 28.29 M" in out
    assert float(re.search(r"FLOPs: (\S+) G at 224x224", out)[1]) == pytest.approx(4.5, abs=0.1)


def test_tool_refuses(tool, tmp_path):
    config = CONFIGS / "vmamba/vmamba-v0-tiny_8xb128_in1k.py"
    assert "no config file 'absent.py'" in tool("absent.py")[0]
    assert "--out must end in .json or .png" in tool(config, "--out", "a.txt")[0]
    status, streams = tool(config, "--shape", 0, 8)
    assert status == 2 and "--shape must be two positive numbers" in streams.err
    empty = tmp_path / "empty.py"
    empty.write_text("default_scope = 'mmpretrain'\n")
    assert "has no model" in tool(empty)[0]
