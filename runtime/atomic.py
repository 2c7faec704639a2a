"""Folders that are there as a whole or not at all.

Knows nothing of what is in a folder. A folder is written under a temporary name beside its final one,
`<name>.partial-<pid>`, flushed to the disk and renamed. Whoever is killed on the way leaves a name that
nothing reads and that the next run removes. A running writer holds a lock on its folder: a process number
would say little, since containers use the same numbers again.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import RFError

try:
    import fcntl
except ImportError:  # Windows: no locks, so leftovers stay until someone deletes them
    fcntl = None  # type: ignore[assignment]

_PARTIAL = ".partial-"
_REPLACED = ".replaced-"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def write_folder(out: Path, *, replaceable: Callable[[Path], bool], force: bool, what: str) -> Iterator[Path]:
    """Fill a new folder that appears at `out` when the `with` block ends without an exception.

    An existing folder is replaced only when the new one is complete.

    Args:
        out: The final path. Parents are made.
        replaceable: Tells whether an existing folder is of the kind that `force` may replace.
        force: Replace it.
        what: The kind for messages, such as "bundle".

    Yields:
        The temporary folder to write into.

    Raises:
        RFError: `out` exists and may not be replaced, or it cannot be made there, or the disk is full.
    """
    out = out.absolute()  # the caller may change the working directory
    remove_leftovers(out)
    _check_target(out, replaceable, force, what)
    partial = out.with_name(f"{out.name}{_PARTIAL}{os.getpid()}")
    lock: int | None = None
    try:
        _make(partial, out)
        lock = _try_lock(partial)
        yield partial
        _flush(partial)
        _check_target(out, replaceable, force, what)
        _move_into_place(partial, out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)  # before the free space is told
        if error.errno in _DISK_FULL:
            raise RFError(
                f"The disk is full: {out} was not written, and nothing half-written was left. "
                f"{_free_mib(out.parent)} MiB are free there now. Make room, or choose another disk."
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: whoever is killed on the way leaves the old one."""
    partial = path.with_name(f"{path.name}{_PARTIAL}{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        _flush_entry(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _flush_entry(path.parent)


def _make(partial: Path, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise
        raise RFError(f"{out} cannot be made ({error.strerror}). Choose another output path.") from error


def is_temporary(path: Path) -> bool:
    """Whether a killed `write_folder` may have left a folder of this name; it is never to be read."""
    return _PARTIAL in path.name or _REPLACED in path.name


def remove_leftovers(out: Path) -> None:
    """Clean up what a killed `write_folder` of the same `out` left; a running one is not disturbed."""
    for path in _siblings(out, _REPLACED):
        writer = path.with_name(path.name.replace(_REPLACED, _PARTIAL))
        if out.exists():
            shutil.rmtree(path, ignore_errors=True)
        elif not writer.exists() or _is_abandoned(writer):
            path.rename(out)  # killed between the two renames: the old folder is the complete one
    for path in _siblings(out, _PARTIAL):
        if _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _siblings(out: Path, kind: str) -> list[Path]:
    if not out.parent.is_dir():
        return []
    start = out.name + kind
    return [
        path
        for path in out.parent.iterdir()
        if path.name.startswith(start) and path.name.removeprefix(start).isdecimal()
    ]


def _check_target(out: Path, replaceable: Callable[[Path], bool], force: bool, what: str) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise RFError(f"{out} exists and is not a folder. Choose another output path.")
    if not any(out.iterdir()):
        return
    if not replaceable(out):
        raise RFError(f"{out} exists and is not a {what}, so it is not replaced. Choose another output path.")
    if not force:
        raise RFError(f"{out} exists. Choose another output path, or replace it with --force.")


def _move_into_place(partial: Path, out: Path) -> None:
    replaced = out.with_name(f"{out.name}{_REPLACED}{os.getpid()}")
    if out.exists():
        out.rename(replaced)
    try:
        partial.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise
    _flush_entry(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring every file to the disk: a rename must never be durable before the data is."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            _flush_entry(Path(root, name))
        _flush_entry(Path(root))


def _flush_entry(path: Path) -> None:
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # Windows flushes no read-only file
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder, or None where another process holds it."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_abandoned(partial: Path) -> bool:
    """Whether nobody is writing a temporary folder any more."""
    try:
        lock = _try_lock(partial)
    except OSError:  # it was renamed or removed just now
        return False
    if lock is None:
        return False
    os.close(lock)
    return True


def _free_mib(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free >> 20
