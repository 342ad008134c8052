"""Ends of runs: existing files, interrupted and refused runs, damaged and hostile files."""

import os
import random
import re
import runpy
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from conversion import (
    CONFIG,
    META,
    ROOT,
    TOOL,
    product_of,
)


def assert_refused(run, arguments, message):
    """Assert that the exit message is one sentence, and that nothing is written."""
    before = set(Path().iterdir())
    status, _, _ = run(*arguments)
    assert isinstance(status, str) and "\n" not in status
    assert re.match(f"convert_ema.py: error: .*{message}", status)
    assert set(Path().iterdir()) == before


def test_nothing_is_replaced_unless_forced(run, made, released):
    """Neither a file nor a broken link is replaced."""
    product = Path(made("released.pth", "converted.pth")[0])
    for spoil in (lambda: product.write_bytes(b"mine"), lambda: product.symlink_to("absent")):
        product.unlink()
        spoil()
        status, *_ = run("released.pth", "converted.pth")
        assert "exists already: --force replaces it" in status
    assert product.is_symlink()
    made("released.pth", "converted.pth", "--force")
    assert product.stat().st_size > 10_000 and not product.is_symlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_ended_run_cleans_up(run, released, monkeypatch, number):
    """A run ended in the middle of writing, as by a cluster's time limit or Ctrl-C, cleans up."""
    before = set(Path().iterdir())

    def save(content, file):
        file.write(b"half")
        os.kill(os.getpid(), number)

    monkeypatch.setattr(torch, "save", save)
    # the tests may have been started with a shell's `&`, which ignores Ctrl-C
    signal.signal(number, signal.default_int_handler)
    status, _, errors = run("released.pth", "converted.pth")
    assert (status, errors) == (130, "convert_ema.py: error: interrupted; nothing was written\n")
    assert set(Path().iterdir()) == before


def test_interrupts_that_are_ignored(run, made, released, monkeypatch):
    """nohup ignores the end of the terminal; after the last byte the file is written anyway."""
    save, replace = torch.save, os.replace

    def interrupt_and_save(*arguments):
        os.kill(os.getpid(), signal.SIGHUP)
        save(*arguments)

    def replace_and_interrupt(part, product):
        replace(part, product)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "replace", replace_and_interrupt)
    made("released.pth", "converted.pth")
    monkeypatch.setattr(torch, "save", interrupt_and_save)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may have been started with nohup
    assert run("released.pth", "ended.pth")[0] == 130
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    made("released.pth", "ended.pth")


def test_without_an_output(run, released, monkeypatch):
    """Standard output is None if it was closed, as under some daemons."""
    monkeypatch.setattr(sys, "stdout", None)
    assert run("released.pth", "converted.pth")[0] == 0
    assert len(list(Path().glob("converted-*.pth"))) == 1


def test_missing_folders_are_made(run, made, released):
    for target in ("new/folder/", "other/folder/released.pth"):
        product = Path(made("released.pth", target)[0])
        assert product.is_file() and product.parent == Path(target.rpartition("/")[0])
    # but not before there is something to write
    assert "no ema weights" in run("released.pth", "third/", "--weights", "ema")[0]
    assert not Path("third").exists()


def test_a_name_that_is_no_text(released):
    """Run in a separate process, whose output refuses what it cannot encode."""
    os.rename(b"released.pth", b"\xff.pth")
    env = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, TOOL, b"\xff.pth", "converted.pth"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert r"read     \udcff.pth" in done.stdout


def test_a_full_disk(run, released, small_disk):
    message = r"cannot read or write: \[Errno 27\] File too large; check SRC, and disk space"
    assert_refused(run, ["released.pth", "converted.pth"], message)


class Attack:
    """Creates a file when it is unpickled with code allowed."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_runs_code(run, classifier, zipped):
    content = dict(model=classifier, optimizer=[Attack()], meta=META)
    torch.save(content, "hostile.pth", _use_new_zipfile_serialization=zipped)
    status, output, errors = run("hostile.pth", "converted.pth")
    assert status == 2 and output == ""
    assert re.fullmatch(r"convert_ema.py: error: .*system.*nothing was run.*\n", errors)
    assert not Path("executed").exists()
    with pytest.warns(UserWarning, match="code"):
        assert run("hostile.pth", "converted.pth", "--trust")[0] == 0
    assert Path("executed").exists()


#: Entries that are changed (None: left out), and the message; arch by a config but for families.
WRONG = {
    "missing": ({"patch_embed.0.weight": None}, "1 missing: patch_embed.conv1.weight"),
    "left over": ({"layers.9.x": torch.ones(1)}, "left over.*stages.9.x"),
    "shape": ({"patch_embed.2.bias": torch.ones(5)}, "patch_embed"),
    "whole numbers": (
        {"patch_embed.2.bias": torch.ones(4, dtype=torch.int64)},
        "weights must be fp32, .*: backbone.patch_embed.norm1.bias is int64",
    ),
    "NaN": (
        {"patch_embed.2.bias": torch.full((4,), float("nan"))},
        "NaN or infinite, .*: backbone.patch_embed.norm1.bias",
    ),
    "infinite head": (
        {"classifier.head.bias": torch.full((3,), float("inf"))},
        "NaN or infinite, .*: head.fc.bias",
    ),
    "head": (
        {"classifier.head.bias": torch.ones(4)},
        r"must be a linear layer of 64 channels; .*head.fc.bias \(4,\) instead of \(3,\)",
    ),
    "width of the head": (
        {"classifier.head.weight": torch.ones(3, 65)},
        r"head.fc.weight \(3, 65\) instead of \(3, 64\)",
    ),
    "half a head": ({"classifier.head.bias": None}, "1 missing: head.fc.bias"),
    "the other half": ({"classifier.head.weight": None}, "1 missing: head.fc.weight"),
    "more of a head": ({"head.scale": torch.ones(1)}, "1 left over: head.scale"),
    "escapes": ({"layers.0.\x1b[31m\n": torch.ones(1)}, r"1 left over: stages.0.\\x1b\[31m\\n"),
    "two namings": (
        {"patch_embed.proj.bias": torch.ones(4)},
        "the file mixes two networks, or two namings of one",
    ),
    "mixed families": (
        {"layers.0.mixer.A_b_log": torch.ones(1)},
        "mix families: vim .* and vmamba",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_wrong_weights(run, released, changes, message):
    (weights,) = released.values()
    changed = {key: value for key, value in {**weights, **changes}.items() if value is not None}
    torch.save(changed, "wrong.pth")
    Path("config.py").write_text(CONFIG)
    options = [] if "famil" in message else ["--arch", "config.py"]
    assert_refused(run, ["wrong.pth", "converted.pth", *options], message)


REFUSED = {
    "no file": ("absent.pth a.pth", "there is no checkpoint file 'absent.pth'"),
    "a folder": (". a.pth", "'.' is a folder"),
    "a page": ("page.pth a.pth", "'page.pth' is a web page"),
    "unknown family": ("other.pth a.pth", "has no backbone among its keys conv1.weight; the decl"),
    "optimizer": ("optimizer.pth a.pth", "the state of an optimizer but no weights"),
    "beyond half precision": (
        "large.pth a.pth --dtype fp16",
        "weights are beyond the range of fp16, use bf16: head.fc.bias",
    ),
    "no average": (
        "released.pth a.pth --weights ema",
        "the file has no ema weights; it has online weights in 'model'",
    ),
    "no detector": (
        "detector.pth a.pth --to classifier",
        "the file holds a detector, which cannot become a classifier",
    ),
    "more than a backbone": (
        "teacher.pth a.pth",
        "1 left over: teacher.weight; for another head, name the model's config",
    ),
    "no such arch": (
        "released.pth a.pth --arch huge",
        "arch must be one of v0-tiny, .* got 'huge'",
    ),
    "another arch": ("released.pth a.pth --arch tiny-s1l8", "VMamba 'tiny-s1l8'"),
    "no family": ("released.pth a.pth --arch snake/nano", "family must be one of .* got 'snake'"),
    "no module": (
        "released.pth a.pth --import absent",
        "--import must name a module that can be imported, got 'absent'",
    ),
    "nowhere": ("released.pth released.pth/a.pth", "'released.pth' is a file or .*: name a"),
    "no suffix": ("released.pth a.bin", "'a.bin' must end in .pth, .* or in a slash"),
    "their safetensors": ("released.pth a.safetensors --reverse", "use .pth for DST"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(run, released, classifier, arguments, message):
    layers = {key: value for key, value in classifier.items() if not key.startswith("head")}
    layers["meta"] = META
    torch.save({**layers, "rpn_head.weight": torch.ones(1)}, "detector.pth")
    torch.save({**layers, "teacher.weight": torch.ones(1)}, "teacher.pth")
    torch.save({**classifier, "head.fc.bias": torch.full((3,), 1e5), "meta": META}, "large.pth")
    torch.save({"conv1.weight": torch.ones(1)}, "other.pth")
    torch.save(dict(optimizer=dict(state={})), "optimizer.pth")
    Path("page.pth").write_text("<!DOCTYPE html><html><title>Not found</title></html>")
    assert_refused(run, arguments.split(), message)


def outcome(status):
    """Return the outcome of a run; refusals are one sentence each."""
    if isinstance(status, str):
        assert re.fullmatch(r"convert_ema\.py: error: [^\n]+", status), status
        return "refused"
    return {0: "converted", 2: "hostile"}[status]


def test_damaged_and_hostile_files(run, tmp_path):
    """Each ends with a one-sentence message, and nothing of it is written or executed."""
    corpus = runpy.run_path(str(ROOT / "tests/checkpoint/test_mutated.py"))["mutated_files"]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "products").mkdir()
    for path, kind, expected in corpus(tmp_path / "corpus", 20):
        found = outcome(run(path, "products")[0])
        # no file of the corpus contains one of our networks
        assert found == ("hostile" if expected == "hostile" else found) != "converted", kind
        assert not (tmp_path / "corpus/canary").exists(), kind
    assert list((tmp_path / "products").iterdir()) == []


def test_damage_to_a_network_is_never_converted(run, released, classifier, tmp_path):
    """A file with checksums gives its original weights, or none."""
    data, rng = Path("released.pth").read_bytes(), random.Random(0)
    (tmp_path / "products").mkdir()
    outcomes = Counter()
    for number in range(100):
        damaged, place = bytearray(data), rng.randrange(len(data))
        if number % 4 == 0:
            del damaged[place:]
        elif number % 4 == 1:
            damaged[place : place + 8] = rng.randbytes(8)
        else:
            damaged[place] ^= 1 << rng.randrange(8)
        Path("damaged.pth").write_bytes(damaged)
        status, output, _ = run("damaged.pth", "products", "--force")
        outcomes[outcome(status)] += 1
        if status == 0:
            weights = torch.load(product_of(output), weights_only=True)["state_dict"]
            assert all(torch.equal(weights[key], value) for key, value in classifier.items())
        else:
            assert output == ""
    assert outcomes["refused"] > 50 and outcomes["hostile"] == 0
