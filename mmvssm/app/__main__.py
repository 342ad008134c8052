"""``python -m mmvssm.app``: show in the browser what a trained network does with an image."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack, suppress
from importlib.util import find_spec

import mmvssm  # noqa: F401  registers 'mmvssm::' bases before the config is read
from mmvssm.engine import cli

from .explorer import Explorer

DESCRIPTION = """\
Show in the browser what a trained network does with an image.

Drop an image on the page to see the prediction, an animation of a layer's routes over the image,
the contribution of each pixel to the one that you click, and the effective receptive field. The
page supports classifiers, detectors and segmentors with any backbone of this package. It loads
nothing from the internet and sends nothing there; images stay on the machine that runs this
program.
"""
EXAMPLES = """\
examples:
  the digits classifier trained by `make demo`:
    python -m mmvssm.app configs/demo/vmamba-micro_digits-cls.py \\
        work_dirs/demo-cls/epoch_15.pth
  released weights, on a GPU:
    python -m mmvssm.app configs/vmamba/vmamba-tiny-s1l8_8xb128_in1k.py \\
        mmvssm://vmamba-tiny-s1l8 --device cuda
  on a remote machine, with your local browser:
    ssh -L 7860:127.0.0.1:7860 MACHINE python -m mmvssm.app CONFIG CHECKPOINT

Without --host, only this machine can open the page; there are no passwords. No code of the
checkpoint is run. Needs requirements/app.txt.
"""
PACKAGES = ("gradio", "matplotlib")
#: Variables that keep gradio and its dependencies from using the internet.
OFFLINE = dict(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mmvssm.app",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint file or mmvssm://NAME")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; with 0.0.0.0, all machines that reach this one can open the"
        " page (default: 127.0.0.1, only this machine)",
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="port; 0 for any free port (default: 7860)"
    )
    parser.add_argument(
        "--device", help="device, such as cpu or cuda:1 (default: a GPU if there is one)"
    )
    cli.add_config_arguments(parser)
    args = parser.parse_args()
    try:
        ipaddress.ip_address(args.host)
    except ValueError:
        parser.error(f"--host must be an address such as 127.0.0.1 or ::1, got {args.host!r}")
    if not 0 <= args.port < 65536:
        parser.error(f"--port must be from 0 to 65535, got {args.port}")
    return args


def listen(host: str, port: int) -> socket.socket:
    """Bind a port; end the program if it is not available.

    Args:
        host: Address to listen on, IPv4 or IPv6.
        port: The port; 0 for any free port.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # allows a port that was in use a moment ago
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        cli.fail(f"cannot listen on --host {host} --port {port}: {error.strerror}")
    return listener


def main() -> None:
    """Load the network and serve its page."""
    args = parse_args()
    lacking = [name for name in PACKAGES if find_spec(name) is None]
    if lacking:
        cli.fail(f"the page needs {', '.join(lacking)}: pip install -r requirements/app.txt")
    cfg = cli.load_config(args.config, args.cfg_options, args.option)
    device = cli.choose_device(args.device)
    # close everything on SIGTERM, as after Ctrl+C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        listener = stack.enter_context(listen(args.host, args.port))
        explorer = Explorer(cfg, args.checkpoint, config_path=args.config, device=device)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mmvssm-app-"))
        os.environ.update(OFFLINE, GRADIO_TEMP_DIR=folder)
        from .page import build_page, serve

        stack.enter_context(suppress(KeyboardInterrupt))
        serve(build_page(explorer), listener)


if __name__ == "__main__":
    main()
