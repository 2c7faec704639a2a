"""What a search has found out so far, line by line in a file, so that nothing is lost where it is interrupted.

    {"format": "rf-export-tuning", "format_version": 1, "search": {...}}       what is searched, and with what
    {"original": 0, "rep_ids": [...], "shape": [48, 48, 3], "pixels": "...", "score": 1.0}     by the full plan
    {"plan": "6 steps, ...", "picture": 0, "score": 1.0, "psnr_db": 24.1, "ssim": 0.93}
    {"finished": true}

Whoever is killed leaves at most one line that is cut off; it is dropped. Knows nothing of how pictures are drawn and
scored.
"""

import base64
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import numpy as np

from runtime.bundle.atomic import is_no_file
from runtime.bundle.strict_json import parse_json
from runtime.errors import RFError
from tuning.drawings import Drawn
from tuning.judging import Mark

_FORMAT: Final = "rf-export-tuning"
_VERSION: Final = 1


class Cache:
    """The file of one search; a context manager.

    Attributes:
        originals: By the index of the picture: what the full plan drew, and its score.
        marks: By plan and index.
    """

    def __init__(self, path: Path, search: Mapping[str, Any], *, resume: bool) -> None:
        """Begin the file of a search, or go on with it.

        Args:
            path: The file; one of a search that ended is replaced.
            search: All that its content depends on.
            resume: Go on with an interrupted search.

        Raises:
            RFError: The file is of another search, or of an interrupted one and `resume` is not set.
        """
        self.originals: dict[int, tuple[Drawn, float | None]] = {}
        self.marks: dict[tuple[str, int], Mark] = {}
        if is_no_file(path):
            raise RFError(f"{path} is not a regular file. Name another one with --cache.")
        known, size = (_read(path), path.stat().st_size) if path.exists() else ([], 0)
        if resume and known:
            _require_same(path, known[0], search)
            self._take(path, known[1:])
        elif len(known) > 1 and "finished" not in known[-1]:
            raise RFError(f"{path} has an interrupted search. Go on with --resume, or delete it.")
        self._file: IO[bytes] = path.open("r+b" if resume and known else "wb")
        if resume and known:
            self._cut(size)
        else:
            self._write([{"format": _FORMAT, "format_version": _VERSION, "search": search}])

    def _cut(self, size: int) -> None:
        """Go to the end of the last whole line."""
        content = self._file.read(size)
        self._file.truncate(content.rfind(b"\n") + 1)
        self._file.seek(0, os.SEEK_END)

    def _take(self, path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
        try:
            for line in lines:
                if "original" in line:
                    pixels = np.frombuffer(zlib.decompress(base64.b64decode(line["pixels"])), np.uint8)
                    drawn = Drawn(pixels.reshape(line["shape"]), np.array(line["rep_ids"], np.int64))
                    self.originals[line["original"]] = drawn, line["score"]
                elif "plan" in line:
                    mark = Mark(line["score"], float(line["psnr_db"]), float(line["ssim"]))
                    self.marks[line["plan"], line["picture"]] = mark
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise _damaged(path) from error

    def add_originals(self, found: Mapping[int, tuple[Drawn, float | None]]) -> None:
        """Keep what the full plan drew."""
        self.originals.update(found)
        self._write(
            {
                "original": index,
                "rep_ids": drawn.rep_ids.tolist(),
                "shape": drawn.picture.shape,
                "pixels": base64.b64encode(zlib.compress(drawn.picture.tobytes())).decode("ascii"),
                "score": score,
            }
            for index, (drawn, score) in found.items()
        )

    def add_marks(self, plan: str, found: Mapping[int, Mark]) -> None:
        """Keep what a plan came to."""
        self.marks.update({(plan, index): mark for index, mark in found.items()})
        self._write({"plan": plan, "picture": index, **vars(mark)} for index, mark in found.items())

    def finish(self) -> None:
        """Say that the search has ended."""
        self._write([{"finished": True}])

    def _write(self, lines: Any) -> None:
        self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        self._file.flush()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _read(path: Path) -> list[Mapping[str, Any]]:
    """The lines that are whole; none where not even the first one is."""
    data, start = path.read_bytes(), b'{"format": "' + _FORMAT.encode()
    if not start.startswith(data[: len(start)]):
        raise _damaged(path)
    try:
        content = [parse_json(line, str(path)) for line in data.split(b"\n")[:-1]]
    except RFError as error:
        raise _damaged(path) from error
    if not all(isinstance(line, dict) for line in content):
        raise _damaged(path)
    if content and content[0].get("format_version") != _VERSION:
        raise _damaged(path)
    return content


def _damaged(path: Path) -> RFError:
    return RFError(f"{path} is no file of a search for a plan, or is damaged. Delete it, or name another --cache.")


def _require_same(path: Path, header: Mapping[str, Any], search: Mapping[str, Any]) -> None:
    found, wanted = header.get("search"), json.loads(json.dumps(search))
    if found == wanted:
        return
    other = [name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name]]
    raise RFError(
        f"{path} has a search with other values of: {', '.join(other) or 'something'}. Go on with the same ones, or "
        "delete it and leave out --resume."
    )
