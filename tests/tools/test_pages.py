"""The commands of the pages on analysis and prediction run as written there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("analysis", "predicting")}
TASKS = {
    "cls": "vmamba-micro_digits-cls",
    "det": "mask-rcnn_vmamba-micro_digits-det",
    "seg": "vmamba-micro_upernet_digits-seg",
}
#: The family that the pages show, tasks of other libraries, and two families far from it.
CASES = [*TASKS, "efficient-vmamba-micro_digits-cls", "local-vim-micro_digits-cls"]
#: Images to train on: few, but enough for the detector to find something.
IMAGES = {"det": 400}


def commands(page):
    """Return the commands of a page, each a list of words."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", PAGES[page], re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                found.append(words)
    return found


def config_of(case):
    return f"configs/demo/{TASKS.get(case, case)}.py"


def epochs_of(config):
    return Config.fromfile(ROOT / config).train_cfg.max_epochs


def checkpoint_of(case):
    folder = f"demo-{case}" if case in TASKS else case
    return f"work_dirs/{folder}/epoch_{epochs_of(config_of(case))}.pth"


@pytest.mark.parametrize("page", PAGES)
def test_checkpoints_are_those_that_the_demo_leaves(page):
    words = [word.rpartition("=")[2] for words in commands(page) for word in words]
    checkpoints = {word for word in words if word.endswith(".pth")}
    assert checkpoints and checkpoints <= {checkpoint_of(case) for case in CASES}
    configs = {word for word in words if word.endswith(".py")}
    assert configs and all((ROOT / config).is_file() for config in configs)


def test_every_section_on_a_tool_has_a_small_picture():
    sections = re.split(r"^### ", PAGES["analysis"], flags=re.MULTILINE)[1:]
    tools = {path.name for path in (ROOT / "tools" / "analysis_tools").glob("*.py")}
    shown = set()
    for section in [*sections, PAGES["predicting"]]:
        pictures = re.findall(r"!\[[^]]+\]\((.*?)\)", section)
        assert len(pictures) == 1, section.splitlines()[0]
        path = ROOT / "docs" / pictures[0]
        assert 0 < path.stat().st_size < 120_000 and path.read_bytes().startswith(b"\x89PNG")
        shown |= set(re.findall(r"analysis_tools/(\w+\.py)", section))
    # the latter is on the page on LocalMamba's search
    assert shown == tools - {"search_result.py"}


@pytest.fixture(scope="module")
def demo_place(tmp_path_factory, environment):
    """A folder like the repository after all demos, run on few images but at full length."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("tools", "configs"):
        (folder / name).symlink_to(ROOT / name)
    for case in CASES:
        words = ["tools/demo.py", case] if case in TASKS else ["tools/train.py", config_of(case)]
        counts = dict(train=IMAGES.get(case, 32), val=32, test=32)
        short = [f"{part}_dataloader.dataset.indices={n}" for part, n in counts.items()]
        command = [sys.executable, *words, "--cfg-options", *short]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (folder / checkpoint_of(case)).is_file()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page, case, demo_place, run_here, monkeypatch):
    """As written for the classifier, for the others with their config and checkpoint."""
    monkeypatch.chdir(demo_place)
    places = {
        config_of("cls"): config_of(case),
        checkpoint_of("cls"): checkpoint_of(case),
        "work_dirs/demo-cls": str(Path(checkpoint_of(case)).parent),
        "CONFIG": config_of(case),
        "CHECKPOINT": checkpoint_of(case),
        "IMAGE...": "data/digits-cls/val/5",
        "DIR": "out",
    }
    for _, tool, *words in commands(page):
        text = shlex.join([tool, *words])
        fetches = "mmvssm://" in text
        without_gpu = "cuda" in words and not torch.cuda.is_available()
        trained = tool == "tools/train.py"  # by the fixture
        elsewhere = case != "cls" and not any(place in text for place in places)
        if fetches or without_gpu or trained or elsewhere:
            continue
        # MODEL=CHECKPOINT holds both
        arguments = ["=".join(places.get(p, p) for p in word.split("=")) for word in words]
        if tool.endswith("benchmark.py") and arguments[0] == arguments[1]:
            continue
        if tool.endswith("scaling.py"):
            arguments += ["--cfg-options", "test_dataloader.dataset.indices=16"]
        status, out, errors = run_here(tool, *arguments)
        if tool.endswith("linear_probe.py") and case in ("det", "seg"):
            assert "needs the config of a classifier" in status
            continue
        assert status == 0, f"{text}\n{status}\n{out}{errors}"
        for word in arguments:
            if re.fullmatch(r"[\w-]+\.(png|svg|json)", word):
                assert Path(word).stat().st_size, word
                Path(word).unlink()


@pytest.mark.slow
def test_python_examples_run():
    names = {}
    for example in re.findall(r"```python\n(.*?)```", PAGES["analysis"], re.DOTALL):
        exec(example, names)
    assert names["found"].macs > 0 and names["field"].contribution.shape == (224, 320)
