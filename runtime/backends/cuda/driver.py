"""Asks NVIDIA's driver what GPU there is, without any package: `libcuda.so.1` through ctypes.

Knows nothing of TensorRT. It has to be asked first: without a driver TensorRT's `Runtime()` does not raise, it crashes
the process (10.x and 11.x). `nvidia-smi` is no substitute, since containers and Jetson boards may lack it.
"""

import ctypes
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import RFError

LIBRARY: Final = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h)
_REASONS: Final = {
    100: "the driver finds no GPU (CUDA_ERROR_NO_DEVICE); in a container, start it with --gpus all",
    803: "the driver and the CUDA compatibility library do not fit together (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)",
    804: "this driver cannot run this CUDA (CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE)",
}


@dataclass(frozen=True)
class Gpu:
    """The first GPU, and the driver that runs it."""

    name: str
    compute_capability: str  # such as "8.7"
    memory_mib: int
    cuda_version: str  # the newest CUDA that the driver runs, such as "12.6"

    @property
    def device(self) -> str:
        """What an engine is built for, such as "aarch64 sm_87": see `device_of`."""
        return device_of(self.compute_capability)


def device_of(compute_capability: str) -> str:
    """The `device` of a `Target`: engines belong to a processor family and a compute capability."""
    return f"{platform.machine()} sm_{compute_capability.replace('.', '')}"


def probe_gpu(load: Callable[[str], Any] = ctypes.CDLL) -> Gpu | str:
    """The first GPU, or why there is none.

    Args:
        load: Opens a shared library by name; raises OSError where there is none.
    """
    try:
        driver = load(LIBRARY)
    except OSError:
        return f"{LIBRARY} is not there: no NVIDIA driver is installed"
    code = driver.cuInit(0)
    if code:
        return _REASONS.get(code, f"cuInit failed with error {code}")
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return _REASONS[100]
    return _describe(driver)


def require_gpu(instead: str = "to draw without one use --backend ort") -> Gpu:
    """The first GPU.

    Args:
        instead: What can be done without one.

    Raises:
        RFError: There is none.
    """
    found = probe_gpu()
    if isinstance(found, Gpu):
        return found
    raise RFError(f"No GPU can be used: {found}. This needs a GPU with NVIDIA's driver; {instead}.", "missing")


def _describe(driver: Any) -> Gpu:
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t(0)
    numbers = [ctypes.c_int(0) for _ in range(3)]
    driver.cuDeviceGetName(name, 256, 0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), 0)
    driver.cuDeviceGetAttribute(ctypes.byref(numbers[0]), _MAJOR, 0)
    driver.cuDeviceGetAttribute(ctypes.byref(numbers[1]), _MINOR, 0)
    driver.cuDriverGetVersion(ctypes.byref(numbers[2]))
    major, minor, version = (number.value for number in numbers)
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major}.{minor}",
        memory_mib=memory.value >> 20,
        cuda_version=f"{version // 1000}.{version % 1000 // 10}",
    )
