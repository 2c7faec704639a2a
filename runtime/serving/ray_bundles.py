"""A bundle for nodes that do not find its folder: put into Ray's object store once, and unpacked once on each node.

    /tmp/rf-export-USER/<sha256>         the folder, verified before it appears; replicas of the node share it
    /tmp/rf-export-USER/<sha256>.used    locked by each of them, so that the next bundle removes what nobody uses

Knows nothing of what serves it. Ray is imported by who holds a bundle and by who gets it, not by this module.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from runtime.bundle.atomic import is_temporary, locked, write_folder
from runtime.bundle.folder import describe_file, open_bundle
from runtime.errors import RFError

_PIECE: Final = 64 << 20  # bytes of an object
_USED: Final = ".used"


@dataclass(frozen=True)
class Packed:
    """The files of a bundle, engines too: by their paths in it the references of their pieces."""

    name: str  # sha256 of what is in it
    files: dict[str, list[Any]]


class Shelf:
    """Holds a bundle in the object store, where the folder is; what it has put is there as long as it lives."""

    def __init__(self, bundle: str) -> None:
        import ray

        self._packed = pack(Path(bundle), ray.put)

    def packed(self) -> Packed:
        """What it holds."""
        return self._packed


def fetch(shelf: Any) -> tuple[Path, IO[str]]:
    """The folder on this node of what a shelf, as Ray Serve hands it, holds; it stays while the file is open."""
    import ray

    with ThreadPoolExecutor(1) as elsewhere:  # Ray waits for answers in no thread that has an event loop
        packed = elsewhere.submit(lambda: shelf.packed.remote().result()).result()
    return unpack(packed, ray.get, own_folder())


def pack(bundle: Path, put: Callable[[bytes], Any]) -> Packed:
    """Put a bundle, piece by piece.

    Raises:
        RFError: It is none, or damaged: every byte is checked.
    """
    open_bundle(bundle, verify="hash")
    paths = [path for path in sorted(bundle.rglob("*")) if path.is_file()]
    names = {path.relative_to(bundle): path for path in paths}
    names = {name: path for name, path in names.items() if not any(is_temporary(Path(part)) for part in name.parts)}
    content = "".join(f"{describe_file(path).sha256} {name}\n" for name, path in names.items())
    files = {str(name): [put(piece) for piece in _pieces(path)] for name, path in names.items()}
    return Packed(hashlib.sha256(content.encode()).hexdigest(), files)


def unpack(packed: Packed, get: Callable[[Any], bytes], root: Path) -> tuple[Path, IO[str]]:
    """Make the folder of a bundle, unless it is there; remove those that nobody uses.

    Args:
        packed: What it holds.
        get: The content of a piece.
        root: Where folders are.

    Returns:
        The folder, and a file: the folder stays at least until that is closed.

    Raises:
        RFError: What came is damaged, or there is no room.
    """
    out = root / packed.name
    with locked(root / "folders"), ExitStack() as on_error:
        used = on_error.enter_context(out.with_suffix(_USED).open("w"))
        fcntl.flock(used, fcntl.LOCK_SH)
        _remove_unused(root)
        if not out.is_dir():
            with write_folder(out, replaceable=lambda _: False, force=False, what="bundle") as folder:
                for name, pieces in packed.files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    with (folder / name).open("wb") as file:
                        for piece in pieces:
                            file.write(get(piece))
                open_bundle(folder, verify="hash")
        on_error.pop_all()
    return out, used


def own_folder() -> Path:
    """Where this user's folders are on this node; raises RFError where another user could write there."""
    root = Path(tempfile.gettempdir()) / f"rf-export-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise RFError(f"Others may write to {root}, where bundles are unpacked. Remove it, or set TMPDIR.")
    return root


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _remove_unused(root: Path) -> None:
    for mark in root.glob(f"*{_USED}"):
        with mark.open() as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(mark.with_suffix(""), ignore_errors=True)
            mark.unlink()
