"""Whether the installed library multiplies weight-only INT8 as integers is what the rule says of its version."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from runtime.backends.host.int8 import weight_only_problem
from runtime.backends.host.ort import OrtBackend

ROWS, COLUMNS, BLOCK = 512, 64, 128


def test_inputs_are_rounded_where_the_rule_says_that_integers_are_multiplied(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (ROWS, COLUMNS)).astype(np.int8)
    scales = (rng.random((ROWS // BLOCK, COLUMNS)) / 100 + 0.005).astype(np.float32)
    x = rng.standard_normal((4, ROWS)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["weights", "scales"], ["floats"], axis=0, block_size=BLOCK),
        helper.make_node("MatMul", ["x", "floats"], ["y"]),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])]
        for name, size in (("x", ROWS), ("y", COLUMNS))
    )
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(scales, "scales")]
    graph = helper.make_graph(nodes, "product", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "product.onnx")
    found = OrtBackend().open(tmp_path / "product.onnx", num_threads=1, compiled=False).run({"x": x})["y"]
    exact = x @ (weights.astype(np.float32) * np.repeat(scales, BLOCK, axis=0))
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert bool(error > 1e-3) is (weight_only_problem(onnxruntime.__version__) is None)
