"""Scales are normal numbers of the type that they are stored in, and integers are made with the scales that are stored.

Otherwise fp16 makes 0 of the scale of a dead layer, which TensorRT refuses, and takes bits from that of a small one.
"""

import shutil
import warnings
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_calibrate import CONFIG, PROMPTS

from calibration import calibrate
from calibration.config import CalibrationConfig
from calibration.histogram import LEVELS
from calibration.quantise import INT4_LEVELS, Choice, QuantisedWeight, quantise, stored_scales
from calibration.smoothing import choose_range, factor_bounds
from calibration.statistics import Activations
from rf_export.lint.rules import takers
from rf_export.lint.targets import KNOWN_TARGETS
from runtime.bundle.folder import describe_file, open_bundle, write_manifest
from runtime.signature import GRAPHS, Variant
from verification.graphs.taps import add_taps
from verification.graphs.weights import WeightFile

DTYPES = st.sampled_from([np.float16, np.float32])
# Of a column: nothing, or a power of ten.
MAGNITUDES = st.lists(st.just(0.0) | st.floats(-12, 4).map(lambda power: 10**power), min_size=1, max_size=40)
ONE_ALIVE = st.floats(-12, 4).map(lambda power: [0.0] * 20 + [10**power] + [0.0] * 20)


def weight_of(magnitudes, rows, dtype, seed=0):
    """Columns of these magnitudes, as a graph of this type stores them."""
    values = np.random.default_rng(seed).uniform(-1, 1, (rows, len(magnitudes))) * magnitudes
    return values.astype(dtype)


def is_normal(scales, dtype):
    return scales.dtype == dtype and (scales >= np.finfo(dtype).tiny).all() and np.isfinite(scales).all()


@given(
    MAGNITUDES | ONE_ALIVE,
    st.integers(1, 70),
    DTYPES,
    st.sampled_from([LEVELS, INT4_LEVELS]),
    st.sampled_from([0, 16, 32, 128]),
)
def test_a_weight_comes_back_up_to_half_a_step_of_any_magnitude(magnitudes, rows, dtype, levels, block):
    weight = weight_of(magnitudes, rows, dtype).astype(np.float32)
    block = block or rows
    found = QuantisedWeight.of(weight, levels, block, dtype)
    assert found.scales.shape == (-(-rows // block), len(magnitudes))
    assert is_normal(found.scales, dtype)
    assert (np.abs(found.integers) <= levels).all()
    exponents = np.log2(found.lifts)
    assert ((exponents >= 0) & (exponents == exponents.round())).all()
    assert is_normal((1 / found.lifts).astype(dtype), dtype)
    largest = np.abs(weight).max(0)
    assert (found.lifts[largest >= levels * 1.01 * float(np.finfo(dtype).tiny)] == 1).all(), "the large ones stay"
    steps = np.repeat(found.scales.astype(np.float64) / found.lifts, block, 0)[:rows]
    error = np.abs(found.restored - weight.astype(np.float64))
    assert (error <= 0.56 * steps).all()  # 16 bits round the scale by 2**-11, of which 127 levels make 0.06
    assert not found.restored[:, largest == 0].any()
    # What is alive keeps its bits, down to what the type itself can tell.
    alive = largest > levels * float(np.finfo(dtype).tiny) * 2.0 ** (np.finfo(dtype).minexp)
    assert (error.max(0) <= 0.56 * 1.01 * np.maximum(largest / levels, 0))[alive].all()


@given(st.floats(0, 1e30), DTYPES)
def test_the_scale_of_an_input_is_normal_whatever_was_seen(largest, dtype):
    scale = stored_scales(largest, LEVELS, dtype)
    assert scale.shape == () and is_normal(scale, dtype)
    exact = largest / LEVELS
    if float(np.finfo(dtype).tiny) <= exact <= float(np.finfo(dtype).max):
        assert float(scale) == pytest.approx(exact, rel=2.0**-11)


def one_product(weight, num_rows=3):
    """A graph of one product, as a bundle has it; the opset is that of the exports."""
    dtype = ir.DataType.from_numpy(weight.dtype)
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape([num_rows, len(weight)]))
    value = ir.Value(name="model.layer.weight", const_value=ir.tensor(weight, name="model.layer.weight"))
    node = ir.node("MatMul", [x, value], name="product")
    (y,) = node.outputs
    y.name, y.type, y.shape = "y", ir.TensorType(dtype), ir.Shape([num_rows, weight.shape[1]])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[value], opset_imports={"": 18}, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("format", "block", "most"),
    [
        ("static", 0, 0.015),
        ("weight-only", 0, 0.01),
        ("weight-only", 16, 0.01),
        ("weight-only", 128, 0.01),
        ("weight-only-4", 32, 0.12),
    ],
)
@settings(max_examples=15)
@given(magnitudes=MAGNITUDES | ONE_ALIVE, rows=st.sampled_from([32, 48, 64]), seed=st.integers(0, 99))
def test_a_graph_computes_what_it_did_of_any_magnitude(format, block, most, dtype, magnitudes, rows, seed):
    weight = weight_of(np.minimum(magnitudes, 100), rows, dtype, seed)  # such that fp16 holds the sums
    x = np.random.default_rng(seed).standard_normal((3, rows)).astype(dtype)
    model = one_product(weight)
    quantise(model, {"model.layer.weight": Choice(format, float(np.abs(x).max()), block=block)})
    assert takers(model)[0] == str(KNOWN_TARGETS[0])
    assert len(takers(model)) > 2
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": x})
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    lengths = np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * np.linalg.norm(weight.astype(np.float64), axis=0)
    assert found.dtype == dtype
    nothing = 1.2e-7 if dtype == np.float16 else 1e-36  # two subnormal numbers; what 0 times the smallest scale leaves
    assert (np.abs(found - exact) <= most * lengths + nothing).all()


def test_a_tap_of_a_lifted_product_is_what_it_is_after_that_was_undone(tmp_path):
    for magnitude in (1e-5, 1.0):
        model = one_product(weight_of([magnitude] * 32, 32, np.float16))
        quantise(model, {"model.layer.weight": Choice("weight-only", block=0)})
        assert (len(model.graph) == 3) == (magnitude < 1)
        ir.save(model, tmp_path / "graph.onnx")
        assert add_taps(tmp_path / "graph.onnx", tmp_path / "taps.onnx")["layer output"] == "y"
        assert add_taps(tmp_path / "graph.onnx", tmp_path / "taps.onnx", ["layer input"]) == {}, "it is the input"


def activations_of(x):
    found = Activations(x.shape[1], 1)
    found.add(0, 0, x, "here")
    return found


@settings(max_examples=40)
@given(
    st.floats(-7, 4), st.floats(-7, 2), st.floats(-6, 3), st.integers(0, 99), st.sampled_from([np.float16, np.float32])
)
def test_smoothing_leaves_everybody_in_the_range_of_the_type(x_power, weight_power, owner_power, seed, dtype):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((40, 48)) * 10**x_power).astype(dtype).clip(-6e4, 6e4).astype(np.float32)
    x[:, 5] *= 300 if x_power < 1 else 1
    x[:, 6] = 0
    weight = weight_of([10**weight_power] * 20, 48, dtype, seed)
    weight[7] = 0
    owner = np.abs(rng.standard_normal(48) * 10**owner_power).astype(dtype).astype(np.float32)
    chosen = choose_range(activations_of(x), weight, CalibrationConfig(method="minmax"), owner)
    assert np.isfinite(chosen.error)
    if chosen.smoothing is None:
        return
    low, high = factor_bounds(np.abs(x).max(0), np.abs(weight.astype(np.float32)).max(1), owner, dtype)
    assert ((low <= 1) & (high >= 1)).all()
    divided, info = (owner / chosen.smoothing).astype(dtype), np.finfo(dtype)
    assert np.isfinite(divided).all()
    assert np.isfinite((x / chosen.smoothing).astype(dtype)).all()
    assert np.isfinite((weight.astype(np.float32) * chosen.smoothing[:, None]).astype(dtype)).all()
    kept = owner > LEVELS * 2 * float(info.tiny)  # those that had their bits have them still
    assert np.allclose(divided[kept].astype(np.float64) * chosen.smoothing[kept], owner[kept], rtol=2e-3)


def test_smoothing_that_overflowed_fp16_is_held_back():
    """Small channels are multiplied by up to 1,000: the norm that does that ends at 65,504."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((200, 64)).astype(np.float32), rng.standard_normal((64, 32)).astype(np.float16)
    x[:, :32] *= 3000
    owner = np.full(64, 2000, np.float32)
    full, half = (
        choose_range(activations_of(x), weight.astype(dtype), CalibrationConfig(method="minmax"), owner)
        for dtype in (np.float32, np.float16)
    )
    assert full.smoothing is not None and half.smoothing is not None
    assert (owner / full.smoothing).max() > 16_376 > (owner / half.smoothing).max() * 0.9999
    assert half.error < 0.1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("dead", ["input", "weight", "both"])
def test_a_dead_layer_needs_no_warning_and_no_smoothing(dtype, dead):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((9, 40)).astype(np.float32), rng.standard_normal((40, 33)).astype(dtype)
    if dead != "weight":
        x[:] = 0
    if dead != "input":
        weight[:] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = choose_range(activations_of(x), weight, CalibrationConfig(), np.ones(40, np.float32))
    assert (chosen.smoothing, chosen.error) == (None, 0)


def shrink(name, weight):
    """Change weights of the tiny model in place: a dead layer, small living columns, one living among dead ones."""
    if name == "model.layers.0.experts.pixel.ffn.gate_up.weight":
        weight[:] = 0
    elif name == "model.layers.1.experts.pixel.ffn.gate_up.weight":
        weight[:, 1:] *= 1e-3
    elif name == "model.layers.1.experts.pixel.ffn.down.weight":
        weight[:, ::2] *= 1e-4
    elif name == "model.layers.0.experts.representation.ffn.down.weight":
        weight[:, 1:] = 0
    elif name == "model.layers.1.experts.representation.ffn.down.weight":
        weight *= 1e-5


@pytest.fixture(scope="module")
def small_bundle(tiny_bundle, tmp_path_factory):
    """A bundle of such a model in fp16, and in INT8 for TensorRT."""
    bundle = tmp_path_factory.mktemp("small") / "bundle"
    shutil.copytree(tiny_bundle, bundle, ignore=shutil.ignore_patterns("engines"))
    opened = open_bundle(bundle)
    manifest, entries = opened.manifest, []
    with WeightFile(bundle / "graphs", "weights/small.bin") as file:
        for name in GRAPHS:
            entry = opened.graph(name, Variant("fp16"))
            model = ir.load(opened.file(entry.file))
            for key, value in model.graph.initializers.items():
                weight = value.const_value.numpy().copy()
                shrink(key, weight)
                value.const_value = ir.tensor(weight, name=key)
            path = file.save(model, f"{name}.small.onnx")
            entries.append(entry.replace(file=f"graphs/{path.name}", weights=("graphs/weights/small.bin",)))
    kept = {file: entry for file, entry in manifest.files.items() if not file.startswith("graphs/")}
    files = kept | {file: describe_file(bundle / file) for entry in entries for file in entry.files}
    write_manifest(bundle, manifest.replace(graphs=tuple(entries), files=files))
    calibrate(bundle, PROMPTS[:4], replace(CONFIG, target="tensorrt", force=False), lint=takers)
    return bundle


def test_a_model_with_dead_and_small_layers_passes_the_gate_and_every_target_that_reads_its_opset(small_bundle):
    opened = open_bundle(small_bundle, verify="hash")
    lifted = 0
    for name in GRAPHS:
        entry = opened.graph(name, Variant("int8-fp16"))
        assert set(entry.lint) == {str(target) for target in KNOWN_TARGETS if target.max_opset >= entry.opset}
        graph = ir.load(opened.file(entry.file)).graph
        lifted += sum(value.endswith(".lowered") for value in graph.initializers)
        for node in graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert is_normal(node.inputs[1].const_value.numpy(), np.float16)
    assert lifted >= 2
    quality = opened.manifest.verified["int8-fp16"]["quality"]
    assert min(*quality["logits_cosine"], *quality["x_pred_cosine"]) >= CONFIG.limits.cosine


def test_layers_of_small_columns_are_as_exact_as_others(small_bundle):
    """The product alone, on its weights: as the graph restores them."""
    opened = open_bundle(small_bundle)
    before, after = (
        ir.load(opened.file(opened.graph("denoiser", Variant(p)).file)).graph for p in ("fp16", "int8-fp16")
    )
    name = "model.layers.1.experts.pixel.ffn.down.weight"
    weight = before.initializers[name].const_value.numpy().astype(np.float64)
    values = {key: value.const_value.numpy() for key, value in after.initializers.items() if key.startswith(name)}
    integers = next(array for array in values.values() if array.dtype == np.int8 and array.ndim == 2)
    scales = next(array for key, array in values.items() if array.ndim == 1 and not key.endswith(".lowered"))
    restored = integers * scales.astype(np.float64) * values[f"{name}.lowered"].astype(np.float64)
    smoothing = np.linalg.norm(restored, axis=1) / np.linalg.norm(weight, axis=1)
    error = np.linalg.norm(restored - weight * smoothing[:, None], axis=0) / np.linalg.norm(restored, axis=0)
    assert error.max() < 0.02


def test_tensorrt_rtx_builds_it(small_bundle):
    pytest.importorskip("tensorrt_rtx", reason="pip install 'rf-export[tensorrt-rtx]'")
    from engines import EngineConfig, TensorRTConfig, build

    options = TensorRTConfig(compute_capabilities=("8.6",), builder_optimization_level=0)
    config = EngineConfig(backend="tensorrt-rtx", precision="int8-fp16", tensorrt=options, allow_unverified=True)
    assert (build(small_bundle, config) / "denoiser.int8-fp16.engine").stat().st_size > 10_000
