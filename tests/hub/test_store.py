"""Addresses of released weights, downloads, the cache, and all ways to fail."""

import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from mmvssm import hub
from mmvssm.analysis import load_backbone
from mmvssm.engine import cli
from mmvssm.families import FAMILIES, arch_names
from mmvssm.hub import Address, ReleasedFileError, fetch, read_weights_file, released_files
from mmvssm.zoo import list_models

from .conftest import classifier, saved

NAME = "mmvssm://small-vmamba-micro"


def weights_of(address):
    checkpoint = CheckpointLoader.load_checkpoint(address, map_location="cpu")
    return checkpoint["state_dict"]


def assert_equal(tensors, expected):
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], value) for key, value in expected.items())


def failing(address):
    with pytest.raises(ReleasedFileError) as error:
        fetch(address)
    message = str(error.value)
    assert message.startswith(address) and "\n" not in message
    return message


def kept(home):
    """Return the files in the folder of downloads, except locks."""
    files = (path for path in home.rglob("*") if path.is_file())
    return sorted(path.name for path in files if path.suffix != ".lock")


def test_names_weights_and_cache(published, server, home, capfd, monkeypatch):
    averages, trained = published
    said = []
    monkeypatch.setattr("mmvssm.hub.store.print_log", lambda text, logger: said.append(text))
    assert_equal(weights_of(NAME), averages)
    (line,) = said
    assert f"took averaged (EMA) weights from 'model_ema' of {server.url}/micro.pth" in line
    assert "mmvssm.SmallVMamba 'micro', a classifier of" in line
    assert "downloading small-vmamba-micro" in capfd.readouterr().err
    assert_equal(weights_of(f"{NAME}?weights=online"), trained)
    assert_equal(weights_of(f"{NAME}-dp05"), trained)
    assert_equal(weights_of(f"{NAME}_8xb128_in1k-dp05"), trained)
    assert [path for path, _ in server.requests] == ["/micro.pth", "/dp05.pth"]
    server.files.clear()
    assert_equal(weights_of(NAME), averages)
    assert len(server.requests) == 2
    assert len(kept(home)) == 5  # two as downloaded, three converted


def test_a_file_that_is_put_there_by_hand(published, server, home, tmp_path):
    message = failing(f"{NAME}-page")
    place = home / "released" / "small-vmamba-micro-page.pth"
    assert "only a manual download" in message and "http://drive.example/folder" in message
    assert f"save it as {str(place)!r}" in message
    place.parent.mkdir(parents=True, exist_ok=True)
    for seed in (7, 8):  # a newer file replaces what was made from the old one
        place.write_bytes(saved(tmp_path, model=classifier(seed)))
        assert_equal(weights_of(f"{NAME}-page"), classifier(seed))


def test_paths_and_urls(published, server, tmp_path):
    averages, trained = published
    path = tmp_path / "mine.pth"
    path.write_bytes(server.files["/micro.pth"])
    arch = "arch=small_vmamba/micro"
    assert_equal(weights_of(f"mmvssm://{path}?{arch}"), averages)
    assert_equal(weights_of(f"mmvssm://{path}?{arch}&weights=online"), trained)
    server.files["/a/b.pth?key=1"] = server.files["/micro.pth"]
    assert_equal(weights_of(f"mmvssm://{server.url}/a/b.pth?key=1?{arch}"), averages)
    path.write_bytes(saved(tmp_path, model=classifier(5)))
    assert_equal(weights_of(f"mmvssm://{path}?{arch}"), classifier(5))
    assert "there is no file" in failing("mmvssm://missing/file.pth")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("small-vmamba-mirco", "no published file has this name; closest: small-vmamba-micro"),
        ("small-vmamba-unpublished", "the authors published no weights"),
        ("local-vim-small", "the authors published no weights"),
        ("mask-rcnn_vmamba-base-s1l20_fpn_1x_coco", "the authors published no weights"),
        ("small-vmamba-micro?weights=best", "weights must be ema, online, auto, got 'best'"),
    ],
)
def test_names_that_nobody_has(family, address, message):
    with pytest.raises(ValueError, match=r"^mmvssm://") as error:
        fetch(f"mmvssm://{address}")
    assert message in str(error.value)


def test_every_published_file_has_names():
    files = [file for family in FAMILIES.values() for file in family.released]
    assert len({file.name for file in files}) == len(files) > 45
    for name, (family, file) in released_files().items():
        address = Address.parse(f"mmvssm://{name}")
        assert (address.url, address.page) == (file.url, file.page) and (file.url or file.page)
        assert all(log.startswith("https://") for log in file.logs)
        # what the weights are compared with: the arch of a classifier, a config's model
        if file.config.endswith("_in1k"):
            arch = file.config.split("_")[0].removeprefix(f"{family.prefix}-")
            assert address.arch == f"{family.name}/{arch}" and arch in family.backbone.arch_settings
        else:
            assert Path(address.arch).stem == file.config
    assert sum(len(file.logs) for file in files) >= 36 + 3 + 3
    assert {file.config for file in files} <= set(list_models())
    assert "vmamba-v0-base-dp05" in released_files() and arch_names()


def test_broken_connections_go_on(published, server):
    server.behaviours += ["broken", "broken"]
    assert_equal(weights_of(NAME), published[0])
    half = len(server.files["/micro.pth"]) // 2
    assert [given for _, given in server.requests] == [None, f"bytes={half}-", f"bytes={half}-"]


def test_a_file_that_has_changed_starts_anew(published, server):
    server.behaviours += ["broken", "anew"]
    assert_equal(weights_of(NAME), published[0])
    assert len(server.requests) == 2


def test_busy_servers_are_asked_again(published, server):
    server.behaviours += [503, 429]
    assert_equal(weights_of(NAME), published[0])


@pytest.mark.parametrize(
    ("behaviours", "message"),
    [
        ([404], "the server answers 404"),
        ([403], "the server answers 403"),
        ([503, 503, 503], "the server answers 503"),
        (["login"], "a web page instead of the file"),
        (["broken", "broken", "broken"], "the connection broke"),
    ],
)
def test_failed_downloads(published, server, home, behaviours, message):
    server.behaviours += behaviours
    said = failing(NAME)
    assert message in said and f"{server.url}/micro.pth by hand" in said
    assert str(home / "released" / "small-vmamba-micro.pth") in said
    assert kept(home) == []
    assert_equal(weights_of(NAME), published[0])  # the next run is not disturbed


def test_without_a_network(published, server, home):
    server.shutdown()
    server.server_close()
    assert "the server cannot be reached" in failing(NAME) and kept(home) == []


def wrong_network(folder):
    weights = {k: v[:1] if k.startswith("head.") else v for k, v in classifier().items()}
    return saved(folder, model=weights | {"head.fc.weight": torch.zeros(1, 1)})


def hostile(folder):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch hacked",)

    torch.save({"model": Evil()}, folder / "evil.pth")
    return (folder / "evil.pth").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wrong_network, "the head must be a linear layer"),
        (lambda folder: saved(folder, model=classifier())[:-100], "micro.pth"),
        (lambda folder: b"<html>log in</html>", "is a web page, not a checkpoint"),
        (hostile, "asks to run posix.system"),
    ],
)
def test_files_that_are_not_what_they_should_be(
    published, server, home, tmp_path, monkeypatch, content, message
):
    monkeypatch.chdir(tmp_path)
    good, server.files["/micro.pth"] = server.files["/micro.pth"], content(tmp_path)
    said = failing(NAME)
    assert message in said and f"the file from {server.url}/micro.pth cannot be used" in said
    assert kept(home) == [] and not Path("hacked").exists()
    server.files["/micro.pth"] = good
    assert_equal(weights_of(NAME), published[0])


def test_a_full_disk(published, home, small_disk):
    said = failing(NAME)
    assert "make room there, or set MMVSSM_HOME to another folder" in said
    assert os.strerror(errno.EFBIG) in said and kept(home) == []


def test_too_little_room(published, home, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((1, 1)) and Room())
    assert "MB are needed, 0 MB are free" in failing(NAME) and kept(home) == []


class Room:
    free = 10


def test_several_threads_download_once(published, server):
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetch(NAME))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1 and len(results) == 4
    assert [path for path, _ in server.requests] == ["/micro.pth"]


def test_a_mirror(published, server, monkeypatch, family):
    monkeypatch.setenv("MMVSSM_MIRROR", f"{server.url}/mirror/")
    server.files[f"/mirror/127.0.0.1:{server.server_port}/micro.pth"] = server.files.pop(
        "/micro.pth"
    )
    assert_equal(weights_of(NAME), published[0])


def test_training_stops_before_it_starts(published, server, monkeypatch):
    """Our scripts get all weights that a config names first; ``None`` is a random start."""
    init = dict(type="Pretrained", checkpoint=NAME, prefix="backbone.")
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=init)), load_from=f"{NAME}-dp05"))
    cli.require_weights(cfg)
    assert {path for path, _ in server.requests} == {"/micro.pth", "/dp05.pth"}
    cfg.load_from = f"{NAME}-page"
    with pytest.raises(SystemExit, match="only a manual download"):
        cli.require_weights(cfg)
    cfg.merge_from_dict({"load_from": None, "model.backbone.init_cfg": None})
    server.requests.clear()
    cli.require_weights(cfg)
    assert not server.requests


def test_home(monkeypatch, tmp_path):
    monkeypatch.delenv("MMVSSM_HOME", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert hub.home() == tmp_path / "hub" / "mmvssm"
    monkeypatch.setenv("MMVSSM_HOME", "~/weights")
    assert hub.home() == Path.home() / "weights"


def test_a_dense_backbone_starts_from_a_classifier(published, class_name):
    from mmvssm.models import VMamba

    averages, _ = published
    init = dict(type="Pretrained", checkpoint=NAME, prefix="backbone.")
    model = VMamba(dict(embed_dims=8, depths=(1, 1, 1, 1)), init_cfg=init)
    model.init_weights()
    state = model.state_dict(prefix="backbone.")
    layers = [key for key in state if not key.startswith("backbone.norm")]
    assert all(torch.equal(state[key], averages[key]) for key in layers) and len(layers) > 50
    assert torch.equal(state["backbone.norm3.weight"], torch.ones(64))  # starts over
    classifier = VMamba(dict(embed_dims=8, depths=(1, 1, 1, 1)), out_indices=3)
    load_checkpoint(classifier, NAME, revise_keys=[(r"^backbone\.", "")])
    assert torch.equal(classifier.norm3.weight, averages["backbone.norm3.weight"])


def test_tools_read_no_url_that_nothing_checks(published, server, tmp_path):
    """MMEngine's loader would unpickle it, and before torch 2.6 run any code in it."""
    with pytest.raises(ValueError, match=rf"name it mmvssm://{server.url}/micro.pth"):
        load_backbone("vmamba-tiny-s1l8", f"{server.url}/micro.pth")
    assert not server.requests
    content = read_weights_file(NAME)
    assert_equal(content["state_dict"], published[0])
    path = tmp_path / "evil.pth"
    path.write_bytes(hostile(tmp_path))
    with pytest.raises(ValueError, match=r"asks to run posix\.system"):
        load_backbone("vmamba-tiny-s1l8", str(path))
