"""Addresses ``mmvssm://NAME`` of files of weights."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from mmvssm import config_path
from mmvssm.checkpoint.weights import KINDS
from mmvssm.checkpoint.writing import SUFFIXES
from mmvssm.families import FAMILIES, Family, Released, arch_names
from mmvssm.scheme import SCHEME
from mmvssm.zoo import list_models

_OPTIONS = ("weights", "arch")


@dataclass(frozen=True)
class Address:
    """A file of weights, with the selection of weights in it.

    Attributes:
        text: The address as given.
        name: Name of the published file; None for the user's own file.
        url: URL of the file; None for a local file, or if there is only a page.
        page: Page with a manual download.
        path: Path of a local file.
        weights: ``'ema'``, ``'online'`` or ``'auto'`` (see :func:`~mmvssm.checkpoint.convert`).
        arch: Arch or config to compare the weights with; None to detect the arch.
        config: Path of the config of a published file, if there is one.
    """

    text: str
    name: str | None = None
    url: str | None = None
    page: str | None = None
    path: Path | None = None
    weights: str = "auto"
    arch: str | None = None
    config: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address.

        Args:
            text: ``mmvssm://`` followed by the name of a published file (an arch such as
                ``vmamba-tiny-s1l8``, or a config), a path, or a URL; optionally followed by
                ``?weights=ema|online`` and ``?arch=FAMILY/ARCH``, joined by ``&``.

        Raises:
            ValueError: If there is no such file, or an option is wrong; the message lists the
                choices.
        """
        rest, options = _split_options(text.removeprefix(SCHEME))
        kinds = (*KINDS, "auto")
        if options.get("weights", "auto") not in kinds:
            raise ValueError(
                f"{text}: weights must be {', '.join(kinds)}, got {options['weights']!r}"
            )
        if rest.startswith(("http://", "https://")):
            return cls(text, url=rest, **options)
        if "/" in rest or "\\" in rest or rest.endswith(SUFFIXES):
            return cls(text, path=Path(rest).expanduser().absolute(), **options)
        files = released_files()
        if rest not in files:
            raise ValueError(f"{text}: {_reason(rest)}")
        family, file = files[rest]
        config = _config_of(family, file)
        known = dict(weights=file.weights, arch=_arch_of(family, file) or config)
        return cls(text, file.name, file.url, file.page, config=config, **known | options)


def released_files() -> dict[str, tuple[Family, Released]]:
    """Return the published files by all their names, archs and configs."""
    files: dict[str, tuple[Family, Released]] = {}
    for family in FAMILIES.values():
        for file in family.released:
            config = f"{file.config}-{file.variant}" if file.variant else file.config
            files[file.name] = files[config] = family, file
    for family, file in list(files.values()):
        if file.config.endswith("_in1k"):
            # an arch whose only weights have another pretraining
            files.setdefault(file.config.split("_")[0], (family, file))
    return files


def _split_options(rest: str) -> tuple[str, dict[str, str]]:
    """Split off known options, and keep any other query of a URL."""
    base, _, query = rest.rpartition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    return (base, options) if base and options.keys() <= set(_OPTIONS) else (rest, {})


def _arch_of(family: Family, file: Released) -> str | None:
    """Return the arch of a classifier; None for other files, whose heads are checked as well."""
    _, arch = arch_names().get(file.config.split("_")[0], (family, None))
    return f"{family.name}/{arch}" if arch is not None and file.config.endswith("_in1k") else None


def _config_of(family: Family, file: Released) -> str | None:
    try:
        return config_path(f"{family.name}/{file.config}.py")
    except FileNotFoundError:  # the family is declared in a user's project
        return None


def _reason(name: str) -> str:
    """Explain why there is no file of this name, and what to do."""
    if name in arch_names() or name in list_models():
        return (
            "the authors published no weights for it; name your own file (init_cfg.checkpoint,"
            " load_from), or start from random weights: model.backbone.init_cfg=None"
        )
    close = difflib.get_close_matches(name, released_files(), n=4, cutoff=0.4)
    known = f"closest: {', '.join(close)}; " if close else ""
    return f"no published file has this name; {known}docs/model_zoo.md lists them all"
