"""Fixtures: the tool in an empty folder, and a small classifier under both sets of names."""

from functools import partial

import pytest
import torch

from conversion import META, MICRO, TOOL, product_of
from mmvssm.models import VMamba


@pytest.fixture
def run(run_here):
    return partial(run_here, TOOL)


@pytest.fixture
def made(run):
    """Runs the tool, which must succeed without warnings; returns the file and the output."""

    def make(*arguments):
        status, output, errors = run(*arguments)
        assert (status, errors) == (0, "")
        return product_of(output), output

    return make


@pytest.fixture(scope="module")
def classifier():
    """Our names of a small VMamba classifier, random in all its weights."""
    backbone = VMamba(MICRO, out_indices=3)
    for value in backbone.parameters():
        torch.nn.init.normal_(value, std=0.1)
    head = {"head.fc.weight": torch.randn(3, 64), "head.fc.bias": torch.randn(3)}
    return {**backbone.state_dict(prefix="backbone."), **head}


@pytest.fixture
def released(made, classifier, tmp_path):
    """The same classifier as a file of the authors, made by the tool."""
    torch.save(dict(state_dict=classifier, meta=META), "ours.pth")
    content = torch.load(made("ours.pth", "authors.pth", "--reverse")[0], weights_only=True)
    torch.save(dict(content, meta=META), "released.pth")
    return content
