"""The module `tensorrt` of a version: its classes have what the dump of that version's real API has, and nothing else.

A plan names the ONNX file that it was made from; an execution runs it with ONNX Runtime on the emulated device's
memory. Every call is checked against the signatures in the dump.
"""

import enum
import functools
import json
import types
import weakref

import numpy as np
import onnx
import onnxruntime as ort

from tests.emulation.api import VERSIONS, read_api, restrict
from tests.emulation.cuda import ALIGNMENT, POISON

ARENA_BYTES = {"text_decoder": 1000, "rep_decoder": 3000, "denoiser": 2000, "vision_encoder": 500}
_DTYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
_LAYERS = {"Attention": "ATTENTION_INPUT", "TensorScatter": "KV_CACHE_UPDATE"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}


@functools.cache
def _session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options)


def make_tensorrt(version, gpu, settings=None):
    """The module of a version. `settings` is written to: the last config, network flags, whether to fail."""
    api = read_api(version)
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version.removeprefix("rtx-")
    trt.settings = settings if settings is not None else types.SimpleNamespace(refuse=None, cancel_at=None)
    for name, members in api.items():
        if "members" in members:
            setattr(trt, name, enum.IntEnum(name, {each: i for i, each in enumerate(members["members"])}))
    for kind in _classes(trt, gpu, version.startswith("8.")):
        if kind.__name__ in api:
            setattr(trt, kind.__name__, restrict(kind, api[kind.__name__]))
    return trt


def _classes(trt, gpu, old):
    class ILogger:
        def __init__(self):
            self._initialised = True

    class IProgressMonitor:
        def __init__(self):
            self._initialised = True

    class ITensor:
        def __init__(self, node):
            self.__dict__.update(name=node.name)

    class ILayer:
        def __init__(self, kind):
            self.__dict__["type"] = kind

    class IAttention:
        def __init__(self):
            self.__dict__["decomposable"] = False

    class IAttentionInputLayer(ILayer):
        @property
        def attention(self):
            return self.__dict__.setdefault("_attention", IAttention())

    class INetworkDefinition:
        def __init__(self, flags):
            self.__dict__.update(_flags=flags, _session=None, _layers=[], num_inputs=0, num_layers=0)

        def get_layer(self, index):
            return self._layers[index]

        def get_input(self, index):
            return ITensor(self._session.get_inputs()[index])

    class ParserError:
        def __init__(self, node, text):
            self._node, self._text = node, text

        def node(self):
            return self._node

        def desc(self):
            return self._text

    class OnnxParser:
        def __init__(self, network, logger):
            assert logger._initialised
            self.__dict__.update(_network=network, num_errors=0)

        def parse_from_file(self, model):
            if trt.settings.refuse == "parse":
                self.__dict__.update(num_errors=1)
                return False
            session = _session(model)
            nodes = onnx.load(model, load_external_data=False).graph.node
            kinds = [_LAYERS.get(node.op_type, "SHUFFLE") for node in nodes]
            layers = [trt.ILayer(trt.LayerType[kind]) for kind in kinds if kind in trt.LayerType.__members__]
            self._network.__dict__.update(
                _session=session,
                _path=model,
                num_inputs=len(session.get_inputs()),
                _layers=layers,
                num_layers=len(layers),
            )
            return True

        def get_error(self, index):
            return ParserError(7, "Unsupported operator Magic")

    class IOptimizationProfile:
        def __init__(self):
            self._shapes = {}

        def set_shape(self, input, min, opt, max):
            self._shapes[input] = [list(min), list(opt), list(max)]

    class ITimingCache:
        def __init__(self, data):
            self._data = data

        def serialize(self):
            return self._data + b"|timed" if not self._data.endswith(b"|timed") else self._data

    class IBuilderConfig:
        def __init__(self):
            self.__dict__.update(_flags=set(), _profiles=[], _limits={}, _capabilities={}, _cache=None, _previews=set())

        def set_preview_feature(self, feature, enable):
            assert enable
            self._previews.add(feature.name)

        def set_flag(self, flag):
            assert isinstance(flag, trt.BuilderFlag)
            self._flags.add(flag.name)

        def clear_flag(self, flag):
            self._flags.discard(flag.name)

        def add_optimization_profile(self, profile):
            self._profiles.append(profile._shapes)
            return len(self._profiles) - 1

        def set_memory_pool_limit(self, pool, pool_size):
            self._limits[pool.name] = pool_size

        def create_timing_cache(self, serialized_timing_cache):
            return ITimingCache(serialized_timing_cache)

        def set_timing_cache(self, cache, ignore_mismatch):
            assert not ignore_mismatch
            if cache._data.startswith(b"foreign"):
                return False
            self._cache = cache
            return True

        def set_compute_capability(self, compute_capability, index):
            self._capabilities[index] = compute_capability.name
            return True

    class Builder:
        def __init__(self, logger):
            assert logger._initialised
            self._logger = logger

        def create_network(self, flags=0):
            trt.settings.network_flags = flags
            return INetworkDefinition(flags)

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            trt.settings.config = config
            self._logger.log(types.SimpleNamespace(name="VERBOSE"), "=== Computing costs for {ForeignNode[a...b]}")
            monitor = getattr(config, "progress_monitor", None)
            if monitor is not None:
                assert monitor._initialised
                monitor.phase_start("Building engine", None, 3)
                for step in range(3):
                    if not monitor.step_complete("Building engine", step):
                        return None
                monitor.phase_finish("Building engine")
            if trt.settings.refuse == "build":
                self._logger.log(types.SimpleNamespace(name="ERROR"), "Could not find any implementation for node x")
                return None
            attentions = [layer for layer in network._layers if layer.type.name == "ATTENTION_INPUT"]
            if not all(isinstance(each, IAttentionInputLayer) and each.attention.decomposable for each in attentions):
                self._logger.log(types.SimpleNamespace(name="ERROR"), "There is no fused kernel for attention")
                return None
            plan = {
                "version": trt.__version__,
                "path": network._path,
                "profiles": config._profiles,
                "flags": sorted(config._flags),
                "num_attentions": len(attentions),
                "shares_profiles": not old or "PROFILE_SHARING_0806" in config._previews,
            }
            if "STRIP_PLAN" in config._flags:
                plan["stripped"] = True
            return json.dumps(plan).encode()

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
            session = None if "stripped" in plan else _session(plan["path"])
            nodes = (*_session(plan["path"]).get_inputs(), *_session(plan["path"]).get_outputs())
            self.__dict__.update(
                _plan=plan,
                _session=session,
                _nodes={node.name: node for node in nodes},
                num_io_tensors=len(nodes),
                num_optimization_profiles=len(plan["profiles"]),
                refittable="REFIT" in plan["flags"],
                _inputs=[node.name for node in _session(plan["path"]).get_inputs()],
                _budget=0,
                _contexts=weakref.WeakSet(),
            )
            streams = "WEIGHT_STREAMING" in plan["flags"]
            for name, value in (("streamable_weights_size", 1000 * streams), ("weight_streaming_budget_v2", 0)):
                if name in read_api_of(trt)["ICudaEngine"]:
                    self.__dict__[name] = value
            name = next(key for key in ARENA_BYTES if key in plan["path"])
            for attribute in ("device_memory_size", "device_memory_size_v2"):
                if attribute in read_api_of(trt)["ICudaEngine"]:
                    self.__dict__[attribute] = ARENA_BYTES[name]

        def get_tensor_name(self, index):
            return list(self._nodes)[index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name in self._inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            kind = _DTYPES[self._nodes[name].type]
            return trt.DataType["INT32" if old and kind == "INT64" else kind]

        def get_tensor_shape(self, name):
            return Dims(size if isinstance(size, int) else -1 for size in self._nodes[name].shape)

        def get_tensor_profile_shape(self, name, profile_index):
            fixed = self._nodes[name].shape
            return [Dims(each) for each in self._plan["profiles"][profile_index].get(name, [fixed] * 3)]

        def get_weight_streaming_automatic_budget(self):
            return 500

        def get_aliased_input_tensor(self, name):
            source = name.replace("present", "past_key_values")
            in_place = name != source and self._nodes[name].shape[2] == self._nodes[source].shape[2]
            assert not in_place or isinstance(self._nodes[name].shape[2], int), "in place only at a fixed length"
            return source if in_place else None

        def create_runtime_config(self):
            return IRuntimeConfig()

        def create_execution_context(self, strategy):
            self.__dict__["_specialised"] = True
            if isinstance(strategy, IRuntimeConfig):
                self.__dict__["_specialised"] = strategy.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
                strategy = strategy._strategy
            assert strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return IExecutionContext(self)

        def create_execution_context_without_device_memory(self):
            return IExecutionContext(self)

        def create_serialization_config(self):
            return ISerializationConfig()

        def serialize_with_config(self, config):
            assert "EXCLUDE_WEIGHTS" not in config._flags
            return json.dumps(self._plan).encode()

        def serialize(self):
            return json.dumps(self._plan).encode()

    class IRuntimeConfig:
        def __init__(self):
            if "dynamic_shapes_kernel_specialization_strategy" in read_api_of(trt)["IRuntimeConfig"]:
                lazy = trt.DynamicShapesKernelSpecializationStrategy.LAZY
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
            assert not self._captured or gpu.recording is not None, "captured work sees its context changed"

        def set_optimization_profile_async(self, profile_index, stream_handle):
            self._changes()
            assert stream_handle in gpu.streams
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
            return Dims(shape)

        def set_tensor_address(self, name, memory):
            self._changes()
            assert name in self._engine._nodes
            assert memory % ALIGNMENT == 0, f"{name} is off its boundary"
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle):
            self._changes()
            assert stream_handle in gpu.streams
            engine = self._engine
            assert engine._session is not None, "the weights of this engine were stripped"
            assert set(self._shapes) == set(engine._inputs)
            assert set(self._addresses) == set(engine._nodes)
            for name in set(engine._nodes) - set(engine._inputs):
                source = "get_aliased_input_tensor" in read_api_of(trt)["ICudaEngine"] and (
                    engine.get_aliased_input_tensor(name)
                )
                assert not source or self._addresses[name] == self._addresses[source], f"{name} is not in place"
            if "device_memory" in self.__dict__:
                self.__dict__["_memory"] = (self.device_memory, engine.device_memory_size)
            shapes = {name: self._shapes.get(name) or tuple(self.get_tensor_shape(name)) for name in engine._nodes}
            run = _execution(gpu, engine, shapes, dict(self._addresses), self._memory, old)
            alive = weakref.ref(self)

            def run_while_alive():
                assert alive() is not None, "work runs whose context is gone"
                run()

            gpu.put(run_while_alive)
            if gpu.recording is not None:
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
            return ICudaEngine(plan)

    class Refitter:
        def __init__(self, engine, logger):
            assert engine.refittable
            self._engine = engine

        def refit_cuda_engine(self):
            self._engine.__dict__["_session"] = _session(self._engine._plan["path"])
            return True

        def get_missing_weights(self):
            return []

    class OnnxParserRefitter:
        def __init__(self, refitter, logger):
            self.__dict__.update(_refitter=refitter, num_errors=0)

        def refit_from_file(self, model):
            if trt.settings.refuse == "refit":
                self.__dict__["num_errors"] = 1
                return False
            self._refitter._engine._plan["path"] = model
            self._refitter._engine._plan.pop("stripped", None)
            return True

        def get_error(self, index):
            return ParserError(3, "Weights of another shape")

    return [kind for kind in locals().values() if isinstance(kind, type)]


def read_api_of(trt):
    return read_api(next(each for each in VERSIONS if each.removeprefix("rtx-") == trt.__version__))


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
