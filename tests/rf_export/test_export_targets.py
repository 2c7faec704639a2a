"""An export for a target picks dialect and opset, and writes nothing that the target would not take."""

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from lint_graphs import F32, I64, X, graph, one
from onnx import checker, helper
from verifying import compare

import cli
from rf_export.checkpoint import load_checkpoint, load_config
from rf_export.config import preset
from rf_export.export import ExportOptions, export
from rf_export.export_plan import ExportPlan
from rf_export.graphs.opset17 import to_opset_17
from rf_export.lint.rules import lint
from rf_export.lint.targets import KNOWN_TARGETS, LintTarget
from runtime.backends import create_backend
from runtime.bundle.folder import open_bundle
from runtime.errors import RFError
from runtime.signature import GRAPHS, Variant

NEWER_THAN_86 = {str(target) for target in KNOWN_TARGETS} - {"tensorrt-8.6"}
MODERN_WITHOUT_CACHE = {
    "onnxruntime-1.24",
    "tensorrt-10.14",
    "tensorrt-10.15",
    "tensorrt-10.16",
    "tensorrt-11.4",
    "tensorrt-rtx-1.7",
}
MODERN = {"onnxruntime-1.24", "tensorrt-10.15", "tensorrt-10.16", "tensorrt-11.4", "tensorrt-rtx-1.7"}


def plan(**options):
    return ExportPlan.of(ExportOptions(**options), preset("reference"))


@pytest.mark.parametrize(
    ("targets", "dialects", "opset", "slots"),
    [
        ((), ("classic",), 18, None),
        (("onnxruntime",), ("classic",), 18, None),
        (("tensorrt-8.6",), ("classic",), 17, None),
        (("tensorrt-10.3",), ("classic",), 18, None),
        (("tensorrt-10.14",), ("classic",), 18, None),
        (("tensorrt-10.15",), ("classic", "modern"), 18, 192),
        (("tensorrt-rtx",), ("classic", "modern"), 18, 192),
        (("tensorrt-10.16", "tensorrt-8.6"), ("classic", "modern"), 17, 192),
    ],
)
def test_a_target_picks_dialect_opset_and_cache(targets, dialects, opset, slots):
    """16 representation tokens, their start and a prompt of 127 tokens are 144 slots, in whole tiles 192."""
    chosen = plan(targets=targets)
    assert (chosen.dialects, chosen.opsets["classic"], chosen.cache_slots) == (dialects, opset, slots)
    assert chosen.opsets["modern"] == 24


def test_what_the_caller_says_wins_over_the_target():
    chosen = plan(targets=("tensorrt-10.16",), dialects=("modern",), cache_slots=40)
    assert (chosen.dialects, chosen.cache_slots) == (("modern",), 40)
    assert chosen.demands == {LintTarget("tensorrt", (10, 16)): ("modern",)}
    assert plan(targets=("tensorrt-10.16",), dialects=("classic",), opset=17).opsets["classic"] == 17
    assert plan(dialects=("modern",)).cache_slots is None


def test_a_cache_too_short_for_the_default_picture_is_refused():
    with pytest.raises(RFError, match=r"a cache of 16 slots is too short: .* takes 17 .*--cache-slots"):
        plan(cache_slots=16, dialects=("modern",))
    for options, message in (({"opset": 19}, "opset must be 17 or 18"), ({"cache_slots": 1}, "must be >= 2")):
        with pytest.raises(ValueError, match=message):
            ExportOptions(**options)


def test_an_unknown_target_is_refused_before_anything_is_loaded(tiny_checkpoint, tmp_path):
    with pytest.raises(RFError, match="'tensorrt-7' is no target"):
        export(tiny_checkpoint, tmp_path / "bundle", ExportOptions(targets=("tensorrt-7",)))


@pytest.mark.parametrize(
    ("fixture", "dialect", "claims"),
    [
        ("tiny_bundle", "classic", dict.fromkeys(GRAPHS, NEWER_THAN_86)),
        ("fixed_bundle", "modern", {**dict.fromkeys(GRAPHS, MODERN), "vision_encoder": MODERN_WITHOUT_CACHE}),
        # A cache of free length is for ONNX Runtime only where the graph writes it.
        (
            "modern_bundle",
            "modern",
            {
                **{name: {"onnxruntime-1.24"} for name in GRAPHS},
                "denoiser": MODERN,
                "vision_encoder": MODERN_WITHOUT_CACHE,
            },
        ),
    ],
)
def test_every_graph_passes_the_lint_of_the_targets_that_the_manifest_claims(fixture, dialect, claims, request):
    bundle = open_bundle(request.getfixturevalue(fixture))
    for entry in bundle.manifest.graphs:
        assert entry.dialect == dialect
        assert set(entry.lint) == claims[entry.name]
        model = ir.load(bundle.file(entry.file))
        for target in KNOWN_TARGETS:
            assert (lint(model, target) == []) == (str(target) in entry.lint)


def test_inspect_shows_what_passed(fixed_bundle):
    result = CliRunner().invoke(cli.main, ["inspect", str(fixed_bundle)])
    assert "lint passed for onnxruntime-1.24, tensorrt-10.15, tensorrt-10.16, tensorrt-11.4" in result.stdout
    described = json.loads(CliRunner().invoke(cli.main, ["inspect", str(fixed_bundle), "--json"]).stdout)
    assert all("tensorrt-rtx-1.7" in entry["lint"] for entry in described["graphs"])


def test_a_graph_that_the_target_would_not_take_ends_in_one_sentence_and_no_bundle(tiny_checkpoint, tmp_path):
    out = tmp_path / "bundle"
    arguments = ["export", str(tiny_checkpoint), "-o", str(out), "--precision", "fp16", "--dialect", "modern"]
    result = CliRunner().invoke(cli.main, [*arguments, "--target", "tensorrt-10.14"])
    assert result.exit_code == 1
    assert "tensorrt-10.14 would not take text_decoder.fp16.modern.onnx: node 'node_" in result.stderr
    for word in ("(rule operator)", "needs tensorrt 10.15", "--dialect classic", "No bundle was written"):
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def old_graphs(tiny_bundle, tmp_path_factory):
    """Paths of the classic graphs of the tiny bundle in opset 17, by precision and name."""
    bundle, folder = open_bundle(tiny_bundle), tmp_path_factory.mktemp("opset17")
    files = {}
    for entry in bundle.manifest.graphs:
        model = ir.load(bundle.file(entry.file))
        to_opset_17(model)
        files[entry.precision, entry.name] = folder / f"{entry.name}.{entry.precision}.onnx"
        ir.save(ir.external_data.load_to_model(model), files[entry.precision, entry.name])
    return files


def test_graphs_of_opset_17_are_valid_and_pass_for_tensorrt_86(old_graphs):
    for path in old_graphs.values():
        checker.check_model(str(path), full_check=True)
        model = ir.load(path)
        assert model.opset_imports == {"": 17}
        assert lint(model, LintTarget("tensorrt", (8, 6))) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_opset_17_agrees_with_eager_as_opset_18_does(tiny_checkpoint, tiny_bundle, old_graphs, precision):
    manifest = open_bundle(tiny_bundle).manifest
    backend = create_backend("ort")
    sessions = {name: backend.open(old_graphs[precision, name], num_threads=1, compiled=False) for name in GRAPHS}
    outcome = compare(load_checkpoint(tiny_checkpoint), tiny_bundle, precision, sessions=sessions)
    newer = manifest.verified[Variant(precision).key]
    assert outcome.verdict == "passed"
    assert outcome.tally.rep_tokens_equal == newer["rep_tokens_equal"]
    assert outcome.tally.picture_psnr_db == pytest.approx(newer["picture_psnr_db"], abs=3)


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def lowered(model):
    copy = ir.from_proto(model)
    to_opset_17(copy)
    proto = ir.to_proto(copy)
    checker.check_model(proto, full_check=True)
    return proto


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_reductions_mean_the_same_in_opset_17(data):
    kind = data.draw(st.sampled_from(["Mean", "Max", "Min", "L2", "LogSumExp", "SumSquare"]))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axes = data.draw(st.none() | st.sets(st.integers(-len(shape), -1), min_size=1))
    constants = {} if axes is None else {"a": np.array(sorted(axes))}
    keepdims = data.draw(st.integers(0, 1))
    model = one(f"Reduce{kind}", {"x": (F32, shape)}, constants, opset=18, keepdims=keepdims)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for expected, found in zip(run(model, x), run(lowered(model), x), strict=True):
        assert (expected == found).all()


@given(st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=12, deadline=None)
def test_equal_parts_are_the_same_in_opset_17(parts, size):
    names = [f"y{i}" for i in range(parts)]
    node = helper.make_node("Split", ["x"], names, axis=1, num_outputs=parts)
    model = graph([node], {"x": (F32, [2, parts * size])}, dict.fromkeys(names, (F32, None)), opset=18)
    x = np.random.default_rng(0).standard_normal((2, parts * size)).astype(np.float32)
    for expected, found in zip(run(model, x), run(lowered(model), x), strict=True):
        assert (expected == found).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (one("Relu", X, opset=20), "expected a graph of opset 18"),
        (one("ReduceMean", {**X, "a": (I64, [1])}, opset=18), r"the_node \(ReduceMean\) has axes that are no constant"),
        (one("ReduceMean", X, opset=18, noop_with_empty_axes=1), "reduces nothing"),
        (one("Split", X, outputs=("a", "b", "c"), opset=18, axis=1, num_outputs=3), r"\(Split\) may have parts"),
        (one("Split", {"x": (F32, ["n", 8])}, outputs=("a", "b"), opset=18, num_outputs=2), "may have parts of"),
        (one("Mish", X, opset=18), r"\(Mish\) of opset 18 cannot be said in opset 17"),
    ],
)
def test_what_opset_17_cannot_say_is_refused_by_name(model, message):
    with pytest.raises(ValueError, match=message):
        to_opset_17(ir.from_proto(model))


@pytest.mark.parametrize("fixture", ["tiny_bundle", "fixed_bundle"])
def test_nvidias_parser_takes_every_graph(fixture, request):
    trt = pytest.importorskip("tensorrt_rtx")
    bundle = open_bundle(request.getfixturevalue(fixture))
    logger = trt.Logger(trt.Logger.ERROR)
    for entry in bundle.manifest.graphs:
        network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(bundle.file(entry.file))), parser.get_error(0)


@pytest.mark.slow
def test_an_export_for_tensorrt_86_writes_opset_17_and_is_verified(tiny_checkpoint, tmp_path):
    out = tmp_path / "bundle"
    manifest = export(tiny_checkpoint, out, ExportOptions(targets=("tensorrt-8.6",), precisions=("fp16",)))
    assert {entry.opset for entry in manifest.graphs} == {17}
    assert all("tensorrt-8.6" in entry.lint for entry in manifest.graphs)
    assert manifest.verified["fp16"]["verdict"] == "passed"


@pytest.mark.slow
def test_an_export_for_a_new_tensorrt_has_both_dialects_and_shares_their_weights(tiny_checkpoint, tmp_path):
    options = ExportOptions(targets=("tensorrt-10.16",), precisions=("fp16",))
    manifest = export(tiny_checkpoint, tmp_path / "bundle", options)
    assert set(manifest.verified) == {"fp16", "fp16.modern"}
    assert {name for entry in manifest.graphs for name in entry.weights} == {"graphs/weights/fp16.bin"}
    cache_slots = {entry.signature.cache_slots for entry in manifest.graphs_of(Variant("fp16", "modern"))}
    assert cache_slots == {load_config(tiny_checkpoint).max_positions}  # never longer than the model's positions


def test_an_option_of_a_dialect_that_is_not_written_is_refused():
    with pytest.raises(RFError, match="--cache-slots is of modern graphs"):
        plan(cache_slots=64)
    with pytest.raises(RFError, match="--opset is of classic graphs"):
        plan(opset=17, dialects=("modern",))
    assert plan(opset=17, cache_slots=64, dialects=("classic", "modern")).cache_slots == 64
