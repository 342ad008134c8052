"""DirectionSearchHook: what it reports, when, and to whom."""

import json
import math

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmvssm.engine import DirectionSearchHook
from mmvssm.models import SS2D, LocalVim, LocalVMamba
from mmvssm.models.layers import SEARCH_DIRECTIONS, RouteMerge

MICRO = dict(arch=dict(embed_dims=8, depths=(1, 1), mixer=dict(d_state=2)), out_indices=(1,))


class Classifier(BaseModel):
    """Just enough of a model to be trained by a runner."""

    def __init__(self, backbone):
        super().__init__()
        self.unrelated = SS2D(8)
        self.backbone = backbone

    def forward(self, *images, mode="tensor"):
        return dict(loss=self.backbone(torch.stack(images))[-1].square().mean())


@pytest.fixture
def train(tmp_path, request):
    """Trains a backbone for five iterations with the hook; returns what it logged."""

    def train(backbone, **options):
        images = DataLoader(
            [torch.randn(3, 32, 32) for _ in range(5)],
            batch_size=1,
            sampler=DefaultSampler(range(5), shuffle=False),
            collate_fn=list,
        )
        runner = Runner(
            Classifier(backbone),
            work_dir=str(tmp_path),
            train_dataloader=images,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=1e-3)),
            default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
            custom_hooks=[dict(type="mmvssm.DirectionSearchHook", **options)],
            experiment_name=f"{request.node.name}-{id(backbone)}",
        )
        runner.train()
        (file,) = tmp_path.glob("*/vis_data/scalars.json")
        (log,) = tmp_path.glob("*/*.log")
        scalars = [json.loads(line) for line in file.read_text().splitlines()]
        return scalars, log.read_text()

    return train


def make_decided(backbone):
    """Give the layers known preferences; the layer's number tells them apart."""
    merges = [module for module in backbone.modules() if isinstance(module, RouteMerge)]
    for layer, merge in enumerate(merges):
        preference = torch.tensor([0.0, 1, 0, 2, 0, 0, 0, 3]).roll(layer)
        nn.init.zeros_(merge.weights).add_(preference.view(8, 1, 1, 1))
    return len(merges)


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: LocalVMamba(directions="search", **MICRO),
        lambda: LocalVim(
            dict(embed_dims=16, num_layers=2), img_size=32, directions="search", out_type="raw"
        ),
    ],
    ids=["LocalVMamba", "LocalVim"],
)
def test_reports(train, backbone):
    backbone = backbone()
    with torch.no_grad():
        assert make_decided(backbone) == 2
    scalars, log = train(backbone, interval=2, top=3)
    reports = [line for line in scalars if "directions/layer00/h" in line]
    assert [report["step"] for report in reports] == [2, 4, 5]
    names = [f"directions/layer0{layer}/{name}" for layer in (0, 1) for name in SEARCH_DIRECTIONS]
    assert all(set(names) <= report.keys() for report in reports)

    # a learning rate this small leaves what was set
    weights = torch.tensor([0.0, 1, 0, 2, 0, 0, 0, 3])
    expected = torch.cat([weights.softmax(0), weights.roll(1).softmax(0)])
    got = torch.tensor([reports[-1][name] for name in names])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-2)

    entropy = -(expected[:8] * expected[:8].log()).sum().item()
    lines = [line for line in scalars if "loss" in line]
    assert ["direction_entropy" in line for line in lines] == [False, True, True, True, True]
    assert lines[-1]["direction_entropy"] == pytest.approx(entropy, abs=0.01)

    assert log.count("Directions at iteration") == 3
    last = log[log.index("Directions at iteration 5, mean entropy") :].splitlines()
    assert last[1].startswith("  layer  0: h_flip 0.0") and "v_flip 0.2" in last[1]
    assert "w7_flip 0.57" in last[1] and "w2" not in last[1]
    assert last[2].startswith("  layer  1: h 0.57")


def test_even_probabilities_have_the_entropy_of_eight(train):
    train(LocalVMamba(directions="search", **MICRO), interval=5)
    entropy = MessageHub.get_current_instance().get_scalar("train/direction_entropy").current()
    assert entropy == pytest.approx(math.log(8), abs=1e-4)


def test_network_that_does_not_search(train):
    with pytest.raises(ValueError, match=r"no layer that searches.*directions='search'"):
        train(LocalVMamba(**MICRO))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(interval=0), "interval must be at least 1, got 0"),
        (dict(top=9), "top must be from 1 to 8, got 9"),
        (dict(top=0), "top must be from 1 to 8, got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DirectionSearchHook(**options)


def test_registered():
    assert isinstance(HOOKS.build(dict(type="mmvssm.DirectionSearchHook")), DirectionSearchHook)
