"""Guarantees of every backbone, whatever its family: maps of any image, and arguments."""

import subprocess
import sys

import pytest
import torch

from abilities import WHOLE_GRAPHS
from mmvssm.families import FAMILIES as DECLARED
from mmvssm.ops import backend
from mmvssm.registry import MODELS
from mps_rules import LikeMPS, functions_on_mps
from small_families import FAMILIES, families, hierarchical, types

SIZES = [(72, 104), (91, 65), (33, 32)]


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
    if "pos_embed" in model.state_dict() and "upsample_bicubic2d" not in functions_on_mps():
        pytest.skip("this torch cannot resample a position embedding on Apple's GPUs")
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
    """Every position of the last map sees the complete image: the scans reach everywhere."""
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
def test_state_dict_round_trip(family):
    model, other = family.build().eval(), family.build().eval()
    image = torch.randn(1, 3, 32, 40)
    assert not torch.equal(model(image)[3], other(image)[3])
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model(image), other(image)))


@types
def test_compiles_as_one_graph(family):
    model = family.build().eval()
    image = torch.randn(1, 3, 64, 48)
    compiled = torch.compile(model, fullgraph=WHOLE_GRAPHS, backend="eager")
    with torch.no_grad():
        for got, expected in zip(compiled(image), model(image)):
            torch.testing.assert_close(got, expected)


@families
def test_bad_arguments(family):
    for arguments, message in [
        (dict(arch="giant"), f"arch must be one of '{family.first_arch}', .*got 'giant'"),
        (dict(arch=3), "arch must be a name or a dict, got int"),
        (dict(arch=dict(family.arch, width=3)), "arch has unknown field.*'width'; known fields"),
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
