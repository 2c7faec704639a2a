"""Energy, where the board tells it: counters of the processor (RAPL), or power sensors of a Jetson (INA3221).

Knows nothing of what is run. `root` stands for the file system, so that a test can bring its own.

RAPL: /sys/class/powercap (Linux, power/powercap). INA3221: hwmon with rails in mV and mA (Linux, hwmon/ina3221); the
rail VDD_IN of a Jetson is all that the module takes (Jetson Linux Developer Guide, "Power monitor").
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

SAMPLE_SECONDS = 0.02


class EnergyMeter:
    """Measures joules of the whole board or package, whoever takes them; `source` is None where nothing tells."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._counters = [
            zone
            for zone in sorted(root.glob("sys/class/powercap/*:*"))
            if zone.name.count(":") == 1 and _number(zone / "energy_uj") is not None
        ]
        self._rail = None if self._counters else _input_rail(root)
        self.source: str | None = None
        if self._counters:
            self.source = "RAPL, " + ", ".join(_text(zone / "name") for zone in self._counters)
        elif self._rail is not None:
            self.source = "INA3221, VDD_IN"

    def joules(self, run: Callable[[], object]) -> float:
        """What `run` took, together with all that went on meanwhile; needs a `source`."""
        assert self.source is not None
        return self._counted(run) if self._counters else self._sampled(run)

    def _counted(self, run: Callable[[], object]) -> float:
        before = [_number(zone / "energy_uj") or 0 for zone in self._counters]
        run()
        total = 0
        for zone, first in zip(self._counters, before, strict=True):
            used = (_number(zone / "energy_uj") or 0) - first
            total += used if used >= 0 else used + (_number(zone / "max_energy_range_uj") or 0)  # it began anew
        return total * 1e-6

    def _sampled(self, run: Callable[[], object]) -> float:
        watts, done = [self._watts()], threading.Event()

        def sample() -> None:
            while not done.wait(SAMPLE_SECONDS):
                watts.append(self._watts())

        sampler = threading.Thread(target=sample, daemon=True)
        started = time.perf_counter()
        sampler.start()
        try:
            run()
        finally:
            done.set()
            sampler.join()
        seconds = time.perf_counter() - started
        watts.append(self._watts())
        return seconds * sum(watts) / len(watts)

    def _watts(self) -> float:
        assert self._rail is not None
        folder, rail = self._rail
        return (_number(folder / f"in{rail}_input") or 0) * (_number(folder / f"curr{rail}_input") or 0) * 1e-6


def _input_rail(root: Path) -> tuple[Path, int] | None:
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if _text(folder / "name").startswith("ina3221"):
            for rail in (1, 2, 3):
                if _text(folder / f"in{rail}_label") == "VDD_IN" and _number(folder / f"curr{rail}_input") is not None:
                    return folder, rail
    return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # not there, or for root only
        return ""
