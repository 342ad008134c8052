"""The arch that a file stores is data: nothing is imported, and little is built."""

import resource
import sys

import pytest

from mmvssm.checkpoint import convert
from mmvssm.checkpoint.arch import declared_backbones
from mmvssm.models import Vim, VMamba

TINY = dict(embed_dims=16, depths=(1, 1, 1, 1))


def file_of(model, **arch):
    """Return a training checkpoint whose stored config names another arch."""
    fields = ", ".join(f"{name}={value!r}" for name, value in arch.items())
    text = f"model = dict(backbone=dict(type='mmvssm.{type(model).__name__}', {fields}))"
    state_dict = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    return dict(meta=dict(cfg=text), state_dict=state_dict)


@pytest.mark.parametrize("kind", ["this.X", "evil_mod.X", "mmvssm.this.X", "mmdet.this.X"])
def test_types_are_not_imported(kind, tmp_path, monkeypatch):
    (tmp_path / "evil_mod.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = file_of(VMamba(TINY), arch=dict(TINY, mixer=dict(type=kind)))
    with pytest.raises(ValueError, match="arch"):
        convert(checkpoint)
    assert "this" not in sys.modules and "evil_mod" not in sys.modules


@pytest.mark.parametrize(
    ("model", "arch"),
    [
        (VMamba, dict(arch=dict(TINY, mixer=dict(scan=["w60000"])))),
        (VMamba, dict(arch=dict(TINY, mixer=dict(scan=["w999"] * 400)))),
        (Vim, dict(arch=dict(embed_dims=16, num_layers=1), out_indices=[0] * 100_000)),
        (Vim, dict(arch=dict(embed_dims=16, num_layers=1), out_type="raw" * 100_000)),
    ],
)
def test_absurd_fields_take_no_memory(model, arch):
    small = TINY if model is VMamba else dict(embed_dims=16, num_layers=1)
    checkpoint = file_of(model(small), **arch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError):
        convert(checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_stored_arch_is_taken_if_it_fits():
    checkpoint = file_of(VMamba(TINY, out_indices=(3,)), arch=TINY, out_indices=(3,))
    (found,) = declared_backbones(checkpoint)
    assert found.arch == TINY and found.options == dict(out_indices=(3,))
    assert convert(checkpoint).found.arch == TINY
