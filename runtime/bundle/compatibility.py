"""Whether an engine that was built for one target runs on another. Knows nothing of libraries: two texts and two texts.

Version and device of a `Target` are compared as they are, except for these forms of what an engine was built for:

    version   10.13.3.9+                     this version, and later ones of the same major version
    device    x86_64 sm_86 | x86_64 sm_89    any of these
              x86_64 sm_80+                  this compute capability, and higher ones
"""

import re
from collections.abc import Iterable

from runtime.backends.interface import Target

_CAPABILITY = re.compile(r"(?P<machine>\S+) sm_(?P<number>\d+)")


def from_version(version: str) -> str:
    """This version, and later ones of the same major version."""
    return f"{version}+"


def from_capability(device: str) -> str:
    """This compute capability, and higher ones."""
    return f"{device}+"


def any_device(devices: Iterable[str]) -> str:
    """Any of these."""
    return " | ".join(devices)


def version_fits(built: Target, here: Target) -> bool:
    """Whether an engine of a version runs with the one that is installed."""
    if not built.version.endswith("+"):
        return built.version == here.version
    oldest, found = _numbers(built.version.removesuffix("+")), _numbers(here.version)
    return oldest[:1] == found[:1] and oldest <= found


def device_fits(built: Target, here: Target) -> bool:
    """Whether an engine for a device runs on the one that is here."""
    return any(_is_one(device, here.device) for device in built.device.split(" | "))


def _is_one(built: str, here: str) -> bool:
    if not built.endswith("+"):
        return built == here
    lowest, found = _CAPABILITY.fullmatch(built.removesuffix("+")), _CAPABILITY.fullmatch(here)
    if lowest is None or found is None:
        return False
    return lowest["machine"] == found["machine"] and int(lowest["number"]) <= int(found["number"])


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]
