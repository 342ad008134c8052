"""Selection of averaged weights and of weights as trained in a file."""

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mmvssm.checkpoint import find_weights, select_weights
from mmvssm.checkpoint.reading import Inert

ONLINE = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(1)}
EMA = {"a.weight": torch.ones(2), "a.bias": torch.ones(1)}
COUNT = {"n_averaged": torch.tensor(3)}  # of torch.optim.swa_utils.AveragedModel


def prefixed(weights, prefix="module."):
    return {prefix + name: value for name, value in weights.items()}


def from_ema_hook():
    """Return a model and its average as EMAHook saves them: exchanged."""
    averaged = ExponentialMovingAverage(nn.Linear(2, 1)).state_dict()
    return dict(
        meta={},
        state_dict=dict(EMA),
        ema_state_dict={"steps": averaged["steps"], **prefixed(ONLINE)},
    )


FILES = {
    "VMamba, MSVMamba, Vim": dict(model=ONLINE, model_ema=EMA, optimizer={}, epoch=3),
    "EfficientVMamba, LocalMamba": dict(model=ONLINE, ema_model=prefixed(EMA, "module.module.")),
    "timm": dict(state_dict=ONLINE, state_dict_ema=EMA),
    "parallel training": dict(model=prefixed(ONLINE), model_ema=prefixed(EMA)),
    "MMEngine": from_ema_hook(),
}


@pytest.mark.parametrize("checkpoint", FILES.values(), ids=FILES)
def test_both_kinds(checkpoint):
    for kind, expected in (("ema", EMA), ("online", ONLINE), ("auto", EMA)):
        weights = select_weights(checkpoint, kind)
        assert weights.kind == ("ema" if kind == "auto" else kind)
        assert weights.tensors.keys() == expected.keys()
        assert all(torch.equal(weights.tensors[name], expected[name]) for name in expected)
    assert [weights.kind for weights in find_weights(checkpoint)] == ["ema", "online"]


ONE_KIND = {
    "no wrapping": (ONLINE, "online"),
    "model": (dict(model=ONLINE, ema_model=None), "online"),
    "state_dict": (dict(state_dict=ONLINE, ema_state_dict=None), "online"),
    "both keys": (dict(state_dict=ONLINE, model="a name"), "online"),
    "of a parallel model": (prefixed(ONLINE), "online"),
    "the average of a parallel model": (dict(state_dict=prefixed(EMA, "module.module.")), "ema"),
    "the same without a dict": (prefixed(EMA, "module.module."), "ema"),
    "of a model wrapped twice": (dict(model=prefixed(ONLINE, "module.module.")), "online"),
    "compiled": (dict(model=prefixed(ONLINE, "module._orig_mod.")), "online"),
    "an average alone": (dict(model_ema=EMA), "ema"),
    "an average of torch": (dict(model_ema={**prefixed(EMA), **COUNT}), "ema"),
    "an average of torch as trained weights": (dict(model={**prefixed(EMA), **COUNT}), "ema"),
    "an average of torch without a dict": ({**prefixed(EMA), **COUNT}, "ema"),
    "a compiled average of torch": (
        dict(model=prefixed({**prefixed(EMA), **COUNT}, "_orig_mod.")),
        "ema",
    ),
    "MMEngine's average alone": (dict(ema_state_dict=prefixed(EMA)), "ema"),
    "converted": (dict(state_dict=EMA, meta=dict(mmvssm=dict(weights="ema"))), "ema"),
}


@pytest.mark.parametrize(("checkpoint", "kind"), ONE_KIND.values(), ids=ONE_KIND)
def test_one_kind(checkpoint, kind):
    (weights,) = find_weights(checkpoint)
    assert weights.kind == kind and weights.tensors.keys() == ONLINE.keys()
    assert select_weights(checkpoint).tensors.keys() == weights.tensors.keys()
    assert select_weights(checkpoint, kind).place == weights.place
    (other,) = {"ema", "online"} - {kind}
    with pytest.raises(ValueError, match=f"the file has no {other} weights; it has {kind} weights"):
        select_weights(checkpoint, other)


def test_profilers_counters_and_what_is_no_tensor_are_left_out():
    entry = {**ONLINE, "total_ops": torch.zeros(1), "a.total_params": torch.zeros(1), "epoch": 4}
    assert select_weights(dict(model=entry)).tensors.keys() == ONLINE.keys()


UNREAD = {
    "an object": (Inert("timm.ModelEma"), "an object of timm.ModelEma in place of tensors"),
    "another depth": (dict(module=EMA), "a dict without tensors in place of tensors"),
    "an unread tensor": ({**EMA, "b.weight": Inert("torch.sparse")}, "more than tensors: b.weight"),
    "two networks": ({**EMA, **prefixed(EMA)}, "a.weight twice"),
}


@pytest.mark.parametrize(("entry", "kind"), UNREAD.values(), ids=UNREAD)
def test_averages_that_cannot_be_read_are_not_passed_over(entry, kind):
    """A defect of one kind of weights does not prevent reading the other."""
    checkpoint = dict(model=ONLINE, model_ema=entry)
    for which in ("auto", "ema"):
        message = f"'model_ema' holds {kind}.*; or use the online weights"
        with pytest.raises(ValueError, match=message):
            select_weights(checkpoint, which)
    assert select_weights(checkpoint, "online").tensors.keys() == ONLINE.keys()
    with pytest.raises(ValueError, match=f"'model_ema' holds {kind.partition(' in place')[0]}"):
        select_weights(dict(model_ema=entry))


def test_a_whole_network():
    """A pickled module is read only from a trusted file."""
    network = nn.Linear(2, 3)
    assert select_weights(dict(model=copy.deepcopy(network))).tensors.keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (dict(optimizer=dict(state={}), epoch=3), "the state of an optimizer but no weights"),
        (dict(state={0: {}}, param_groups=[]), "the state of an optimizer but no weights"),
        (dict(model=None, epoch=3), "no weights at its top or under .*; it holds model, epoch"),
        ({}, "it holds nothing"),
        (dict(model=COUNT), "'model' .* holds only counters, no weights: n_averaged"),
        (dict(model={"module.a": torch.ones(1), "a": torch.ones(1)}), "'model' holds a twice"),
    ],
)
def test_no_weights(checkpoint, message):
    with pytest.raises(ValueError, match=message):
        select_weights(checkpoint)


def test_unknown_kind():
    with pytest.raises(ValueError, match="weights must be auto, ema or online, got 'best'"):
        select_weights(ONLINE, "best")
