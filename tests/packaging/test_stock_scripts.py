"""The libraries' own train scripts train configs that inherit ours from outside."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

DATA_ROOTS = {
    "mmpretrain": ("demo/vmamba-micro_digits-cls.py", "digits-cls"),
    "mmdet": ("demo/mask-rcnn_vmamba-micro_digits-det.py", "digits-det"),
    "mmseg": ("demo/vmamba-micro_upernet_digits-seg.py", "digits-seg"),
}
MINE = """
_base_ = __import__('mmvssm').config_path({base!r})
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root={root!r})
)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1)
param_scheduler = []
val_dataloader = val_evaluator = val_cfg = None
default_hooks = dict(
    checkpoint=dict(_delete_=True, type='CheckpointHook', by_epoch=False, interval=1),
    logger=dict(interval=1),
)
log_processor = dict(by_epoch=False)
"""


@pytest.fixture(scope="session")
def demo_data(wheel_python, output, tmp_path_factory):
    """The demo data, written by the installed tool."""
    folder = tmp_path_factory.mktemp("data")
    code = "import mmvssm; print(mmvssm.__path__[0])"
    tools = Path(output(wheel_python, "-c", code, cwd=folder).strip(), ".mim", "tools")
    output(wheel_python, tools / "make_demo_data.py", folder, cwd=folder)
    return folder


@pytest.mark.parametrize("library", DATA_ROOTS)
def test_trains_one_iteration(library, wheel_python, output, demo_data, tmp_path):
    base, data = DATA_ROOTS[library]
    (tmp_path / "mine.py").write_text(MINE.format(base=base, root=f"{demo_data / data}/"))
    package = Path(importlib.util.find_spec(library).origin).parent
    script = package / ".mim" / "tools" / "train.py"
    output(wheel_python, script, "mine.py", "--work-dir", "out", cwd=tmp_path)
    assert (tmp_path / "out" / "iter_1.pth").is_file()
    (scalars,) = tmp_path.glob("out/*/vis_data/scalars.json")
    (first,) = map(json.loads, scalars.read_text().splitlines())
    assert first["step"] == 1 and math.isfinite(first["loss"]) and first["loss"] > 0
