"""Guarantees of every backbone in training: initial weights, gradients, groups, modes."""

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from abilities import HALF_PRECISIONS
from mmvssm.models.layers import RMSNorm, SelectiveScans
from small_families import FAMILIES, Hierarchical, families, hierarchical


def named_gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@families
@pytest.mark.parametrize("last", [0, 1, 2])
def test_nothing_is_built_behind_the_last_out_index(family, last):
    """Every parameter gets a gradient, and the weights of a full network can still be loaded."""
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


#: Exemptions from weight decay in the libraries' schedules and in mmpretrain's AdamW for Swin.
STOCK = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)
#: custom_keys of parameters of two or more axes that the authors' code also exempts.
SPARED = {
    name: dict(decay_mult=0.0)
    for name in ("A_logs", "Ds", "dt_projs_bias", "pos_embed", "cls_token", "merge.weights")
}


def decayed(model, **paramwise_cfg):
    """Return the names of the parameters to which a schedule applies weight decay."""
    optimizer = dict(type="AdamW", lr=1e-3, weight_decay=0.05)
    cfg = dict(type="OptimWrapper", optimizer=optimizer, paramwise_cfg=paramwise_cfg)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(names)
    decayed = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    return {name for name, decay in decayed.items() if decay}


@families
def test_groups_of_weight_decay(family):
    """Every parameter has the right weight decay by the MMEngine rules of stock schedules."""
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
    # a table of the scan has several axes, and MMEngine looks at nothing else
    assert any(name.endswith("A_logs") for name in tables) and projections
    stock = decayed(model, **STOCK)
    assert stock == kernels | projections | {name for name in tables if every[name].ndim > 1}
    # and the groups of docs/options.md
    assert decayed(model, **STOCK, custom_keys=SPARED) == kernels | projections


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
    """Gradients do not change, nor do statistics of batch norms, though blocks run twice."""
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
    for module in model.modules():  # makes drop path the only difference between the modes
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
@pytest.mark.parametrize("dtype", HALF_PRECISIONS)
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
