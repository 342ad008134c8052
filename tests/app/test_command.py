"""The command line of the page, up to where gradio is needed."""

import importlib.util
import runpy
import socket
import sys

import pytest


@pytest.fixture
def refusal(monkeypatch, capsys):
    """Runs the command until it exits with an error; returns the message."""
    find = importlib.util.find_spec

    def run(*arguments, lacking=()):
        def find_spec(name, *rest):
            if name in ("gradio", "matplotlib"):
                return None if name in lacking else object()
            return find(name, *rest)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(sys, "argv", ["app", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("mmvssm.app", run_name="__main__", alter_sys=True)
        output = capsys.readouterr()
        return stop.value.code if isinstance(stop.value.code, str) else output.out + output.err

    return run


def test_help_teaches(refusal):
    text = refusal("--help")
    for word in ("--host", "--port", "--device", "make demo", "127.0.0.1", "requirements/app.txt"):
        assert word in text


def test_missing_packages_are_named(refusal):
    assert refusal("c.py", "w.pth", lacking=("gradio",)) == (
        "app: error: the page needs gradio: pip install -r requirements/app.txt"
    )
    message = refusal("c.py", "w.pth", lacking=("gradio", "matplotlib"))
    assert "needs gradio, matplotlib: " in message


def test_wrong_arguments(refusal, checkpoint):
    path, weights = checkpoint("vmamba-micro_digits-cls")
    assert "there is no config file 'c.py'" in refusal("c.py", "w.pth")
    assert "got 'example.org'" in refusal(path, weights, "--host", "example.org")
    assert "--port must be from 0 to 65535, got 70000" in refusal(path, weights, "--port", "70000")
    assert "--device 'cuda:99' cannot" in refusal(path, weights, "--device", "cuda:99")
    assert "there is no checkpoint file 'w.pth'" in refusal(path, "w.pth", "--port", "0")


def test_a_port_in_use_is_said_before_the_network_is_loaded(refusal, checkpoint):
    path, _ = checkpoint("vmamba-micro_digits-cls")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        message = refusal(path, "absent.pth", "--port", port)
    assert message.startswith(f"app: error: cannot listen on --host 127.0.0.1 --port {port}: ")
