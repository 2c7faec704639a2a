"""What runs graphs: the interface, and a registry of those who implement it.

Knows nothing of any library: a backend is imported, with its library, when it is asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy.typing as npt

from runtime.errors import RFError
from runtime.signature import Dialect, GraphName, GraphSignature, ModelSpec, Precision

if TYPE_CHECKING:
    from runtime.stage_runner import Drawing, StageRunner
    from runtime.text_row import TextRow

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Target:
    """What compiled graphs belong to: a backend, its exact version, and the features of a device."""

    backend: str
    version: str
    device: str


class Session(Protocol):
    """A loaded graph or engine. Several threads may run one session, each with buffers of its own."""

    @property
    def signature(self) -> GraphSignature:
        """Inputs and outputs, as the graph itself tells them."""

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; the outputs are new arrays."""

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare many runs on the same memory.

        Args:
            inputs: Contiguous arrays, read anew by every run, so that the caller changes them in place.
            outputs: Contiguous arrays of the outputs that are wanted, overwritten by every run.

        Returns:
            A function that runs the graph once. It keeps the arrays alive.
        """


class Runner(Protocol):
    """Runs drawings and conversations with loaded graphs, wherever their memory is."""

    def stages(self, sessions: Mapping[GraphName, Session], drawing: "Drawing") -> "StageRunner":
        """Begin a drawing.

        Args:
            sessions: All graphs of a bundle, opened by this backend.
            drawing: Its sizes.
        """

    def text_row(self, session: Session, model: ModelSpec, precision: Precision, dialect: Dialect) -> "TextRow":
        """Begin a conversation: an empty row for what text_decoder reads."""


class Backend(Runner, Protocol):
    """Opens graphs, and runs drawings and conversations with them."""

    @property
    def needs_engine(self) -> bool:
        """Whether it runs compiled graphs only."""

    def target(self) -> Target:
        """What an engine has to be built for, to run here."""

    def open(self, path: Path, *, num_threads: int | None, compiled: bool) -> Session:
        """Load an ONNX graph, or a compiled one.

        Args:
            path: The file.
            num_threads: Threads of a run; None leaves it to the backend.
            compiled: The file is part of an engine, so that there is nothing left to optimise.

        Raises:
            RFError: The backend cannot load it.
        """


def _create_ort() -> Backend:
    from runtime.backends.ort import OrtBackend

    return OrtBackend()


def _create_ort_cuda() -> Backend:
    from runtime.backends.ort_cuda import OrtCudaBackend

    return OrtCudaBackend()


def _create_tensorrt() -> Backend:
    from runtime.backends.tensorrt import TensorRTBackend

    return TensorRTBackend("tensorrt")


def _create_tensorrt_rtx() -> Backend:
    from runtime.backends.tensorrt import TensorRTBackend

    return TensorRTBackend("tensorrt-rtx")


_CREATORS: Final[dict[str, Callable[[], Backend]]] = {
    "ort": _create_ort,
    "ort-cuda": _create_ort_cuda,
    "tensorrt": _create_tensorrt,
    "tensorrt-rtx": _create_tensorrt_rtx,
}
# Backend -> extra of the package that brings its library.
_EXTRAS: Final = {"ort": "ort", "ort-cuda": "ort-cuda", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}

BACKENDS: Final = tuple(_CREATORS)


def create_backend(name: str) -> Backend:
    """Import a backend.

    Raises:
        RFError: There is none of that name, or its library is not installed.
    """
    if name not in _CREATORS:
        raise RFError(f"There is no backend {name!r}. Choose one of: {', '.join(BACKENDS)}.")
    with naming_extra(name):
        return _CREATORS[name]()


@contextmanager
def naming_extra(backend: str) -> Iterator[None]:
    """Turns a missing package into an RFError with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = "cuda" if (error.name or "").startswith("pycuda") else _EXTRAS[backend]
        raise RFError(
            f"The backend {backend!r} needs the package {error.name!r}, which is not installed. "
            f"Install it with: pip install 'rf-export[{extra}]'"
        ) from error
