"""Downloading a file completely or not at all."""

from __future__ import annotations

import http.client
import os
import shutil
import time
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from mmvssm.files import Progress
from mmvssm.version import __version__

#: Seconds to wait for a server that says nothing.
TIMEOUT = 30.0
#: Seconds to wait before each further try.
PAUSES = (1.0, 3.0, 9.0)
_CHUNK = 2**18
_BUSY = (429, 500, 502, 503, 504)


class DownloadError(Exception):
    """A file cannot be had; the message says why."""


class _BrokenError(Exception):
    """A connection broke, or a server is busy: another try may go on."""


def download(url: str, path: Path, progress: Progress) -> None:
    """Download a file, and go on where a connection breaks.

    Args:
        url: An ``http`` or ``https`` address.
        path: File to write, which is incomplete if an exception is raised.
        progress: Is told how many bytes of how many are there; of 0 where the server does not say.

    Raises:
        DownloadError: If the file cannot be had, or the server sends a web page in its place.
        OSError: If it cannot be written, or there is too little room for it.
    """
    pauses = iter(PAUSES)
    with open(path, "wb") as file:
        transfer = _Transfer(url, file, progress)
        while True:
            try:
                transfer.run()
                return
            except _BrokenError as error:
                pause = next(pauses, None)
                if pause is None:
                    raise DownloadError(str(error)) from None
                time.sleep(pause)


class _Transfer:
    """One file on its way; :meth:`run` starts it, or goes on."""

    def __init__(self, url: str, file: BinaryIO, progress: Progress) -> None:
        self.url, self.file, self.progress = url, file, progress
        #: By what the server knows that a file is still the one that was begun.
        self.version: str | None = None

    def run(self) -> None:
        done = self.file.tell() if self.version else 0
        with self._open(done) as response:
            if response.headers.get_content_type() == "text/html":
                raise DownloadError(
                    "the server sends a web page in place of the file, perhaps one to log in"
                )
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                done = 0
            self.file.seek(done)
            self.file.truncate()
            headers = response.headers
            self.version = headers.get("ETag") or headers.get("Last-Modified")
            length = int(headers.get("Content-Length", 0))
            self._receive(response, done + length if length else 0)

    def _open(self, done: int) -> http.client.HTTPResponse:
        """Ask for the file, or for what is behind its first bytes if it is still the same."""
        request = Request(self.url, headers={"User-Agent": f"mmvssm/{__version__}"})
        if done and self.version:
            request.add_header("Range", f"bytes={done}-")
            request.add_header("If-Range", self.version)
        try:
            return urlopen(request, timeout=TIMEOUT)
        except HTTPError as error:
            kind = _BrokenError if error.code in _BUSY else DownloadError
            raise kind(f"the server answers {error.code} {error.reason}") from None
        except URLError as error:
            if done:
                raise _BrokenError(f"the connection broke ({error.reason})") from None
            raise DownloadError(f"the server cannot be reached ({error.reason})") from None
        except (OSError, http.client.HTTPException) as error:
            raise _broken(error) from None

    def _receive(self, response: http.client.HTTPResponse, total: int) -> None:
        start = self.file.tell()
        room = shutil.disk_usage(os.path.dirname(self.file.name)).free
        if room < total - start:
            raise OSError(
                f"{(total - start) / 1e6:.0f} MB are needed, {room / 1e6:.0f} MB are free"
            )
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _broken(error) from None
            if not chunk:
                break
            self.file.write(chunk)
            self.progress(self.file.tell(), total)
        if self.file.tell() < total:
            raise _broken(f"{self.file.tell():,} of {total:,} bytes came")


def _broken(reason: object) -> _BrokenError:
    return _BrokenError(f"the connection broke ({reason or type(reason).__name__})")
