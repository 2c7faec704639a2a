"""Compiled engines of a bundle, built on the machine that will run them.

Knows nothing of any library: a builder is imported, with its library, when its backend is asked for. What an engine is,
and whether it may run, is the consumer's to say: runtime/bundle/engine.py.

    from engines import EngineConfig, build
    build("bundle", EngineConfig(backend="ort", precision="fp32"))

Code map: config (what can be built) -> build (what all backends share) -> ort (ONNX Runtime) -> pool, external_data
(its weights); tensorrt/ (TensorRT and TensorRT-RTX): builder -> config, profiles (sizes), network (one graph), refit
(other weights); cancellable (Ctrl-C); probe (the check).
"""

from engines.build import build, estimate
from engines.config import BuildEstimate, EngineConfig
from engines.tensorrt.config import DimRange, TensorRTConfig, parse_dims

__all__ = [
    "BuildEstimate",
    "DimRange",
    "EngineConfig",
    "TensorRTConfig",
    "build",
    "build_or_keep",
    "estimate",
    "parse_dims",
]
