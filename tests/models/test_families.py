"""What every backbone promises, whatever its family."""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmvssm.models
from mmvssm.models.layers import SelectiveScans

SIZES = [(72, 104), (91, 65), (33, 32)]


@dataclass(frozen=True)
class Family:
    """A small network of a family, to build in many ways.

    Attributes:
        type: Its registered name.
        arch: Its fields.
        stem: ``'floor'`` or ``'ceil'``: how a side is divided by the stem's four.
        downsample: Likewise by each of the later twos.
        smallest: Side of the smallest image.
        first_arch: First name that the message on an unknown one lists.
        options: Further arguments.
    """

    type: str
    arch: dict
    stem: str
    downsample: str
    smallest: int
    first_arch: str
    options: dict = field(default_factory=dict)

    def build(self, **options):
        arch = {**self.arch, **options.pop("arch", {})}
        return getattr(mmvssm.models, self.type)(arch, **{**self.options, **options})

    def sides(self, side):
        halve = {"floor": lambda s: s // 2, "ceil": lambda s: (s + 1) // 2}
        side = halve[self.stem](halve[self.stem](side))
        yield side
        for _ in range(3):
            side = halve[self.downsample](side)
            yield side


VMAMBA = dict(embed_dims=16, depths=(1, 1, 2, 1), mlp_ratio=2)
FIRST_VMAMBA = dict(
    embed_dims=16,
    depths=(1, 1, 2, 1),
    stem="patch",
    downsample="merge",
    mlp_ratio=0,
    mixer=dict(d_state=2, ssm_ratio=2.0, gate=True, conv_bias=True, force_fp32=True),
)
FAMILIES = {
    "VMamba": Family("VMamba", VMAMBA, "ceil", "ceil", 1, "v0-tiny"),
    "VMamba v0": Family("VMamba", FIRST_VMAMBA, "floor", "ceil", 4, "v0-tiny"),
    "VMamba bn": Family("VMamba", dict(VMAMBA, norm="bn"), "ceil", "ceil", 1, "v0-tiny"),
    "VMamba crop": Family(
        "VMamba", FIRST_VMAMBA, "floor", "floor", 32, "v0-tiny", dict(odd_size="crop")
    ),
    "EfficientVMamba": Family(
        "EfficientVMamba",
        dict(embed_dims=16, depths=(2, 1, 2, 1), mixer=dict(d_state=2)),
        "floor",
        "ceil",
        4,
        "tiny",
    ),
    "MSVMamba": Family(
        "MSVMamba", dict(embed_dims=16, depths=(1, 1, 2, 1)), "floor", "ceil", 4, "nano"
    ),
    "MSVMamba v3": Family(
        "MSVMamba",
        dict(
            embed_dims=16,
            depths=(1, 1, 2, 1),
            stem="conv",
            downsample="conv3",
            mlp_norm="post",
            mixer=dict(ssm_ratio=1.0, norm_of="sum", upsample="nearest", full_index=0),
        ),
        "ceil",
        "ceil",
        1,
        "nano",
    ),
    "LocalVMamba": Family(
        "LocalVMamba",
        dict(embed_dims=16, depths=(1, 1, 2, 1), mixer=dict(d_state=2)),
        "floor",
        "ceil",
        4,
        "tiny",
        dict(directions=[("h", "v_flip", "w2", "w7_flip")] * 5),
    ),
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def named_gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@families
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 2])
def test_feature_maps(family, size, batch):
    model = family.build().eval()
    with torch.no_grad():
        maps = model(torch.randn(batch, 3, *size))
    heights, widths = (list(family.sides(side)) for side in size)
    expected = [(batch, *s) for s in zip(model.embed_dims, heights, widths)]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(m.is_contiguous() and m.isfinite().all() for m in maps)


@families
def test_smallest_images(family):
    model, smallest = family.build().eval(), family.smallest
    with torch.no_grad():
        assert model(torch.randn(1, 3, smallest, smallest))[-1].shape[2:] == (1, 1)
    if smallest > 1:
        message = f"at least {smallest}x{smallest} pixels.*got 64x{smallest - 1}"
        with pytest.raises(ValueError, match=message):
            model(torch.randn(1, 3, 64, smallest - 1))


@families
def test_images_of_a_batch_do_not_meet(family):
    model = family.build().eval()
    images = torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        together = model(images)
        for i in range(3):
            for whole, alone in zip(together, model(images[i : i + 1])):
                torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@families
def test_every_pixel_counts(family):
    """The last map's every position sees the whole image: the scans reach everywhere."""
    model = family.build(out_indices=(3,)).eval()
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    (last,) = model(image)
    last[..., 1, 0].backward(torch.randn(1, last.shape[1]))
    seen = image.grad.abs().amax(1)[0].view(4, 16, 4, 16).amax((1, 3))
    assert (seen > 0).all(), seen


@families
def test_wrong_input(family):
    with pytest.raises(ValueError, match=r"x must be \(B, 3, H, W\), got \(1, 4, 32, 32\)"):
        family.build()(torch.randn(1, 4, 32, 32))
    with pytest.raises(ValueError, match=r"x must be \(B, 3, H, W\), got \(3, 32, 32\)"):
        family.build()(torch.randn(3, 32, 32))


@families
def test_other_channels_of_the_image(family):
    assert family.build(in_channels=5)(torch.randn(2, 5, 32, 32))[0].shape[0] == 2


@families
def test_out_indices_do_not_change_the_maps(family):
    model = family.build().eval()
    some = family.build(out_indices=(1, 2)).eval()
    kept = {k: v for k, v in model.state_dict().items() if k.split(".")[0] not in "norm0 norm3"}
    some.load_state_dict(kept)
    image = torch.randn(1, 3, 32, 32)
    for got, expected in zip(some(image), model(image)[1:3]):
        torch.testing.assert_close(got, expected)


@families
def test_state_dict_round_trip(family):
    model, other = family.build().eval(), family.build().eval()
    image = torch.randn(1, 3, 32, 40)
    assert not torch.equal(model(image)[3], other(image)[3])
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model(image), other(image)))


@families
@pytest.mark.parametrize("frozen_stages", [-1, 0, 2])
def test_frozen_stages(family, frozen_stages):
    model = family.build(frozen_stages=frozen_stages)
    model.train()
    frozen = [f"stages.{i}." for i in range(frozen_stages + 1)]
    frozen += [f"norm{i}." for i in range(frozen_stages + 1)]
    frozen += ["patch_embed."] if frozen_stages >= 0 else []
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
    for name, module in model.named_modules():
        if name and not list(module.children()):
            assert module.training != f"{name}.".startswith(tuple(frozen)), name
    sum(out.mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}


@families
@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval_keeps_running_statistics(family, norm_eval):
    model = family.build(norm_eval=norm_eval).train()
    before = {k: v.clone() for k, v in model.named_buffers() if k.endswith("running_mean")}
    model(torch.randn(2, 3, 64, 64))
    after = dict(model.named_buffers())
    assert all(torch.equal(after[k], v) == norm_eval for k, v in before.items())


@families
def test_checkpointing_changes_nothing(family):
    """Neither gradients nor, though blocks run twice, the statistics of batch norms."""
    plain = family.build(drop_path_rate=0.5).train()
    saving = family.build(drop_path_rate=0.5, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 64, 64)
    for model in (plain, saving):
        torch.manual_seed(1)
        sum(out.square().mean() for out in model(image)).backward()
    recomputed = named_gradients(saving)
    for name, gradient in named_gradients(plain).items():
        torch.testing.assert_close(recomputed[name], gradient, msg=name)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(saving.named_buffers())[name], buffer, msg=name)


@families
def test_checkpointing_runs_blocks_twice(family):
    model = family.build(with_cp=True).train()
    calls = {}
    for name, module in model.named_modules():
        if isinstance(module, SelectiveScans):
            calls[name] = []
            module.register_forward_pre_hook(lambda *_, name=name: calls[name].append(1))
    model(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert calls and all(len(runs) == 2 for runs in calls.values())


@families
def test_drop_path_grows_linearly_and_acts_in_training_only(family):
    model = family.build(drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.4 * i / (len(rates) - 1) for i in range(len(rates))])
    image = torch.randn(2, 3, 64, 64)
    model.eval()
    assert torch.equal(model(image)[3], model(image)[3])
    for module in model.modules():  # leaves drop path as the only difference of the modes
        module.training = not isinstance(module, _BatchNorm)
    assert not torch.equal(model(image)[3], model(image)[3])
    without = family.build(drop_path_rate=0.0)
    without.load_state_dict(model.state_dict())
    without.train()
    for module in without.modules():
        module.training = not isinstance(module, _BatchNorm)
    torch.testing.assert_close(without(image)[3], model.eval()(image)[3])


@families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(family, dtype):
    model = family.build(drop_path_rate=0).train()
    image = torch.randn(2, 3, 64, 64)
    expected = model(image)
    with torch.autocast("cpu", dtype):
        got = model(image)
    for a, b in zip(got, expected):
        assert (a.float() - b).norm() < 0.05 * b.norm()
    sum(out.float().square().mean() for out in got).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Wrapper(BaseModule):
    """A model whose own init_cfg reaches into its backbone, as the libraries' models may."""

    def __init__(self, backbone):
        super().__init__(init_cfg=dict(type="Constant", layer="Linear", val=7.0, bias=7.0))
        self.backbone = backbone


@families
def test_initialisation(family):
    backbone = family.build(arch=dict(embed_dims=64))
    convs = {n: m.weight.clone() for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)}
    for mixer in backbone.modules():
        if isinstance(mixer, SelectiveScans):
            nn.init.zeros_(mixer.dt_projs_bias)
            nn.init.constant_(mixer.A_logs, 9.0)
    Wrapper(backbone).init_weights()
    weights = [m.weight.flatten() for m in backbone.modules() if isinstance(m, nn.Linear)]
    weights = torch.cat(weights)
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(weights.mean().item()) < 1e-4 and weights.abs().max() <= 0.1
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert (module.bias == 0).all(), name
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name
            assert module.eps == 1e-5
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert torch.equal(module.weight, convs[name]), name
            assert fan_in**-0.5 * 0.8 < module.weight.abs().max() <= fan_in**-0.5, name
        if isinstance(module, SelectiveScans):
            decays = module.A_logs.exp().view(-1, module.d_state)
            states = torch.arange(1.0, module.d_state + 1)
            torch.testing.assert_close(decays, states.expand_as(decays))
            assert (module.Ds == 1).all()
            steps = nn.functional.softplus(module.dt_projs_bias)
            assert steps.min() >= 9e-4 and 0.05 < steps.max() <= 0.101


@families
def test_pretrained_weights_win_over_initial_values(family, tmp_path):
    source = family.build()
    file = tmp_path / "weights.pth"
    torch.save({f"backbone.{k}": v for k, v in source.state_dict().items()}, file)
    init_cfg = dict(type="Pretrained", checkpoint=str(file), prefix="backbone.")
    model = family.build(init_cfg=init_cfg)
    model.init_weights()
    loaded = model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in source.state_dict().items())


@families
def test_bad_arguments(family):
    backbone = getattr(mmvssm.models, family.type)
    for arguments, message in [
        (dict(arch="giant"), f"arch must be one of '{family.first_arch}', .*got 'giant'"),
        (dict(arch=3), "arch must be a name or a dict, got int"),
        (dict(arch=dict(family.arch, width=3)), "arch has unknown field.*'width'; known are"),
        (dict(arch=dict(depths=(1, 1))), "arch needs the field 'embed_dims'"),
        (dict(arch=dict(family.arch, embed_dims=(8, 16))), "embed_dims must name 4 widths"),
        (dict(out_indices=(0, 4)), r"out_indices must hold stages 0 to 3.*\(0, 4\)"),
        (dict(out_indices=()), "out_indices must hold stages 0 to 3"),
        (dict(frozen_stages=4), "frozen_stages must be from -1 to 3, got 4"),
        (
            dict(arch=dict(family.arch, downsample="merge"), odd_size="stretch"),
            "odd_size must be one of 'pad', 'crop'",
        ),
    ]:
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            backbone(**{"arch": family.arch, **arguments})


def test_built_by_the_libraries_without_custom_imports():
    types = sorted({family.type for family in FAMILIES.values()})
    code = (
        "import importlib, sys, torch\n"
        "types = sys.argv[1].split(',')\n"
        "registries = [importlib.import_module(f'{n}.registry').MODELS for n in sys.argv[2:]]\n"
        "assert 'mmvssm' not in sys.modules\n"
        "for registry in registries:\n"
        "    for name in types:\n"
        "        with torch.device('meta'):\n"
        "            model = registry.build(dict(type='mmvssm.' + name))\n"
        "        print(registry.scope, type(model).__name__, type(model).__module__)"
    )
    libraries = ["mmpretrain", "mmdet", "mmseg"]
    command = [sys.executable, "-c", code, ",".join(types), *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = [line.split() for line in done.stdout.splitlines()]
    assert [(scope, name) for scope, name, _ in built] == [
        (library, name) for library in libraries for name in types
    ]
    assert all(module.startswith("mmvssm.models.backbones.") for _, _, module in built)


def test_every_registered_backbone_is_tested_here():
    registered = {
        name
        for name in mmvssm.models.__all__
        if hasattr(getattr(mmvssm.models, name), "arch_settings")
    }
    assert registered == {family.type for family in FAMILIES.values()}
    assert all(MODELS.get(f"mmvssm.{name}") for name in registered)
