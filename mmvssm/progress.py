"""Progress of long work, on standard error."""

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

#: From this size on, a bar is worth its line.
LARGE = 64 * 2**20


@contextmanager
def byte_bar(title: str, least: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Show how many bytes are done.

    Args:
        title: What is being done.
        least: Size from which on there is a bar.

    Yields:
        A function of the bytes that are done and of those there are in all, 0 for not known.
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
    """Show how many steps are done, of ``total`` if that is known.

    Yields:
        A function to be called after each step, or with the number of steps that it stands for.
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
