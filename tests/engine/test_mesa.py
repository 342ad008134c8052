"""MESAHook: the loss that it adds, from which epoch on, and what it needs."""

import json

import pytest
import torch
import torch.nn.functional as F
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmvssm.engine import MESAHook

AVERAGE = dict(type="EMAHook", momentum=0.3)


class Classifier(BaseModel):
    """Just enough of a classifier to be trained by a runner."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, inputs, mode="tensor"):
        logits = self.head(self.norm(inputs))
        return logits if mode == "tensor" else dict(loss=logits.square().mean())


class Recorder(Hook):
    """Records the inputs of the third epoch's loss."""

    priority = "LOWEST"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        (hook,) = (hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
        assert not hook.ema_model.module.training
        self.models = []
        for model in (runner.model, hook.ema_model.module):
            self.models.append(Classifier().eval())
            self.models[-1].load_state_dict(model.state_dict())
        self.inputs = data_batch["inputs"]


def train(folder, hooks):
    """Trains for three epochs of one step; returns the logged lines and the model."""
    batch = DataLoader(
        [dict(inputs=torch.randn(6)) for _ in range(8)],
        batch_size=8,
        sampler=DefaultSampler(range(8), shuffle=False),
    )
    runner = Runner(
        Classifier(),
        work_dir=str(folder),
        train_dataloader=batch,
        train_cfg=dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=1.0)),
        default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
        custom_hooks=hooks,
        experiment_name=folder.name,
    )
    runner.train()
    (file,) = folder.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in file.read_text().splitlines()], runner.model


def test_loss(tmp_path):
    recorder = Recorder()
    hook = dict(type="mmvssm.MESAHook", weight=0.5, begin=2)
    lines, model = train(tmp_path, [AVERAGE, hook, recorder])
    assert ["loss_mesa" in line for line in lines] == [False, False, True]
    own, average = recorder.models
    p = (own.train()(recorder.inputs) / 3).softmax(1)
    q = (average(recorder.inputs) / 3).softmax(1)
    expected = 0.5 * 50 * (q * (q / p).log()).sum(1).mean()
    assert lines[2]["loss_mesa"] == pytest.approx(expected.item(), rel=1e-4) and expected > 1e-3
    assert lines[2]["loss"] > lines[2]["loss_mesa"]
    assert not model._forward_hooks and not model.head._forward_hooks


def test_gradients_are_those_of_the_trained_weights(tmp_path):
    """Unlike a step without the loss, a step with it leads towards the average."""
    distances = []
    for number, weight in enumerate((0.0, 0.05)):
        recorder, folder = Recorder(), tmp_path / str(number)
        torch.manual_seed(0)
        hook = dict(type="mmvssm.MESAHook", weight=weight, begin=2)
        _, model = train(folder, [AVERAGE, hook, recorder])
        own, target = (m.eval()(recorder.inputs).softmax(1) for m in (model, recorder.models[1]))
        distances.append(F.mse_loss(own, target).item())
    assert distances[1] < distances[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(weight=-1, begin=0), "weight must be at least 0, got -1"),
        (dict(weight=1, begin=-1), "begin must be an epoch, at least 0, got -1"),
        (dict(weight=1, begin=0, temperature=0), "temperature must be above 0, got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MESAHook(**options)


def test_needs_an_average(tmp_path):
    with pytest.raises(ValueError, match="MESAHook needs an EMAHook among custom_hooks, got none"):
        train(tmp_path, [dict(type="mmvssm.MESAHook", weight=1, begin=0)])
