"""`rf-export` in a process of its own that is killed or runs out of disk, with the traces of a bundle that is there.

Tracing takes half a minute and writes nothing, so it is replayed; reading the checkpoint, writing, verifying and moving
are real. One process imports the libraries and forks for every try. Results are JSON lines.

    python replayed_export.py TRACES run ARGUMENT...                     once
    python replayed_export.py TRACES kill FIRST LAST OUT ARGUMENT...     SIGKILL before the n-th change of the disk
    python replayed_export.py TRACES mounted OPTIONS OUT ARGUMENT...     on a file system that is full or read-only, and
                                                                         once more when it no longer is
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def replay(traces: Path) -> None:
    """Let `rf_export.export` take graphs from a bundle instead of tracing them."""
    import onnx_ir as ir

    import rf_export.export
    from rf_export.model import RFModel
    from runtime.signature import Variant

    def trace(_model: RFModel, graph: str, variant: Variant, *_: object, **__: object) -> ir.Model:
        return ir.load(traces / "graphs" / f"{graph}.{variant.precision}.{variant.dialect}.onnx")

    rf_export.export.trace = trace  # type: ignore[assignment]


def command(arguments: list[str]) -> int:
    """Run the command line; returns its exit code."""
    import cli

    try:
        cli.main(arguments)
    except SystemExit as done:
        return int(done.code or 0)
    raise AssertionError("click always exits")


def changes_disk(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    """Whether an event of the interpreter (PEP 578) is about to change something in a folder."""
    paths = [os.fspath(path) for path in arguments[:2] if isinstance(path, str | os.PathLike)]
    if event not in CHANGES or not any(path.startswith(folder) for path in paths):
        return False
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event != "shutil.rmtree" or Path(paths[0]).exists()


def kill_before_change(number: int, out: Path) -> None:
    """Kill this process before its n-th change of `out` or of its own temporary folders beside it."""
    from runtime.bundle.atomic import _PARTIAL, _REPLACED

    count = 0
    own = [str(out.with_name(f"{out.name}{kind}{os.getpid()}")) for kind in (_PARTIAL, _REPLACED)]
    own.append(f"{out}{os.sep}")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if any(changes_disk(event, arguments, folder) for folder in own):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def in_a_fork(work: Callable[[], int]) -> int:
    """The exit code of `work` in a child, or minus the signal that ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(first: int, last: int, out: Path, arguments: list[str]) -> None:
    """One try after the other, each killed one change later than the one before, until one gets through."""

    def killed_run(number: int) -> int:
        kill_before_change(number, out)
        return command(arguments)

    for number in range(first, last):
        code = in_a_fork(lambda number=number: killed_run(number))  # type: ignore[misc]
        print(json.dumps({"number": number, "code": code, **look(out)}), flush=True)
        if code >= 0:
            break


def run_mounted(options: str, out: Path, arguments: list[str]) -> None:
    """Twice on a small file system in memory, the second time with room; the mount ends with the process."""
    for how in (options, "remount,rw,size=50m"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", out.parent], check=True)
        code = in_a_fork(lambda: command(arguments))
        print(json.dumps({"code": code, **look(out)}), flush=True)


def look(out: Path) -> dict[str, object]:
    """What a reader finds: a complete bundle, or the reason why it is none; and what else lies beside it."""
    from runtime.bundle.folder import open_bundle
    from runtime.errors import RFError

    beside = sorted(path.name for path in out.parent.iterdir() if path != out)
    try:
        manifest = open_bundle(out, verify="hash").manifest
    except RFError as error:
        return {"bundle": None, "reason": str(error), "beside": beside}
    return {"bundle": manifest.bundle_id, "verified": sorted(manifest.verified), "beside": beside}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    traces, mode, *arguments = sys.argv[1:]
    replay(Path(traces))
    if mode == "run":
        sys.exit(command(arguments))
    if mode == "kill":
        first, last, out, *arguments = arguments
        kill_everywhere(int(first), int(last), Path(out), arguments)
    else:
        options, out, *arguments = arguments
        run_mounted(options, Path(out), arguments)


if __name__ == "__main__":
    main()
