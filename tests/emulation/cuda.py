"""`pycuda.driver` and `cuda.bindings.driver` over host memory.

Work that is put on a stream is not done before somebody waits for it, as late as a GPU may do it. A capture records it
instead, and every launch of the graph does it anew, with the addresses of the recording and what lies there at that
time.
"""

import contextlib
import ctypes
import types
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

POISON = 0xFF  # NaN in fp16 and fp32, and -1 in integers
ALIGNMENT = 256


@dataclass
class Log:
    """What happened, for the tests."""

    captures: list[int] = field(default_factory=list)  # number of recorded operations
    launches: int = 0
    synchronisations: int = 0
    operations: int = 0
    allocated: int = 0
    uploaded: int = 0  # bytes from the host
    downloaded: int = 0
    freed_without_context: int = 0  # pycuda leaks it, unless this is the thread that made the context


class Gpu:
    """The device: its memory, its one stream at work, and the log."""

    def __init__(self):
        self.blocks = {}  # address -> array, which has room for the alignment
        self.sizes = {}
        self.queue: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.depth = 0  # of pushed contexts
        self.log = Log()
        self.streams = {}

    def allocate(self, size):
        self.require_context()
        assert self.recording is None, "memory is allocated during a capture"
        array = np.full(size + ALIGNMENT, POISON, np.uint8)
        address = array.ctypes.data + -array.ctypes.data % ALIGNMENT
        self.blocks[address], self.sizes[address] = array, size
        self.log.allocated += size
        return address

    def free(self, address):
        assert not self.queue, "memory is freed while work that may use it is on the stream"
        self.blocks.pop(address)[:] = POISON
        self.sizes.pop(address)

    def check(self, address, size):
        """The range is inside memory that is allocated."""
        for start, length in self.sizes.items():
            if start <= address and address + size <= start + length:
                return
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def view(self, address, shape, dtype):
        """Device memory as an array."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        self.check(address, size)
        buffer = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(buffer, dtype).reshape(shape)

    def put(self, operation):
        self.require_context()
        self.log.operations += 1
        (self.queue if self.recording is None else self.recording).append(operation)

    def wait(self):
        assert self.recording is None, "the host waits during a capture"
        self.log.synchronisations += 1
        queue, self.queue = self.queue, []
        for operation in queue:
            operation()

    def require_context(self):
        assert self.depth > 0, "no context is current"


class Allocation:
    def __init__(self, gpu, size):
        self._gpu, self._address = gpu, gpu.allocate(size)

    def __int__(self):
        return self._address

    def __del__(self):
        # pycuda makes the context current to free, and a real GPU finishes what uses the memory before it is freed.
        with contextlib.suppress(AttributeError):
            self._gpu.log.freed_without_context += self._gpu.depth == 0
            if self._gpu.queue and self._gpu.recording is None:
                self._gpu.wait()
            self._gpu.free(self._address)


def make_pycuda(gpu):
    """The module `pycuda.driver`, as far as it is used; names and arguments as in pycuda 2026.1 (wrap_cudadrv.cpp)."""
    module = types.ModuleType("pycuda.driver")
    module.initialised = False

    def init(flags=0):
        module.initialised = True

    for item in (init, *_devices(gpu, module), _block_copies(gpu), *_transfers(gpu)):
        setattr(module, item.__name__, item)
    return module


def _devices(gpu, module):
    class MemoryError(Exception):
        pass

    class Stream:
        def __init__(self, flags=0):
            assert flags == 1, "a stream that waits for the default stream disturbs captures"
            gpu.require_context()
            self.handle = 0x5EED + len(gpu.streams)
            gpu.streams[self.handle] = self

        def synchronize(self):
            gpu.require_context()
            gpu.wait()
            return self

    class Context:
        def push(self):
            gpu.depth += 1

        @staticmethod
        def pop():
            gpu.depth -= 1

    class Device:
        def __init__(self, index):
            assert module.initialised, "pycuda.driver.init() was not called"
            assert index == 0

        def retain_primary_context(self):
            return Context()

    return MemoryError, Stream, Device


def _block_copies(gpu):
    class Memcpy3D:
        def __init__(self):
            self.src_pitch = self.src_height = self.dst_pitch = self.dst_height = 0
            self.width_in_bytes = self.height = self.depth = 0

        def set_src_device(self, address):
            self.source = address

        def set_dst_device(self, address):
            self.target = address

        def __setattr__(self, name, value):
            known = (
                "src_pitch",
                "src_height",
                "dst_pitch",
                "dst_height",
                "width_in_bytes",
                "height",
                "depth",
                "source",
                "target",
            )
            assert name in known, f"Memcpy3D has no {name}"
            object.__setattr__(self, name, value)

        def __call__(self, stream):
            assert gpu.streams[stream.handle] is stream
            assert self.src_pitch >= self.width_in_bytes
            assert self.dst_pitch >= self.width_in_bytes
            assert self.src_height >= self.height
            assert self.dst_height >= self.height
            gpu.put(_block_copy(gpu, dict(vars(self))))

    return Memcpy3D


def _transfers(gpu):
    def mem_alloc(size):
        return Allocation(gpu, size)

    def memcpy_htod_async(dest, src, stream=None):
        assert gpu.recording is None, "pageable memory is copied during a capture"
        assert src.flags.c_contiguous
        # The driver stages pageable memory before the call returns, or reads it later: changing it then is a mistake.
        before = src.copy()
        gpu.log.uploaded += src.nbytes

        def copy():
            assert (src.view(np.uint8) == before.view(np.uint8)).all(), "the source of an upload was changed too early"
            gpu.view(dest, src.shape, src.dtype)[...] = src

        gpu.put(copy)

    def memcpy_dtoh_async(dest, src, stream=None):
        assert gpu.recording is None, "the host reads during a capture"
        assert dest.flags.c_contiguous
        gpu.log.downloaded += dest.nbytes
        gpu.put(lambda: np.copyto(dest, gpu.view(src, dest.shape, dest.dtype)))

    def memset_d8_async(dest, data, size, stream=None):
        assert size < 1 << 32, "pycuda takes an unsigned int"
        gpu.put(lambda: gpu.view(dest, (size,), np.uint8).fill(data))

    def memset_d2d8_async(dest, pitch, data, width, height, stream=None):
        assert width <= pitch < 1 << 32

        def fill():
            for row in range(height):
                gpu.view(dest + row * pitch, (width,), np.uint8).fill(data)

        gpu.put(fill)

    return mem_alloc, memcpy_htod_async, memcpy_dtoh_async, memset_d8_async, memset_d2d8_async


def _block_copy(gpu, copy):
    def run():
        for layer in range(copy["depth"]):
            for row in range(copy["height"]):
                source = copy["source"] + (layer * copy["src_height"] + row) * copy["src_pitch"]
                target = copy["target"] + (layer * copy["dst_height"] + row) * copy["dst_pitch"]
                shape = (copy["width_in_bytes"],)
                gpu.view(target, shape, np.uint8)[...] = gpu.view(source, shape, np.uint8)

    return run


def make_driver(gpu):
    """The module `cuda.bindings.driver`, as far as it is used; names and arguments as in cuda-bindings 13.5."""
    module = types.ModuleType("cuda.bindings.driver")
    module.CUresult = types.SimpleNamespace(CUDA_SUCCESS=0)
    module.CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    module.CUstream = lambda handle: gpu.streams[handle]

    def begin(stream, mode):
        assert gpu.recording is None
        gpu.recording = []
        return (0,)

    def end(stream):
        recorded, gpu.recording = gpu.recording, None
        gpu.log.captures.append(len(recorded))
        return 0, recorded

    def launch(executable, stream):
        gpu.log.launches += 1
        for operation in executable:
            gpu.put(operation)
        return (0,)

    module.cuStreamBeginCapture, module.cuStreamEndCapture, module.cuGraphLaunch = begin, end, launch
    module.cuGraphInstantiate = lambda graph, flags: (0, list(graph))
    module.cuGraphDestroy = lambda graph: (0,)
    module.cuGraphExecDestroy = lambda executable: (0,)
    return module
