"""What can be built, and what a builder has to do. Knows nothing of any library and of files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engines.tensorrt.config import TensorRTConfig
from engines.windows import DrawingSizes
from runtime.backends.host.machine import UsableMemory
from runtime.backends.interface import Backend, Target
from runtime.bundle.folder import Bundle
from runtime.events import Progress
from runtime.signature import Dialect, GraphName, Precision, Variant


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What to build. A backend with options of its own takes them as one more field, a config of that backend.

    Attributes:
        backend: What will run the engine.
        precision: Which graphs of the bundle.
        dialect: How these are spelt: TensorRT builds both, ONNX Runtime classic.
        num_threads: Threads of the build and of its check; None leaves it to the backend.
        allow_spinning: They wait busily for the next run, also while windows are measured.
        force: Build also where an engine is there that fits.
        window: Representation tokens of a pass; None measures which is best on this machine.
        tensorrt: Options of the backends tensorrt and tensorrt-rtx.
        allow_unverified: Also build from graphs that failed a verification, or that nobody verified.
        output: The folder of the engine; None takes one in the bundle, where the runtime finds it.
    """

    backend: str = "ort"
    precision: Precision = "fp32"
    dialect: Dialect = "classic"
    num_threads: int | None = None
    allow_spinning: bool = True
    force: bool = False
    window: int | None = None
    tensorrt: TensorRTConfig = field(default_factory=TensorRTConfig)
    allow_unverified: bool = False
    output: Path | None = None

    @property
    def variant(self) -> Variant:
        """The graphs that are built."""
        return Variant(self.precision, self.dialect)


@dataclass(frozen=True)
class BuildEstimate:
    """What a build needs at most, in MiB."""

    memory_mib: int
    disk_mib: int

    def warning(self, memory: UsableMemory | None, free_disk: int) -> str | None:
        """A sentence where that may not be there.

        Args:
            memory: What may be used; None is not judged.
            free_disk: Bytes.
        """
        short = []
        if memory is not None:
            free = (memory.available + memory.swap) >> 20
            short += [f"{free} MiB of memory and swap are free"] if free < self.memory_mib else []
        if free_disk >> 20 < self.disk_mib:
            short.append(f"{free_disk >> 20} MiB of disk are free")
        if not short:
            return None
        return (
            f"only {' and '.join(short)}, so the build may be killed or stop. Close programs, add swap, make room, "
            "or give it less: --workspace-mib, narrower --dim."
        )


class Report(Protocol):
    """Hears what a builder does."""

    def __call__(self, what: str, *, detail: bool = False) -> None:
        """Told before every graph, and with `detail` what is done for it, as often as there is something new."""


def counted(on_progress: Progress | None, num_stages: int) -> Report:
    """Counts the stages that are reported; details belong to the stage that runs."""
    done = -1

    def report(what: str, *, detail: bool = False) -> None:
        nonlocal done
        done += not detail
        if on_progress is not None:
            on_progress(what, done, num_stages)

    return report


class Builder(Protocol):
    """Compiles graphs for one backend."""

    def target(self) -> Target:
        """What the engine is going to be built for."""

    def backend(self) -> Backend | None:
        """What runs the engine on this machine, to check it; None for an engine of another machine."""

    def max_relative_error(self, precision: Precision) -> float:
        """The largest error against the ONNX graph with which an engine is written."""

    def probes(self, bundle: Bundle, name: GraphName, variant: Variant) -> list[Mapping[str, int]]:
        """Sizes of free dimensions on which a graph is checked; what is not named has a usual size."""

    def drawing_sizes(self, bundle: Bundle, variant: Variant) -> DrawingSizes:
        """At what windows of tokens are measured, and how long they may be."""

    def estimate(self, bundle: Bundle, variant: Variant) -> BuildEstimate:
        """Predict what a build needs."""

    def compile(self, bundle: Bundle, config: EngineConfig, folder: Path, report: Report) -> dict[GraphName, str]:
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
        """What the builder was set to, for the record: an engine of other options is built again."""

    def details(self) -> dict[str, Any]:
        """What came of the options for a bundle and a machine, after `compile`, for the record."""
