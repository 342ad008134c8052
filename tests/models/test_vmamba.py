import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import nn

from mmvssm.checkpoint import map_state_dict
from mmvssm.models import SS2D, VMamba
from mmvssm.models.layers import Mlp, PatchMerging, apply_norm, build_norm

KEYS = Path(__file__).parents[1] / "golden" / "vmamba" / "keys"
FIRST = dict(
    embed_dims=16,
    depths=(1, 1, 2, 1),
    stem="patch",
    downsample="merge",
    mlp_ratio=0,
    mixer=dict(d_state=2, ssm_ratio=2.0, gate=True, conv_bias=True, force_fp32=True),
)
SECOND = dict(embed_dims=16, depths=(1, 1, 2, 1), mlp_ratio=2)
ARCHS = {"first": FIRST, "second": SECOND}
NAMES = {
    "v0-tiny": "vmambav0_tiny",
    "v0-small": "vmambav0_small",
    "v0-base": "vmambav0_base",
    "tiny-s2l5": "vmambav2_tiny_s2l5",
    "small-s2l15": "vmambav2_small_s2l15",
    "base-s2l15": "vmambav2_base_s2l15",
    "tiny-s1l8": "vmambav2_tiny_s1l8",
    "small-s1l20": "vmambav2_small_s1l20",
    "base-s1l20": "vmambav2_base_s1l20",
}


def shapes(maps):
    return [tuple(m.shape[1:]) for m in maps]


@pytest.mark.parametrize("arch", NAMES)
def test_keys_shapes_and_parameter_counts_of_the_releases(arch):
    with torch.device("meta"):
        model = VMamba(arch, out_indices=(3,))
    ours = {f"backbone.{key}": tuple(value.shape) for key, value in model.state_dict().items()}
    ours |= {
        "head.fc.weight": (1000, model.embed_dims[-1]),
        "head.fc.bias": (1000,),
    }
    files = [KEYS / f"{NAMES[arch]}.json"]
    if arch.startswith("v0"):
        files.append(KEYS / f"{NAMES[arch]}_renamed.json")
    for file in files:
        listing = json.loads(file.read_text())
        released = {
            key: torch.empty(shape, device="meta") for key, shape, _ in listing["state_dict"]
        }
        mapped = map_state_dict(released, "vmamba", "classification")
        assert {key: tuple(value.shape) for key, value in mapped.items()} == ours
        count = sum(p.numel() for p in model.parameters()) + 1000 * (model.embed_dims[-1] + 1)
        assert count == listing["num_params"]


def test_default_arguments():
    with torch.device("meta"):
        model = VMamba()
    assert len(model.stages[2].blocks) == 9 and model.embed_dims == [96, 192, 384, 768]
    assert model.out_indices == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("arch", "odd_size", "image", "sides"),
    [
        ("first", "pad", (72, 104), [(18, 26), (9, 13), (5, 7), (3, 4)]),
        ("first", "crop", (72, 104), [(18, 26), (9, 13), (4, 6), (2, 3)]),
        ("second", "pad", (72, 104), [(18, 26), (9, 13), (5, 7), (3, 4)]),
        ("first", "pad", (91, 65), [(22, 16), (11, 8), (6, 4), (3, 2)]),
        ("first", "crop", (91, 65), [(22, 16), (11, 8), (5, 4), (2, 2)]),
        ("second", "pad", (91, 65), [(23, 17), (12, 9), (6, 5), (3, 3)]),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_feature_maps(arch, odd_size, image, sides, batch):
    model = VMamba(ARCHS[arch], odd_size=odd_size).eval()
    with torch.no_grad():
        maps = model(torch.randn(batch, 3, *image))
    assert shapes(maps) == [(16 * 2**i, *side) for i, side in enumerate(sides)]
    assert all(m.is_contiguous() and m.shape[0] == batch and m.isfinite().all() for m in maps)


@pytest.mark.parametrize(
    ("arch", "odd_size", "smallest"),
    [
        (FIRST, "pad", 4),
        (FIRST, "crop", 32),
        (SECOND, "pad", 1),
        (dict(SECOND, downsample="conv2"), "pad", 29),
        (dict(SECOND, downsample="merge"), "crop", 29),
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


def test_wrong_input():
    with pytest.raises(ValueError, match=r"x must be \(B, 3, H, W\), got \(1, 4, 32, 32\)"):
        VMamba(SECOND)(torch.randn(1, 4, 32, 32))


def test_other_channels_of_the_image():
    assert VMamba(SECOND, in_channels=5)(torch.randn(1, 5, 32, 32))[0].shape == (1, 16, 8, 8)


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


def test_out_indices_do_not_change_the_maps():
    model = VMamba(SECOND).eval()
    some = VMamba(SECOND, out_indices=(1, 2)).eval()
    some.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k.split(".")[0] not in ("norm0", "norm3")}
    )
    image = torch.randn(1, 3, 32, 32)
    for got, expected in zip(some(image), model(image)[1:3]):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("arch", ARCHS)
def test_state_dict_round_trip(arch):
    model, other = VMamba(ARCHS[arch]).eval(), VMamba(ARCHS[arch]).eval()
    image = torch.randn(1, 3, 32, 40)
    assert not torch.equal(model(image)[3], other(image)[3])
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model(image), other(image)))


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2])
def test_frozen_stages(frozen_stages):
    model = VMamba(dict(SECOND, norm="bn", pos_embed=True), frozen_stages=frozen_stages)
    model.train()
    frozen = [f"stages.{i}." for i in range(frozen_stages + 1)]
    frozen += [f"norm{i}." for i in range(frozen_stages + 1)]
    frozen += ["patch_embed.", "pos_embed"] if frozen_stages >= 0 else []
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
    assert model.patch_embed.norm1.training == (frozen_stages < 0)
    for i, stage in enumerate(model.stages):
        norms = [m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all(norm.training == (i > frozen_stages) for norm in norms)
    sum(out.mean() for out in model(torch.randn(2, 3, 32, 32))).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}


def test_norm_eval_keeps_running_statistics():
    image = torch.randn(2, 3, 32, 32)
    for norm_eval in (True, False):
        model = VMamba(dict(SECOND, norm="bn"), norm_eval=norm_eval).train()
        before = {k: v.clone() for k, v in model.named_buffers() if k.endswith("running_mean")}
        model(image)
        after = dict(model.named_buffers())
        assert all(torch.equal(after[k], v) == norm_eval for k, v in before.items())


@pytest.mark.parametrize("arch", ARCHS)
def test_checkpointing_gives_the_same_gradients(arch):
    plain = VMamba(ARCHS[arch], drop_path_rate=0.5).train()
    saving = VMamba(ARCHS[arch], drop_path_rate=0.5, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 32, 32)
    for model in (plain, saving):
        torch.manual_seed(1)
        sum(out.square().mean() for out in model(image)).backward()
    recomputed = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(recomputed[name].grad, parameter.grad, msg=name)


def test_checkpointing_runs_blocks_twice():
    calls = []
    model = VMamba(SECOND, with_cp=True).train()
    model.stages[2].blocks[1].mixer.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(1, 3, 32, 32))[-1].sum().backward()
    assert len(calls) == 2


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arch", ARCHS)
def test_autocast(arch, dtype):
    model = VMamba(ARCHS[arch], drop_path_rate=0).train()
    image = torch.randn(2, 3, 32, 32)
    expected = model(image)
    with torch.autocast("cpu", dtype):
        got = model(image)
    for a, b in zip(got, expected):
        assert (a.float() - b).norm() < 0.03 * b.norm()
    sum(out.float().square().mean() for out in got).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Wrapper(BaseModule):
    """A model whose own init_cfg reaches into its backbone, as the libraries' models may."""

    def __init__(self, backbone):
        super().__init__(init_cfg=dict(type="Constant", layer="Linear", val=7.0, bias=7.0))
        self.backbone = backbone


def test_initialisation():
    backbone = VMamba(dict(SECOND, embed_dims=64, pos_embed=True))
    convs = {n: m.weight.clone() for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)}
    for mixer in backbone.modules():
        if isinstance(mixer, SS2D):
            nn.init.zeros_(mixer.dt_projs_bias)
            nn.init.ones_(mixer.A_logs)
    Wrapper(backbone).init_weights()
    weights = torch.cat(
        [m.weight.flatten() for m in backbone.modules() if isinstance(m, nn.Linear)]
    )
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(weights.mean().item()) < 1e-4 and weights.abs().max() <= 0.1
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert (module.bias == 0).all(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
            assert module.eps == 1e-5
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert torch.equal(module.weight, convs[name]), name
            assert fan_in**-0.5 * 0.8 < module.weight.abs().max() <= fan_in**-0.5, name
        if isinstance(module, SS2D):
            assert (module.A_logs == 0).all() and (module.Ds == 1).all()  # log(1)
            steps = F.softplus(module.dt_projs_bias)
            assert steps.min() >= 9e-4 and 0.05 < steps.max() <= 0.101
    assert backbone.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)


def test_pretrained_weights_win_over_initial_values(tmp_path):
    source = VMamba(SECOND)
    file = tmp_path / "weights.pth"
    torch.save({f"backbone.{k}": v for k, v in source.state_dict().items()}, file)
    init_cfg = dict(type="Pretrained", checkpoint=str(file), prefix="backbone.")
    model = VMamba(SECOND, init_cfg=init_cfg)
    model.init_weights()
    loaded = model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in source.state_dict().items())


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
        torch.testing.assert_close(
            model(x)[0], model.norm0(expected).permute(0, 3, 1, 2).contiguous()
        )


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


def test_blocks_without_mixer():
    model = VMamba(dict(SECOND, mixer=None))
    assert not any(isinstance(m, SS2D) for m in model.modules())
    assert model(torch.randn(1, 3, 32, 32))[3].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(arch="v0_tiny"), "arch must be one of 'v0-tiny'.*'base-s1l20', got 'v0_tiny'"),
        (dict(arch=3), "arch must be a name or a dict, got int"),
        (dict(arch=dict(SECOND, width=3)), "arch has unknown field.*'width'; known are embed_dims"),
        (dict(arch=dict(depths=(1, 1))), "arch needs the field 'embed_dims'"),
        (dict(arch=dict(SECOND, mixer=dict(gates=1))), "mixer has unknown.*'gates'; known.*gate,"),
        (dict(arch=dict(SECOND, embed_dims=(8, 16))), "embed_dims must name 4 widths"),
        (dict(arch=dict(SECOND, stem="linear")), "stem must be one of 'patch', 'conv'"),
        (dict(arch=dict(SECOND, downsample="pool")), "downsample must be one of 'merge'"),
        (dict(arch=dict(SECOND, norm="gn")), "norm must be one of 'ln', 'ln2d', 'bn'"),
        (dict(arch=dict(SECOND, mlp_act="tanh")), "mlp_act must be one of 'silu'"),
        (dict(arch=FIRST, odd_size="stretch"), "odd_size must be one of 'pad', 'crop'"),
        (dict(arch=SECOND, out_indices=(0, 4)), r"out_indices must hold stages 0 to 3.*\(0, 4\)"),
        (dict(arch=SECOND, out_indices=()), "out_indices must hold stages 0 to 3"),
        (dict(arch=SECOND, frozen_stages=4), "frozen_stages must be from -1 to 3, got 4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        VMamba(**arguments)


def test_built_by_the_libraries_without_custom_imports():
    code = (
        "import importlib, sys, torch\n"
        "registries = [importlib.import_module(f'{n}.registry').MODELS for n in sys.argv[1:]]\n"
        "assert 'mmvssm' not in sys.modules\n"
        "for registry in registries:\n"
        "    with torch.device('meta'):\n"
        "        model = registry.build(dict(type='mmvssm.VMamba', arch='tiny-s1l8'))\n"
        "    print(registry.scope, type(model).__module__)"
    )
    libraries = ["mmpretrain", "mmdet", "mmseg"]
    command = [sys.executable, "-c", code, *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = [line.split() for line in done.stdout.splitlines()]
    assert built == [[name, "mmvssm.models.backbones.vmamba"] for name in libraries]
