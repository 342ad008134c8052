"""The pages of README and docs, with the snippets and commands that they show."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "configs/*/*.md", "ops/*.md", "projects/*/*.md")
    for page in ROOT.glob(pattern)
)


def blocks(language: str) -> Iterator:
    """All blocks of a language, each with a name that tells where it stands."""
    for page in PAGES:
        found = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
        for number, block in enumerate(found):
            marks = [pytest.mark.slow] if "torch.compile(" in block else []
            yield pytest.param(block, id=f"{page.relative_to(ROOT)}:{number}", marks=marks)


def commands() -> Iterator:
    """All commands, continued lines joined, comments left out."""
    for parameter in blocks("bash"):
        text = parameter.values[0].replace("\\\n", " ")
        for number, line in enumerate(text.splitlines()):
            words = shlex.split(line, comments=True)
            if words:
                yield pytest.param(words, id=f"{parameter.id}:{number}")
