"""Runs engines of TensorRT 8.6 to 11 and of TensorRT-RTX on the first GPU.

Knows nothing of the model: names, shapes and addresses in. All engines share one stream and one block of memory for
activations, sized for the largest, since they run one after another. What a version can do is asked of its API: 11.0
has only `create_execution_context(USER_MANAGED)` and `set_device_memory`, 8.6 only `..._without_device_memory` and the
property `device_memory`.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.backends.cuda.device import CudaDevice
from runtime.backends.cuda.memory import StepTable
from runtime.backends.cuda.session import Enqueue
from runtime.backends.cuda.stages import DeviceStages
from runtime.backends.cuda.tensorrt_library import TensorRTName, import_library, messages_of
from runtime.backends.cuda.text import DeviceTextRow
from runtime.backends.cuda.workspace import WorkspacePool
from runtime.backends.host.forks import ProcessBound
from runtime.backends.interface import Arrays, DrawingShape, Session, StageRunner, Target
from runtime.errors import RFError
from runtime.signature import ANY_DIM, GraphName, GraphSignature, ModelSpec, TensorSpec, Variant

_DTYPES: Final = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}

_log = logging.getLogger(__name__)


class TensorRTBackend(ProcessBound):
    """See `runtime.backends.interface.Backend`."""

    needs_engine = True

    def __init__(self, name: TensorRTName) -> None:
        """Raises RFError where there is no GPU, ModuleNotFoundError where a package is missing."""
        super().__init__()
        self._name = name
        self._device = CudaDevice()  # first of all: without a driver the library crashes
        self._trt = import_library(name)
        self._arena = Arena(self._device)
        self._pool = WorkspacePool()
        self._runtime: Any = None

    def target(self) -> Target:
        """The exact version, and the compute capability."""
        return Target(self._name, str(self._trt.__version__), self._device.gpu.device)

    def open(self, path: Path, *, num_threads: int | None, compiled: bool) -> "TensorRTSession":
        """Load an engine; `num_threads` says nothing here."""
        if not compiled:
            raise RFError(
                f"{self._name} runs engines, and {path.name} is a graph. Build one: rf-export build-engine.", "mismatch"
            )
        messages = messages_of(self._trt)
        with self._device.exclusive():
            if self._runtime is None:
                self._runtime = self._trt.Runtime(messages.logger)
                # Engines that run on later versions bring code of the library; their hashes are in engine.json.
                self._runtime.engine_host_code_allowed = True
            messages.last_error = ""
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise RFError(
                    f"{self._name} {self._trt.__version__} cannot load {path}: "
                    f"{messages.last_error or 'it gives no reason'}. Build the engine again: rf-export build-engine.",
                    "mismatch",
                )
            return TensorRTSession(self._trt, self._device, self._arena, engine, path.name)

    def stages(self, sessions: Mapping[GraphName, Session], drawing: DrawingShape) -> StageRunner:
        """Whole stages on the device."""
        return DeviceStages(self._device, sessions, self._pool, drawing)

    def text_row(self, session: Session, model: ModelSpec, variant: Variant) -> DeviceTextRow:
        """Keys and values on the device."""
        return DeviceTextRow(self._device, session, model, variant)


class Arena:
    """One block for the activations of all engines."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._blocks: list[Any] = []  # an older, smaller block stays: captured work may refer to it
        self._num_bytes = 0

    def reserve(self, num_bytes: int) -> None:
        """Make the block at least as large."""
        self._num_bytes = max(self._num_bytes, num_bytes)

    def block(self) -> tuple[int, int]:
        """Address and size, with room for everything that was reserved."""
        if not self._blocks or self._blocks[-1][1] < self._num_bytes:
            self._blocks.append((self._device.allocate(self._num_bytes), self._num_bytes))
        memory, num_bytes = self._blocks[-1]
        return int(memory), num_bytes


class TensorRTSession(ProcessBound):
    """A loaded engine; see `runtime.backends.interface.Session` and `runtime.backends.cuda.session.DeviceSession`."""

    def __init__(self, trt: Any, device: CudaDevice, arena: Arena, engine: Any, name: str) -> None:
        super().__init__()
        self._trt, self._device, self._arena, self._engine, self._name = trt, device, arena, engine, name
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._inputs = [each for each in names if engine.get_tensor_mode(each) == trt.TensorIOMode.INPUT]
        self._outputs = [each for each in names if each not in self._inputs]
        self._dtypes = {each: np.dtype(_DTYPES[engine.get_tensor_dtype(each).name]) for each in names}
        self._written_over = _written_over(engine, self._outputs)
        self._streams_weights = getattr(engine, "streamable_weights_size", 0) > 0
        if self._streams_weights:
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
            _log.info("%s: %s bytes of weights on the GPU", name, engine.weight_streaming_budget_v2)
        size = "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size"
        arena.reserve(getattr(engine, size))

    @property
    def signature(self) -> GraphSignature:
        """Inputs and outputs; an engine keeps no names of free dimensions. TensorRT 8.6 makes int32 of int64."""
        return GraphSignature(tuple(map(self._spec, self._inputs)), tuple(map(self._spec, self._outputs)))

    @functools.cached_property
    def capturable(self) -> bool:
        """Weights that are streamed are copied and allocated at run time, which cannot be captured."""
        return not self._streams_weights and self._stream_capturable()

    def dtype(self, name: str) -> npt.DTypeLike:
        """The dtype that a tensor has on the device."""
        return self._dtypes[name]

    def sizes(self, name: str, axis: int) -> tuple[int, int]:
        """The smallest and the largest size of a dimension in the first profile."""
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        return int(smallest[axis]), int(largest[axis])

    def longest(self, name: str, axis: int) -> int:
        """The largest size of a dimension in any profile."""
        profiles = range(self._engine.num_optimization_profiles)
        return max(int(self._engine.get_tensor_profile_shape(name, profile)[2][axis]) for profile in profiles)

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> Enqueue:
        """Prepare runs on a context of their own: captured work must not see its context changed."""
        context = self._context(shapes)
        known: dict[str, int] = {}

        def enqueue(addresses: Mapping[str, int]) -> None:
            for name, address in addresses.items():
                if known.get(name) != address:  # most stay as they are from step to step
                    if not context.set_tensor_address(name, address):
                        raise RuntimeError(f"{self._name} does not take the tensor {name}")
                    known[name] = address
            if not context.execute_async_v3(self._device.stream):
                raise RuntimeError(f"{self._name} did not run: {messages_of(self._trt).last_error}")

        return enqueue

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; the outputs are new arrays."""
        with self._device.exclusive():
            context = self._context({name: array.shape for name, array in inputs.items()})
            shapes = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        specs = {spec.name: spec.dtype for spec in self.signature.outputs}
        outputs = {name: np.zeros(shape, specs[name]) for name, shape in shapes.items()}
        self.bind(inputs, outputs)()
        return outputs

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare runs that copy the inputs to the device and the outputs back."""
        with self._device.exclusive():
            shapes = {name: array.shape for name, array in inputs.items()}
            context = self._context(shapes)
            for name in self._outputs:  # those that nobody wants need a place too
                shapes[name] = tuple(context.get_tensor_shape(name))
            tables = {
                name: StepTable(self._device, 1, shape, self._dtypes[name])
                for name, shape in shapes.items()
                if name not in self._written_over
            }
            tables |= {name: tables[source] for name, source in self._written_over.items()}
            enqueue = self.prepare({name: shapes[name] for name in inputs})

        def run() -> None:
            with self._device.exclusive():
                for name, array in inputs.items():
                    tables[name].upload(array[None])
                enqueue({name: table.address() for name, table in tables.items()})
                for name, array in outputs.items():
                    array[...] = tables[name].download(1)[0]

        return run

    def _context(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """A new context, with the profile for these shapes and memory in the arena."""
        context = self._create_context()
        address, num_bytes = self._arena.block()
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, num_bytes)
        else:
            context.device_memory = address
        if not context.set_optimization_profile_async(self._choose_profile(shapes), self._device.stream):
            raise RuntimeError(f"{self._name} does not take its profile: {messages_of(self._trt).last_error}")
        for name in self._inputs:
            if not context.set_input_shape(name, shapes[name]):
                raise RFError(f"{self._name} does not take {name} of shape {shapes[name]}.", "mismatch")
        return context

    def _create_context(self) -> Any:
        engine, trt = self._engine, self._trt
        if not hasattr(trt, "ExecutionContextAllocationStrategy"):
            return engine.create_execution_context_without_device_memory()
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return engine.create_execution_context(strategy)
        # TensorRT-RTX compiles kernels for a shape in the background and changes to them later, unless told to do it
        # at once. A context has one shape here, and captured work keeps the kernels that it was recorded with.
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return engine.create_execution_context(config)

    def _choose_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Of the profiles that take the shapes, the one whose best shape of the first input is nearest.

        text_decoder has one for whole prompts and one for single tokens, and its first input is the ids.
        """
        first, reason = self._inputs[0], ""
        fitting: dict[int, int] = {}  # profile -> how far off
        for index in range(self._engine.num_optimization_profiles):
            misfit = next(filter(None, (self._misfit(name, shapes[name], index) for name in self._inputs)), None)
            reason = reason or misfit or ""
            if misfit is None:
                _, best, _ = self._engine.get_tensor_profile_shape(first, index)
                fitting[index] = sum(abs(size - other) for size, other in zip(shapes[first], best, strict=True))
        if fitting:
            return min(fitting, key=lambda index: fitting[index])
        raise RFError(
            f"{self._name} was built for other sizes: {reason}. Draw other sizes or fewer pictures at once, or build "
            "it with wider ranges: rf-export build-engine with --dim batch=1:1:8, prompt, height or width.",
            elsewhere=f"The engine was built for other sizes: {reason}. Ask for another size or a shorter text.",
        )

    def _misfit(self, name: str, shape: tuple[int, ...], profile: int) -> str | None:
        smallest, _, largest = (tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, profile))
        if len(shape) == len(smallest) and all(
            low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
        ):
            return None
        return f"{name} of shape {shape}, and it takes {smallest} to {largest}"

    def _stream_capturable(self) -> bool:
        # TensorRT-RTX alone has engines that allocate at run time, and tells.
        if not hasattr(self._trt.IExecutionContext, "is_stream_capturable"):
            return True
        context = self._create_context()
        return bool(context.is_stream_capturable(self._device.stream))

    def _spec(self, name: str) -> TensorSpec:
        shape = tuple(ANY_DIM if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        dtype = str(self._dtypes[name])
        return TensorSpec(name, "int64" if dtype == "int32" else dtype, shape)


def _written_over(engine: Any, outputs: list[str]) -> dict[str, str]:
    """Outputs that have to lie where an input lies, and that input: caches that are written in place (10.15)."""
    if not hasattr(engine, "get_aliased_input_tensor"):
        return {}
    pairs = {name: engine.get_aliased_input_tensor(name) for name in outputs}
    return {name: source for name, source in pairs.items() if source}
