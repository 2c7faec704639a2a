"""A bound graph reads and writes the memory that it was given, for as long as it can run; errors are told apart."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import onnxruntime
import pytest

from engines.probe import probe_inputs
from runtime.backends.host.ort import OrtSession, open_session, session_options
from runtime.errors import RFError
from runtime.pipeline import Pipeline
from runtime.signature import GRAPHS

_RUNS = """
import sys
from pathlib import Path
import numpy as np
from runtime.backends.host.machine import process_memory
from runtime.backends.host.ort import OrtSession, open_session, session_options

session = OrtSession(open_session(Path(sys.argv[1]), session_options(1)))
num = 4000
sizes = {"request": num, "row": num, "height": 8, "width": 8}
inputs = {}
for spec in session.signature.inputs:
    shape = [sizes.get(size, 4) if isinstance(size, str) else size for size in spec.shape]
    inputs[spec.name] = np.ones(shape, spec.dtype)
inputs["past_lengths"][:] = 3
inputs["row_requests"][:] = inputs["uncond_rows"][:] = np.arange(num)
for _ in range(3):
    session.run(inputs)
    print(process_memory().peak >> 20)
"""


def test_the_second_run_of_a_shape_takes_no_more_memory_than_the_first(tiny_bundle):
    file = tiny_bundle / "graphs/denoiser.fp32.classic.onnx"
    run = subprocess.run([sys.executable, "-c", _RUNS, str(file)], capture_output=True, text=True, check=True)
    first, *others = map(int, run.stdout.split())
    assert first > 100, "it takes enough to be seen"
    assert max(others) <= first + 10


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_bound_graph_keeps_its_arrays_alive(pipeline, graph):
    session = pipeline.sessions[graph]
    inputs = probe_inputs(session.signature, pipeline.bundle.manifest.model)
    outputs = {name: np.zeros_like(array) for name, array in session.run(inputs).items()}
    arrays = [weakref.ref(array) for array in (*inputs.values(), *outputs.values())]
    run = session.bind(inputs, outputs)
    del inputs, outputs
    gc.collect()
    assert all(array() is not None for array in arrays)  # ONNX Runtime before 1.24 would read freed memory
    run()
    del run
    gc.collect()
    assert all(array() is None for array in arrays)


def test_a_bound_graph_reads_its_arrays_anew(pipeline):
    session = pipeline.sessions["vision_encoder"]
    inputs = probe_inputs(session.signature, pipeline.bundle.manifest.model)
    outputs = {name: np.zeros_like(array) for name, array in session.run(inputs).items()}
    run = session.bind(inputs, outputs)
    for value in (0.0, 0.5):
        inputs["pixels"].fill(value)
        run()
        np.testing.assert_array_equal(outputs["image_features"], session.run(inputs)["image_features"])


class Failing:
    """A session of ONNX Runtime whose runs fail."""

    def __init__(self, session, error):
        self.session, self.error = session, error

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run(self, names, inputs):
        raise self.error

    def run_with_iobinding(self, binding):
        raise self.error


def failing_runs(pipeline, error):
    """Both ways to run a graph."""
    real = pipeline.sessions["vision_encoder"]
    session = OrtSession(Failing(real._session, error))
    inputs = probe_inputs(session.signature, pipeline.bundle.manifest.model)
    outputs = {name: np.zeros_like(array) for name, array in real.run(inputs).items()}
    return lambda: session.run(inputs), session.bind(inputs, outputs)


@pytest.mark.parametrize(
    "message",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) "
        "Failed to allocate memory for requested buffer of size 1073741824",
        "std::bad_alloc",
    ],
)
def test_a_run_without_memory_is_a_memory_error(pipeline, message):
    for run in failing_runs(pipeline, RuntimeError(message)):
        with pytest.raises(MemoryError, match="ONNX Runtime cannot allocate what a graph needs"):
            run()


def test_a_graph_that_memory_does_not_hold_is_a_memory_error_and_no_fault_of_the_file(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(MemoryError, match=r"cannot load .*graph\.onnx"):
        open_session(tmp_path / "graph.onnx", session_options(1))


def test_any_other_error_of_a_run_stays_as_it_is(pipeline):
    error = RuntimeError("a shape does not fit")
    for run in failing_runs(pipeline, error):
        with pytest.raises(RuntimeError) as caught:
            run()
        assert caught.value is error


def test_threads_spin_unless_told_otherwise(tiny_bundle):
    name = "session.intra_op.allow_spinning"
    assert session_options(2).get_session_config_entry(name) == "1"
    assert session_options(2, allow_spinning=False).get_session_config_entry(name) == "0"
    with Pipeline.load(tiny_bundle, num_threads=2, engine="none", allow_spinning=False) as quiet:
        options = quiet.sessions["denoiser"]._session.get_session_options()
        assert options.get_session_config_entry(name) == "0"
        assert not quiet.model.allow_spinning
    with pytest.raises(RFError, match="ort alone can keep its threads from spinning, and tensorrt was asked for"):
        Pipeline.load(tiny_bundle, backend="tensorrt", allow_spinning=False)
