"""The native host, built, and a bundle that is opened by it and by the Python runtime."""

import os
from pathlib import Path

import pytest
from building import build

from runtime import Pipeline
from runtime.native.binding import NativePipeline


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
