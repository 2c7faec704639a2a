"""What a measurement ran on: processor, memory, clocks, power mode, versions. Knows nothing of what is measured.

`root` stands for the file system, so that a test can bring its own. What a machine does not tell is left out.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from rf_export.benchmark.energy import EnergyMeter
from runtime.backends.host.machine import cpu_features, cpu_name, usable_cpus, usable_memory

ROOT = Path("/")
PACKAGES = (
    "torch",
    "triton",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "cuda-bindings",
    "onnx",
    "numpy",
)
MATRIX_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimddp", "i8mm", "bf16")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
GPU_FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "pstate",
)
_CPUFREQ = "sys/devices/system/cpu/cpu0/cpufreq"


def describe_machine(root: Path = ROOT) -> dict[str, Any]:
    """What does not change while it is measured, for JSON."""
    features = cpu_features(root).split()
    memory = usable_memory(root)
    known = {
        "governor": _text(root / _CPUFREQ / "scaling_governor"),
        "max_mhz": _mhz(root / _CPUFREQ / "cpuinfo_max_freq"),
        "power_mode": _power_mode(),
    }
    return {
        "cpu": cpu_name(root),
        "features": [name for name in MATRIX_FEATURES if name in features],
        "cores": usable_cpus(root),
        "caches": _caches(root),
        "memory_gib": round(memory.total / 2**30, 1) if memory else None,
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "thread_variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        "energy": EnergyMeter(root).source or "not available",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **{name: value for name, value in known.items() if value},
    }


def describe_state(root: Path = ROOT) -> dict[str, Any]:
    """What may change meanwhile: load, free memory, clocks, GPUs."""
    clock = _mhz(root / _CPUFREQ / "scaling_cur_freq")
    gpus = _gpus()
    return {
        "load_average": round(os.getloadavg()[0], 2),
        **({} if (free := free_bytes(root)) is None else {"free_gib": round(free / 2**30, 1)}),
        **({"clock_mhz": clock} if clock else {}),
        **({"gpus": gpus} if gpus else {}),
    }


def free_bytes(root: Path = ROOT) -> int | None:
    """Memory that this process can still have without swapping; None where the system does not tell."""
    memory = usable_memory(root)
    return None if memory is None else memory.available


def file_label(name: str) -> str:
    """The name of a processor or a GPU as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _caches(root: Path) -> list[str]:
    """Such as "L1 Data 32K", of the first core."""
    folders = sorted(root.glob("sys/devices/system/cpu/cpu0/cache/index*"))
    return [" ".join([f"L{_text(each / 'level')}", _text(each / "type"), _text(each / "size")]) for each in folders]


def _gpus() -> list[dict[str, str]]:
    """Clocks and power of NVIDIA GPUs, as their driver's tool tells."""
    lines = _output("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader").splitlines()
    return [dict(zip(GPU_FIELDS, (cell.strip() for cell in line.split(",")), strict=False)) for line in lines]


def _power_mode() -> str:
    """Of a Jetson."""
    match = re.search(r"NV Power Mode: *(\S+)", _output("nvpmodel", "-q"))
    return match[1] if match else ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):  # not installed, or there is no device
        return ""


def _mhz(path: Path) -> int | None:
    text = _text(path)
    return int(text) // 1000 if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
