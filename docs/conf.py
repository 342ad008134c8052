"""Configuration of the documentation site: `make docs` builds it into build/docs."""

import os
import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from mmvssm import __version__  # noqa: E402

project = "mmvssm"
author = "the mmvssm authors"
copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are stored with their outputs; slow tests run them
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and dtypes, which type hints do not
napoleon_google_docstring = True
napoleon_numpy_docstring = False
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = f"mmvssm {release}"
html_static_path = ["static"]
html_css_files = ["tables.css"]

LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s#]+)(#[\w-]+)?\)")
#: A page that is a single link shows the linked page, which is elsewhere in the repository.
SHOWN = re.compile(r"\[[^\]]+\]\(([^()\s]+\.md)\)\s*")


def shown_pages() -> dict[Path, Path]:
    """Return the files outside docs/ that pages show, and these pages."""
    pages = {}
    for page in DOCS.rglob("*.md"):
        match = SHOWN.fullmatch(page.read_text())
        if match:
            pages[(page.parent / match[1]).resolve()] = page
    return pages


def read_page(app, docname: str, source: list[str]) -> None:
    """Insert the content that a page shows, and point links to pages of the site or to files."""
    page = Path(app.env.doc2path(docname))
    if page.suffix != ".md":
        return
    shown = shown_pages()
    origin = next((file for file, place in shown.items() if place == page), page)
    app.env.note_dependency(str(origin))  # a change of it must reach the page

    def lead(match: re.Match) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        file = (origin.parent / target).resolve()
        file = shown.get(file / "README.md", shown.get(file, file))
        if not file.exists():
            raise FileNotFoundError(f"{origin} links {target!r}, which does not exist")
        if file.is_dir():
            return text
        return f"[{text}]({os.path.relpath(file, page.parent)}{anchor})"

    text = origin.read_text() if origin != page else source[0]
    source[0] = LINK.sub(lead, text)


def copy_notebooks(app) -> None:
    """Copy the notebooks of examples/ to the source folder of the site."""
    folder = DOCS / "notebooks"
    folder.mkdir(exist_ok=True)
    for notebook in (ROOT / "examples").glob("*.ipynb"):
        shutil.copy(notebook, folder)


def setup(app) -> None:
    """Connect the handlers that run when pages are read."""
    app.connect("builder-inited", copy_notebooks)
    app.connect("source-read", read_page)
