"""The command line in processes of its own, and what this machine lets a test mount. Knows no command."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPLAYED = Path(__file__).parent / "replayed_export.py"  # the same command line with traces that are there already


def start(*arguments: str | Path, limit_file_bytes: int = 0, traces: Path | None = None) -> subprocess.Popen[str]:
    """The command line in a process of its own.

    A limit on the size of files stands for a full disk: a write beyond it fails with EFBIG.
    """
    program = [ROOT / "cli.py"] if traces is None else [REPLAYED, traces, "run"]
    limit = ["prlimit", f"--fsize={limit_file_bytes}"] if limit_file_bytes else []
    return subprocess.Popen(
        [*limit, sys.executable, *program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def mounting() -> tuple[str, ...] | None:
    """The command before a command that may mount file systems of its own, if this machine allows it."""
    for within in (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount")):
        probe = [*within, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return within
    return None
