"""A bound graph reads and writes the memory that it was given, for as long as it can run."""

import gc
import weakref

import numpy as np
import pytest

from engines.probe import probe_inputs
from runtime.signature import GRAPHS


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
