"""Cache of downloaded and converted files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmvssm.checkpoint import Converted, convert, read_checkpoint, write_checkpoint
from mmvssm.files import home, temporary_sibling
from mmvssm.progress import byte_bar
from mmvssm.version import __version__

from .address import Address
from .download import DownloadError, download

_KINDS = {"ema": "averaged (EMA) weights", "online": "weights as trained"}
#: Seconds after which a process reports that it waits for another one.
_PATIENCE = 3.0


class ReleasedFileError(RuntimeError):
    """Weights are not available; the message says in one sentence why, and what to do."""


def _mirrored(url: str) -> str:
    """Return the URL to download from: below ``MMVSSM_MIRROR`` if that is set."""
    mirror = os.environ.get("MMVSSM_MIRROR")
    return f"{mirror.rstrip('/')}/{url.partition('://')[2]}" if mirror else url


def fetch(text: str) -> Path:
    """Return the converted file of an address; download and convert it if it is not cached.

    If several processes on a machine need it, one does the work and the others wait.

    Args:
        text: An address (see :meth:`Address.parse`).

    Returns:
        Path of a converted checkpoint, which ``torch.load(weights_only=True)`` reads.

    Raises:
        ValueError: If the address is unknown.
        ReleasedFileError: If the file cannot be downloaded, read or stored, or holds another
            network.
    """
    address = Address.parse(text)
    raw = address.path or home() / "released" / _raw_name(address)
    if address.path and not raw.is_file():
        raise ReleasedFileError(f"{text}: there is no file {str(raw)!r}")
    product = home() / "converted" / _product_name(address, raw)
    if _is_fresh(product, raw):
        return product
    try:
        product.parent.mkdir(parents=True, exist_ok=True)
        with _locked(product, text):
            if not _is_fresh(product, raw):
                is_new = not raw.is_file()
                if is_new:
                    raw.parent.mkdir(parents=True, exist_ok=True)
                    _download(address, raw)
                try:
                    _convert(address, raw, product)
                except ValueError as error:
                    if is_new:  # so that the next run downloads it again
                        raw.unlink()
                    raise ReleasedFileError(_unfit(address, error, is_new)) from None
    except OSError as error:
        raise ReleasedFileError(
            f"{text}: cannot write to {str(home())!r} ({error}); make room there, or set"
            " MMVSSM_HOME to another folder"
        ) from None
    return product


def _raw_name(address: Address) -> str:
    """Return the name of a downloaded file: the address's, or the URL's with a short hash."""
    suffix = Path(address.url.partition("?")[0]).suffix if address.url else ""
    suffix = suffix if re.fullmatch(r"\.\w{2,11}", suffix) else ".pth"
    if address.name:
        return f"{address.name}{suffix}"
    stem = Path(address.url.partition("?")[0]).stem
    return f"{re.sub(r'[^-.A-Za-z0-9_]', '_', stem)}-{_digits(address.url)}{suffix}"


def _product_name(address: Address, raw: Path) -> str:
    """Return the name of a converted file, which encodes everything that it depends on."""
    options = [__version__] if address.weights == "auto" else [address.weights, __version__]
    if not address.name:
        options.insert(0, _digits(f"{raw} {address.arch}"))
    return "-".join([address.name or raw.stem, *options]) + ".pth"


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _is_fresh(product: Path, raw: Path) -> bool:
    """Return whether a converted file exists and is not older than its source."""
    if not product.is_file():
        return False
    return not raw.is_file() or product.stat().st_mtime_ns >= raw.stat().st_mtime_ns


@contextmanager
def _locked(product: Path, text: str) -> Iterator[None]:
    lock = FileLock(product.with_name(f".{product.name}.lock"))
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        print_log(f"{text}: waiting for another process that prepares it", logger="current")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(address: Address, raw: Path) -> None:
    by_hand = f"save it as {str(raw)!r}"
    if address.url is None:
        raise ReleasedFileError(
            f"{address.text}: the authors offer only a manual download; download the weights from"
            f" {address.page}, and {by_hand}"
        )
    url = _mirrored(address.url)
    with temporary_sibling(raw) as part:
        try:
            with byte_bar(f"downloading {address.name or raw.name}") as progress:
                download(url, part, progress)
        except DownloadError as error:
            more = f" (or from {address.page})" if address.page else ""
            raise ReleasedFileError(
                f"{address.text}: {error}; download {url}{more} by hand, and {by_hand}"
            ) from None
        os.replace(part, raw)


def _convert(address: Address, raw: Path, product: Path) -> None:
    checkpoint = read_checkpoint(raw)
    converted = convert(checkpoint, arch=address.arch, weights=address.weights)
    content = dict(meta=_meta(address, converted), state_dict=converted.state_dict)
    written = write_checkpoint(product, content, force=True)
    os.replace(written, product)
    found = converted.found
    licence = f", {found.family.licence}" if found.family.licence else ""
    print_log(
        f"{address.text}: took {_KINDS[converted.weights.kind]} from {converted.weights.place} of"
        f" {address.url or str(raw)}, {found.family.type} {found.arch!r}, a {converted.content} of"
        f" {len(converted.state_dict)} tensors{licence}; kept as {str(product)!r}",
        logger="current",
    )


def _meta(address: Address, converted: Converted) -> dict[str, Any]:
    """Describe weights, and add the classes of the dataset, which the libraries look up there."""
    if address.config is None:
        return dict(converted.meta)
    config = Config.fromfile(address.config)
    with DATASETS.switch_scope_and_registry(config.default_scope) as registry:
        dataset = registry.get(config.test_dataloader.dataset.type)
    return {"dataset_meta": dict(dataset.METAINFO), **converted.meta}


def _unfit(address: Address, error: ValueError, is_new: bool) -> str:
    """Return the message for a file that is damaged, hostile, or of another network."""
    came = f" the file from {_mirrored(address.url)} cannot be used:" if is_new else ""
    return f"{address.text}:{came} {error}"
