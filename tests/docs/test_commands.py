"""Commands of the pages that need no data but the demo's run as they stand, in their order."""

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
    "docs/start/first_training.md": 3,
    "docs/finetuning.md": 5,
    "docs/analysis.md": 15,
    "docs/predicting.md": 2,
}
#: Configs of the demo, and the checkpoints of it that pages name.
DEMOS = {
    "cls": ("vmamba-micro_digits-cls", "epoch_15.pth"),
    "det": ("mask-rcnn_vmamba-micro_digits-det", "epoch_3.pth"),
    "seg": ("vmamba-micro_upernet_digits-seg", "epoch_8.pth"),
}
#: What a reader has to put in, and what is not here: downloads, a GPU, a reader's data, make. The
#: search takes a quarter of an hour; tests/tools/test_search_result.py runs it cut short.
ELSEWHERE = re.compile(
    r"\b[A-Z]{3,}\b|mmvssm://|--device cuda|--data (?!data/)|work_dirs/vmamba-tiny|^make|-search_"
)


def run(folder, *words):
    """Run a tool in a folder."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, *map(str, words)]
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
    found = [words for words in found if not ELSEWHERE.search(" ".join(words))]
    assert len(found) == NUMBERS[page]
    for words in found:
        assert words[0] == "python"
        run(checkout, *words[1:])
        written = re.findall(r" (?:--out|--picture|-o)((?: [\w/][\w/.-]*)+)", " ".join(words))
        for name in " ".join(written).split():
            assert (checkout / name).exists(), (words, name)
