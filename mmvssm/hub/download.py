"""Download of files, resumed after broken connections."""

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

#: Seconds to wait for an unresponsive server.
TIMEOUT = 30.0
#: Seconds to wait before each retry.
PAUSES = (1.0, 3.0, 9.0)
_CHUNK = 2**18
_BUSY = (429, 500, 502, 503, 504)


class DownloadError(Exception):
    """A file cannot be downloaded; the message says why."""


class _BrokenError(Exception):
    """A connection broke, or a server is busy; a retry may succeed."""


def download(url: str, path: Path, progress: Progress) -> None:
    """Download a file, resuming where a connection breaks.

    Args:
        url: An ``http`` or ``https`` URL.
        path: File to write; it is incomplete if an exception is raised.
        progress: Called with the number of bytes so far and in total, 0 if the total is unknown.

    Raises:
        DownloadError: If the file cannot be downloaded, or the server sends a web page instead.
        OSError: If the file cannot be written, or there is too little disk space.
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
    """The transfer of one file; :meth:`run` starts or resumes it."""

    def __init__(self, url: str, file: BinaryIO, progress: Progress) -> None:
        self.url, self.file, self.progress = url, file, progress
        #: Identifier of the file's version, by which the server knows whether it has changed.
        self.version: str | None = None

    def run(self) -> None:
        done = self.file.tell() if self.version else 0
        with self._open(done) as response:
            if response.headers.get_content_type() == "text/html":
                raise DownloadError(
                    "the server sends a web page instead of the file, perhaps a login page"
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
        """Request the file, or only the bytes from ``done`` on if it has not changed."""
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
            raise _broken(f"received {self.file.tell():,} of {total:,} bytes")


def _broken(reason: object) -> _BrokenError:
    return _BrokenError(f"the connection broke ({reason or type(reason).__name__})")
