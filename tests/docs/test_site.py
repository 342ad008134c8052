"""The documentation site builds without warnings, and its links have targets."""

import re
import subprocess
import sys
from html import unescape
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if find_spec("sphinx") is None:
        pytest.skip("needs pip install -r requirements/docs.txt")
    folder = tmp_path_factory.mktemp("site")
    build = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", folder]
    done = subprocess.run([sys.executable, *build], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_links_lead_to_pages_and_places(site):
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    assert len(pages) > 30
    places = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    for page, text in pages.items():
        for link in re.findall(r'<a [^>]*href="([^"]+)"', text):
            if re.match(r"[a-z]+:", link):
                continue
            target, _, place = unescape(link).partition("#")
            file = (page.parent / target).resolve() if target else page
            assert file.exists(), (page.name, link)
            assert not place or file not in places or place in places[file], (page.name, link)


def test_pages_show_families_and_classes(site):
    family = (site / "families" / "msvmamba.html").read_text()
    assert "Multi-Scale VMamba" in family and "msvmamba.png" in family
    models = (site / "reference" / "models.html").read_text()
    for name in ("VMamba", "EfficientVMamba", "MambaVision"):
        assert 'id="mmvssm.models.backbones.' in models and f".{name}" in models
