"""The native host, built, and a bundle that is opened by it and by the Python runtime."""

import os
import sys
from pathlib import Path

import pytest
from building import EMULATION, NATIVE, build, build_gpu, run

from runtime import Pipeline
from runtime.native.binding import NativePipeline
from runtime.native.library import find_onnxruntime


@pytest.fixture(scope="session")
def native_library() -> Path:
    """librf_runtime: the one that RF_RUNTIME_LIBRARY names, such as a build with sanitizers, or a fresh one."""
    named = os.environ.get("RF_RUNTIME_LIBRARY")
    return Path(named) if named else build() / "librf_runtime.so"


@pytest.fixture(scope="session")
def native(native_library: Path, tiny_bundle: Path) -> NativePipeline:
    """The tiny bundle, opened by the native host."""
    return NativePipeline.load(tiny_bundle, num_threads=1, engine="none", library=native_library)


@pytest.fixture(scope="session")
def open_both(native_library: Path):
    """Opens a bundle in both ways."""

    def both(bundle: Path, precision: str = "fp32", **arguments: object) -> tuple[Pipeline, NativePipeline]:
        options = {"num_threads": 1, "engine": "none", **arguments}
        return (
            Pipeline.load(bundle, precision, **options),
            NativePipeline.load(bundle, precision, library=native_library, **options),
        )

    return both


@pytest.fixture(scope="session")
def gpu_machine(tmp_path_factory) -> Path:
    """A folder with the driver and the ONNX Runtime of a machine with an emulated GPU."""
    return build_gpu(tmp_path_factory.mktemp("gpu"))


@pytest.fixture(scope="session")
def check(gpu_machine, native_library):
    """Runs a check of emulation/worker.py on that machine."""

    def checked(name: str, bundle: Path, environment: dict[str, str] | None = None, **values: object) -> None:
        given = [f"{key}={value}" for key, value in values.items()]
        machine = {
            "LD_LIBRARY_PATH": str(gpu_machine),
            "EMULATED_ONNXRUNTIME": find_onnxruntime() or "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(NATIVE.parents[1]),
        }
        library = gpu_machine / "libonnxruntime.so"
        worker = (sys.executable, EMULATION / "worker.py", name, native_library, library, bundle)
        run(*worker, *given, env={**os.environ, **machine, **(environment or {})})

    return checked
