"""What every backbone promises, whatever its family."""

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmvssm.models
from mmvssm.families import FAMILIES as DECLARED
from mmvssm.models.layers import RMSNorm, SelectiveScans
from mmvssm.ops import backend
from mmvssm.registry import MODELS
from mps_rules import LikeMPS

SIZES = [(72, 104), (91, 65), (33, 32)]


@dataclass(frozen=True)
class Family:
    """A small network of a family, to build in many ways.

    Attributes:
        type: Its registered name.
        arch: Its fields.
        first_arch: First name that the message on an unknown one lists.
        smallest: Side of the smallest image.
        options: Further arguments.
    """

    type: str
    arch: dict
    first_arch: str
    smallest: int
    options: dict = field(default_factory=dict)

    @property
    def backbone(self):
        return getattr(mmvssm.models, self.type)

    def build(self, **options):
        arch = {**self.arch, **options.pop("arch", {})}
        return self.backbone(arch, **{**self.options, **options})


@dataclass(frozen=True)
class Hierarchical(Family):
    """Four stages.

    Attributes:
        stem: ``'floor'`` or ``'ceil'``: how a side is divided by the stem's four.
        downsample: Likewise by each of the later twos.
    """

    stem: str = "floor"
    downsample: str = "ceil"
    bad_arguments = (
        (dict(arch=dict(depths=(1, 1))), "arch needs the field 'embed_dims'"),
        (dict(embed_dims=(8, 16)), "embed_dims must name 4 widths"),
        (dict(out_indices=(0, 4)), r"out_indices must hold stages 0 to 3.*\(0, 4\)"),
        (dict(out_indices=()), "out_indices must hold stages 0 to 3"),
        (dict(depths=4), "depths must list the blocks of every stage, got 4"),
        (dict(depths=(1, 2.5, 1, 1)), r"depths\[1\] must be a whole number of at least 0, got 2.5"),
        (
            dict(downsample="patch_merge", odd_size="stretch"),
            "odd_size must be one of 'pad', 'crop'",
        ),
    )

    def shapes(self, size):
        halve = {"floor": lambda side: side // 2, "ceil": lambda side: (side + 1) // 2}
        size = [halve[self.stem](halve[self.stem](side)) for side in size]
        for i in range(4):
            yield (16 * 2**i, *size)
            size = [halve[self.downsample](side) for side in size]

    @staticmethod
    def blocks(model):
        return [block for stage in model.stages for block in stage.blocks]

    @staticmethod
    def frozen(frozen_stages):
        names = [f"stages.{i}." for i in range(frozen_stages + 1)]
        names += [f"norm{i}." for i in range(frozen_stages + 1)]
        return [*names, "patch_embed."] if frozen_stages >= 0 else []


@dataclass(frozen=True)
class Windowed(Hierarchical):
    """Four stages, two of them with windows, whose stem and downsampling are fixed."""

    bad_arguments = (
        *Hierarchical.bad_arguments[:-1],
        (dict(num_heads=(4,)), r"num_heads must name .* the 2 stages with windows, got \(4,\)"),
        (dict(num_heads=(3, 4)), "num_heads must divide the 64 channels, got 3"),
        (dict(window_sizes=7), "window_sizes must name .* the 2 stages with windows, got 7"),
        (dict(window_sizes=(7, 0)), r"window_sizes\[1\] must be a whole number of at least 1"),
        (dict(stem_dims=0), "stem_dims must be a whole number of at least 1, got 0"),
    )


@dataclass(frozen=True)
class Plain(Family):
    """Four layers on patches of eight pixels, whose outputs are taken as maps."""

    pads: bool = False
    bad_arguments = (
        (dict(arch=dict(embed_dims=8)), "arch needs the field 'num_layers'"),
        (dict(out_indices=(0, 4)), r"out_indices must hold layers -4 to 3.*\(0, 4\)"),
        (dict(out_indices=()), "out_indices must hold layers -4 to 3"),
        (dict(num_layers=0), "num_layers must be a whole number of at least 1, got 0"),
        (dict(patch_size=0), "patch_size must be a whole number of at least 1, got 0"),
        (dict(stride=0), "stride must be a whole number of at least 1, got 0"),
        (dict(out_type="pooled"), "out_type must be one of 'cls_token'.*'pooled'"),
        (dict(cls_token="tail"), "cls_token must be one of 'none'.*'tail'"),
        (dict(norm="bn"), "norm must be one of 'rms', 'ln'"),
        (dict(odd_size="stretch"), "odd_size must be one of 'crop', 'pad'"),
        (dict(img_size=4), "img_size must be at least 8.*4"),
    )

    def shapes(self, size):
        return [(16, *((side + 7 * self.pads) // 8 for side in size))] * 4

    @staticmethod
    def blocks(model):
        return list(model.layers)

    @staticmethod
    def frozen(frozen_stages):
        names = [f"layers.{i}." for i in range(frozen_stages + 1)]
        names += [f"norm{i}." for i in range(frozen_stages + 1)]
        embeddings = ["patch_embed.", "pos_embed", "cls_token"]
        return [*names, *embeddings] if frozen_stages >= 0 else []


VMAMBA = dict(embed_dims=16, depths=(1, 1, 2, 1), mlp_ratio=2)
FIRST_VMAMBA = dict(
    embed_dims=16,
    depths=(1, 1, 2, 1),
    stem="patch",
    downsample="patch_merge",
    mlp_ratio=0,
    mixer=dict(d_state=2, ssm_ratio=2.0, gate=True, conv_bias=True, force_fp32=True),
)
V3_MSVMAMBA = dict(
    embed_dims=16,
    depths=(1, 1, 2, 1),
    stem="conv",
    downsample="conv3",
    mlp_norm="post",
    mixer=dict(ssm_ratio=1.0, norm_position="after_sum", upsample="nearest", full_first=True),
)
MICRO = dict(embed_dims=16, depths=(1, 1, 2, 1), mixer=dict(d_state=2))
WINDOWS = dict(embed_dims=16, depths=(1, 1, 3, 1), stem_dims=8, mixer=dict(d_state=2))
PLAIN = dict(embed_dims=16, num_layers=4, patch_size=8, mixer=dict(d_state=2))
MAPS = dict(out_indices=(0, 1, 2, 3), out_type="featmap", img_size=64)
FAMILIES = {
    "VMamba": Hierarchical("VMamba", VMAMBA, "v0-tiny", 1, stem="ceil"),
    "VMamba v0": Hierarchical("VMamba", FIRST_VMAMBA, "v0-tiny", 4),
    "VMamba bn": Hierarchical("VMamba", dict(VMAMBA, norm="bn"), "v0-tiny", 1, stem="ceil"),
    "VMamba crop": Hierarchical(
        "VMamba", FIRST_VMAMBA, "v0-tiny", 32, dict(odd_size="crop"), downsample="floor"
    ),
    "EfficientVMamba": Hierarchical("EfficientVMamba", MICRO, "tiny", 4),
    "MSVMamba": Hierarchical("MSVMamba", dict(MICRO, mixer={}), "nano", 4),
    "MSVMamba v3": Hierarchical("MSVMamba", V3_MSVMAMBA, "nano", 1, stem="ceil"),
    "LocalVMamba": Hierarchical(
        "LocalVMamba", MICRO, "tiny", 4, dict(directions=[("h", "v_flip", "w2", "w7_flip")] * 5)
    ),
    "MambaVision": Windowed("MambaVision", WINDOWS, "tiny", 1, stem="ceil"),
    "MambaVision scaled": Windowed(
        "MambaVision",
        dict(WINDOWS, layer_scale=1e-5, conv_layer_scale=1e-5, window_sizes=(4, 3)),
        "tiny",
        1,
        dict(out_norm="bn"),
        stem="ceil",
    ),
    "LocalVMamba search": Hierarchical("LocalVMamba", MICRO, "tiny", 4, dict(directions="search")),
    "Vim": Plain("Vim", PLAIN, "tiny", 8, MAPS),
    "Vim first release": Plain(
        "Vim", PLAIN, "tiny", 8, dict(MAPS, cls_token="none", rope=True, divide_out=False)
    ),
    "LocalVim": Plain("LocalVim", PLAIN, "tiny", 8, MAPS, pads=True),
    "LocalVim middle": Plain(
        "LocalVim", PLAIN, "tiny", 8, dict(MAPS, cls_token="middle", rope=False), pads=True
    ),
}
#: One of each type.
TYPES = {name: family for name, family in FAMILIES.items() if name == family.type}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
types = pytest.mark.parametrize("family", TYPES.values(), ids=TYPES.keys())
hierarchical = pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=name) for name, f in FAMILIES.items() if isinstance(f, Hierarchical)],
)


def named_gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@families
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 2])
def test_feature_maps(family, size, batch):
    model = family.build().eval()
    with torch.no_grad():
        maps = model(torch.randn(batch, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(batch, *shape) for shape in family.shapes(size)]
    assert all(m.is_contiguous() and m.isfinite().all() for m in maps)


@types
def test_apple_gpus_take_every_step(family):
    model = family.build()
    with backend("torch"), LikeMPS() as rules:
        maps = model(torch.randn(2, 3, 32, 32))
        sum(m.square().mean() for m in maps).backward()
    assert "index_put" in rules.seen
    assert all(t.dtype != torch.float64 for t in model.state_dict().values())


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
def test_one_out_index(family):
    options = {**family.options, "out_indices": 2}
    (alone,) = family.backbone(family.arch, **options).eval()(torch.randn(1, 3, 64, 64))
    assert alone.shape[1:] == list(family.shapes((64, 64)))[2]


@hierarchical
def test_out_indices_do_not_change_the_maps(family):
    model = family.build().eval()
    some = family.build(out_indices=(1, 2)).eval()
    kept = {k: v for k, v in model.state_dict().items() if k.split(".")[0] not in "norm0 norm3"}
    some.load_state_dict(kept)
    image = torch.randn(1, 3, 32, 32)
    for got, expected in zip(some(image), model(image)[1:3]):
        torch.testing.assert_close(got, expected)


@families
@pytest.mark.parametrize("last", [0, 1, 2])
def test_nothing_is_built_behind_the_last_out_index(family, last):
    """Every parameter gets a gradient, and the weights of a whole network can still be loaded."""
    whole = family.build(out_indices=(last, 3)).eval()
    model = family.build(out_indices=(last,)).eval()
    own_norm = f"norm{last}." if isinstance(family, Hierarchical) else "norm0."
    weights = {
        k: v for k, v in whole.state_dict().items() if k[:4] != "norm" or k.startswith(own_norm)
    }
    model.load_state_dict(weights)
    image = torch.randn(2, 3, 32, 32)
    (out,) = model(image)
    torch.testing.assert_close(out, whole(image)[0])
    out.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert len(model.state_dict()) < len(whole.state_dict()) - 4


def train_one_step(rank, store, outcomes):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for name, family in FAMILIES.items():
        for last in (0, 1, 2):
            torch.manual_seed(0)
            model = nn.parallel.DistributedDataParallel(family.build(out_indices=(last,)))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(2):  # the second waits for all gradients of the first
                torch.manual_seed(2 * step + rank)
                optimizer.zero_grad()
                sum(out.square().mean() for out in model(torch.randn(1, 3, 32, 32))).backward()
                optimizer.step()
            total = sum(p.double().sum() for p in model.parameters())
            outcomes[f"{name} {last} {rank}"] = total.item()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_networks_that_end_early(tmp_path):
    """With DistributedDataParallel as it is by default: find_unused_parameters=False."""
    with torch.multiprocessing.Manager() as manager:
        outcomes = manager.dict()
        torch.multiprocessing.start_processes(
            train_one_step, (f"file://{tmp_path}/store", outcomes), nprocs=2, start_method="fork"
        )
        done = dict(outcomes)
    assert len(done) == 2 * 3 * len(FAMILIES)
    for key, value in done.items():
        assert value == done[f"{key[:-1]}0"], key


#: What the libraries' stock schedules spare, and what mmpretrain's AdamW for Swin does.
STOCK = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)
#: Names of parameters of two or more axes that the authors' code spares as well, as custom_keys.
SPARED = {
    name: dict(decay_mult=0.0)
    for name in ("A_logs", "Ds", "dt_projs_bias", "pos_embed", "cls_token", "merge.weights")
}


def decayed(model, **paramwise_cfg):
    """Names of the parameters that a schedule decays."""
    optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.05)
    cfg = dict(type="OptimWrapper", optimizer=optimizer, paramwise_cfg=paramwise_cfg)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(names)
    decayed = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    return {name for name, decay in decayed.items() if decay}


@families
def test_groups_of_weight_decay(family):
    """Of every parameter, by the rules of MMEngine that stock schedules use."""
    model = family.build(arch=dict(pos_embed=True) if family.type == "VMamba" else {})
    every = dict(model.named_parameters())
    norms, kernels = set(), set()
    for module_name, module in model.named_modules():
        own = {f"{module_name}.{name}" for name, _ in module.named_parameters(recurse=False)}
        if isinstance(module, (nn.LayerNorm, RMSNorm, _BatchNorm)):
            norms |= own
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            kernels |= {name for name in own if name.endswith(".weight")}
    biases = {name for name in every if name.endswith(".bias")}
    assert len(norms) >= 2 and decayed(model) == every.keys()
    assert decayed(model, norm_decay_mult=0.0) == every.keys() - norms
    assert decayed(model, bias_decay_mult=0.0) == every.keys() - biases

    tables = {name for name in every if name.endswith(tuple(SPARED))}
    projections = {name for name in every if name.endswith(("x_proj_weight", "dt_projs_weight"))}
    # a table of the scan has several axes, which is all that MMEngine sees
    assert any(name.endswith("A_logs") for name in tables) and projections
    stock = decayed(model, **STOCK)
    assert stock == kernels | projections | {name for name in tables if every[name].ndim > 1}
    # and the groups of docs/options.md
    assert decayed(model, **STOCK, custom_keys=SPARED) == kernels | projections


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
    frozen = tuple(family.frozen(frozen_stages))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    for name, module in model.named_modules():
        if name and not list(module.children()):
            assert module.training != f"{name}.".startswith(frozen), name
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
    rates = [block.drop_path.drop_prob for block in family.blocks(model)]
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
@pytest.mark.parametrize("size", [(64, 64), (64, 32), (72, 37)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(family, dtype, size):
    model = family.build(drop_path_rate=0).train()
    image = torch.randn(2, 3, *size)
    expected = model(image)
    with torch.autocast("cpu", dtype):
        got = model(image)
    for a, b in zip(got, expected):
        assert (a.float() - b).norm() < 0.05 * b.norm()
    sum(out.float().square().mean() for out in got).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@types
def test_compiles_as_one_graph(family):
    model = family.build().eval()
    image = torch.randn(1, 3, 64, 48)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for got, expected in zip(compiled(image), model(image)):
            torch.testing.assert_close(got, expected)


class Wrapper(BaseModule):
    """A model whose own init_cfg reaches into its backbone, as the libraries' models may."""

    def __init__(self, backbone):
        super().__init__(init_cfg=dict(type="Constant", layer="Linear", val=7.0, bias=7.0))
        self.backbone = backbone


@hierarchical
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
            stem_of_batch_norms = family.type == "MambaVision" and "patch_embed" in name
            assert module.eps == (1e-4 if stem_of_batch_norms else 1e-5)
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert torch.equal(module.weight, convs[name]), name
            assert fan_in**-0.5 * 0.8 < module.weight.abs().max() <= fan_in**-0.5, name
        if isinstance(module, SelectiveScans):
            decays = module.A_logs.exp().view(-1, module.d_state)
            states = torch.arange(1.0, module.d_state + 1)
            torch.testing.assert_close(decays, states.expand_as(decays))
            assert (module.Ds == 1).all()
            if module.ssm_init == "linear":
                assert (module.dt_projs_bias == 0).all()
                for weight in (module.x_proj_weight, module.dt_projs_weight):
                    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
                continue
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
    for arguments, message in [
        (dict(arch="giant"), f"arch must be one of '{family.first_arch}', .*got 'giant'"),
        (dict(arch=3), "arch must be a name or a dict, got int"),
        (dict(arch=dict(family.arch, width=3)), "arch has unknown field.*'width'; known are"),
        (dict(arch=dict(family.arch, mixer=dict(gates=1))), "mixer has unknown.*'gates'; known"),
        (dict(arch=dict(family.arch, mixer=5)), "mixer must be a dict, got 5"),
        (dict(frozen_stages=4), "frozen_stages must be from -1 to 3, got 4"),
        *family.bad_arguments,
    ]:
        options = {name: value for name, value in family.options.items() if name not in arguments}
        fields = set(arguments) & set(family.backbone.arch_defaults)
        arch = dict(family.arch, **{name: arguments[name] for name in fields})
        others = {name: value for name, value in arguments.items() if name not in fields}
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            family.backbone(**{**options, "arch": arch, **others})


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
    assert {family.type for family in DECLARED.values()} == {
        f"mmvssm.{family.type}" for family in FAMILIES.values()
    }
    declared = {family.backbone for family in DECLARED.values()}
    assert declared == {cls for cls in MODELS.module_dict.values() if hasattr(cls, "arch_settings")}
