"""The classes of TensorRT that make a plan. `self._here` is the installation that a class is of."""

import json
import types

import onnx

from tests.emulation.sessions import session_of

_LAYERS = {"Attention": "ATTENTION_INPUT", "TensorScatter": "KV_CACHE_UPDATE"}


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
        return self.__dict__.setdefault("_attention", self._here.IAttention())


class INetworkDefinition:
    def __init__(self, flags):
        self.__dict__.update(_flags=flags, _session=None, _layers=[], num_inputs=0, num_layers=0)

    def get_layer(self, index):
        return self._layers[index]

    def get_input(self, index):
        return self._here.ITensor(self._session.get_inputs()[index])


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
        if self._here.trt.settings.refuse == "parse":
            self.__dict__.update(num_errors=1)
            return False
        session = session_of(model)
        nodes = onnx.load(model, load_external_data=False).graph.node
        kinds = [_LAYERS.get(node.op_type, "SHUFFLE") for node in nodes]
        layers = [
            self._here.trt.ILayer(self._here.trt.LayerType[kind])
            for kind in kinds
            if kind in self._here.trt.LayerType.__members__
        ]
        self._network.__dict__.update(
            _session=session, _path=model, num_inputs=len(session.get_inputs()), _layers=layers, num_layers=len(layers)
        )
        return True

    def get_error(self, index):
        return self._here.ParserError(7, "Unsupported operator Magic")


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
        assert isinstance(flag, self._here.trt.BuilderFlag)
        self._flags.add(flag.name)

    def clear_flag(self, flag):
        self._flags.discard(flag.name)

    def add_optimization_profile(self, profile):
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def set_memory_pool_limit(self, pool, pool_size):
        self._limits[pool.name] = pool_size

    def create_timing_cache(self, serialized_timing_cache):
        return self._here.ITimingCache(serialized_timing_cache)

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
        self._here.trt.settings.network_flags = flags
        return self._here.INetworkDefinition(flags)

    def create_builder_config(self):
        return self._here.IBuilderConfig()

    def create_optimization_profile(self):
        return self._here.IOptimizationProfile()

    def build_serialized_network(self, network, config):
        self._here.trt.settings.config = config
        self._logger.log(types.SimpleNamespace(name="VERBOSE"), "=== Computing costs for {ForeignNode[a...b]}")
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            assert monitor._initialised
            monitor.phase_start("Building engine", None, 3)
            for step in range(3):
                if not monitor.step_complete("Building engine", step):
                    return None
            monitor.phase_finish("Building engine")
        if self._here.trt.settings.refuse == "build":
            self._logger.log(types.SimpleNamespace(name="ERROR"), "Could not find any implementation for node x")
            return None
        attentions = [layer for layer in network._layers if layer.type.name == "ATTENTION_INPUT"]
        if not all(
            isinstance(each, self._here.IAttentionInputLayer) and each.attention.decomposable for each in attentions
        ):
            self._logger.log(types.SimpleNamespace(name="ERROR"), "There is no fused kernel for attention")
            return None
        plan = {
            "version": self._here.trt.__version__,
            "path": network._path,
            "profiles": config._profiles,
            "flags": sorted(config._flags),
            "num_attentions": len(attentions),
            "shares_profiles": not self._here.old or "PROFILE_SHARING_0806" in config._previews,
        }
        if "STRIP_PLAN" in config._flags:
            plan["stripped"] = True
        return json.dumps(plan).encode()
