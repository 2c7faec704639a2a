"""What this machine can do, and what it lacks: the facts behind `rf-export doctor`.

Knows nothing of bundles. Asks only what cannot do harm: no library that may crash without a driver is imported, nothing
is written. A probe that fails is a fact like the others, since odd machines are the ones that need a doctor.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from runtime.backends.cuda.driver import Gpu, probe_gpu
from runtime.backends.host.int8 import weight_only_problem
from runtime.backends.host.machine import cpu_name, is_confined, usable_cpus, usable_memory
from runtime.backends.host.telemetry import VARIABLE, is_off

# Module -> distributions that bring it.
PACKAGES: Final = {
    "numpy": ("numpy",),
    "tokenizers": ("tokenizers",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx",),
    "pycuda": ("pycuda",),
    "cuda.bindings": ("cuda-bindings",),
    "torch": ("torch",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "safetensors": ("safetensors",),
}
_L4T: Final = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
# Linux for Tegra -> JetPack (developer.nvidia.com/embedded/jetpack-archive); the first line that fits.
_JETPACK: Final = (("36.3", "6.0"), ("36.4", "6.1 or 6.2"), ("38.2", "7.0"), ("38.4", "7.1"))
# Processor family -> the oldest glibc of TensorRT-RTX 1.7's wheels (pypi.org/project/tensorrt-rtx-cu13-libs).
_RTX_WHEELS: Final = {"x86_64": (2, 28), "amd64": (2, 28), "aarch64": (2, 35), "arm64": (2, 35)}
_COMMAND_SECONDS: Final = 5


@dataclass(frozen=True)
class Task:
    """Something that rf-export does, whether it can be done here, and if not, why and what helps."""

    name: str
    possible: bool
    missing: list[str]
    command: str  # empty where nothing can be installed that would help
    note: str = ""


def _version(module: str, distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pass
    if module == "onnxruntime":  # two distributions bring this one: the name decides
        return None
    try:
        return "of unknown version" if importlib.util.find_spec(module) else None
    except (ImportError, ValueError):
        return None


def _run(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The hands and eyes of a doctor; tests have other ones.

    Attributes:
        root: Where files are looked for.
        probe: Finds the GPU.
        version: The version of a distribution, None where it is not installed.
        run: The output of a command, None where it is not there or fails.
        wheels: What wheels have to fit: the processor family, the C library and its version.
    """

    root: Path = Path("/")
    probe: Callable[[], Gpu | str] = probe_gpu
    version: Callable[[str, str], str | None] = _version
    run: Callable[[list[str]], str | None] = _run
    wheels: tuple[str, str, str] = field(default_factory=lambda: (platform.machine(), *platform.libc_ver()))


def examine(machine: Machine | None = None) -> dict[str, Any]:
    """The facts, JSON-ready: `system`, `gpu`, `jetson`, `packages`, `tasks`."""
    here = machine or Machine()
    packages = _attempt(lambda: _packages(here), {})
    gpu = _attempt(here.probe, "the probe failed")
    return {
        "system": _attempt(lambda: _system(here.root), {}),
        "gpu": asdict(gpu) if isinstance(gpu, Gpu) else None,
        "gpu_missing": None if isinstance(gpu, Gpu) else str(gpu),
        "jetson": _attempt(lambda: _jetson(here), None),
        "packages": packages,
        "tasks": [asdict(task) for task in _tasks(packages, gpu, here.wheels)],
    }


def format_report(facts: dict[str, Any]) -> str:
    """The text that `rf-export doctor` prints."""
    lines = [f"{name:<14} {value}" for name, value in facts["system"].items()]
    gpu = facts["gpu"]
    lines.append(f"{'gpu':<14} " + (_gpu_text(gpu) if gpu else f"none: {facts['gpu_missing']}"))
    if facts["jetson"]:
        lines += [f"{'jetson ' + name:<14} {value}" for name, value in facts["jetson"].items() if value]
    installed = ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
    lines += [f"{'packages':<14} {installed or 'none'}", ""]
    width = max(len(task["name"]) for task in facts["tasks"])
    for task in facts["tasks"]:
        mark = "yes" if task["possible"] else "no "
        reason = task["note"] if task["possible"] else f"missing: {', '.join(task['missing'])}"
        lines.append(f"{mark}  {task['name']:<{width}}  {reason}".rstrip())
        if task["command"]:
            lines.append(f"{'':>{width + 7}}{task['command']}")
    return "\n".join(lines)


def _system(root: Path) -> dict[str, str]:
    facts = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": f"{cpu_name(root)}, {os.cpu_count()} threads, {usable_cpus(root)} for this process",
        "telemetry": f"ONNX Runtime's is {'off' if is_off() else 'on'} ({VARIABLE}=0 allows it)",
    }
    if is_confined(root):
        facts["spinning"] = (
            "this process has a part of the processors; where others use them too, draw with --no-spinning"
        )
    memory = usable_memory(root)
    if memory is not None:
        free = f"{memory.available >> 20} MiB free, {memory.swap >> 20} MiB of swap"
        facts["memory"] = f"{memory.total >> 20} MiB for this process, {free}"
    return facts


def _jetson(machine: Machine) -> dict[str, str | None] | None:
    """Model, software and power mode of a Jetson board; None on other machines."""
    release = _read(machine.root / "etc/nv_tegra_release")
    model = _read(machine.root / "proc/device-tree/model").strip("\0\n ")
    if not release and "jetson" not in model.lower():
        return None
    match = _L4T.search(release)
    l4t = f"{match[1]}.{match[2]}" if match else None
    jetpack = next((name for start, name in _JETPACK if l4t and f"{l4t}.".startswith(f"{start}.")), None)
    answer = machine.run(["nvpmodel", "-q"]) or ""
    mode = re.search(r"NV Power Mode: *(\S.*)", answer)
    return {"model": model or None, "l4t": l4t, "jetpack": jetpack, "power": mode[1].strip() if mode else None}


def _packages(machine: Machine) -> dict[str, str | None]:
    found = {}
    for module, names in PACKAGES.items():
        versions = {name: machine.version(module, name) for name in names}
        found.update(versions if len(names) > 1 else {module: versions[names[0]]})
    return found


def _tasks(packages: dict[str, str | None], gpu: Gpu | str, wheels: tuple[str, str, str]) -> list[Task]:
    ort = "onnxruntime" if not packages.get("onnxruntime-gpu") else "onnxruntime-gpu"  # either runs on the CPU
    graphs = "" if packages.get("cuda.bindings") else "slower without CUDA graphs: pip install cuda-bindings"

    def task(name: str, needs: list[str], extra: str, *, on_gpu: bool = False, note: str = "") -> Task:
        absent = [need for need in needs if not packages.get(need)]
        command = f"pip install 'rf-export[{extra}]'" if absent else ""
        missing = absent + ([str(gpu)] if on_gpu and not isinstance(gpu, Gpu) else [])
        if "tensorrt_rtx" in absent and not _has_rtx_wheels(*wheels):
            missing[absent.index("tensorrt_rtx")] = f"tensorrt_rtx (there are no wheels for {' '.join(wheels).strip()})"
            command = ""
        return Task(name, not missing, missing, command, note)

    both = packages.get("onnxruntime") and packages.get("onnxruntime-gpu")
    clash = "onnxruntime and onnxruntime-gpu are both installed: uninstall one of them" if both else ""
    floats = weight_only_problem(packages.get(ort) or "")
    int8 = f"{floats}; calibrate prefers static groups here" if floats else ""
    ahead = "for compute capabilities 7.5 to 12.1, without a GPU too"
    return [
        task("export checkpoints", ["torch", "onnx", "onnxscript", "safetensors", ort], "export"),
        task("build and run, ort", [ort], "ort", note=clash or int8),
        task("run, ort-cuda", ["onnxruntime-gpu", "pycuda"], "ort-cuda", on_gpu=True, note=clash),
        task("build, tensorrt", ["tensorrt", ort], "tensorrt", on_gpu=True),
        task("run, tensorrt", ["tensorrt", "pycuda"], "tensorrt", on_gpu=True, note=graphs),
        task("build, tensorrt-rtx", ["tensorrt_rtx", ort], "tensorrt-rtx", note=ahead),
        task("run, tensorrt-rtx", ["tensorrt_rtx", "pycuda"], "tensorrt-rtx,cuda", on_gpu=True, note=graphs),
    ]


def _has_rtx_wheels(family: str, libc: str, version: str) -> bool:
    """Whether pip finds TensorRT-RTX; Windows, which has another C library, has wheels for these families too."""
    oldest = _RTX_WHEELS.get(family.lower())
    if oldest is None or platform.system() == "Windows":
        return oldest is not None
    numbers = tuple(int(number) for number in re.findall(r"\d+", version))
    return libc == "glibc" and numbers >= oldest


def _gpu_text(gpu: dict[str, Any]) -> str:
    return (
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory_mib']} MiB, "
        f"driver for CUDA {gpu['cuda_version']}"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _attempt(probe: Callable[[], Any], otherwise: Any) -> Any:
    """What a probe finds; whatever goes wrong with it, the others go on."""
    try:
        return probe()
    except Exception:
        return otherwise
