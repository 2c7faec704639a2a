"""Files and folders that are there as a whole or not at all, written by one process at a time.

Knows nothing of what is in them. What is new is written under a temporary name beside its final one, flushed to the
disk and renamed. Whoever is killed on the way leaves a name that nothing reads and that the next run removes. What is
new has the mode that a plain `open` gives, whatever a library gave it; what replaces something has the mode of that.

A writer holds the lock of its path: the file `.<name>.partial-lock`, locked by the system, which lets go of it when the
process ends, however it ends. A second writer waits. So whoever holds the lock knows that other temporary names belong
to nobody; a process number would say little, since containers use the same numbers again, and clocks are set back.
"""

import errno
import hashlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import RFError

try:
    import fcntl
except ImportError:  # Windows: no locks, so leftovers stay until someone deletes them
    fcntl = None  # type: ignore[assignment]

_PARTIAL = ".partial-"
_REPLACED = ".replaced-"
_LONGEST_NAME = 100  # bytes; file systems take 143 (eCryptfs) to 255, and a suffix stands behind
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MOUNTS = Path("/proc/self/mountinfo")  # of Linux

_log = logging.getLogger(__name__)


@contextmanager
def locked(out: Path) -> Iterator[bool]:
    """Wait until nobody else writes `out`, and let others wait until the block ends. Not for nesting.

    Yields:
        Whether others are really kept out: not where the system or the file system has no locks, nor where no file can
        be made, which is for the caller to find out.
    """
    if is_temporary(out):  # nobody else knows of it
        yield True
        return
    path = _beside(out, f"{_PARTIAL}lock", hidden=True)
    descriptor = _lock(path, out)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()  # while it is held: whoever waits for it sees that it is gone
            os.close(descriptor)


def _lock(path: Path, out: Path) -> int | None:
    while fcntl is not None:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            _wait(descriptor, out)
            if _is_same(path, descriptor):  # not if the one before removed it meanwhile
                with suppress(OSError):  # a full disk: then nobody is told who it is
                    os.truncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except OSError:  # the file system has no locks
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    return None


def _wait(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("Waiting for %s, which is writing %s.", _writer(descriptor), out)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _writer(descriptor: int) -> str:
    for _ in range(50):  # it locks first and writes its number then
        if number := os.pread(descriptor, 32, 0):
            return f"process {number.decode(errors='replace')}"
        time.sleep(0.01)
    return "another process"  # on a full disk it cannot write its number


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _beside(out: Path, suffix: str, *, hidden: bool = False) -> Path:
    """A temporary name beside `out`; of a long name a part and its hash stay, since names have an end."""
    name = os.fsencode(out.name)
    if len(name) > _LONGEST_NAME:
        kept = name[: _LONGEST_NAME // 2].decode(errors="ignore")
        name = f"{kept}~{hashlib.sha256(name).hexdigest()[:16]}".encode()
    return out.with_name(f"{'.' * hidden}{os.fsdecode(name)}{suffix}")


def is_no_file(path: Path) -> bool:
    """Whether something is there that no file may replace: a folder, or a device such as /dev/null or /dev/stdout."""
    try:
        if path.is_symlink() and str(path.readlink()).startswith("/proc/"):  # /dev/stdout leads to what a shell opened
            return True
        return not stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def write_file(out: Path) -> Iterator[Path]:
    """Write a file that replaces `out` when the `with` block ends without an exception.

    Yields:
        The temporary file to write.

    Raises:
        RFError: It cannot be written there, or the disk is full; `out` is as it was.
    """
    try:
        special = is_no_file(out)
    except OSError as error:
        raise _not_written(out, error) from error
    if special:
        raise RFError(f"{out} exists and is not a regular file, so it is not replaced. Choose another output path.")
    with locked(out) as is_alone:
        partial = _beside(out, f"{_PARTIAL}{0 if is_alone else os.getpid()}", hidden=True)
        try:
            mode = _mode(out) or _plain_mode(partial)
            yield partial
            _set_mode(partial, mode)
            _flush_entry(partial)
            partial.replace(out)
        except OSError as error:
            raise _not_written(out, error) from error
        finally:
            with suppress(OSError):
                partial.unlink()


def _not_written(out: Path, error: OSError) -> RFError:
    reason = error.strerror or str(error)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # some libraries tell no number
    remedy = "Make room, or choose another" if is_full else "Choose another"
    return RFError(f"{out} was not written: {reason}. {remedy} output path.")


def write_text(out: Path, text: str) -> None:
    """Write a text file, as a whole or not at all; see `write_file`."""
    with write_file(out) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def write_folder(out: Path, *, replaceable: Callable[[Path], bool], force: bool, what: str) -> Iterator[Path]:
    """Fill a new folder that appears at `out` when the `with` block ends without an exception.

    An existing folder is replaced only when the new one is complete. Nobody else writes to `out` meanwhile: what the
    new folder takes over from the old one has to be read within the block.

    Args:
        out: The final path. Parents are made.
        replaceable: Tells whether an existing folder is of the kind that `force` may replace.
        force: Replace it.
        what: The kind for messages, such as "bundle".

    Yields:
        The temporary folder to write into.

    Raises:
        RFError: `out` exists and may or can not be replaced, or it cannot be made there, or the disk is full.
    """
    out = out.absolute()  # the caller may change the working directory
    partial = _beside(out, f"{_PARTIAL}{os.getpid()}")
    try:
        _make(out.parent, out, exist_ok=True)
        with locked(out) as is_alone:
            if is_alone:
                remove_leftovers(out)
            _check_target(out, replaceable, force, what)  # not before: who else replaces it moves it away meanwhile
            try:
                _make(partial, out)
                yield partial
                _set_modes(partial, out)
                _flush(partial)
                _check_target(out, replaceable, force, what)
                _move_into_place(partial, out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # before the free space is told
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise RFError(
                f"The disk is full: {out} was not written, and nothing half-written was left. "
                f"{_free_mib(out.parent)} MiB are free there now. Make room, or choose another disk."
            ) from error
        raise


def _make(folder: Path, out: Path, *, exist_ok: bool = False) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise
        raise RFError(f"{out} cannot be made ({error.strerror}). Choose another output path.") from error


def is_temporary(path: Path) -> bool:
    """Whether a killed writer may have left a file or folder of this name; it is never to be read."""
    return _PARTIAL in path.name or _REPLACED in path.name


def remove_leftovers(out: Path) -> None:
    """Clean up what killed writers of the folder `out` left; only for who holds its lock."""
    for path in _siblings(out, _REPLACED):
        if out.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(out)  # killed between the two renames: the old folder is the complete one
    for path in _siblings(out, _PARTIAL):
        shutil.rmtree(path, ignore_errors=True)


def restore(out: Path) -> None:
    """Bring back the folder `out` where a writer that replaced it was killed between its two renames."""
    out = out.resolve()
    if killed_replacement(out) is not None:
        with locked(out) as is_alone:
            if is_alone:
                remove_leftovers(out)


def killed_replacement(out: Path) -> Path | None:
    """What the folder `out` is called now, if whoever replaced it was killed between the two renames."""
    return None if os.path.lexists(out) else next(iter(_siblings(out, _REPLACED)), None)


def _siblings(out: Path, kind: str) -> list[Path]:
    if not out.parent.is_dir():
        return []
    start = _beside(out, kind).name
    return [
        path
        for path in out.parent.iterdir()
        if path.name.startswith(start) and path.name.removeprefix(start).isdecimal()
    ]


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _plain_mode(path: Path) -> int:
    """The mode of a file that a plain `open` makes here: umask and folder decide. The empty file is left."""
    path.unlink(missing_ok=True)
    path.touch()
    return stat.S_IMODE(path.stat().st_mode)


def _set_mode(path: Path, mode: int) -> None:
    with suppress(PermissionError):  # a file system without modes
        path.chmod(mode)


def _set_modes(folder: Path, before: Path) -> None:
    plain = _plain_mode(folder / _PARTIAL)
    (folder / _PARTIAL).unlink()
    for path in reversed([folder, *folder.rglob("*")]):  # what is in a folder before the folder
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            mode = _mode(before / path.relative_to(folder))  # a new one has the plain mode already
        elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:  # a second name of a file elsewhere is left alone
            mode = _mode(before / path.relative_to(folder)) or plain
        else:
            mode = None
        if mode is not None:
            _set_mode(path, mode)


def _check_target(out: Path, replaceable: Callable[[Path], bool], force: bool, what: str) -> None:
    try:
        out.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _not_written(out, error) from error
    if not out.is_dir() or out.is_symlink():
        raise RFError(f"{out} exists and is not a folder. Choose another output path.")
    if _is_mount_point(out):
        raise RFError(
            f"{out} is a mount point, which cannot be replaced as a whole. Use a folder inside it, or mount the folder "
            "above it instead."
        )
    if not any(out.iterdir()):
        return
    if not replaceable(out):
        raise RFError(f"{out} exists and is not a {what}, so it is not replaced. Choose another output path.")
    if not force:
        raise RFError(f"{out} exists. Choose another output path, or replace it with --force.")


def _is_mount_point(folder: Path) -> bool:
    if os.path.ismount(folder):
        return True
    with suppress(OSError):  # a folder of the same disk that is mounted there is told only by the system's table
        name = os.path.realpath(folder).replace("\\", r"\134").replace(" ", r"\040")
        mounts = _MOUNTS.read_text(errors="surrogateescape").splitlines()
        return any(line.split(" ")[4] == name for line in mounts)
    return False


def _move_into_place(partial: Path, out: Path) -> None:
    replaced = _beside(out, f"{_REPLACED}{os.getpid()}")
    if out.exists():
        _move_away(out, replaced)
    try:
        partial.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise
    _flush_entry(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _move_away(out: Path, replaced: Path) -> None:
    try:
        out.rename(replaced)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        raise RFError(
            f"{out} cannot be replaced as a whole ({error.strerror}); it is as it was. Choose another output path."
        ) from error


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


def _free_mib(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free >> 20
