"""The classes of TensorRT that run a plan. `self._here` is the installation that a class is of."""

import json
import types
import weakref

import numpy as np

from tests.emulation.cuda import ALIGNMENT, POISON
from tests.emulation.sessions import session_of

ARENA_BYTES = {"text_decoder": 1000, "rep_decoder": 3000, "denoiser": 2000, "vision_encoder": 500}
_DTYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}


class Dims(tuple):
    pass


class ISerializationConfig:
    def __init__(self):
        self._flags = {"EXCLUDE_WEIGHTS"}

    def clear_flag(self, flag):
        self._flags.discard(flag.name)
        return True

    def set_flag(self, flag):
        self._flags.add(flag.name)
        return True


class ICudaEngine:
    def __init__(self, plan):
        session = None if "stripped" in plan else session_of(plan["path"])
        nodes = (*session_of(plan["path"]).get_inputs(), *session_of(plan["path"]).get_outputs())
        self.__dict__.update(
            _plan=plan,
            _session=session,
            _nodes={node.name: node for node in nodes},
            num_io_tensors=len(nodes),
            num_optimization_profiles=len(plan["profiles"]),
            refittable="REFIT" in plan["flags"],
            _inputs=[node.name for node in session_of(plan["path"]).get_inputs()],
            _budget=0,
            _contexts=weakref.WeakSet(),
        )
        streams = "WEIGHT_STREAMING" in plan["flags"]
        for name, value in (("streamable_weights_size", 1000 * streams), ("weight_streaming_budget_v2", 0)):
            if name in self._here.api["ICudaEngine"]:
                self.__dict__[name] = value
        name = next(key for key in ARENA_BYTES if key in plan["path"])
        for attribute in ("device_memory_size", "device_memory_size_v2"):
            if attribute in self._here.api["ICudaEngine"]:
                self.__dict__[attribute] = ARENA_BYTES[name]

    def get_tensor_name(self, index):
        return list(self._nodes)[index]

    def get_tensor_mode(self, name):
        return self._here.trt.TensorIOMode.INPUT if name in self._inputs else self._here.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        kind = _DTYPES[self._nodes[name].type]
        return self._here.trt.DataType["INT32" if self._here.old and kind == "INT64" else kind]

    def get_tensor_shape(self, name):
        return self._here.Dims(size if isinstance(size, int) else -1 for size in self._nodes[name].shape)

    def get_tensor_profile_shape(self, name, profile_index):
        fixed = self._nodes[name].shape
        return [self._here.Dims(each) for each in self._plan["profiles"][profile_index].get(name, [fixed] * 3)]

    def get_weight_streaming_automatic_budget(self):
        return 500

    def get_aliased_input_tensor(self, name):
        source = name.replace("present", "past_key_values")
        in_place = name != source and self._nodes[name].shape[2] == self._nodes[source].shape[2]
        assert not in_place or isinstance(self._nodes[name].shape[2], int), "in place only at a fixed length"
        return source if in_place else None

    def create_runtime_config(self):
        return self._here.IRuntimeConfig()

    def create_execution_context(self, strategy):
        self.__dict__["_specialised"] = True
        if isinstance(strategy, self._here.IRuntimeConfig):
            self.__dict__["_specialised"] = strategy.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            strategy = strategy._strategy
        assert strategy == self._here.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._here.IExecutionContext(self)

    def create_execution_context_without_device_memory(self):
        return self._here.IExecutionContext(self)

    def create_serialization_config(self):
        return self._here.ISerializationConfig()

    def serialize_with_config(self, config):
        assert "EXCLUDE_WEIGHTS" not in config._flags
        return json.dumps(self._plan).encode()

    def serialize(self):
        return json.dumps(self._plan).encode()


class IRuntimeConfig:
    def __init__(self):
        if "dynamic_shapes_kernel_specialization_strategy" in self._here.api["IRuntimeConfig"]:
            lazy = self._here.trt.DynamicShapesKernelSpecializationStrategy.LAZY
            self.__dict__["dynamic_shapes_kernel_specialization_strategy"] = lazy

    def set_execution_context_allocation_strategy(self, strategy):
        self.__dict__["_strategy"] = strategy


class IExecutionContext:
    def __init__(self, engine):
        self.__dict__.update(_engine=engine, _shapes={}, _addresses={})
        self.__dict__.update(_profile=None, _memory=None, _captured=False)
        engine._contexts.add(self)

    def is_stream_capturable(self, stream):
        return self._engine._specialised

    def set_device_memory(self, memory, size):
        assert size >= self._engine.device_memory_size_v2
        assert memory % ALIGNMENT == 0
        self.__dict__["_memory"] = (memory, size)

    def _changes(self):
        assert not self._captured or self._here.gpu.recording is not None, "captured work sees its context changed"

    def set_optimization_profile_async(self, profile_index, stream_handle):
        self._changes()
        assert stream_handle in self._here.gpu.streams
        taken = {context._profile for context in self._engine._contexts if context is not self}
        if profile_index in taken and not self._engine._plan["shares_profiles"]:
            return False
        self._profile = profile_index
        return True

    def set_input_shape(self, name, shape):
        self._changes()
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        fits = len(low) == len(shape) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if fits:
            self._shapes[name] = tuple(shape)
        return fits

    def get_tensor_shape(self, name):
        sizes = {}
        for key, shape in self._shapes.items():
            sizes.update(zip(self._engine._nodes[key].shape, shape, strict=True))
        shape = [sizes.get(size, size) for size in self._engine._nodes[name].shape]
        if "tokens" in shape:  # a product of others: TensorRT computes shapes, here the graph itself tells
            zeros = {key: np.zeros(each, np.float32) for key, each in self._shapes.items()}
            shape = self._engine._session.run([name], zeros)[0].shape
        return self._here.Dims(shape)

    def set_tensor_address(self, name, memory):
        self._changes()
        assert name in self._engine._nodes
        assert memory % ALIGNMENT == 0, f"{name} is off its boundary"
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        self._changes()
        assert stream_handle in self._here.gpu.streams
        engine = self._engine
        assert engine._session is not None, "the weights of this engine were stripped"
        assert set(self._shapes) == set(engine._inputs)
        assert set(self._addresses) == set(engine._nodes)
        for name in set(engine._nodes) - set(engine._inputs):
            source = "get_aliased_input_tensor" in self._here.api["ICudaEngine"] and (
                engine.get_aliased_input_tensor(name)
            )
            assert not source or self._addresses[name] == self._addresses[source], f"{name} is not in place"
        if "device_memory" in self.__dict__:
            self.__dict__["_memory"] = (self.device_memory, engine.device_memory_size)
        shapes = {name: self._shapes.get(name) or tuple(self.get_tensor_shape(name)) for name in engine._nodes}
        run = _execution(self._here.gpu, engine, shapes, dict(self._addresses), self._memory, self._here.old)
        alive = weakref.ref(self)

        def run_while_alive():
            assert alive() is not None, "work runs whose context is gone"
            run()

        self._here.gpu.put(run_while_alive)
        if self._here.gpu.recording is not None:
            self._captured = True
        return True


class Runtime:
    def __init__(self, logger):
        assert logger._initialised
        self.__dict__.update(_logger=logger)

    def deserialize_cuda_engine(self, serialized_engine):
        try:
            plan = json.loads(bytes(serialized_engine))
        except ValueError:
            self._logger.log(types.SimpleNamespace(name="ERROR"), "Magic tag does not match")
            return None
        return self._here.ICudaEngine(plan)


class Refitter:
    def __init__(self, engine, logger):
        assert engine.refittable
        self._engine = engine

    def refit_cuda_engine(self):
        self._engine.__dict__["_session"] = session_of(self._engine._plan["path"])
        return True

    def get_missing_weights(self):
        return []


class OnnxParserRefitter:
    def __init__(self, refitter, logger):
        self.__dict__.update(_refitter=refitter, num_errors=0)

    def refit_from_file(self, model):
        if self._here.trt.settings.refuse == "refit":
            self.__dict__["num_errors"] = 1
            return False
        self._refitter._engine._plan["path"] = model
        self._refitter._engine._plan.pop("stripped", None)
        return True

    def get_error(self, index):
        return self._here.ParserError(3, "Weights of another shape")


def _execution(gpu, engine, shapes, addresses, memory, old):
    """One run, with the shapes and addresses of the time of the call."""

    def view(name):
        dtype = _NUMPY[engine.get_tensor_dtype(name).name]
        return gpu.view(addresses[name], shapes[name], dtype)

    def run():
        # Activations: whatever else lies in the arena is lost.
        gpu.view(memory[0], (memory[1],), np.uint8).fill(POISON)
        inputs = {name: view(name) for name in engine._inputs}
        if old:
            inputs = {name: x.astype(np.int64) if x.dtype == np.int32 else x for name, x in inputs.items()}
        outputs = [name for name in engine._nodes if name not in engine._inputs]
        for name, value in zip(outputs, engine._session.run(outputs, inputs), strict=True):
            assert value.shape == shapes[name]
            view(name)[...] = value

    return run
