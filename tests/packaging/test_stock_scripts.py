"""The libraries' own training scripts train outside configs that inherit from ours."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from mmengine.config import Config

BY_PATH = "__import__('mmvssm').config_path('demo/{}.py')"
BY_NAME = "[__import__('mmvssm') and 'mmvssm::demo/{}.py']"
# Few runs cover every library, family, form of inheritance and kind of installation.
RUNS = {
    "mmpretrain": ("vmamba-micro_digits-cls", "cls", BY_PATH, "wheel"),
    "mmdet": ("mask-rcnn_vmamba-micro_digits-det", "det", BY_PATH, "wheel"),
    "mmseg": ("vim-micro_upernet_digits-seg", "seg", BY_NAME, "editable"),
    "mmpretrain, EfficientVMamba": (
        "efficient-vmamba-micro_digits-cls", "cls", BY_NAME, "editable",
    ),
}  # fmt: skip
MINE = """
_base_ = {base}
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
__import__('mmvssm').add_options(globals(), 'gradient-checkpointing', 'channels-last')
"""


@pytest.fixture(scope="session")
def demo_data(wheel_python, output, tmp_path_factory):
    """The demo data, written by the installed tool."""
    folder = tmp_path_factory.mktemp("data")
    code = "import mmvssm; print(mmvssm.__path__[0])"
    tools = Path(output(wheel_python, "-c", code, cwd=folder).strip(), ".mim", "tools")
    output(wheel_python, tools / "make_demo_data.py", folder, cwd=folder)
    return folder


@pytest.mark.parametrize("run", RUNS)
def test_trains_one_iteration(run, request, output, demo_data, tmp_path):
    name, task, form, install = RUNS[run]
    python = request.getfixturevalue(f"{install}_python")
    root = f"{demo_data / f'digits-{task}'}/"
    (tmp_path / "mine.py").write_text(MINE.format(base=form.format(name), root=root))
    package = Path(importlib.util.find_spec(run.partition(",")[0]).origin).parent
    script = package / ".mim" / "tools" / "train.py"
    output(python, script, "mine.py", "--work-dir", "out", cwd=tmp_path)
    assert (tmp_path / "out" / "iter_1.pth").is_file()
    used = Config.fromfile(tmp_path / "out" / "mine.py")
    assert used.model.backbone.with_cp
    assert used.default_hooks.channels_last.type == "mmvssm.ChannelsLastHook"
    assert used.default_hooks.logger.interval == 1
    (scalars,) = tmp_path.glob("out/*/vis_data/scalars.json")
    (first,) = map(json.loads, scalars.read_text().splitlines())
    assert first["step"] == 1 and math.isfinite(first["loss"]) and first["loss"] > 0
