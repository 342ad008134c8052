"""Stochastic depth and layer scale, which need no library other than torch."""

import pytest
import torch

from mmvssm.models.layers import DropPath, LayerScale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_drops_whole_samples_and_keeps_the_mean(dtype):
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3, dtype=dtype)
    y = DropPath(0.2)(x)
    assert y.dtype == dtype and y.shape == x.shape
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0, (x[0, 0, 0] / 0.8).item()}
    assert (y[:, 0, 0] == 0).float().mean() == pytest.approx(0.2, abs=0.02)


def test_rests_at_evaluation():
    x = torch.rand(4, 3)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_all_branches_cannot_be_dropped():
    with pytest.raises(ValueError, match="drop_prob must be at least 0 and below 1, got 1"):
        DropPath(1)


def test_layer_scale_multiplies_channels():
    layer = LayerScale(3, 0.5)
    layer.weight.data[1] = 2
    assert torch.equal(layer(torch.ones(2, 4, 3)), torch.tensor([0.5, 2, 0.5]).expand(2, 4, 3))
