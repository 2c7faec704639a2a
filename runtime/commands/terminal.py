"""What the commands share on a terminal: parameter types, a progress bar, and usage errors. Knows no command."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.bundle.atomic import is_no_file

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

FOLDER = click.Path(path_type=Path)
PRECISION = click.Choice(["fp32", "fp16", "int8", "int8-fp16"])
DIALECT = click.Choice(["classic", "modern"])


def progress_columns() -> "tuple[ProgressColumn, ...]":
    """What every progress bar shows: what is done, the bar, how many of how many, time gone and time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


@contextmanager
def progress(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr with time left; calls are (what, done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*progress_columns(), console=Console(stderr=True), transient=not sys.stderr.isatty()) as bar:
        task = bar.add_task(description, total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Values that a config refuses are wrong options."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def require_writable(path: Path | None, option: str) -> None:
    """Refuse, before the work is done, a file that could not be written afterwards; raises click.BadParameter."""
    if path is None:
        return
    parent = path.absolute().parent
    if not parent.is_dir():
        raise click.BadParameter(f"{parent} is not a folder", param_hint=option)
    if path.is_dir():
        raise click.BadParameter(f"{path} is a folder", param_hint=option)
    if is_no_file(path):
        raise click.BadParameter(f"{path} is not a regular file, so it cannot be replaced", param_hint=option)
    if not os.access(parent, os.W_OK):
        raise click.BadParameter(f"nothing can be written into {parent}", param_hint=option)


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """Read HxW; raises click.BadParameter."""
    if text is None:
        return None, None
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise click.BadParameter(f"expected HxW in pixels such as 48x48, got {text!r}", param_hint="--size")
    return int(height), int(width)
