"""The page in a real browser: uploads, clicks, and what it asks of the network.

``MMVSSM_APP_PICTURE=FILE`` keeps the picture of the page that the first test takes.
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from mmvssm.app import Explorer
from mmvssm.engine.cli import load_config

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
LACKING = [name for name in ("gradio", "matplotlib", "playwright") if find_spec(name) is None]
LACKING += [] if CHROMIUM else ["chromium"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(LACKING), reason=f"needs {', '.join(LACKING)}: see docs/app.md, Testing"
    ),
]
#: Runs in the server's process, and notes what it asks for beyond this machine.
GUARD = """
import os, sys

def watch(event, args):
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if host not in (None, "", "127.0.0.1", "::1", "localhost"):
        with open(os.environ["ASKED_FOR"], "a") as file:
            print(host, file=file)

sys.addaudithook(watch)
"""
MOMENT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # without the sandbox, which root in a container is not allowed to use
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def served(tmp_path):
    """Serves the page of a network; returns its address, and checks which hosts it contacted."""
    asked_for = tmp_path / "asked-for"
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    paths = [str(guard), str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = dict(
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
        ASKED_FOR=str(asked_for),
        TMPDIR=str(temporary),
    )

    @contextlib.contextmanager
    def serve(config, checkpoint):
        server = subprocess.Popen(
            [sys.executable, "-m", "mmvssm.app", config, checkpoint, "--port", "0"],
            env=os.environ | variables, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            line = next((line for line in server.stdout if "the page is at" in line), None)
            assert line is not None, "the server has ended"
            yield line.split()[4]
        finally:
            server.terminate()
            server.wait(timeout=30)
        assert not asked_for.exists(), asked_for.read_text()
        # no copy of an image is left behind
        assert not list(temporary.glob("mmvssm-app-*"))

    return serve


@pytest.fixture
def open_page(browser):
    """Opens an address; returns the page, and checks its requests and console errors."""

    @contextlib.contextmanager
    def open_address(address):
        page = browser.new_page(viewport=dict(width=1280, height=900))
        page.set_default_timeout(MOMENT)
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        try:
            yield page
        finally:
            page.close()
        hosts = {urlsplit(url).netloc for url in requests if urlsplit(url).scheme != "data"}
        assert hosts == {urlsplit(address).netloc}
        assert not errors

    return open_address


def upload(page, path):
    """Upload an image to the page, and wait until everything is updated."""
    page.locator("#image input[type=file]").set_input_files(path)
    page.locator("#field img").wait_for()


def pixels_of(page, name):
    """Return the picture shown at a place of the page."""
    source = page.locator(f"#{name} img").get_attribute("src")
    content = page.request.get(source).body()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def influence_after(page, action):
    """Wait for a new influence map and return it."""
    before = page.locator("#influence img").get_attribute("src")
    action()
    page.locator(f"#influence img:not([src='{before}'])").wait_for()
    return pixels_of(page, "influence")


def choose_layer(page, number):
    page.locator("#layer input").click()
    page.get_by_role("option", name=f"{number}: ").click()


def listeners(port):
    """Return the listening addresses of this machine, as the kernel writes them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = (row[1].split(":") for row in rows if row[3] == "0A")
    return {address for address, at in sockets if int(at, 16) == port}


def test_classifier_of_the_demo(served, open_page, tmp_path):
    command = [sys.executable, ROOT / "tools/demo.py", "cls"]
    subprocess.run(
        [*command, "--cfg-options", "train_cfg.max_epochs=2"], cwd=tmp_path, check=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)), stdout=subprocess.DEVNULL,
    )  # fmt: skip
    config = str(ROOT / "configs/demo/vmamba-micro_digits-cls.py")
    checkpoint = str(tmp_path / "work_dirs/demo-cls/epoch_2.pth")
    image = str(sorted((tmp_path / "data/digits-cls/val/5").glob("*.png"))[0])
    explorer = Explorer(load_config(config, {}), checkpoint, config_path=config)
    scene = explorer.look(image)

    with served(config, checkpoint) as address, open_page(address) as page:
        assert listeners(urlsplit(address).port) == {"0100007F"}  # 127.0.0.1 alone
        upload(page, image)
        picture, rows = explorer.predict(image)
        assert np.abs(pixels_of(page, "prediction") - picture).max() <= 1
        words = page.locator("#results").inner_text().split()
        assert words[words.index("score") + 1 :] == [word for row in rows for word in row]
        assert rows[0][0] == "5"
        assert "32x32 pixels" in page.locator("#size").inner_text()

        # the routes move
        assert page.locator("#routes-note").inner_text() == "4 routes over 8x8 pixels."
        routes = page.locator("#routes img")
        first = routes.screenshot()
        page.wait_for_timeout(500)
        assert routes.screenshot() != first

        # a click at the lower left, and the map of the pixel there
        middle = pixels_of(page, "influence")
        assert np.abs(middle - np.asarray(explorer.influence(scene, 0, (0.5, 0.5)))).mean() < 1
        box = page.locator("#seen img").bounding_box()
        side = min(box["width"], box["height"])
        at = dict(
            x=box["width"] / 2 - 0.3 * side,  # the picture is in the middle of its box
            y=box["height"] / 2 + 0.2 * side,
        )
        clicked = influence_after(page, lambda: page.locator("#seen img").click(position=at))
        expected = np.asarray(explorer.influence(scene, 0, (0.7, 0.2))).astype(int)
        assert np.abs(clicked - expected).mean() < 1 < np.abs(clicked - middle).mean()
        page.wait_for_timeout(2000)
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        if "MMVSSM_APP_PICTURE" in os.environ:
            keep(tmp_path / "page.png", os.environ["MMVSSM_APP_PICTURE"])

        influence_after(page, lambda: choose_layer(page, 3))
        page.get_by_text("4 routes over 2x2 pixels.").wait_for()

        # a broken image is reported, and the page keeps working
        (tmp_path / "broken.png").write_bytes(b"no image")
        page.get_by_label("Remove Image").click()
        page.locator("#image input[type=file]").set_input_files(tmp_path / "broken.png")
        page.get_by_text("this file cannot be used: it cannot be read as an image").first.wait_for()
        page.reload()
        upload(page, image)


def keep(page, path):
    """Reduce a picture of the page for the documentation."""
    picture = Image.open(page).convert("RGB")
    size = (800, round(800 * picture.height / picture.width))
    picture.resize(size, Image.Resampling.LANCZOS).quantize(256).save(path, optimize=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mask-rcnn_vmamba-micro_digits-det", "4 routes over 24x32 pixels."),
        ("vmamba-micro_upernet_digits-seg", "4 routes over 24x32 pixels."),
        ("local-vim-micro_digits-cls", "4 routes over"),
    ],
)
def test_other_networks(served, open_page, checkpoint, image, name, words):
    config, weights = checkpoint(name)
    path, _ = image(96, 128)
    with served(config, weights) as address, open_page(address) as page:
        upload(page, path)
        for place in ("prediction", "seen", "influence", "field"):
            assert pixels_of(page, place).std() > 0
        assert words in page.locator("#routes-note").inner_text()
        influence_after(page, lambda: page.locator("#seen img").click(position=dict(x=90, y=90)))


def test_class_token(served, open_page, checkpoint, image):
    config, weights = checkpoint("vim-micro_digits-cls")
    path, _ = image(32, 32)
    with served(config, weights) as address, open_page(address) as page:
        upload(page, path)
        influence_after(page, lambda: page.get_by_role("button", name="Class token 0").click())


def test_layers_without_scans(served, open_page, checkpoint, image):
    config, weights = checkpoint("mambavision-micro_digits-cls")
    path, _ = image(32, 32)
    with served(config, weights) as address, open_page(address) as page:
        page.get_by_text("2 of which scan. The others use convolution or attention").wait_for()
        upload(page, path)
        assert page.locator("#routes img").count() == 1
        choose_layer(page, 0)
        page.get_by_text(
            "There are no routes: layer 0 has no scan; layers with one: 2, 4."
        ).wait_for()
        page.get_by_text("There is no map: layer 0 has no scan").wait_for()
        page.locator("#routes img").wait_for(state="detached")
        assert page.locator("#influence img").count() == 0
