"""Who runs graphs: a registry of those who implement `runtime.backends.interface.Backend`.

Knows nothing of any library: a backend is imported, with its library, when it is asked for. Importing this package
keeps ONNX Runtime's telemetry off: it comes before every module of it, and with that before the library.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from runtime.backends.host.telemetry import switch_off
from runtime.backends.interface import Backend
from runtime.errors import RFError

switch_off()


def _create_ort(*, allow_spinning: bool = True) -> Backend:
    from runtime.backends.host.ort import OrtBackend

    return OrtBackend(allow_spinning=allow_spinning)


def _create_ort_cuda() -> Backend:
    from runtime.backends.cuda.ort import OrtCudaBackend

    return OrtCudaBackend()


def _create_tensorrt() -> Backend:
    from runtime.backends.cuda.tensorrt import TensorRTBackend

    return TensorRTBackend("tensorrt")


def _create_tensorrt_rtx() -> Backend:
    from runtime.backends.cuda.tensorrt import TensorRTBackend

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


def create_backend(name: str, *, allow_spinning: bool = True) -> Backend:
    """Import a backend.

    Args:
        name: Which one.
        allow_spinning: Its threads wait busily for the next run; False lets them sleep, which `ort` alone can.

    Raises:
        RFError: There is none of that name, its library is not installed, or it has no threads to let sleep.
    """
    if name not in _CREATORS:
        raise RFError(f"There is no backend {name!r}. Choose one of: {', '.join(BACKENDS)}.")
    if not allow_spinning and name != "ort":
        raise RFError(f"The backend ort alone can keep its threads from spinning, and {name} was asked for.")
    with naming_extra(name):
        return _CREATORS[name]() if allow_spinning else _create_ort(allow_spinning=False)


@contextmanager
def naming_extra(backend: str) -> Iterator[None]:
    """Turns a missing package into an RFError with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = "cuda" if (error.name or "").startswith("pycuda") else _EXTRAS[backend]
        raise RFError(
            f"The backend {backend!r} needs the package {error.name!r}, which is not installed. "
            f"Install it with: pip install 'rf-export[{extra}]'",
            "missing",
        ) from error
