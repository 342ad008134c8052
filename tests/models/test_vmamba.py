import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmvssm.models import SS2D, ScalarDecaySS2D, VMamba
from mmvssm.models.layers import Mlp, PatchMerging, apply_norm, build_norm
from small_families import FIRST_VMAMBA as FIRST
from small_families import VMAMBA as SECOND

ARCHS = {"first": FIRST, "second": SECOND}


def test_default_arguments():
    with torch.device("meta"):
        model = VMamba()
    assert len(model.stages[2].blocks) == 9 and model.embed_dims == [96, 192, 384, 768]
    assert model.out_indices == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("arch", "kind", "d_state", "ssm_init", "force_fp32"),
    [
        ("tiny-0220", SS2D, 1, "v0", True),
        *((arch, ScalarDecaySS2D, 64, "v2", False) for arch in ("tiny-m2", "small-m2", "base-m2")),
    ],
)
def test_mixers_of_archs_beside_the_published_series(arch, kind, d_state, ssm_init, force_fp32):
    with torch.device("meta"):
        model = VMamba(arch)
    for block in (block for stage in model.stages for block in stage.blocks):
        mixer = block.mixer
        assert type(mixer) is kind and (mixer.d_state, mixer.ssm_init) == (d_state, ssm_init)
        assert mixer.force_fp32 is force_fp32 and (mixer.gate_act is not None) == force_fp32
        # one head for sixteen channels of the block
        assert mixer.dt_rank == block.norm1.normalized_shape[0] // 16


@pytest.mark.parametrize(
    ("arch", "odd_size", "smallest"),
    [
        (FIRST, "pad", 4),
        (FIRST, "crop", 32),
        (SECOND, "pad", 1),
        (dict(SECOND, downsample="conv2"), "pad", 29),
        (dict(SECOND, downsample="patch_merge"), "crop", 29),
        (dict(FIRST, downsample="conv2"), "pad", 32),
    ],
)
def test_smallest_images(arch, odd_size, smallest):
    model = VMamba(arch, odd_size=odd_size).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, smallest, smallest))[-1].shape[2:] == (1, 1)
    if smallest > 1:
        message = f"at least {smallest}x{smallest} pixels.*got 64x{smallest - 1}"
        with pytest.raises(ValueError, match=message):
            model(torch.randn(1, 3, 64, smallest - 1))


def test_maps_are_taken_before_downsampling_and_normed():
    model = VMamba(SECOND, out_indices=(0, 3)).eval()
    nn.init.normal_(model.norm0.weight)
    raw = VMamba(SECOND, out_indices=(0, 3), out_norm=False).eval()
    raw.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("norm")})
    image = torch.randn(1, 3, 32, 48)
    first, last = model(image)
    raw_first, raw_last = raw(image)
    for got, before, norm in ((first, raw_first, model.norm0), (last, raw_last, model.norm3)):
        expected = F.layer_norm(before.movedim(1, -1), before.shape[1:2], norm.weight, norm.bias)
        torch.testing.assert_close(got, expected.movedim(-1, 1))
    deep = raw.patch_embed(image)
    deep = raw.stages[0](deep)
    torch.testing.assert_close(raw_first, deep.permute(0, 3, 1, 2))
    for i in (1, 2, 3):
        deep = raw.stages[i](raw.stages[i - 1].downsample(deep))
    torch.testing.assert_close(raw_last, deep.permute(0, 3, 1, 2))


def test_drop_path_grows_linearly_and_acts_in_training_only():
    model = VMamba(SECOND, drop_path_rate=0.4)
    rates = [b.drop_path.drop_prob for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    block = model.stages[3].blocks[0]
    x = torch.randn(64, 1, 1, 128)
    block.eval()
    mixed = block.mixer(block.norm1(x))
    block.mlp = None
    torch.testing.assert_close(block(x), x + mixed)
    block.train()
    branch = (block(x) - x).flatten(1)
    dropped = (branch == 0).all(1)
    assert 10 < dropped.sum() < 45
    torch.testing.assert_close(branch[~dropped], mixed.flatten(1)[~dropped] / 0.6)


def test_position_embedding_is_resized_to_the_map():
    model = VMamba(dict(SECOND, pos_embed=True), img_size=(32, 48)).eval()
    assert model.pos_embed.shape == (1, 16, 8, 12)
    nn.init.normal_(model.pos_embed)
    for image in ((32, 48), (40, 36)):
        x = torch.randn(1, 3, *image)
        size = (image[0] // 4, image[1] // 4)
        added = F.interpolate(model.pos_embed, size, mode="bicubic", align_corners=False)
        if image == (32, 48):
            assert torch.equal(added, model.pos_embed)
        expected = model.stages[0](model.patch_embed(x) + added.permute(0, 2, 3, 1))
        torch.testing.assert_close(model(x)[0], model.norm0(expected))


def test_position_embedding_of_another_image_size_is_resized_on_load():
    small = VMamba(dict(SECOND, pos_embed=True), img_size=32)
    wide = VMamba(dict(SECOND, pos_embed=True), img_size=(48, 64))
    nn.init.normal_(small.pos_embed)
    weights = small.state_dict()
    wide.load_state_dict(weights)
    assert weights["pos_embed"].shape == (1, 16, 8, 8)
    expected = F.interpolate(small.pos_embed, (12, 16), mode="bicubic", align_corners=False)
    assert torch.equal(wide.pos_embed, expected)
    weights["pos_embed"] = torch.zeros(1, 15, 8, 8)
    with pytest.raises(RuntimeError, match="size mismatch for pos_embed"):
        wide.load_state_dict(weights)


@pytest.mark.parametrize("frozen_stages", [-1, 0])
def test_position_embedding_is_frozen_with_the_stem(frozen_stages):
    model = VMamba(dict(SECOND, pos_embed=True), frozen_stages=frozen_stages)
    assert model.pos_embed.requires_grad == (frozen_stages < 0)


def test_initial_position_embedding():
    model = VMamba(dict(SECOND, embed_dims=64, pos_embed=True))
    model.init_weights()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)


def test_layer_norm_names_are_synonyms():
    first, second = VMamba(SECOND).eval(), VMamba(dict(SECOND, norm="ln2d")).eval()
    second.load_state_dict(first.state_dict())
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(first(image)[3], second(image)[3])


def test_batch_norm_sees_channels():
    norm = build_norm("bn", 6).train()
    x = torch.randn(2, 3, 4, 6)
    expected = F.batch_norm(x.permute(0, 3, 1, 2), None, None, training=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(apply_norm(norm, x), expected)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(norm).eval()
    torch.testing.assert_close(apply_norm(synced, x), apply_norm(norm.eval(), x))


def test_patch_merging_order():
    layer = PatchMerging(2, 4)
    layer.norm = nn.Identity()
    layer.reduction = nn.Identity()
    x = torch.arange(2 * 3 * 2.0).view(1, 2, 3, 2)
    merged = layer(x)
    assert merged.shape == (1, 1, 2, 8)
    assert merged[0, 0, 0].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]
    assert merged[0, 0, 1].tolist() == [4, 5, 10, 11, 0, 0, 0, 0]


def test_gated_mlp():
    mlp = Mlp(4, 6, gated=True)
    x = torch.randn(2, 3, 3, 4)
    value, gate = mlp.fc1(x).split(6, dim=-1)
    torch.testing.assert_close(mlp(x), mlp.fc2(value * F.gelu(gate)))
    assert VMamba(dict(SECOND, gated_mlp=True))(torch.randn(1, 3, 32, 32))[3].isfinite().all()


@pytest.mark.parametrize("gated", [False, True])
def test_large_mlp_computes_blocks_of_pixels(gated, monkeypatch):
    mlp = Mlp(4, 6, gated=gated)
    x = torch.randn(2, 5, 7, 4)
    whole = mlp(x)  # with gradients, all pixels at once
    monkeypatch.setattr("mmvssm.models.layers.basic.MLP_BLOCK", 6 * 8)
    seen = []
    compute = mlp._compute
    monkeypatch.setattr(mlp, "_compute", lambda block: seen.append(len(block)) or compute(block))
    torch.testing.assert_close(mlp(x), whole)
    assert seen == [2]
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), whole)
    assert seen == [2, 8, 8, 8, 8, 8, 8, 8, 8, 6]
    # a hook meets the map as it is
    shapes = []
    mlp.fc1.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    with torch.no_grad():
        mlp(x)
    assert shapes == [x.shape]


def test_mlp_without_hidden_values_is_its_bias():
    with pytest.warns(UserWarning, match="zero-element"):
        mlp = Mlp(4, 0)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            y = mlp(torch.randn(2, 3, 3, 4))
        torch.testing.assert_close(y, mlp.fc2.bias.expand(2, 3, 3, 4))


def test_traced_mlp_takes_any_number_of_pixels(monkeypatch):
    monkeypatch.setattr("mmvssm.models.layers.basic.MLP_BLOCK", 6 * 8)
    mlp, graphs = Mlp(4, 6), []
    maps = [torch.randn(batch, 5, 7, 4) for batch in (2, 3, 4)]
    compiled = torch.compile(
        mlp, dynamic=True, backend=lambda graph, _: graphs.append(graph) or graph.forward
    )
    with torch.no_grad():
        traced = torch.jit.trace(mlp, maps[0])
        for x in maps:
            torch.testing.assert_close(traced(x), mlp(x))
            torch.testing.assert_close(compiled(x), mlp(x))
    assert len(graphs) == 1


def test_blocks_without_mixer():
    model = VMamba(dict(SECOND, mixer=None))
    assert not any(isinstance(m, SS2D) for m in model.modules())
    assert model(torch.randn(1, 3, 32, 32))[3].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(arch=dict(SECOND, mixer=dict(gates=1))), "mixer has unknown.*'gates'; known.*gate,"),
        (dict(arch=dict(SECOND, stem="linear")), "stem must be one of 'patch', 'conv'"),
        (dict(arch=dict(SECOND, downsample="pool")), "downsample must be one of 'patch_merge'"),
        (dict(arch=dict(SECOND, norm="gn")), "norm must be one of 'ln', 'ln2d', 'bn'"),
        (dict(arch=dict(SECOND, mlp_act="tanh")), "mlp_act must be one of 'silu'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        VMamba(**arguments)


@pytest.mark.parametrize("patch_size", [1, 2, 3, 5, 8, 16])
def test_stem_of_two_convolutions_takes_patches_of_four_pixels(patch_size):
    with pytest.raises(ValueError, match=f"patch_size must be 4 for a 'conv' stem.*{patch_size}"):
        VMamba(dict(SECOND, patch_size=patch_size))


@pytest.mark.parametrize("side", [32, 35])
@pytest.mark.parametrize(
    ("stem", "patch_size"), [("conv", 4), *(("patch", size) for size in (1, 2, 3, 4, 5, 8, 16))]
)
def test_maps_and_positions_have_the_stride_that_patch_size_says(stem, patch_size, side):
    fields = dict(stem=stem, patch_size=patch_size, patch_norm=False, pos_embed=True)
    arch = dict(SECOND, depths=(1,), **fields)
    model = VMamba(arch, img_size=(side, 48), out_indices=(0,)).eval()
    (out,) = model(torch.randn(1, 3, side, 48))
    rounded = -(-side // 4) if stem == "conv" else side // patch_size
    assert out.shape[2:] == model.pos_embed.shape[2:] == (rounded, 48 // patch_size)
    # the second row of the map sees the image rows that follow from the stride
    image = torch.zeros(1, 3, side, 48, requires_grad=True)
    model.patch_embed(image)[0, 1, 1, 0].backward()
    rows = image.grad.abs().amax((0, 1, 3)).nonzero().flatten().tolist()
    margin = 3 if stem == "conv" else 0
    assert rows == list(range(patch_size - margin, 2 * patch_size))


def test_position_embedding_needs_a_pixel():
    arch = dict(SECOND, stem="patch", patch_size=8, pos_embed=True)
    message = r"img_size must be large enough .* one pixel, got \(7, 32\)"
    with pytest.raises(ValueError, match=message):
        VMamba(arch, img_size=(7, 32))
