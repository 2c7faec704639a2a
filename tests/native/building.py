"""Builds the native host for the tests that want it, once for all workers; they skip where there is no compiler."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "runtime/native"
INSTALL = "install a compiler and CMake: apt-get install g++ cmake make"


def require_compiler() -> None:
    """Skips the test where there is none."""
    if not all(map(shutil.which, ("cmake", "make", "c++", "cc"))):
        pytest.skip(INSTALL)


def build(folder: Path | None = None, *options: str) -> Path:
    """The folder with librf_runtime; `make` builds only what changed."""
    require_compiler()
    folder = folder or ROOT / "build/native"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        run("cmake", "-S", NATIVE, "-B", folder, *options)
        run("make", "-C", folder, f"-j{min(os.cpu_count() or 1, 4)}")
    return folder


def run(*command: object, **more: Any) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
