"""Rewritten graphs compute what the original does, up to the rounding that was asked for, and store what they say."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.config import PER_COLUMN
from calibration.layers import find_layers, product_of
from calibration.quantise import Choice, QuantisedWeight, block_size, quantise, smoothing_owner
from calibration.quantise import _smooth as smooth
from engines.probe import probe_inputs
from rf_export.lint.rules import lint
from rf_export.lint.targets import LintTarget
from runtime.backends import create_backend
from runtime.bundle.folder import open_bundle
from runtime.signature import GRAPHS, Variant
from verification.graphs.weights import WeightFile
from verification.measures.metrics import cosine

DECODERS = [name for name in GRAPHS if name != "vision_encoder"]  # of the tiny model, whose encoder is too narrow
MAIN = {"vision_encoder": "image_features", "text_decoder": "logits", "rep_decoder": "logits", "denoiser": "x_pred"}


def source(bundle, graph, precision="fp32"):
    return bundle / "graphs" / f"{graph}.{precision}.classic.onnx"


def inputs_of(bundle, graph, precision):
    return probe_inputs(
        open_bundle(bundle).graph(graph, Variant(precision)).signature, open_bundle(bundle).manifest.model
    )


def run(path, inputs):
    return create_backend("ort").open(path, num_threads=1, compiled=False).run(inputs)


def rewritten(bundle, graph, plan, folder, precision="fp32"):
    model = ir.load(source(bundle, graph, precision))
    quantise(model, plan)
    with WeightFile(folder, "weights/w.bin") as file:
        return file.save(model, "q.onnx"), file.path


def choices(bundle, graph, format, block=128, precision="fp32", smoothing=None):
    """A choice for every layer; inputs of the probe stay within 8."""
    layers = find_layers(ir.load(source(bundle, graph, precision)).graph)
    return {weight: Choice(format, 8.0, smoothing, block) for weight in layers}


def num_weights(bundle, graph, kinds=None):
    layers = find_layers(ir.load(source(bundle, graph)).graph).values()
    return sum(layer.in_size * layer.out_size for layer in layers if kinds is None or layer.kind in kinds)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    ("format", "block", "precision", "least"),
    [
        ("static", 0, "fp32", 0.99),
        ("weight-only", 128, "fp32", 0.998),
        ("weight-only", PER_COLUMN, "fp32", 0.998),
        ("weight-only-4", 32, "fp32", 0.95),
        ("static", 0, "fp16", 0.99),
        ("weight-only", PER_COLUMN, "fp16", 0.998),
    ],
)
def test_a_rewritten_graph_agrees(tiny_bundle, tmp_path, graph, format, block, precision, least):
    path, _ = rewritten(tiny_bundle, graph, choices(tiny_bundle, graph, format, block, precision), tmp_path, precision)
    inputs = inputs_of(tiny_bundle, graph, precision)
    expected, found = run(source(tiny_bundle, graph, precision), inputs), run(path, inputs)
    assert least < cosine(expected[MAIN[graph]], found[MAIN[graph]]) < 1
    assert {name: array.dtype for name, array in found.items()} == {n: array.dtype for n, array in expected.items()}


def unshared(model):
    """A copy of an initialiser for everyone who reads it: fresh norms are all ones, so that the exporter keeps one."""
    for name, value in list(model.graph.initializers.items()):
        for number, (node, index) in enumerate(list(value.uses())[1:]):
            tensor = ir.tensor(value.const_value.numpy(), name=f"{name}.{number}")
            copied = ir.Value(name=tensor.name, const_value=tensor)
            model.graph.register_initializer(copied)
            node.replace_input_with(index, copied)
    return model


@pytest.mark.parametrize("graph", DECODERS)
def test_smoothing_alone_changes_nothing(tiny_bundle, tmp_path, graph):
    model = unshared(ir.load(source(tiny_bundle, graph)))
    rng = np.random.default_rng(0)
    smoothed = []
    for weight, layer in find_layers(model.graph).items():
        if smoothing_owner(model.graph, product_of(model.graph, weight)) is not None:
            smoothed.append(layer.kind)
            factors = np.exp(rng.standard_normal(layer.in_size)).astype(np.float32)
            smooth(model.graph, weight, factors)
    assert {"qkv", "ffn.gate_up", "ffn.down"} <= set(smoothed)
    assert "out" not in smoothed  # its input comes from values that other graphs wrote into the cache
    with WeightFile(tmp_path, "w.bin") as file:
        path = file.save(model, "s.onnx")
    inputs = inputs_of(tiny_bundle, graph, "fp32")
    expected, found = run(source(tiny_bundle, graph), inputs), run(path, inputs)
    np.testing.assert_allclose(found[MAIN[graph]], expected[MAIN[graph]], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("format", "dtype"), [("static", "INT8"), ("weight-only", "INT8"), ("weight-only-4", "INT4")])
def test_weights_are_stored_as_integers_and_the_originals_are_gone(tiny_bundle, tmp_path, format, dtype):
    plan = choices(tiny_bundle, "rep_decoder", format)
    path, file = rewritten(tiny_bundle, "rep_decoder", plan, tmp_path)
    graph = ir.load(path).graph
    stored = Counter(
        str(value.const_value.dtype) for value in graph.initializers.values() if value.const_value.size > 999
    )
    assert stored[dtype] == len(plan)
    assert not set(plan) & set(graph.initializers)
    full = sum(
        layer.in_size * layer.out_size * 4
        for layer in find_layers(ir.load(source(tiny_bundle, "rep_decoder")).graph).values()
    )
    assert file.stat().st_size < 0.6 * full


def test_onnxruntime_fuses_what_was_written_for_it(tiny_bundle, tmp_path):
    for graph, format, fused in (
        ("rep_decoder", "weight-only", "MatMulNBits"),
        ("denoiser", "static", "MatMulIntegerToFloat"),
    ):
        plan = choices(tiny_bundle, graph, format, block=16)
        path, _ = rewritten(tiny_bundle, graph, plan, tmp_path)
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = Counter(node.op_type for node in ir.load(tmp_path / "optimised.onnx").graph)
        assert found[fused] + found["QGemm"] >= len(plan) - 2  # products with a bias become something else


@pytest.mark.parametrize(
    ("format", "block", "precision", "opset"),
    [
        ("static", 0, "fp32", 18),
        ("weight-only", PER_COLUMN, "fp32", 18),
        ("static", 0, "fp16", 19),
        ("weight-only", PER_COLUMN, "fp16", 19),
        ("weight-only", 32, "fp32", 21),
    ],
)
def test_the_opset_is_no_higher_than_needed_so_that_old_parsers_read_it(
    tiny_bundle, tmp_path, format, block, precision, opset
):
    plan = choices(tiny_bundle, "denoiser", format, block, precision)
    path, _ = rewritten(tiny_bundle, "denoiser", plan, tmp_path, precision)
    model = ir.load(path)
    assert model.opset_imports[""] == opset
    assert not lint(model, LintTarget.parse("tensorrt-10.16"))
    assert bool(lint(model, LintTarget.parse("tensorrt-10.3"))) == (opset > 20)


@given(st.integers(1, 5000), st.sampled_from([16, 32, 64, 128, 256]))
def test_blocks_divide_the_rows_unless_none_can(in_size, largest):
    block = block_size(in_size, largest)
    assert 16 <= block <= largest
    assert in_size % block == 0 or block == 16
    assert block == largest or in_size % (2 * block)


@given(st.integers(1, 70), st.sampled_from([16, 32]), st.integers(0, 1000))
def test_no_weight_leaves_the_range_of_its_block(rows, block, seed):
    weight = np.random.default_rng(seed).standard_normal((rows, 3)).astype(np.float32)
    weight[:, 1] = 0
    found = QuantisedWeight.of(weight, 127, block, np.float32)
    assert found.scales.shape == (-(-rows // block), 3)
    assert (np.abs(weight) <= np.repeat(found.scales, block, 0)[:rows] * 127.001).all()
    assert not found.restored[:, 1].any()


def test_equal_tensors_of_several_graphs_are_stored_once(tiny_bundle, tmp_path):
    sizes = []
    with WeightFile(tmp_path, "w.bin") as file:
        for graph in ("text_decoder", "rep_decoder"):
            model = ir.load(source(tiny_bundle, graph))
            quantise(model, choices(tiny_bundle, graph, "weight-only", 16))
            file.save(model, f"{graph}.onnx")
            sizes.append(file.path.stat().st_size)
    attention = num_weights(tiny_bundle, "text_decoder", ("qkv", "out"))
    alone = tmp_path / "alone"
    rewritten(tiny_bundle, "rep_decoder", choices(tiny_bundle, "rep_decoder", "weight-only", 16), alone)
    shared = (alone / "weights/w.bin").stat().st_size - (sizes[1] - sizes[0])
    assert 0.9 * attention < shared < 2 * attention  # the tensors of attention, their scales, and little else


def test_fp32_weights_that_fit_into_16_bits_are_stored_so_without_losing_a_bit(tiny_bundle, tmp_path):
    model = ir.load(source(tiny_bundle, "rep_decoder"))
    for name, value in model.graph.initializers.items():
        if name.startswith("model.") and value.const_value.size > 99:  # as in a checkpoint of 16 bits
            half = value.const_value.numpy().astype(np.float16)
            value.const_value = ir.tensor(half.astype(np.float32), name=name)
    with WeightFile(tmp_path, "full.bin") as full:
        original = full.save(model, "full.onnx")
    model = ir.load(original)
    quantise(model, {})
    with WeightFile(tmp_path, "half.bin") as half:
        stored = half.save(model, "half.onnx")
    inputs = inputs_of(tiny_bundle, "rep_decoder", "fp32")
    expected, found = run(original, inputs), run(stored, inputs)
    assert all((expected[name] == found[name]).all() for name in expected)
    assert half.path.stat().st_size < 0.6 * full.path.stat().st_size
