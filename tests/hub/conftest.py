"""Fixtures: a web server on the loopback address, and a small family whose weights it serves."""

import http.server
import threading
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from mmvssm.families import FAMILIES, Released, register_family
from mmvssm.families.key_map import KeyMap
from mmvssm.hub import download
from mmvssm.models import VMamba
from mmvssm.registry import MODELS

ARCH = dict(embed_dims=8, depths=(1, 1, 1, 1))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's ``files`` by path, as its ``behaviours`` specify."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        behaviour = server.behaviours.pop(0) if server.behaviours else "whole"
        content = server.files.get(self.path)
        if content is None or isinstance(behaviour, int):
            self.send_error(404 if content is None else behaviour)
            return
        kind, start = "application/octet-stream", 0
        if behaviour == "login":
            content, kind = b"<!DOCTYPE html><html>Please log in</html>", "text/html"
        given = self.headers.get("Range")
        if given and behaviour != "anew" and self.headers.get("If-Range") == server.version:
            start = int(given.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", server.version)
        self.end_headers()
        end = len(content) // 2 if behaviour == "broken" else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server of ``files``; its ``requests`` are recorded, ``behaviours`` are used up in turn."""
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # also for processes that are started
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.behaviours = {}, [], []
    server.version, server.url = '"1"', f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of downloads, empty."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MMVSSM_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def class_name():
    """A family of micro networks, declared for these tests."""

    class SmallVMamba(VMamba):
        arch_settings: ClassVar = {"micro": ARCH, "unpublished": dict(ARCH, embed_dims=12)}

    MODELS.register_module(module=SmallVMamba)
    yield SmallVMamba.__name__
    MODELS.module_dict.pop("SmallVMamba")


@pytest.fixture
def family(class_name, server, monkeypatch):
    """Its declaration: a classifier with averages, one as trained, and one on a page only."""
    monkeypatch.setattr("mmvssm.families.family.FAMILIES", FAMILIES)
    config = "small-vmamba-micro_8xb128_in1k"
    declared = replace(
        FAMILIES["vmamba"],
        name="small_vmamba",
        backbone=MODELS.get(class_name),
        first_release_archs=(),
        sign=r"small_vmamba_has_none",
        released=(
            Released(config, f"{server.url}/micro.pth"),
            Released(config, f"{server.url}/dp05.pth", weights="online", variant="dp05"),
            Released(config, page="http://drive.example/folder", variant="page"),
        ),
    )
    register_family(declared)
    yield declared
    del FAMILIES["small_vmamba"]


def classifier(seed=0, classes=3):
    """Weights of a classifier, in our names."""
    torch.manual_seed(seed)
    weights = VMamba(ARCH, out_indices=3).state_dict(prefix="backbone.")
    weights = {key: torch.randn_like(value) for key, value in weights.items()}
    dims = len(weights["backbone.norm3.weight"])
    return {
        **weights,
        "head.fc.weight": torch.randn(classes, dims),
        "head.fc.bias": torch.randn(classes),
    }


def saved(folder, **entries):
    """Bytes of a checkpoint with weights in the authors' names, by entry."""
    path = Path(folder, "saved.pth")
    names = KeyMap("vmamba")
    torch.save({name: names.to_original(weights) for name, weights in entries.items()}, path)
    return path.read_bytes()


@pytest.fixture
def published(server, family, home, tmp_path):
    """Weights as stored on the server: averages, and as trained."""
    averages, trained = classifier(0), classifier(1)
    content = saved(tmp_path, model=trained, model_ema=averages)
    server.files |= {"/micro.pth": content, "/dp05.pth": content}
    return averages, trained
