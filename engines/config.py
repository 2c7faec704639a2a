"""What can be built, and what a builder has to do. Knows nothing of any library and of files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runtime.bundle import Bundle
from runtime.signature import GraphName, Precision


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What to build. A backend with options of its own takes them as one more field, a config of that backend.

    Attributes:
        backend: What will run the engine.
        precision: Which graphs of the bundle.
        num_threads: Threads of the build and of its check; None leaves it to the backend.
        force: Build also where an engine is there that fits.
    """

    backend: str = "ort"
    precision: Precision = "fp32"
    num_threads: int | None = None
    force: bool = False


@dataclass(frozen=True)
class BuildEstimate:
    """What a build needs at most, in MiB."""

    memory_mib: int
    disk_mib: int


class Builder(Protocol):
    """Compiles graphs for one backend."""

    def estimate(self, bundle: Bundle, precision: Precision) -> BuildEstimate:
        """Predict what a build needs."""

    def compile(
        self, bundle: Bundle, config: EngineConfig, folder: Path, report: Callable[[str], None]
    ) -> dict[GraphName, str]:
        """Compile the graphs of a bundle.

        Args:
            bundle: The bundle, its files checked.
            config: What to build.
            folder: An empty folder, which holds nothing but the engine's files in the end.
            report: Told before every graph.

        Returns:
            The names of the files to load.
        """

    def options(self) -> dict[str, Any]:
        """What the builder was set to, for the record."""
