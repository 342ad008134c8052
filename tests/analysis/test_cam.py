"""Grad-CAM maps of our tool and of mmpretrain's agree with the definition."""

import importlib.util
import runpy
import sys
from pathlib import Path

import cv2
import mmpretrain
import numpy as np
import pytest
import torch
from mmcv.cnn import is_norm
from mmdet.structures import DetDataSample
from mmengine.config import Config

from mmvssm.analysis import draw_cam, grad_cam, load_model
from mmvssm.analysis.models import default_scope
from mmvssm.models.backbones.plain import PlainBackbone

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "tests" / "tools" / "configs"
STOCK = Path(mmpretrain.__file__).parent / ".mim" / "tools" / "visualization" / "vis_cam.py"


def network(path, checkpoint):
    """A network of random weights, and its config."""
    cfg = Config.fromfile(path)
    with default_scope(cfg):
        registry = __import__(f"{cfg.default_scope}.registry", fromlist=["MODELS"])
        options = dict(cfg.model)
        if "data_preprocessor" in cfg:
            options.setdefault("data_preprocessor", cfg.data_preprocessor)
        model = registry.MODELS.build(options)
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    return load_model(cfg, str(checkpoint)), cfg


@pytest.fixture
def photo(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), image)
    return tmp_path / "photo.png"


def expected_map(model, x, label):
    """Grad-CAM by hand, for a mean over pixels and a linear layer, or for the patch tokens."""
    backbone, head = model.backbone, model.head.fc
    if not isinstance(backbone, PlainBackbone):
        return torch.einsum("chw,c->hw", backbone(x)[-1][0], head.weight[label]).clamp(min=0)
    tokens, size = backbone.embed(x)
    positions = backbone.cls_positions(size[0] * size[1])
    rope = None if backbone.rope is None else backbone.rope(size, positions)
    before, behind = list(backbone.layers), []
    if positions:
        behind = [before.pop()]
    for layer in before:
        tokens, _ = layer(tokens, size, positions, rope)
    tokens = leaf = tokens.detach().requires_grad_(True)
    for layer in behind:
        tokens, _ = layer(tokens, size, positions, rope)
    out = backbone.norm0(tokens)[0]
    logits = head(out[positions[0]] if positions else out.mean(0))
    (gradient,) = torch.autograd.grad(logits[label], leaf)
    patches = [i for i in range(leaf.shape[1]) if i not in positions]
    weights = gradient[0, patches].mean(0)
    return (leaf[0, patches] * weights).sum(1).clamp(min=0).view(size)


def test_map_is_that_of_the_definition(demo_config, photo, tmp_path):
    model, cfg = network(demo_config, tmp_path / "model.pth")
    found = grad_cam(model, cfg, photo, label=3)
    mean, std = torch.tensor([80.0, 95.0])
    pixels = torch.from_numpy(cv2.imread(str(photo))).permute(2, 0, 1)[None].float()
    x = (pixels - mean) / std
    expected = expected_map(model, x, 3)
    assert found.values.shape == expected.shape and expected.any()
    correlation = np.corrcoef(found.values.flatten(), expected.detach().flatten())[0, 1]
    assert correlation > 1 - 1e-6
    assert found.label == 3 and found.heat.shape == (64, 96) and found.heat.max() == 1
    assert torch.equal(found.image.flip(-1), torch.from_numpy(cv2.imread(str(photo))))
    with torch.no_grad():
        logits = model(x, mode="tensor")[0]
    assert grad_cam(model, cfg, photo).label == logits.argmax()
    assert found.score == pytest.approx(logits[3].item(), abs=1e-5)
    draw_cam(found, "title").canvas.draw()
    with pytest.raises(ValueError, match="label must be from 0 to 9, got 10"):
        grad_cam(model, cfg, photo, label=10)


@pytest.mark.parametrize("library", ["seg", "det"])
def test_segmentors_and_detectors(library, photo, tmp_path):
    model, cfg = network(CONFIGS / f"{library}.py", tmp_path / "model.pth")
    found = grad_cam(model, cfg, photo)
    maps = []
    model.backbone.norm3.register_forward_hook(lambda module, args, out: maps.append(out))
    image = found.image.flip(-1).permute(2, 0, 1)
    sample = dict(img_shape=image.shape[1:], ori_shape=(64, 96), scale_factor=(1, 1))
    x = model.data_preprocessor(dict(inputs=[image], data_samples=None))["inputs"]
    if library == "seg":
        logits = model.encode_decode(x, [sample])[0]
        score = logits[found.label][logits.argmax(0) == found.label].sum()
    else:
        boxes = model.predict(x, [DetDataSample(metainfo=sample)], rescale=False)
        boxes = boxes[0].pred_instances
        score = boxes.scores[boxes.labels == found.label].sum()
    assert found.score == pytest.approx(score.item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(score, maps[0])
    expected = (gradient.mean((2, 3), keepdim=True) * maps[0]).sum(1)[0].clamp(min=0)
    atol = 1e-4 * (gradient.abs().mean() * maps[0].abs().mean()).item()
    assert torch.allclose(found.values.float(), expected, rtol=1e-4, atol=atol)
    assert found.heat.shape == found.image.shape[:2]
    with pytest.raises(ValueError, match=r"label must be|finds nothing of class 9"):
        grad_cam(model, cfg, photo, label=9)


def test_the_last_norm_gives_what_the_backbone_does(demo):
    """The stock tool expects its output to be (B, C, H, W)."""
    backbone = demo()
    if isinstance(backbone, PlainBackbone):
        pytest.skip("gives tokens, which the stock tool can tell apart")
    last = [layer for _, layer in backbone.named_modules() if is_norm(layer)][-1]
    outputs = []
    last.register_forward_hook(lambda module, args, output: outputs.append(output))
    (out,) = backbone(torch.randn(2, 3, 64, 96))
    assert outputs[0].shape == out.shape and torch.equal(outputs[0], out)


@pytest.mark.skipif(
    importlib.util.find_spec("pytorch_grad_cam") is None, reason="needs grad-cam==1.4.8"
)
def test_the_stock_tool(photo, tmp_path, monkeypatch):
    path = ROOT / "configs" / "demo" / "vmamba-micro_digits-cls.py"
    model, cfg = network(path, tmp_path / "model.pth")
    found = grad_cam(model, cfg, photo, label=3)
    drawn = tmp_path / "cam.png"
    monkeypatch.setattr(sys, "argv", [
        "vis_cam.py", str(photo), str(path), str(tmp_path / "model.pth"), "--target-category", "3",
        "--save-path", str(drawn),
    ])  # fmt: skip
    shown = []

    def keep(image, cam, **options):
        shown.append(cam)
        return np.uint8(255 * image)

    monkeypatch.setattr("pytorch_grad_cam.utils.image.show_cam_on_image", keep)
    runpy.run_path(str(STOCK), run_name="__main__")
    (cam,) = shown
    coarse = cv2.resize(cam, found.values.shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.corrcoef(coarse.flatten(), found.values.flatten())[0, 1] > 0.9
