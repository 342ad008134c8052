"""Receptive fields agree with the gradients that define them, for every family."""

import pytest
import torch

from mmvssm.analysis import ReceptiveField, draw_receptive_fields, receptive_field
from mmvssm.models import VMamba
from mmvssm.models.backbones.plain import PlainBackbone


def test_field_is_the_gradient_of_the_middle(demo):
    backbone = demo(out_norm=False)
    if isinstance(backbone, PlainBackbone):
        backbone.out_type = "featmap"
    images = [torch.randn(1, 3, 40, 56), torch.randn(1, 3, 40, 56)]
    expected = torch.zeros(40, 56)
    for image in images:
        x = image.clone().requires_grad_(True)
        features = backbone(x)[-1][0]
        middle = features[:, features.shape[1] // 2, features.shape[2] // 2]
        (gradient,) = torch.autograd.grad(middle.relu().sum(), x)
        expected += gradient[0].clamp(min=0).sum(0) / 2
    field = receptive_field(backbone, images)
    assert field.num_images == 2 and field.num_skipped == 0
    assert torch.allclose(field.contribution.float(), expected, atol=1e-6 * expected.max())
    assert field.contribution.count_nonzero() > 100


def test_a_patch_sees_itself():
    backbone = VMamba(dict(embed_dims=8, depths=(0,), stem="patch"), out_indices=(0,)).eval()
    field = receptive_field(backbone, [torch.randn(2, 3, 16, 24)])
    assert field.num_images == 2
    seen = field.contribution.nonzero()
    assert seen.min(0).values.tolist() == [8, 12] and seen.max(0).values.tolist() == [11, 15]


def test_images_without_finite_gradients_are_skipped():
    backbone = VMamba(dict(embed_dims=8, depths=(0,)), out_indices=(0,)).eval()
    good, bad = torch.randn(1, 3, 16, 16), torch.full((1, 3, 16, 16), torch.nan)
    field = receptive_field(backbone, [bad, good])
    assert (field.num_images, field.num_skipped) == (1, 1)
    assert torch.equal(field.contribution, receptive_field(backbone, [good]).contribution)
    with pytest.raises(ValueError, match="no gradients are finite"):
        receptive_field(backbone, [bad])
    with pytest.raises(ValueError, match="there are no images"):
        receptive_field(backbone, [])
    with pytest.raises(ValueError, match=r"the same size, got \(16, 16\) and \(16, 20\)"):
        receptive_field(backbone, [good, torch.randn(1, 3, 16, 20)])


def test_areas_of_an_even_map():
    field = ReceptiveField(torch.ones(20, 20), 1)
    # 3x3 of 400 are 2.25 %, 13x13 are 42 %, 15x15 are 56 %
    assert vars(field.area(0.02)) == dict(radius=1, side=3, ratio=9 / 400)
    assert field.area(0.5).side == 15
    assert field.area(0.99) is None
    # rows 0 to 5 and columns of a radius of 6, of 5 to both sides of row 3 five are there
    wide = ReceptiveField(torch.ones(6, 20), 1).area(0.5)
    assert vars(wide) == dict(radius=5, side=11, ratio=6 * 11 / 120)


def test_display_ends_at_one():
    shown = ReceptiveField(torch.tensor([[16.0, 1.0], [0.0, 81.0]]), 1).display(0.25)
    assert torch.allclose(shown, torch.tensor([[2 / 3, 1 / 3], [0.0, 1.0]]))


def test_places_may_stay_empty():
    field = ReceptiveField(torch.rand(8, 12), 1)
    figure = draw_receptive_fields([[field, field], [field, None]], ["a", "b"], ["x", "y"])
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 0]
