"""Files are written completely or not at all."""

import pytest

from mmvssm.files import atomic_write


def test_replaces_at_the_end(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("old")

    def write(part):
        assert part.suffix == ".md" and part.parent == tmp_path
        part.write_text("new")
        assert path.read_text() == "old"

    atomic_write(str(path), write)
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_interruption_loses_nothing(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("old")

    def write(part):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
