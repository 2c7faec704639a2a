"""What this process may use of the machine, and what code that was compiled for it depends on: processors and memory.

Affinity, cpusets and the limits of control groups (both versions) count, since in a container the machine has more than
the process may have. Knows nothing of what runs here. `root` stands for the file system, so that a test brings its own.
"""

import math
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

ROOT: Final = Path("/")
# The instruction sets among the flags of an x86 CPU; the others (virtualisation, power) change no kernel.
_X86_KERNEL_FLAGS: Final = re.compile(r"(s?sse|avx|amx|fma|f16c|bmi)\w*")
# Implementer and part of /proc/cpuinfo -> name (util-linux, sys-utils/lscpu-arm.c): ARM processors tell no other name.
_ARM_PARTS: Final = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x41, 0xD84): "Neoverse-V3",
    (0x41, 0xD8E): "Neoverse-N3",
    (0x46, 0x001): "A64FX",
    (0x48, 0xD01): "TaiShan v110",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
    (0xC0, 0xAC3): "Ampere-1",
    (0xC0, 0xAC4): "Ampere-1a",
}


@cache
def cpu_features(root: Path = ROOT) -> str:
    """Machine and instruction sets, such as "x86_64 avx avx2 ...": equal texts run and pack alike."""
    features = sorted(_linux_features(root)) or [platform.processor() or os.environ.get("PROCESSOR_IDENTIFIER", "")]
    return " ".join([platform.machine(), *features]).strip()


@cache
def cpu_name(root: Path = ROOT) -> str:
    """Name of the CPU for people, such as "Cortex-A78AE"; all of them where its cores are of several kinds."""
    fields = [(key, value) for key, value in _cpuinfo(root) if value]
    model = next((value for key, value in fields if key.lower() == "model name"), None)
    implementers = [value for key, value in fields if key == "CPU implementer"]
    parts = [value for key, value in fields if key == "CPU part"]
    arm = " + ".join(dict.fromkeys(map(_arm_name, implementers, parts)))
    return model or arm or platform.processor() or platform.machine()


def usable_cpus(root: Path = ROOT) -> int:
    """Processors that this process can keep busy: those that it may run on, or fewer where its time is limited."""
    return _within_quota(len(_allowed_cpus()), root)


def usable_cores(root: Path = ROOT) -> int:
    """The same, counting processors that share a core once: on these more threads calculate no faster."""
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {_text(root / topology.format(cpu)) or str(cpu) for cpu in _allowed_cpus()}
    return _within_quota(len(cores), root)


def is_confined(root: Path = ROOT) -> bool:
    """Whether this process may use fewer processors than the machine has."""
    return usable_cpus(root) < (os.cpu_count() or 1)


@dataclass(frozen=True)
class UsableMemory:
    """Bytes that this process may use.

    Attributes:
        total: The machine's memory, or what a control group allows of it.
        available: Without swapping anything out.
        swap: Free.
    """

    total: int
    available: int
    swap: int


def usable_memory(root: Path = ROOT) -> UsableMemory | None:
    """Memory; None where the system does not tell."""
    known = _numbers(root / "proc/meminfo", unit=1 << 10)
    if "MemTotal" not in known or "MemAvailable" not in known:
        return None
    total, available, swap = known["MemTotal"], known["MemAvailable"], known.get("SwapFree", 0)
    for folder in _control_groups("memory", root):
        room = _room(folder, "memory.max", "memory.current") or _room(
            folder, "memory.limit_in_bytes", "memory.usage_in_bytes"
        )
        statistics = _numbers(folder / "memory.stat")
        # What was read from files counts as used, and is given up for whoever needs memory.
        cached = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
        if room is not None:
            total, available = min(total, room[0]), min(available, max(0, room[1] + cached))
        more = _room(folder, "memory.swap.max", "memory.swap.current")
        both = _room(folder, "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes")
        if more is not None:
            swap = min(swap, max(0, more[1]))
        elif both is not None:  # memory and swap together
            swap = min(swap, max(0, both[1] + cached - available))
    return UsableMemory(total, available, swap)


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of this process that are resident: now, and at most since it began."""

    now: int
    peak: int

    @property
    def peak_mib(self) -> int:
        """The peak in MiB."""
        return self.peak >> 20


def process_memory(root: Path = ROOT) -> ProcessMemory | None:
    """What this process takes; None where the system does not tell.

    Not `getrusage`: its peak counts what the parent had when it started this process.
    """
    known = _numbers(root / "proc/self/status", unit=1 << 10)
    return ProcessMemory(known["VmRSS"], known["VmHWM"]) if {"VmRSS", "VmHWM"} <= known.keys() else None


def _allowed_cpus() -> set[int]:
    """By affinity; the system keeps that within the cpuset."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _within_quota(count: int, root: Path) -> int:
    """As many as a limit on processor time leaves busy, rounded up: time that is allowed shall be used."""
    shares = [share for folder in _control_groups("cpu", root) if (share := _quota(folder)) is not None]
    return max(1, min([count, *(math.ceil(share) for share in shares)]))


def _quota(folder: Path) -> float | None:
    """Processors' worth of time that a control group gives; None for no limit."""
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")]
    numbers = [int(word) for word in words if word.isdecimal()]  # neither "max" nor -1, which are no limit
    return numbers[0] / numbers[1] if len(numbers) == 2 and numbers[1] else None


def _room(folder: Path, limit: str, used: str) -> tuple[int, int] | None:
    """The limit of a control group and what is left of it; None for no limit."""
    most, now = _text(folder / limit), _text(folder / used)
    return (int(most), int(most) - int(now or 0)) if most.isdecimal() and (now.isdecimal() or not now) else None


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that may limit this process, from its own to the outermost that is mounted."""
    mounts = _control_mounts(root)
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        wanted = controller if controllers else ""
        fitting = [(top, point) for name, top, point in mounts if wanted in name.split(",")]
        if not fitting:
            continue
        # A container may see its own group as the root of the mount, under whatever name the host has for it.
        within = [(top, point) for top, point in fitting if PurePosixPath(group).is_relative_to(top)]
        top, point = (within or fitting)[0]
        inner = PurePosixPath(group).relative_to(top) if within else PurePosixPath()
        base = root / point.lstrip("/")
        folder = base if ".." in inner.parts else base / inner
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(base))


def _control_mounts(root: Path) -> list[tuple[str, str, str]]:
    """Controllers ("" in version 2, where all are together), root and place of every mounted hierarchy."""
    mounts = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) > 4 and len(kind) > 2 and kind[0] in ("cgroup", "cgroup2"):
            top, point = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[at]) for at in (3, 4))
            mounts.append(("" if kind[0] == "cgroup2" else kind[2], top, point))
    return mounts


def _arm_name(implementer: str, part: str) -> str:
    try:
        known = _ARM_PARTS.get((int(implementer, 0), int(part, 0)))
    except ValueError:
        known = None
    return known or f"{platform.machine()} (implementer {implementer}, part {part})"


def _linux_features(root: Path) -> list[str]:
    for key, value in _cpuinfo(root):
        if key == "flags":
            return [flag for flag in value.split() if _X86_KERNEL_FLAGS.fullmatch(flag)]
        if key == "Features":  # ARM names instruction sets only
            return value.split()
    return []


def _cpuinfo(root: Path) -> list[tuple[str, str]]:
    parts = (line.partition(":") for line in _text(root / "proc/cpuinfo").splitlines())
    return [(key.strip(), value.strip()) for key, _, value in parts]


def _numbers(path: Path, unit: int = 1) -> dict[str, int]:
    """The numbers of a file with a name and a number in each line."""
    found = re.findall(r"^(\w+):?\s+(\d+)(?: kB)?$", _text(path), re.MULTILINE)
    return {name: int(number) * unit for name, number in found}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
