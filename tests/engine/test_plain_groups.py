"""PlainGroupsHook: plain dicts in place of configs, and the same training."""

from types import SimpleNamespace

import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapperDict, StepLR, build_optim_wrapper
from torch import nn

from mmvssm.engine import PlainGroupsHook


def wrapper(network):
    """An optimizer as a runner builds it from a config, with a group for each parameter."""
    optimizer = dict(type="SGD", lr=0.5, weight_decay=0.0)
    paramwise = dict(bias_decay_mult=0.0)
    cfg = ConfigDict(type="OptimWrapper", optimizer=optimizer, paramwise_cfg=paramwise)
    return build_optim_wrapper(network, cfg)


def test_groups_become_plain_and_keep_their_values():
    network = nn.Linear(2, 2)
    optim_wrapper = wrapper(network)
    scheduler = StepLR(optim_wrapper, step_size=1, gamma=0.1, by_epoch=False)
    before = optim_wrapper.optimizer.param_groups
    assert {type(group) for group in before} == {ConfigDict}  # what the hook is for
    names = [set(group) for group in before]
    PlainGroupsHook().before_train(SimpleNamespace(optim_wrapper=optim_wrapper))
    groups = optim_wrapper.optimizer.param_groups
    assert {type(group) for group in groups} == {dict}
    assert [set(group) for group in groups] == names
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert {id(parameter) for parameter in parameters} == {id(p) for p in network.parameters()}
    scheduler.step()
    assert [group["lr"] for group in groups] == [0.05, 0.05]
    weight = network.weight.detach().clone()
    optim_wrapper.update_params(network.weight.sum())
    torch.testing.assert_close(network.weight, weight - 0.05)


def test_several_optimizers():
    wrappers = OptimWrapperDict(a=wrapper(nn.Linear(2, 2)), b=wrapper(nn.Linear(2, 2)))
    PlainGroupsHook().before_train(SimpleNamespace(optim_wrapper=wrappers))
    for each in wrappers.values():
        assert {type(group) for group in each.optimizer.param_groups} == {dict}
