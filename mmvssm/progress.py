"""Progress bars on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

#: Size in bytes from which a progress bar is useful.
LARGE = 64 * 2**20


@contextmanager
def byte_bar(title: str, least: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of an operation in bytes.

    Args:
        title: Description of the operation.
        least: Smallest total for which a bar is shown.

    Yields:
        A function of the number of bytes done and in total, 0 if the total is unknown.
    """
    columns = (
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(title, total=None)

    def show(done: int, total: int) -> None:
        if total >= least:
            progress.start()
            progress.update(task, completed=done, total=total or None)

    try:
        yield show
    finally:
        if progress.live.is_started:
            progress.stop()


@contextmanager
def step_bar(title: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Show the progress of an operation in steps, of ``total`` if that is known.

    Yields:
        A function to call after each step, or with a number of steps.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done=1: progress.advance(task, done)
