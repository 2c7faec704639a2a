"""What a measurement ran on: CPU, memory, versions. Knows nothing of what is measured."""

import os
import platform
import re
from importlib import metadata
from typing import Any

from runtime.backends.cpu import cpu_features, cpu_name

PACKAGES = ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "pycuda", "cuda-bindings",
            "onnx", "numpy")  # fmt: skip
MATRIX_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimddp", "i8mm", "bf16")


def describe_machine() -> dict[str, Any]:
    """For JSON."""
    features = cpu_features().split()
    return {
        "cpu": cpu_name(),
        "features": [name for name in MATRIX_FEATURES if name in features],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def file_label(name: str) -> str:
    """The name of a processor or a GPU as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
