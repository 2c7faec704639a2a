"""The lint names node, rule and remedy for what a target does not take, and agrees with NVIDIA's own compiler."""

import re

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lint_graphs import BOOL, BROKEN, F16, F32, SOUND, X, graph, one
from onnx import helper

from rf_export.lint.rules import RULES, lint
from rf_export.lint.targets import KNOWN_TARGETS, LintTarget
from runtime.errors import RFError

# Strict on purpose: the compiler of today takes these, the documentation of the target does not promise it.
STRICTER = ("uint8", "float64", "opset", "not 4-D", "INT32", "nonpad", "unsorted")


def findings(model, target):
    return lint(ir.from_proto(model), LintTarget.parse(target))


@pytest.mark.parametrize(("rule", "text", "target", "build"), BROKEN)
def test_a_broken_rule_is_told_with_node_and_remedy(rule, text, target, build):
    found = [finding for finding in findings(build(), target) if finding.rule == rule]
    assert any(text in str(finding) for finding in found), found
    for finding in found:
        assert finding.node == "the graph" or re.fullmatch(r"node '\w+' \(\w+\)", finding.node)
        assert finding.remedy
        assert str(finding) == f"{finding.node}: {finding.problem} (rule {rule}); {finding.remedy}"
    if rule not in ("opset", "external-data", "quantised", "float64"):
        assert "'the_node'" in found[0].node


@pytest.mark.parametrize(("target", "build"), SOUND)
def test_a_sound_graph_passes(target, build):
    assert findings(build(), target) == []


def test_every_rule_has_a_graph_that_breaks_it():
    assert {rule for rule, *_ in BROKEN} | {"external-data"} == set(RULES)


def test_a_rule_reaches_into_subgraphs():
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["x"], [name])], name, [], [helper.make_tensor_value_info(name, F32, None)]
        )
        for op, name in (("Relu", "a"), ("NonZero", "b"))
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    model = graph([node], {**X, "c": (BOOL, [])}, {"y": (F32, None)})
    assert any("NonZero" in str(finding) for finding in findings(model, "tensorrt-rtx"))


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("../weights.bin", "outside the graph's folder"),
        ("/weights.bin", "outside the graph's folder"),
        ("C:\\weights.bin", "outside the graph's folder"),
        ("none.bin", "missing or too short"),
        ("short.bin", "missing or too short"),
    ],
)
def test_external_data_has_to_be_there_and_below_the_graph(tmp_path, location, text):
    (tmp_path / "short.bin").write_bytes(b"\0" * 10)
    (tmp_path / "good.bin").write_bytes(b"\0" * 64)
    model = ir.from_proto(one("Add", X, {"w": [0.0] * 16}))
    for name, expected in ((location, text), ("good.bin", None)):
        weights = ir.ExternalTensor(name, 0, 64, ir.DataType.FLOAT, shape=ir.Shape([16]), name="w", base_dir=tmp_path)
        model.graph.initializers["w"].const_value = weights
        for target in ("tensorrt-rtx", "onnxruntime"):
            found = [each for each in lint(model, LintTarget.parse(target)) if each.rule == "external-data"]
            assert [expected in str(each) for each in found] == ([True] if expected else [])


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("tensorrt-8.6", LintTarget("tensorrt", (8, 6))),
        ("tensorrt-8.6.2.3", LintTarget("tensorrt", (8, 6))),
        ("tensorrt-10.3", LintTarget("tensorrt", (10, 3))),
        ("tensorrt-11", LintTarget("tensorrt", (11, 0))),
        ("tensorrt-rtx", LintTarget("tensorrt-rtx", (1, 7))),
        ("tensorrt-rtx-1.7.1", LintTarget("tensorrt-rtx", (1, 7))),
        ("onnxruntime", LintTarget("onnxruntime", (1, 24))),
        ("onnxruntime-1.32", LintTarget("onnxruntime", (1, 32))),
    ],
)
def test_targets_are_read_with_or_without_a_version(text, target):
    assert LintTarget.parse(text) == target


@pytest.mark.parametrize(
    "text", ["tensorrt", "tensorrt-8.5", "tensorrt-7", "tensorrt-9.2", "tensorrt-12.0", "onnxruntime-1.20", "trt", ""]
)
def test_other_targets_are_refused_with_those_that_there_are(text):
    with pytest.raises(RFError, match=r"tensorrt-10\.3"):
        LintTarget.parse(text)


@given(st.text(max_size=24) | st.from_regex(r"(tensorrt|tensorrt-rtx|onnxruntime)-\d+(\.\d+)*", fullmatch=True))
def test_any_name_is_a_target_or_refused(text):
    try:
        target = LintTarget.parse(text)
    except RFError:
        return
    assert 17 <= target.max_opset <= 25
    assert LintTarget.parse(str(target)) == target


@pytest.mark.parametrize("target", KNOWN_TARGETS, ids=str)
def test_newer_versions_take_what_older_ones_take(target):
    """Of the same library, but for what a version forbids on purpose."""
    older = [other for other in KNOWN_TARGETS if other.library == target.library and other < target]
    for _, build in SOUND:
        model = build()
        if any(not findings(model, str(other)) for other in older):
            assert not findings(model, str(target))


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([16, 32, 64]), st.integers(1, 64))
def test_the_forms_of_our_graphs_pass_in_any_size(heads, groups, size, slots):
    kv = (F16, [1, heads, slots, size])
    node = helper.make_node("Attention", ["q", "k", "v", "m"], ["y"], scale=size**-0.5)
    inputs = {"q": (F16, [1, heads * groups, 3, size]), "k": kv, "v": kv, "m": (F16, [1, 1, 3, slots])}
    model = graph([node], inputs, {"y": (F16, None)})
    for target in KNOWN_TARGETS:
        if target.library != "tensorrt" or target.version >= (10, 14):
            assert findings(model, str(target)) == []


class Compiler:
    """The compiler of TensorRT-RTX for one GPU that need not be there."""

    def __init__(self):
        self.trt = pytest.importorskip("tensorrt_rtx")

        class Quiet(self.trt.ILogger):
            def __init__(self):
                super().__init__()

            def log(self, severity, message):
                pass

        self.logger = Quiet()
        self.builder = self.trt.Builder(self.logger)

    def takes(self, model):
        trt = self.trt
        network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        if not trt.OnnxParser(network, self.logger).parse(model.SerializeToString()):
            return False
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        return self.builder.build_serialized_network(network, config) is not None


@pytest.fixture(scope="module")
def compiler():
    return Compiler()


@pytest.mark.parametrize(("target", "build"), [case for case in SOUND if case[0] == "tensorrt-rtx"])
def test_nvidias_compiler_takes_what_passes(compiler, target, build):
    assert compiler.takes(build())


@pytest.mark.parametrize(
    ("text", "build"),
    [
        (text, build)
        for _, text, target, build in BROKEN
        if target == "tensorrt-rtx" and not any(word in text for word in STRICTER) and "from 9" not in text
    ],
)
def test_nvidias_compiler_refuses_what_does_not(compiler, text, build):
    assert not compiler.takes(build())
