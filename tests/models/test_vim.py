"""Vim and LocalVim against a plain float64 implementation, and their special features."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from torch import nn

from abilities import HALF_PRECISIONS
from mmvssm.models import LocalVim, MambaMixer, Vim
from mmvssm.models.layers import RMSNorm
from mmvssm.registry import MODELS

GOLDEN = Path(__file__).parents[1] / "golden"
MICRO = dict(embed_dims=16, num_layers=3, patch_size=8, mixer=dict(d_state=2))
TABLE = [("h", "v_flip", "w2"), ("v", "w2_flip", "w3"), ("h_flip", "v", "w7")]
MODELS_OF = {
    "vim": (Vim, dict(), "middle"),
    "vim, overlapping patches": (Vim, dict(arch=dict(MICRO, stride=4)), "middle"),
    "vim, head": (Vim, dict(cls_token="head", rope=True, divide_out=False), "head"),
    "vim, double": (Vim, dict(cls_token="double", norm="ln"), "double"),
    "vim, none": (Vim, dict(cls_token="none", rope=True), "none"),
    "vim, dropped": (Vim, dict(drop_cls_token=True), "none"),
    "vim, no position embedding": (Vim, dict(arch=dict(MICRO, pos_embed=False)), "middle"),
    "local": (LocalVim, dict(directions=TABLE), "none"),
    "local, upstream": (LocalVim, dict(directions=TABLE, output_order="upstream"), "none"),
    "local, middle": (LocalVim, dict(cls_token="middle", rope=False), "middle"),
    "local, head": (LocalVim, dict(cls_token="head"), "head"),
    "local, search": (LocalVim, dict(directions="search", norm="ln"), "none"),
}


def build(name, **options):
    """Build a model in float64, with random values everywhere."""
    backbone, own, _ = MODELS_OF[name]
    model = backbone(**{"arch": MICRO, "img_size": (32, 48), **own, **options}).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def with_class(rows, tokens, place):
    """Return the list of patch rows with the class tokens at their positions."""
    if place == "none":
        return rows
    if place == "double":
        return [tokens[0], *rows, tokens[1]]
    position = len(rows) // 2 if place == "middle" else 0
    return [*rows[:position], tokens[0], *rows[position:]]


def split_class(rows, place):
    """Return patch rows and class rows."""
    if place == "none":
        return rows, []
    if place == "double":
        return rows[1:-1], [rows[0], rows[-1]]
    position = (len(rows) - 1) // 2 if place == "middle" else 0
    return rows[:position] + rows[position + 1 :], [rows[position]]


def resize(rows, grid, size):
    """Resize the rows of a grid ``(H * W, C)`` to another grid."""
    rows = rows.T.unflatten(1, grid)[None]
    rows = F.interpolate(rows, size=size, mode="bicubic", align_corners=False)
    return rows[0].flatten(1).T


def turn(x, angles):
    """Rotate pairs of channels of x (B, L, C), each pair by its angle (L, C // 2)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * angles).flatten(-2)


def turning(model, size, place):
    """Return complex factors (L, C // 2) of the sequence, resized by part for other grids."""
    height, width = model.positions.grid
    quarter = model.embed_dims // 4
    speed = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows = []
    for i in range(height):
        for j in range(width):
            rows.append(torch.cat([i * 14 / height * speed, j * 14 / width * speed]))
    angles = torch.stack(rows)
    # as the model holds them, in float32
    parts = [part.float().double() for part in (angles.cos(), angles.sin())]
    parts = [resize(part, model.positions.grid, size) for part in parts]
    factors = list(torch.complex(*parts))
    one = torch.ones_like(factors[0])
    return torch.stack(with_class(factors, [one, one], place))


def read(model, image, place, pads):
    """Return each layer's stream and mixer output (B, L, C), and the grid, in float64."""
    conv = model.patch_embed.conv1
    stride, patch = conv.stride[0], conv.kernel_size[0]
    if pads:
        size = [-(-(side - patch) // stride) * stride + patch for side in image.shape[2:]]
        padded = image.new_zeros(*image.shape[:2], *size)
        padded[..., : image.shape[2], : image.shape[3]] = image
        image = padded
    x = F.conv2d(image, conv.weight, conv.bias, stride=stride)
    size = tuple(x.shape[2:])
    rows = list(x.flatten(2).unbind(2))
    tokens = [] if model.cls_token is None else [t.expand(len(x), -1) for t in model.cls_token]
    x = torch.stack(with_class(rows, tokens, place), 1)
    if model.pos_embed is not None:
        stored = "middle" if place != model.positions.cls_place else place
        rows, class_rows = split_class(list(model.pos_embed[0]), stored)
        rows = list(resize(torch.stack(rows), model.positions.grid, size))
        x = x + torch.stack(with_class(rows, class_rows, place))
    factors = None if model.rope is None else turning(model, size, place)
    length = size[0] * size[1]
    positions = {"none": (), "head": (0,), "middle": (length // 2,), "double": (0, length + 1)}
    h, r, streams, mixed = x, None, [], []
    for layer in model.layers:
        if factors is not None:
            h = turn(h, factors)
            r = None if r is None else turn(r, factors)
        r = h if r is None else r + h
        streams.append(r)
        if not isinstance(layer.norm, RMSNorm):
            normed = F.layer_norm(r, r.shape[-1:], layer.norm.weight, layer.norm.bias)
        else:
            normed = r / (r.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
        h = layer.mixer(normed, size, positions[place])
        mixed.append(h)
    return [*streams[1:], r + h], mixed, size


@pytest.mark.parametrize("image", [(32, 48), (61, 37)])
@pytest.mark.parametrize("name", MODELS_OF)
def test_reading(name, image):
    place = MODELS_OF[name][2]
    options = dict(out_indices=(0, 1, 2) * 2, feature=["residual"] * 3 + ["mixer"] * 3)
    model = build(name, out_type="raw", out_norm=False, **options)
    x = torch.randn(2, 3, *image, dtype=torch.float64)
    with torch.no_grad():
        streams, mixed, size = read(model, x, place, pads=isinstance(model, LocalVim))
        got = model(x)
    for out, expected in zip(got, streams + mixed, strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)

    # the same through a norm, in every form
    last = streams[-1] / (streams[-1].square().mean(-1, keepdim=True) + 1e-5).sqrt() * 3
    patches, class_tokens = split_class(list(last.unbind(1)), place)
    patches = torch.stack(patches, 1)
    forms = {
        "raw": last,
        "last_token": last[:, -1],
        "avg_featmap": patches.mean(1),
        "featmap": patches.transpose(1, 2).unflatten(2, size),
    }
    if class_tokens:
        forms["cls_token"] = sum(class_tokens) / len(class_tokens)
    for out_type, expected in forms.items():
        pooled = build(name, out_type=out_type, out_norm="rms")
        kept = {k: v for k, v in model.state_dict().items() if not k.startswith("norm")}
        pooled.load_state_dict({**kept, "norm0.weight": torch.full((16,), 3.0)})
        with torch.no_grad():
            (out,) = pooled(x)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
        assert out.is_contiguous() or out_type == "last_token"


def test_default_output():
    """A classifier's head gets the class token, or the mean where there is none."""
    image = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    for name, out_type in {"vim": "cls_token", "local": "avg_featmap"}.items():
        model, same = build(name), build(name, out_type=out_type, out_indices=[2])
        same.load_state_dict(model.state_dict())
        assert torch.equal(model(image)[0], same(image)[0])
        assert isinstance(model.norm0, RMSNorm)


def test_norms_of_outputs():
    model = Vim(MICRO, out_indices=(0, -1), out_norm="ln")
    assert isinstance(model.norm0, nn.LayerNorm) and isinstance(model.norm1, nn.LayerNorm)
    assert isinstance(model.layers[0].norm, RMSNorm) and model.norm0.eps == 1e-5
    assert isinstance(Vim(MICRO, norm="ln").norm0, nn.LayerNorm)
    assert not any(k.startswith("norm") for k in Vim(MICRO, out_norm=False).state_dict())


@pytest.mark.parametrize("case", ["local_vim_tiny__64x96__vfix", "local_vim_tiny_seg__96x96"])
def test_rotary_tables_of_the_reference(case):
    data = np.load(GOLDEN / "local_mamba" / f"{case}.npz")
    side = {"local_vim_tiny__64x96__vfix": 224, "local_vim_tiny_seg__96x96": 512}[case]
    rope = LocalVim(dict(embed_dims=192, num_layers=1), img_size=side).rope
    for name in ("freqs_cos", "freqs_sin"):
        table = getattr(rope, name)
        assert list(table.shape) == data[f"rope.{name}.shape"].tolist()
        stored = table.flatten()[data[f"rope.{name}.index"]]
        torch.testing.assert_close(stored, torch.from_numpy(data[f"rope.{name}"]))


def test_dropping_the_class_token_keeps_the_row_of_the_position_embedding():
    """A classifier's weights load, and those of the class token have no effect."""
    kept, dropped = build("vim"), build("vim", drop_cls_token=True, out_type="featmap")
    weights = kept.state_dict()
    del weights["cls_token"]
    dropped.load_state_dict(weights)
    image = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    (before,) = dropped(image)
    row = 4 * 6 // 2
    dropped.pos_embed.data[:, row] += 1
    assert torch.equal(dropped(image)[0], before)
    dropped.pos_embed.data[:, row + 1] += 1
    assert not torch.equal(dropped(image)[0], before)


@pytest.mark.parametrize("name", ["vim", "vim, head", "vim, double", "vim, dropped", "local"])
def test_tables_of_another_grid_are_resized_when_loaded(name):
    """Position tables for 32x32 images, resized on loading, act as those resized at run time."""
    small = build(name, img_size=32, out_type="featmap")
    large = build(name, img_size=64, out_type="featmap")
    weights = small.state_dict()
    before = {key: value.clone() for key, value in weights.items()}
    assert large.load_state_dict(weights) == ([], [])
    assert all(torch.equal(weights[key], before[key]) for key in before)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(large(image), small(image))


def test_weights_of_stride_16_start_a_training_of_stride_8():
    coarse = build("vim", arch=dict(MICRO, stride=8), img_size=32)
    fine = build("vim", arch=dict(MICRO, stride=4), img_size=32)
    fine.load_state_dict(coarse.state_dict())
    place = 4 * 4 // 2
    rows = torch.cat([coarse.pos_embed[0, :place], coarse.pos_embed[0, place + 1 :]])
    expected = resize(rows, (4, 4), (7, 7))
    class_row = coarse.pos_embed[0, place][None]
    expected = torch.cat([expected[: 49 // 2], class_row, expected[49 // 2 :]])
    torch.testing.assert_close(fine.pos_embed[0], expected)


def test_square_table_for_a_grid_that_is_not_is_resized_with_a_warning():
    weights = build("vim", img_size=32).state_dict()
    del weights["pos_grid"]
    wide = build("vim", img_size=(32, 64))
    with pytest.warns(UserWarning, match=r"assuming 4x4 patches, resized to 4x8"):
        wide.load_state_dict(weights)


def test_loading_reports_a_table_of_no_square_grid():
    weights = build("vim", img_size=(32, 48)).state_dict()
    del weights["pos_grid"]
    with pytest.raises(RuntimeError, match="size mismatch for pos_embed"):
        build("vim", img_size=32).load_state_dict(weights)


def without_class_rows(model):
    """Return the weights of a model in the form of published detectors and segmentors."""
    weights = model.state_dict()
    weights.pop("cls_token", None)
    weights.pop("pos_grid")
    rows, _ = split_class(list(model.pos_embed[0].detach()), model.positions.cls_place)
    weights["pos_embed"] = torch.stack(rows)[None]
    return weights


def load_strictly(model, weights, path):
    model.load_state_dict(weights)


def load_by_init_cfg(model, weights, path):
    torch.save(dict(state_dict={f"backbone.{k}": v for k, v in weights.items()}), path)
    model.init_cfg = dict(type="Pretrained", checkpoint=str(path), prefix="backbone.")
    model.init_weights()


def load_by_runner(model, weights, path):
    """Load weights as MMEngine's ``load_from`` does."""
    detector = nn.ModuleDict(dict(backbone=model))
    torch.save(dict(state_dict={f"backbone.{k}": v for k, v in weights.items()}), path)
    load_checkpoint(detector, str(path), strict=True)


@pytest.mark.parametrize("load", [load_strictly, load_by_init_cfg, load_by_runner])
@pytest.mark.parametrize("place", ["middle", "head", "double"])
@pytest.mark.parametrize(
    ("stored", "own"), [(32, 32), ((32, 48), (32, 48)), (32, 64), (64, 32)], ids=str
)
def test_tables_without_class_rows_are_loaded(load, place, stored, own, tmp_path):
    """The rows of the grid come from the file, and the unused ones of class tokens are zeros."""
    options = dict(cls_token=place, drop_cls_token=True)
    source, model = (build("vim", img_size=size, **options) for size in (stored, own))
    weights = without_class_rows(source)
    table = weights["pos_embed"][0].clone()
    assert len(table) == source.positions.grid[0] * source.positions.grid[1]
    load(model, weights, tmp_path / "weights.pth")
    assert len(weights["pos_embed"][0]) == len(table)
    rows, class_rows = split_class(list(model.pos_embed[0].detach()), place)
    expected = (
        table if stored == own else resize(table, source.positions.grid, model.positions.grid)
    )
    torch.testing.assert_close(torch.stack(rows), expected, rtol=0, atol=0)
    assert not torch.stack(class_rows).any()
    for name, value in source.named_parameters():
        if name != "pos_embed":
            assert torch.equal(model.get_parameter(name), value)


def test_which_tables_lack_class_rows():
    square = Vim(MICRO, img_size=32, drop_cls_token=True)  # of 4x4
    assert [n for n in range(40) if square.positions.lacks_cls_rows(n)] == [1, 4, 9, 16, 25, 36]
    wide = Vim(MICRO, img_size=(40, 80), drop_cls_token=True)
    # 50 patches, but 50 rows are those of 7x7 with a class row as well
    assert [n for n in range(60) if wide.positions.lacks_cls_rows(n)] == [1, 4, 9, 16, 25, 36, 49]
    flat = Vim(MICRO, img_size=(24, 40), drop_cls_token=True)
    # 15 patches and a class row are 16 rows
    assert [n for n in range(26) if flat.positions.lacks_cls_rows(n)] == [1, 4, 9, 15, 25]
    for options in (dict(), dict(cls_token="none", drop_cls_token=True)):
        assert not any(map(Vim(MICRO, img_size=32, **options).positions.lacks_cls_rows, range(40)))


def test_a_kept_class_token_needs_its_row():
    source = build("vim", img_size=32)
    weights = without_class_rows(source)
    weights["cls_token"] = source.cls_token.detach()
    with pytest.raises(RuntimeError, match=r"size mismatch for pos_embed: .*1, 16, 16.*1, 17, 16"):
        build("vim", img_size=32).load_state_dict(weights)


@pytest.mark.parametrize("shape", [(), (17,), (17, 16), (1, 0, 16), (1, 16, 8)])
def test_loading_reports_tables_that_are_none(shape):
    model = build("vim", img_size=32, drop_cls_token=True)
    weights = {**model.state_dict(), "pos_embed": torch.zeros(shape)}
    with pytest.raises(RuntimeError, match="size mismatch for pos_embed"):
        model.load_state_dict(weights)


def test_mixers_of_the_variants():
    divided = Vim(dict(MICRO, bidirectional=False)).layers[0].mixer
    assert divided.num_routes == 1
    model = LocalVim(MICRO, directions=TABLE, output_order="upstream")
    assert [layer.mixer.scan.directions for layer in model.layers] == TABLE
    assert all(layer.mixer.scan.build.output_order == "upstream" for layer in model.layers)
    with torch.device("meta"):
        small, searched = LocalVim("small"), LocalVim("small-searched")
        tiny = LocalVim("tiny-unsearched")
        networks = [LocalVim("tiny-search"), LocalVim("tiny", directions="search")]
    assert {layer.mixer.scan.directions for layer in (*small.layers, *tiny.layers)} == {
        ("h", "h_flip", "w2", "w2_flip")
    }
    assert searched.layers[0].mixer.scan.directions == ("h", "v_flip", "w7", "w7_flip")
    for network in networks:
        assert all(len(layer.mixer.merge.weights) == 8 for layer in network.layers)


def test_one_direction_is_not_divided():
    image = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    models = [build("vim", arch=dict(MICRO, bidirectional=False), divide_out=d) for d in (0, 1)]
    models[1].load_state_dict(models[0].state_dict())
    assert torch.equal(models[0](image)[0], models[1](image)[0])


@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
@pytest.mark.parametrize("half_model", [True, False])
@pytest.mark.parametrize("name", ["vim", "vim, double", "local", "local, search"])
def test_residual_stream_is_float32(name, dtype, half_model):
    own = MODELS_OF[name][1]
    options = dict(img_size=(32, 48), out_indices=(0, 2), out_type="featmap")
    model = MODELS_OF[name][0](**{"arch": MICRO, **options, **own}).eval()
    image = torch.randn(2, 3, 48, 40)
    expected = model(image)
    seen = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    if half_model:
        got = model.to(dtype)(image.to(dtype))
    else:
        with torch.autocast("cpu", dtype):
            got = model(image)
    assert seen == [torch.float32] * 3
    for a, b in zip(got, expected):
        assert a.dtype == (dtype if half_model else torch.float32)
        assert (a.float() - b).norm() < 0.05 * b.norm()


class Wrapper(BaseModule):
    """A model whose own init_cfg reaches into its backbone."""

    def __init__(self, backbone):
        super().__init__(init_cfg=dict(type="Constant", layer=["Linear", "RMSNorm"], val=7.0))
        self.backbone = backbone


def uniform(weight, bound):
    return bound * 0.98 < weight.abs().max() <= bound and abs(weight.mean()) < 0.1 * bound


def test_initialisation_of_vim():
    model = Vim(dict(embed_dims=128, num_layers=4, patch_size=8), img_size=128)
    Wrapper(model).init_weights()
    conv = model.patch_embed.conv1
    std = conv.weight[0].numel() ** -0.5
    assert conv.weight.std().item() == pytest.approx(std, rel=0.02)
    assert 2 * std < conv.weight.abs().max() <= 2.28 * std and (conv.bias == 0).all()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    for layer in model.layers:
        mixer = layer.mixer
        assert (layer.norm.weight == 1).all()
        assert uniform(mixer.in_proj.weight, 128**-0.5)
        assert uniform(mixer.out_proj.weight, 256**-0.5 / 2)
        assert uniform(mixer.conv1d.weight, 0.5) and uniform(mixer.conv1d.bias, 0.5)
        assert F.softplus(mixer.dt_projs_bias[0]).max() <= 0.101
        assert (mixer.dt_projs_bias[1] == 0).all()
    assert (model.norm0.weight == 1).all()


def test_initialisation_of_local_vim():
    arch = dict(embed_dims=128, num_layers=4, patch_size=8)
    model = LocalVim(arch, img_size=128, cls_token="middle")
    convs = [conv.weight.clone() for conv in model.modules() if isinstance(conv, nn.Conv1d)]
    Wrapper(model).init_weights()
    fan_in = 8 * 8 * 3
    assert uniform(model.patch_embed.conv1.weight, fan_in**-0.5)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert (model.cls_token == 0).all()
    for layer, conv in zip(model.layers, convs):
        mixer = layer.mixer
        linear = [m for m in mixer.merge.modules() if isinstance(m, nn.Linear)]
        assert len(linear) == 2 and all((m.bias == 0).all() for m in linear)
        weights = [mixer.in_proj.weight, mixer.x_proj_weight, mixer.dt_projs_weight]
        for weight in [*weights, *(m.weight for m in linear)]:
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (mixer.dt_projs_bias == 0).all() and torch.equal(mixer.conv1d.weight, conv)
        assert uniform(mixer.out_proj.weight, 256**-0.5 / 2)
    mamba = LocalVim(dict(MICRO, mixer=dict(ssm_init="v0")))
    mamba.init_weights()
    steps = F.softplus(torch.stack([layer.mixer.dt_projs_bias for layer in mamba.layers]))
    assert steps.min() >= 9e-4 and steps.max() <= 0.101


def test_gradients_reach_every_parameter():
    for name in MODELS_OF:
        model = build(name).train()
        model(torch.randn(2, 3, 33, 50, dtype=torch.float64))[0].square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, (name, key)


@pytest.mark.parametrize("backbone", [Vim, LocalVim])
def test_images_smaller_than_a_patch(backbone):
    model = backbone(dict(MICRO, patch_size=16), img_size=32)
    assert model(torch.randn(1, 3, 16, 16))[0].shape == (1, 16)
    with pytest.raises(ValueError, match=r"at least 16x16 pixels, the size of a patch, got 40x15"):
        model(torch.randn(1, 3, 40, 15))
    with pytest.raises(ValueError, match=r"img_size must be at least 16.*\(32, 8\)"):
        backbone(dict(MICRO, patch_size=16), img_size=(32, 8))


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        (Vim, dict(arch="tiny8"), "arch must be one of 'tiny', 'small'.*'small-stride8'"),
        (Vim, dict(out_indices=(0, 3)), r"out_indices must hold layers -3 to 2, got \(0, 3\)"),
        (Vim, dict(out_type="map"), "out_type must be one of 'cls_token', 'featmap'.*'map'"),
        (Vim, dict(out_type="cls_token", cls_token="none"), "out_type 'cls_token' needs a class"),
        (
            Vim,
            dict(out_type="cls_token", drop_cls_token=True),
            "needs a class token, got cls_token='middle' and drop_cls_token=True",
        ),
        (
            Vim,
            dict(cls_token="tail"),
            "cls_token must be one of 'none', 'head', 'middle', 'double'",
        ),
        (LocalVim, dict(cls_token="double"), "cls_token must be one of 'none', 'head', 'middle'"),
        (Vim, dict(norm="bn"), "norm must be one of 'rms', 'ln', got 'bn'"),
        (Vim, dict(out_norm="bn"), "out_norm must be one of 'rms', 'ln', got 'bn'"),
        (Vim, dict(feature="gate"), "feature must be one of 'residual', 'mixer', got 'gate'"),
        (Vim, dict(feature=["mixer"] * 2), "feature must be one name, or one for each of the 1"),
        (
            Vim,
            dict(rope=True, arch=dict(MICRO, embed_dims=18)),
            "embed_dims must be divisible by 4",
        ),
        (Vim, dict(arch=dict(MICRO, mixer=dict(depth=3))), "mixer has unknown.*'depth'"),
        (LocalVim, dict(directions=TABLE[:2]), "layer 2 has none"),
        (LocalVim, dict(directions=[*TABLE[:2], ("h", "v", "x7")]), "layer 2: .*got 'x7'"),
        (LocalVim, dict(directions=[*TABLE[:2], ("h", "v")]), "directions of layer 2 must be 3"),
        (
            LocalVim,
            dict(directions=TABLE, output_order="back"),
            "output_order must be one of 'inverse'",
        ),
    ],
)
def test_bad_arguments(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        backbone(**{"arch": MICRO, "img_size": 32, **options})


def test_registered():
    for name, backbone in {"mmvssm.Vim": Vim, "mmvssm.LocalVim": LocalVim}.items():
        model = MODELS.build(dict(type=name, arch=MICRO))
        assert isinstance(model, backbone) and isinstance(model.layers[0].mixer, MambaMixer)
