"""What commands tell while they work: a bar on a terminal, plain lines elsewhere. Knows no command.

Also the streams themselves: one that the caller closed leads nowhere, so that no file takes its number.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from runtime.events import Progress


SECONDS_BETWEEN_LINES = 15.0


def open_streams() -> None:
    """Give closed streams a place that leads nowhere, and let names of files pass as they are.

    With `2>&-` Python has no `sys.stderr`, and the next file that is opened, such as a picture, would get its number
    and with it the messages of every native library.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - for the whole run
    with suppress(AttributeError):  # whoever replaced it decides
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]


@contextmanager
def progress(description: str) -> "Iterator[Progress]":
    """Shows on stderr what the block reports, and the time that is left."""
    with _bar(description) if sys.stderr.isatty() else _lines() as report:
        yield report


@contextmanager
def _bar(description: str) -> "Iterator[Progress]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    what, left = TextColumn("{task.description}"), TimeRemainingColumn()
    columns = (what, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


class PlainProgress:
    """Lines for logs: one when something else is done, and one whenever nothing was told for a while.

    Args:
        tell: Takes a line.
        clock: Tells the seconds.
    """

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._lock = threading.Lock()
        self._what, self._done, self._total = "", 0, 0
        self._started = self._counted_from = clock()
        self._done_before = 0  # when the count began
        self._told = -SECONDS_BETWEEN_LINES

    def report(self, what: str, done: int, total: int) -> None:
        """Hear how far the work is."""
        with self._lock:
            if total != self._total or done < self._done:  # another count
                self._counted_from, self._done_before = self._clock(), done
            is_new = what.partition(",")[0] != self._what.partition(",")[0]  # figures may stand behind a comma
            self._what, self._done, self._total = what, done, total
            if (is_new and self._clock() - self._told >= 1) or self._is_due():
                self._line()

    def tick(self) -> None:
        """Tell that the work goes on, if nothing was told for a while."""
        with self._lock:
            if self._what and self._is_due():
                self._line()

    def _is_due(self) -> bool:
        return self._clock() - self._told >= SECONDS_BETWEEN_LINES

    def _line(self) -> None:
        self._told = self._clock()
        line = f"{self._what}: {self._done} of {self._total}, {_minutes(self._told - self._started)} gone"
        steps = self._done - self._done_before
        if steps > 0:
            left = (self._told - self._counted_from) / steps * (self._total - self._done)
            line += f", about {_minutes(left)} left"
        self._tell(line)


@contextmanager
def _lines() -> "Iterator[Progress]":
    plain, ended = PlainProgress(lambda line: click.echo(line, err=True)), threading.Event()

    def remind() -> None:
        while not ended.wait(1):
            plain.tick()

    threading.Thread(target=remind, daemon=True).start()
    try:
        yield plain.report
    finally:
        ended.set()


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
