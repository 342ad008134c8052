"""Training options as config fragments: ``configs/options``.

MMEngine does not allow two bases of a config to set the same key, so a fragment that changes
settings of a config cannot be a second base. Instead, it is merged into the config: by ``--option``
of the tools, or in a config file by :func:`add_options`.
"""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

FOLDER = Path(__file__).resolve().parent / ".mim" / "configs" / "options"


def option_names() -> list[str]:
    """Return the names of the package's options."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def read_option(name: str) -> dict:
    """Return the settings of one option.

    Args:
        name: A name of :func:`option_names`, or the path of a fragment ending in ``.py``.

    Raises:
        FileNotFoundError: If there is no such option; the message lists the names.
    """
    path = Path(name) if name.endswith(".py") else FOLDER / f"{name}.py"
    if not path.is_file():
        known = ", ".join(option_names())
        raise FileNotFoundError(f"there is no option {name!r}; there are {known}")
    return Config.fromfile(path).to_dict()


def add_options(settings: dict, *names: str) -> None:
    """Merge options into the settings of a config file.

    Call it in the last line of the file::

        _base_ = __import__("mmvssm").config_path("vmamba/vmamba-tiny-s1l8_8xb128_in1k.py")
        __import__("mmvssm").add_options(globals(), "amp-bf16", "gradient-checkpointing")

    Args:
        settings: The file's ``globals()``, into which the options are merged.
        *names: Names or paths as in :func:`read_option`; later ones take precedence.
    """
    for name in names:
        option = read_option(name)
        merged = Config({key: settings[key] for key in option if key in settings})
        merged.merge_from_dict(option)
        settings.update(merged.to_dict())
