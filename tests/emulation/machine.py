"""A fixture: this machine with an emulated GPU, and a version of TensorRT installed."""

import sys
import types

import pytest

from runtime.backends.cuda import tensorrt_library
from runtime.backends.cuda.driver import Gpu
from tests.emulation.cuda import Gpu as EmulatedGpu
from tests.emulation.cuda import make_driver, make_pycuda
from tests.emulation.tensorrt import make_tensorrt

GPU = Gpu(name="Orin", compute_capability="8.7", memory_mib=8192, cuda_version="12.6")


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine with a GPU and a version of TensorRT."""

    def make(version="10.13.3", graphs=True):
        gpu = EmulatedGpu()
        trt = make_tensorrt(version, gpu)
        name = "tensorrt_rtx" if version.startswith("rtx-") else "tensorrt"
        trt.__name__ = name
        modules = {
            "pycuda": types.ModuleType("pycuda"),
            "pycuda.driver": make_pycuda(gpu),
            name: trt,
            "cuda": types.ModuleType("cuda"),
            "cuda.bindings": types.ModuleType("cuda.bindings"),
            "cuda.bindings.driver": make_driver(gpu) if graphs else None,
        }
        for key, module in modules.items():
            monkeypatch.setitem(sys.modules, key, module)
        monkeypatch.setattr(tensorrt_library, "_messages", {})
        for module in ("runtime.backends.cuda.device", "engines.tensorrt.builder", "engines.tensorrt.refit"):
            monkeypatch.setattr(f"{module}.require_gpu", lambda *_: GPU)
        return types.SimpleNamespace(gpu=gpu, trt=trt, backend=name.replace("_", "-"))

    return make
