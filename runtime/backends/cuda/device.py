"""The GPU as the device stages see it: memory and copies through pycuda, captured work through cuda-bindings.

Knows nothing of TensorRT and of models. One stream takes everything, in order; nothing waits for the GPU but `download`
and `synchronize`. pycuda has no API for CUDA graphs, so cuda-bindings captures pycuda's stream by its handle; where it
is missing, the same work is put on the stream anew each time.
"""

import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt

from runtime.backends.cuda.driver import require_gpu
from runtime.backends.host.forks import ProcessBound
from runtime.errors import RFError

_NON_BLOCKING: Final = 1  # CU_STREAM_NON_BLOCKING: nothing that others put on the default stream disturbs a capture
_MEMSET_BYTES: Final = 1 << 31  # pycuda 2026.1 takes the size of a memset as an unsigned int
NO_GRAPHS: Final = (
    "cuda-bindings is not installed: every step is launched by the host instead of being replayed as one CUDA graph, "
    "which is slower. Install it with: pip install cuda-bindings"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BlockCopy:
    """A copy of `depth` slices of `height` rows of `width` bytes; pitches are bytes from row to row."""

    source: int
    source_pitch: int
    source_rows: int  # rows from slice to slice
    target: int
    target_pitch: int
    target_rows: int
    width: int
    height: int
    depth: int


class CudaDevice(ProcessBound):
    """The first GPU, with one stream. Threads take turns: see `exclusive`.

    Attributes:
        gpu: What it is.
    """

    def __init__(self) -> None:
        """Raises RFError where there is no GPU, ModuleNotFoundError where pycuda is missing."""
        super().__init__()
        self.gpu = require_gpu()  # before any library that crashes without a driver
        self._cuda = importlib.import_module("pycuda.driver")
        self._cuda.init()
        # The context that the CUDA runtime, and with it TensorRT, uses; pycuda.autoinit would make another one.
        self._context = self._cuda.Device(0).retain_primary_context()
        self._lock = threading.RLock()
        self._uploads: list[npt.NDArray[Any]] = []  # sources stay alive until the copies are made
        self._garbage: list[Any] = []  # memory that nobody uses any more
        self._driver = _import_driver()
        with self.exclusive():
            self._stream = self._cuda.Stream(_NON_BLOCKING)

    @property
    def stream(self) -> int:
        """The handle of the stream."""
        return int(self._stream.handle)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Make the GPU current for this thread, and let no other thread use it meanwhile."""
        self.require_own_process()
        with self._lock:
            self._context.push()
            try:
                self._garbage.clear()
                yield
            finally:
                self._context.pop()

    def allocate(self, num_bytes: int) -> "DeviceMemory":
        """Memory, whose contents are undefined.

        Raises:
            RFError: The GPU is full.
        """
        try:
            return DeviceMemory(self._cuda.mem_alloc(max(num_bytes, 1)), self._garbage)
        except self._cuda.MemoryError as error:
            raise RFError(
                f"The GPU has no {num_bytes >> 20} MiB of memory left. Draw fewer pictures at once or smaller ones, "
                "or end other programs that use the GPU.",
                "missing",
            ) from error

    def upload(self, target: int, array: npt.NDArray[Any]) -> None:
        """Copy a contiguous array onto the device."""
        self._uploads.append(array)
        self._cuda.memcpy_htod_async(target, array, self._stream)

    def download(self, source: int, array: npt.NDArray[Any]) -> None:
        """Copy from the device into a contiguous array, after everything that is on the stream."""
        self._cuda.memcpy_dtoh_async(array, source, self._stream)
        self.synchronize()

    def zero(self, target: int, num_bytes: int) -> None:
        """Write zeros."""
        for start in range(0, num_bytes, _MEMSET_BYTES):
            self._cuda.memset_d8_async(target + start, 0, min(num_bytes - start, _MEMSET_BYTES), self._stream)

    def zero_rows(self, target: int, pitch: int, width: int, height: int) -> None:
        """Write zeros into the first `width` bytes of `height` rows that are `pitch` bytes apart."""
        self._cuda.memset_d2d8_async(target, pitch, 0, width, height, self._stream)

    def copy(self, block: BlockCopy) -> None:
        """Copy on the device."""
        copy = self._cuda.Memcpy3D()
        copy.set_src_device(block.source)
        copy.src_pitch, copy.src_height = block.source_pitch, block.source_rows
        copy.set_dst_device(block.target)
        copy.dst_pitch, copy.dst_height = block.target_pitch, block.target_rows
        copy.width_in_bytes, copy.height, copy.depth = block.width, block.height, block.depth
        copy(self._stream)

    def synchronize(self) -> None:
        """Wait for everything that is on the stream."""
        self._stream.synchronize()
        self._uploads.clear()

    def capture(self, record: Callable[[], None]) -> Callable[[], None]:
        """Make one CUDA graph of what `record` puts on the stream, without running it.

        Args:
            record: Puts the work on the stream. Addresses are baked in; what lies there is read at every run.

        Returns:
            A function that puts the whole work on the stream at once; `record` itself where graphs are not to be had.
        """
        if self._driver is None:
            return record
        driver = self._driver
        stream = driver.CUstream(self.stream)
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(driver, driver.cuStreamBeginCapture(stream, mode))
        try:
            record()
        finally:
            result = driver.cuStreamEndCapture(stream)  # also after an error: the stream would stay unusable
        (graph,) = _check(driver, result)
        (executable,) = _check(driver, driver.cuGraphInstantiate(graph, 0))
        _check(driver, driver.cuGraphDestroy(graph))
        return _Replay(driver, executable, stream)


class DeviceMemory:
    """Memory on the device; `int(memory)` is its address.

    It goes when the object does, but at the next time that the GPU is taken: pycuda frees nothing from a thread in
    which the GPU is not current, and to free memory during a capture would end the capture.
    """

    def __init__(self, allocation: Any, garbage: list[Any]) -> None:
        self._allocation, self._garbage = allocation, garbage

    def __int__(self) -> int:
        return int(self._allocation)

    def __del__(self) -> None:
        self._garbage.append(self._allocation)


class _Replay:
    """An instantiated CUDA graph, destroyed with the object."""

    def __init__(self, driver: Any, executable: Any, stream: Any) -> None:
        self._driver, self._executable, self._stream = driver, executable, stream

    def __call__(self) -> None:
        _check(self._driver, self._driver.cuGraphLaunch(self._executable, self._stream))

    def __del__(self) -> None:
        self._driver.cuGraphExecDestroy(self._executable)


def _import_driver() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError:
        _log.warning(NO_GRAPHS)
        return None


def _check(driver: Any, result: tuple[Any, ...]) -> tuple[Any, ...]:
    code, *values = result
    if code != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA failed: {code}")
    return tuple(values)
