"""Commands of the pages run in their order: on the demo's data as they stand, others filled in.

Where a command names what a reader has (`CONFIG`, `CHECKPOINT`) or what is not here (ImageNet,
COCO, ADE20K, released weights, eight GPUs), the demo of the same task stands in, for one epoch on
two processes.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pages import commands

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("commands of pages")]
#: Pages, and how many of their commands run.
NUMBERS = {
    "README.md": 2,
    "docs/analysis.md": 15,
    "docs/compiling.md": 1,
    "docs/exporting.md": 3,
    "docs/faults.md": 1,
    "docs/finetuning.md": 5,
    "docs/options.md": 2,
    "docs/predicting.md": 3,
    "docs/start/distributed.md": 2,
    "docs/start/first_training.md": 3,
    "docs/weights.md": 2,
}
#: Configs of the demo, and the checkpoints of it that pages name.
DEMOS = {
    "cls": ("vmamba-micro_digits-cls", "epoch_15.pth"),
    "det": ("mask-rcnn_vmamba-micro_digits-det", "epoch_3.pth"),
    "seg": ("vmamba-micro_upernet_digits-seg", "epoch_8.pth"),
}
#: Task of a published config, from the end of its name.
TASKS = {"in1k": "cls", "coco": "det", "ade20k": "seg"}
#: What the demo cannot replace: downloads, a GPU, a reader's data, a second machine, make. The
#: search takes a quarter of an hour; tests/tools/test_search_result.py runs it cut short.
ELSEWHERE = re.compile(
    r"\b[A-Z]{3,}\b|mmvssm://|--device cuda|--data (?!data/)|data_root=|street.jpg"
    r"|work_dirs/vmamba-tiny|^(make|pip|apt-get)|-search_"
)


def filled_in(words):
    """Return a command with the demo in place of what a reader has or what is not here."""
    line = " ".join(words)
    if "analysis_tools" in line:
        return words
    published = re.search(r"configs/vmamba/\S*_([a-z0-9]+)(-512x512)?\.py", line)
    task = TASKS[published[1]] if published else "cls"
    config, checkpoint = DEMOS[task]
    filled = line
    for pattern, value in {
        r"\bCONFIG\b|configs/vmamba/\S+": f"configs/demo/{config}.py",
        r"\bCHECKPOINT\b|mmvssm://\S+|work_dirs/NAME/\S+": f"work_dirs/demo-{task}/{checkpoint}",
        r"\bIMAGE\.\.\.": "data/digits-cls/val/5/0033.png",
        r"\bDIR\b": "out",
        r"(?<= )[48](?= |$)": "2",  # processes
        r"--amp$": "--option amp-bf16",  # float16 needs a GPU
    }.items():
        filled = re.sub(pattern, value, filled)
    if filled == line:
        return words
    return filled.split() + (["--epochs", "1"] if "train." in line or "_train" in line else [])


def run(folder, *words):
    """Run a tool in a folder."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    words = words[1:] if words[0] == "python" else words
    shell = str(words[0]).endswith(".sh")
    command = ["bash" if shell else sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder like a checkout in which the demo ran, cut short, on all three tasks."""
    datasets = pytest.importorskip("sklearn.datasets")
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "docs" / "routes").mkdir(parents=True)
    shutil.copy(Path(datasets.__file__).parent / "images" / "flower.jpg", folder)
    (folder / "my_fragment.py").write_text("default_hooks = dict(logger=dict(interval=1))\n")
    run(folder, "tools/make_demo_data.py", "data")
    for task, (config, checkpoint) in DEMOS.items():
        work = f"work_dirs/demo-{task}"
        options = ["--work-dir", work, "--epochs", 1]
        run(folder, "tools/train.py", f"configs/demo/{config}.py", *options)
        (folder / work / "epoch_1.pth").rename(folder / work / checkpoint)
    return folder


@pytest.mark.parametrize("page", NUMBERS)
def test_commands_run(page, checkout):
    found = [parameter.values[0] for parameter in commands() if parameter.id.startswith(page)]
    found = [words for words in map(filled_in, found) if not ELSEWHERE.search(" ".join(words))]
    assert len(found) == NUMBERS[page], found
    for words in found:
        run(checkout, *words)
        written = re.findall(r" (?:--out|--picture|-o)((?: [\w/][\w/.-]*)+)", " ".join(words))
        for name in " ".join(written).split():
            assert (checkout / name).exists(), (words, name)
