"""Builds the native host for the tests that want it, once for all workers; they skip where there is no compiler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "runtime/native"
EMULATION = Path(__file__).parent / "emulation"
INSTALL = "install a compiler and CMake: apt-get install g++ cmake make"


def require_compiler() -> None:
    """Skips the test where there is none."""
    if not all(map(shutil.which, ("cmake", "make", "c++", "cc"))):
        pytest.skip(INSTALL)


def build(folder: Path | None = None, *options: str, target: str = "all") -> Path:
    """The folder with librf_runtime, or with another target; `make` builds only what changed."""
    require_compiler()
    folder = folder or ROOT / "build/native"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        run("cmake", "-S", NATIVE, "-B", folder, *options)
        run("make", "-C", folder, f"-j{min(os.cpu_count() or 1, 4)}", target)
    return folder


def run(*command: object, **more: Any) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_emulation(name: str, *more: object) -> None:
    """A shared library of the emulated machine; `more` goes to the compiler."""
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility-inlines-hidden")
    run("c++", *flags, "-I", NATIVE / "src", "-I", NATIVE / "include", EMULATION / name, *more, "-ldl")


def build_gpu(folder: Path) -> Path:
    """The folder, with the driver and the ONNX Runtime of a machine with an emulated GPU."""
    require_compiler()
    driver = folder / "libcuda.so.1"
    build_emulation("cuda.cpp", "-Wl,-soname,libcuda.so.1", "-o", driver)
    build_emulation("onnxruntime.cpp", driver, "-o", folder / "libonnxruntime.so")
    return folder


def build_tensorrt(folder: Path, headers: Path, machine: Path) -> Path:
    """The folder, with the module for these headers of NVIDIA's and their library of the emulated machine."""
    folder.mkdir()
    (folder / "stubs.hpp").write_text(run(sys.executable, EMULATION / "stubs.py", headers))
    names = ("json", "ort", "providers", "cuda", "memory", "session", "machine", "signature", "unicode")
    sources = [NATIVE / f"src/{name}.cpp" for name in names]
    theirs = ("-I", NATIVE / "tensorrt/cuda", "-isystem", headers, "-isystem", folder, "-fvisibility=hidden")
    build_emulation(
        "nvinfer.cpp", *sources, *theirs, machine / "libcuda.so.1", "-Wl,-z,defs", "-o", folder / "libnvinfer.so"
    )
    build(folder / "native", "-DRF_WITH_TENSORRT=ON", f"-DRF_TENSORRT_INCLUDE={headers}", target="rf_tensorrt")
    return folder
