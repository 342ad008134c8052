"""Cost and accuracy against the size of the image."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmvssm.analysis import count_flops, pipeline_at, scale
from mmvssm.analysis.scaling import draw_scaling
from mmvssm.analysis.timing import exponent
from mmvssm.hub import load_weights
from mmvssm.models import EfficientVMamba, LocalVim, VMamba
from mmvssm.zoo import build_model, get_model

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "analysis_tools" / "scaling.py"
DIGITS = ROOT / "configs" / "demo" / "vmamba-micro_digits-cls.py"


def test_exponent_is_the_power():
    x = [3, 5, 11, 40]
    assert exponent(x, [7 * value**1.5 for value in x]) == pytest.approx(1.5)


def test_flops_of_a_backbone_are_linear_in_pixels():
    backbone = VMamba(dict(embed_dims=8, depths=(1,)), out_indices=(0,))
    rates = {32: 12.5, 64: 75.0}
    rate = lambda size: dict(rate=rates[size])  # noqa: E731
    found = scale(backbone, (32, 64), rate, repetitions=3, warmups=1)
    assert found["exponents"]["macs"] == pytest.approx(1)
    small, large = found["results"]
    assert [e["size"] for e in (small, large)] == [32, 64]
    assert [e["metrics"]["rate"] for e in (small, large)] == [12.5, 75.0]
    assert large["macs"] == count_flops(backbone, (64, 64)).macs == 4 * small["macs"]
    assert large["peak_mib"] > small["peak_mib"] > 0


def test_metrics_are_those_of_the_checkpoint_whatever_is_timed():
    """Timing a training step feeds noise to batch norms, which must not affect the metrics."""
    backbone = EfficientVMamba(dict(embed_dims=8, depths=(1,)), out_indices=(0,))
    seen = lambda size: {k: float(v.sum()) for k, v in backbone.state_dict().items()}  # noqa: E731
    before = seen(None)
    found = scale(backbone, (32, 64), seen, repetitions=1, warmups=0, modes=("training",))
    assert [entry["metrics"] for entry in found["results"]] == [before] * 2
    assert seen(None) != before


def test_sizes_that_the_model_does_not_take_are_refused_before_any_run(monkeypatch):
    monkeypatch.setattr("mmvssm.analysis.scaling.compare", lambda *_, **__: pytest.fail("was run"))
    backbone = LocalVim(dict(embed_dims=32, num_layers=1), img_size=64)
    with pytest.raises(ValueError, match="at least 16x16"):
        scale(backbone, (64, 8))


def test_models_normalise_as_the_config_says():
    """Configs of mmpretrain define it outside the model, where MMEngine's runner looks for it."""
    model = build_model(Config.fromfile(DIGITS))
    assert model.data_preprocessor.mean.flatten().tolist() == [80] * 3
    model = get_model("efficient-vmamba-tiny_8xb128_in1k")
    assert model.data_preprocessor.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


def test_pipelines_keep_their_proportion():
    cfg = Config.fromfile(ROOT / "configs/vmamba/vmamba-v0-tiny_8xb128_in1k.py")
    pipeline = cfg.test_dataloader.dataset.pipeline
    steps = {step["type"]: step for step in pipeline_at(pipeline, 384)}
    assert steps["ResizeEdge"]["scale"] == int(256 / 224 * 384) == 438
    assert steps["ResizeEdge"]["interpolation"] == "bicubic"
    assert steps["CenterCrop"]["crop_size"] == 384
    assert pipeline[2]["crop_size"] == 224  # the config's own stays
    load, resize, pack = pipeline_at([dict(type="Load"), dict(type="PackInputs")], 64)
    assert (load["type"], resize["scale"], pack["type"]) == ("Load", (64, 64), "PackInputs")
    assert not resize["keep_ratio"]
    with pytest.raises(ValueError, match="must resize to a size before it crops"):
        pipeline_at([dict(type="CenterCrop", crop_size=8)], 64)
    with pytest.raises(ValueError, match="must resize to a size, got"):
        pipeline_at([dict(type="Resize", scale_factor=0.5)], 64)


@pytest.mark.parametrize(
    ("name", "size", "scale"),
    [
        ("vmamba/mask-rcnn_vmamba-v0-tiny_fpn_1x_coco", 400, (666, 400)),
        ("vmamba/vmamba-v0-tiny_upernet_4xb4-160k_ade20k-512x512", 256, (1024, 256)),
        ("mambavision/mambavision-large2-512_in21k-pre_8xb128_in1k", 256, (275, 275)),
    ],
)
def test_pipelines_to_two_sides_keep_their_proportion(name, size, scale):
    cfg = Config.fromfile(ROOT / "configs" / f"{name}.py")
    steps = pipeline_at(cfg.test_dataloader.dataset.pipeline, size)
    (resize,) = (step for step in steps if step["type"].endswith("Resize"))
    assert resize["scale"] == scale


def test_segmentors_without_a_resize_get_one_before_their_annotations():
    """Their maps are compared at the original image size."""
    cfg = Config.fromfile(ROOT / "configs/demo/vmamba-micro_upernet_digits-seg.py")
    steps = pipeline_at(cfg.test_dataloader.dataset.pipeline, 64)
    assert [step["type"] for step in steps] == [
        "LoadImageFromFile", "Resize", "LoadAnnotations", "PackSegInputs",
    ]  # fmt: skip
    assert steps[1]["scale"] == (64, 64) and steps[1]["keep_ratio"]


@pytest.mark.parametrize(("names", "rows", "columns"), [([], 1, 3), (["coco/bbox_mAP"], 2, 2)])
def test_at_most_three_panels_stand_side_by_side(names, rows, columns):
    measured = dict(macs=1e9, median_ms=2.0, peak_mib=3.0, metrics=dict.fromkeys(names, 0.5))
    figure = draw_scaling(dict(results=[dict(measured, size=64)], exponents={}))
    assert len(figure.axes) == 3 + len(names)
    assert figure.axes[0].get_gridspec().get_geometry() == (rows, columns)


@pytest.fixture
def place(tmp_path, monkeypatch, run_tool):
    """A folder with six black and six white images, and a classifier that separates them."""
    import cv2
    import numpy as np

    monkeypatch.chdir(tmp_path)
    for label, value in (("0", 0), ("1", 255)):
        folder = tmp_path / "data/digits-cls/val" / label
        folder.mkdir(parents=True)
        for i in range(6):
            cv2.imwrite(str(folder / f"{i}.png"), np.full((32, 32, 3), value, np.uint8))
    model = build_model(Config.fromfile(DIGITS))
    bright = torch.full((1, 3, 32, 32), (255 - 80) / 95)  # mean and std of the config
    dark = torch.full((1, 3, 32, 32), -80 / 95)
    model.eval()
    with torch.no_grad():
        (low,), (high,) = (model.extract_feat(x) for x in (dark, bright))
        direction = (high - low)[0]
        middle = direction @ ((high + low)[0] / 2)
        model.head.fc.weight.zero_()
        model.head.fc.bias.fill_(-1e6)
        model.head.fc.weight[1] = direction
        model.head.fc.weight[0] = -direction
        model.head.fc.bias[1], model.head.fc.bias[0] = -middle, middle
    torch.save(dict(state_dict=model.state_dict(), meta={}), "model.pth")
    return tmp_path


OPTIONS = ("--sizes", 32, 64, "--repetitions", 3, "--cfg-options")
LOADER = "test_dataloader.batch_size=4"


def test_tool(place, run_tool):
    files = ["a.json", "a.png", "a.svg"]
    status, streams = run_tool(
        TOOL, DIGITS, "--checkpoint", "model.pth", *OPTIONS, LOADER, "--out", *files
    )
    assert status == 0, status
    assert "FLOPs ~ pixels^" in streams.out
    found = json.loads(Path("a.json").read_text())
    assert found["results"][0]["metrics"] == {"accuracy/top1": 100}
    assert found["exponents"]["macs"] == pytest.approx(1, abs=0.01)
    assert Path("a.png").stat().st_size and "<svg" in Path("a.svg").read_text()


def test_tool_refuses(place, run_tool):
    Path("other.pth").write_bytes(b"")
    torch.save(dict(state_dict={"head.fc.bias": torch.zeros(10)}), "part.pth")
    for checkpoint, message in (
        ("absent.pth", "there is no checkpoint file 'absent.pth'"),
        ("mmvssm://absent", "absent"),
        ("part.pth", "does not fit the config"),
    ):
        assert message in run_tool(TOOL, DIGITS, "--checkpoint", checkpoint, *OPTIONS, LOADER)[0]
    (place / "data").rename(place / "elsewhere")
    status, _ = run_tool(TOOL, DIGITS, "--checkpoint", "model.pth", *OPTIONS, LOADER)
    assert "there is no data folder" in status
    status, _ = run_tool(TOOL, DIGITS, "--checkpoint", "model.pth", *OPTIONS, "test_evaluator=None")
    assert "needs a test_evaluator in the config" in status


def test_weights_are_all_of_the_models(tmp_path):
    model = build_model(Config.fromfile(DIGITS))
    other = build_model(Config.fromfile(DIGITS))
    path = tmp_path / "model.pth"
    torch.save(dict(state_dict=other.state_dict(), message_hub=Path("x")), path)
    load_weights(model, str(path))
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    weights = other.state_dict()
    weights["head.fc.weight"] = torch.zeros(3, 256)
    torch.save(dict(state_dict=weights), path)
    with pytest.raises(ValueError, match="does not fit the config"):
        load_weights(model, str(path))
