"""What the page shows, without the page."""

import io
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmvssm.analysis import animate_routes, influence, record_scans
from mmvssm.analysis.animation import encode_animation, visit_times
from mmvssm.app import Explorer
from mmvssm.app.explorer import enlarged
from mmvssm.engine.predict import Predictor
from mmvssm.models import MambaVision, MSVMamba, Vim, VMamba

FAMILIES = (
    "efficient-vmamba", "local-vim", "local-vmamba", "mambavision", "msvmamba", "vim", "vmamba",
)  # fmt: skip
TINY = dict(embed_dims=8, depths=(1, 1, 1, 1))

pytestmark = pytest.mark.usefixtures("one_thread")


def test_classifier(explorer, image):
    vmamba = explorer("vmamba-micro_digits-cls")
    path, pixels = image(32, 32)
    scene = vmamba.look(path)
    # the config's mean and deviation; channels stay in the order of the file
    expected = (torch.from_numpy(pixels).permute(2, 0, 1)[None] - 80.0) / 95
    assert torch.allclose(scene.inputs, expected, atol=1e-5)
    assert np.array_equal(scene.picture, pixels[..., ::-1]) and scene.network_size == (32, 32)

    picture, rows = vmamba.predict(path)
    with torch.no_grad():
        scores = vmamba.predictor.model(expected).softmax(1)[0].sort(descending=True)
    assert vmamba.columns == ["class", "score"] and len(rows) == 5
    assert rows == [
        [str(label), f"{score:.1%}"]
        for score, label in zip(scores.values[:5].tolist(), scores.indices[:5].tolist())
    ]
    # enlarged before the text is drawn, which leaves the lower half free
    assert picture.shape == (320, 320, 3)
    # some versions of matplotlib move the edges of the enlarged pixels, 10 wide, by one
    got, wanted = (p[160:].reshape(16, 10, 32, 10, 3) for p in (picture, enlarged(scene.picture)))
    assert np.array_equal(got[:, 1:, :, 1:], wanted[:, 1:, :, 1:])
    assert not np.array_equal(picture, enlarged(scene.picture))


def test_detector(explorer, image):
    detector = explorer("mask-rcnn_vmamba-micro_digits-det")
    path, _ = image(64, 100)
    detector.predictor.score_thr = 0.0
    picture, rows = detector.predict(path)
    assert picture.shape == (64 * 3, 100 * 3, 3)
    assert rows and all(len(row) == len(detector.columns) == 3 for row in rows)
    assert all(len(row[2].split(", ")) == 4 for row in rows)
    # resized to 82x128, padded to a multiple of 32
    scene = detector.look(path)
    assert scene.picture.shape == (96, 128, 3) and scene.inputs.shape == (1, 3, 96, 128)
    assert scene.picture[:82].any(axis=(1, 2)).all() and not scene.picture[82:].any()
    assert not scene.inputs[:, :, 82:].any()


def test_segmentor(explorer, image, monkeypatch):
    monkeypatch.setattr("mmvssm.app.explorer.MAX_SIDE", 64)
    segmentor = explorer("vmamba-micro_upernet_digits-seg")
    path, _ = image(96, 48)
    picture, rows = segmentor.predict(path)
    assert picture.shape == (96 * 3, 48 * 3, 3)
    assert sum(float(share.rstrip("%")) for _, share in rows) == pytest.approx(100, abs=1)
    # too large to examine layers with
    scene = segmentor.look(path)
    assert scene.network_size == (96, 48)
    assert scene.inputs.shape == (1, 3, 64, 32) and scene.picture.shape == (64, 32, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_families(explorer, image, monkeypatch, family):
    monkeypatch.setattr("mmvssm.app.explorer.animate_routes", partial(animate_routes, frames=3))
    found = explorer(f"{family}-micro_digits-cls")
    path, _ = image(32, 32)
    scene = found.look(path)
    scanning = [layer.number for layer in found.layers if layer.scans]
    assert found.first_layer == scanning[0]
    movie, words = found.routes(scene, scanning[0])
    routes = record_scans(found.backbone, scanning[0], scene.inputs).routes[0]
    assert words.startswith(f"{len(routes)} route")
    assert Image.open(io.BytesIO(movie)).is_animated
    queries = [(0.1, 0.9), *range(found.num_tokens)]
    assert found.num_tokens == (1 if family == "vim" else 0)
    for query in queries:
        assert found.influence(scene, scanning[0], query).width > 300
    assert found.receptive_field(scene).width > 100
    for layer in found.layers:
        if not layer.scans:
            with pytest.raises(ValueError, match=rf"layer {layer.number} has no scan"):
                found.routes(scene, layer.number)
            with pytest.raises(ValueError, match=rf"layer {layer.number} has no scan"):
                found.influence(scene, layer.number, (0.5, 0.5))
    if family in ("efficient-vmamba", "mambavision"):
        assert len(scanning) < len(found.layers)


def test_influence_is_that_of_the_query(explorer, image, monkeypatch):
    """The map, and the cross on the queried pixel of the image."""
    drawn = {}
    monkeypatch.setattr(
        "mmvssm.app.explorer._rendered", lambda figure: drawn.setdefault("figure", figure)
    )
    found = explorer("vmamba-micro_digits-cls")
    scene = found.look(image(32, 32)[0])
    found.influence(scene, 1, (0.3, 0.8), "decay")
    panels = drawn["figure"].axes
    (cross,) = panels[0].lines
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == pytest.approx((25.1, 9.1))
    expected = influence(found.backbone, scene.inputs, 1, (0.3, 0.8), "decay")
    assert [axes.get_title() for axes in panels][1:] == [
        part.name for part in (*expected.routes, expected.merged)
    ]
    (box,) = panels[1].patches
    assert (box.get_x() + 0.5, box.get_y() + 0.5) == expected.merged.query[::-1] == (3, 1)


def test_broken_images_and_foreign_backbones_are_refused(explorer, checkpoint, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(OSError, match="cannot be read as an image"):
        explorer("vmamba-micro_digits-cls").predict(str(tmp_path / "broken.png"))

    path, weights = checkpoint("vmamba-micro_digits-cls")
    cfg = Config.fromfile(path)
    with pytest.MonkeyPatch.context() as patch:
        model = SimpleNamespace(backbone=torch.nn.Linear(1, 1))
        patch.setattr(Predictor, "__init__", lambda self, *_, **__: setattr(self, "model", model))
        with pytest.raises(SystemExit, match="must have a backbone of this package, got Linear"):
            Explorer(cfg, str(weights), config_path=str(path))


def steps_of(backbone, layer, height, width):
    return record_scans(backbone.eval(), layer, torch.randn(1, 3, height, width))


def test_visits_follow_the_routes():
    scans = steps_of(VMamba(TINY, out_indices=(3,)), 0, 12, 20)
    rows, columns, back, _ = scans.routes[0]
    order = torch.arange(1, 16, dtype=torch.float64) / 15
    assert torch.equal(visit_times(scans, rows)[0], order.view(3, 5))
    assert torch.equal(visit_times(scans, columns)[0], order.view(5, 3).t())
    assert torch.equal(visit_times(scans, back)[0], order.flip(0).view(3, 5))
    # seven of fifteen pixels
    half = visit_times(scans, rows, 7 / 15)[0]
    assert torch.equal(half, torch.where(order <= 7 / 15, order, 0).view(3, 5))


def test_visits_of_class_tokens_and_windows_and_repeated_ones():
    scans = steps_of(Vim(dict(embed_dims=16, num_layers=1, patch_size=8), img_size=32), 0, 32, 32)
    pixels, tokens = visit_times(scans, scans.routes[0][0])
    # in the middle of 16 patches
    assert pixels.flatten()[[0, 7, 8, 15]].tolist() == [1 / 17, 8 / 17, 10 / 17, 1]
    assert tokens.tolist() == [9 / 17]

    arch = dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(2, 2), window_sizes=(2, 2))
    scans = steps_of(MambaVision(dict(arch, stem_dims=8), out_indices=(3,)), 2, 48, 80)
    expected = torch.tensor([[0.25, 0.5, 0.25, 0.5, 0.25], [0.75, 1, 0.75, 1, 0.75]])
    pixels = visit_times(scans, scans.routes[0][0])[0]
    assert torch.equal(pixels, torch.cat([expected, expected[:1]]).double())

    scans = steps_of(MSVMamba(TINY, out_indices=(3,)), 0, 16, 16)
    sequence = scans.routes[0][1]
    assert len(sequence.read) == 3 * 4
    # all are visited thrice
    assert (visit_times(scans, sequence, 1 / 3)[0] > 0).all()
    assert (visit_times(scans, sequence)[0] > 2 / 3).all()


def test_animation():
    scans = steps_of(VMamba(TINY, out_indices=(3,)), 0, 16, 32)
    picture = np.full((16, 32, 3), 200, np.uint8)
    frames = animate_routes(scans, picture, frames=8)
    assert len(frames) == 8 and len({frame.size for frame in frames}) == 1
    panels = [np.asarray(frame)[27 : 27 + 104, 8 : 8 + 208].astype(int) for frame in frames]
    # 32 steps in 8 frames: in the first four pixels are white, the rest is dark
    first = panels[0].reshape(4, 26, 8, 26, 3)[:, 13, :, 13]
    assert (first[0, :4] == 255).all() and (first[0, 4:] == 70).all() and (first[1:] == 70).all()
    # in the last one all have a colour
    assert (panels[-1].max(2) > 100).all() and (panels[-1].max(2) < 255).all()
    # the violet at the start has more blue than green, the yellow at the end less
    assert panels[-1][2, 2, 2] > panels[-1][2, 2, 1] and panels[-1][-3, -3, 2] < 120
    movie = Image.open(io.BytesIO(encode_animation(frames)))
    assert movie.n_frames == 8 and movie.size == frames[0].size
