"""What code that was compiled for a CPU depends on, and memory. Knows nothing of what compiles and uses it."""

import os
import platform
import re
from functools import cache
from pathlib import Path

# The instruction sets among the flags of an x86 CPU; the others (virtualisation, power) change no kernel.
_X86_KERNEL_FLAGS = re.compile(r"(s?sse|avx|amx|fma|f16c|bmi)\w*")


@cache
def cpu_features() -> str:
    """Machine and instruction sets, such as "x86_64 avx avx2 ...": equal texts run and pack alike."""
    features = sorted(_linux_features()) or [platform.processor() or os.environ.get("PROCESSOR_IDENTIFIER", "")]
    return " ".join([platform.machine(), *features]).strip()


@cache
def cpu_name() -> str:
    """Name of the CPU for people."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_info(root: Path = Path("/")) -> dict[str, int]:
    """Bytes by the names of /proc/meminfo, such as MemTotal and MemAvailable; empty where there is none."""
    try:
        text = (root / "proc/meminfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {name: int(number) << 10 for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _linux_features() -> list[str]:
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return [flag for flag in value.split() if _X86_KERNEL_FLAGS.fullmatch(flag)]
        if key.strip() == "Features":  # ARM names instruction sets only
            return value.split()
    return []


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
