"""A manifest is read only if everything in it is known, present, of its type and consistent."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import MODEL, sample_manifest

from runtime.bundle.manifest import Manifest, format_manifest
from runtime.errors import RFError
from runtime.signature import GraphSignature, TensorSpec, Variant, check_signature, kv_names


def read(content):
    return Manifest.from_dict(content, "manifest.json")


def set_at(content, path, value):
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_manifest_survives_writing_and_reading(precision):
    manifest = sample_manifest(precision)
    assert read(json.loads(format_manifest(manifest))) == manifest


def test_precisions_are_those_with_all_graphs():
    manifest = sample_manifest()
    assert manifest.precisions == ("fp32",)
    content = manifest.to_dict()
    content["graphs"].pop()
    assert read(content).precisions == ()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "zip", "no file of the format 'rf-export-bundle', found \"zip\""),
        (["format_version"], 4, "Install a newer rf-export"),
        (["format_version"], 1, r"format version 1, and this rf-export reads 2 to 3\. Export the bundle again"),
        (
            ["understanding"],
            {"start_id": 2, "stop_ids": [], "max_tokens": 8},
            "'understanding.stop_ids' must be a list of one id at least",
        ),
        (
            ["understanding"],
            {"start_id": 2, "stop_ids": [3.5], "max_tokens": 8},
            r"'understanding.stop_ids\[0\]' must be a whole number >= 0, found 3.5",
        ),
        (["understanding"], {"start_id": 2, "stop_ids": [61], "max_tokens": 8}, "has id 61, and the model knows 61"),
        (["understanding"], {"start_id": 2, "stop_ids": [3]}, "'understanding.max_tokens' is missing"),
        (["format_version"], "1", "whole number"),
        (["extra"], 1, "unknown 'extra'"),
        (["model", "hidden_layers"], 1, "unknown 'model.hidden_layers'"),
        (["model", "ffn_size"], 0, "'model.ffn_size' must be a whole number >= 1, found 0"),
        (["model", "num_layers"], 0, "'model.num_layers' must be a whole number >= 1, found 0"),
        (["model", "num_layers"], 3, "past_key_values.2.key"),
        (["model", "num_layers"], True, "found true"),
        (["model", "default_height"], 17, "height must be a multiple of 8"),
        (["sampling", "temperature"], "hot", "finite number"),
        (["sampling", "temperature"], -1, "'sampling.temperature' must be a finite number >= 0, found -1"),
        (["sampling", "shift"], float("nan"), "finite number"),
        (["sampling", "times"], [0, 0.5, 0.4, 1], "times must increase from one to the next, got 0, 0.5, 0.4, 1"),
        (["sampling", "times"], [0, 0.5], "times must begin with 0 and end with 1"),
        (["sampling", "guided"], [0.5, 0.2], "guided must be two times between 0 and 1, the smaller one first"),
        (["sampling", "noise_scale"], 0, "'sampling.noise_scale' must be a finite number > 0, found 0"),
        (["tuned"], {"num_steps": 0, "evidence": {}}, "'tuned.num_steps' must be a whole number >= 1, found 0"),
        (["tuned"], {"num_steps": 6, "evidence": 1}, "'tuned.evidence' must be an object"),
        (["tuned"], {"times": [0, 1], "shift": 2, "evidence": {}}, "give no num_steps and no shift beside them"),
        (["requires"], "speed", "'requires' must be a list"),
        (["sampling", "top_k"], 41, "top_k must be at most 40"),
        (["tokenizer"], "tokenizer.json", "'tokenizer' must be an object"),
        (["tokenizer", "file"], "other.json", "'other.json' is not in the table of files"),
        (["graphs"], {}, "must be a list"),
        (["graphs", 0, "name"], "decoder", "'text_decoder' or 'rep_decoder' or 'denoiser' or 'vision_encoder'"),
        (["graphs", 0, "precision"], "fp64", "'fp32' or 'fp16' or 'int8'"),
        (["graphs", 0, "precision"], "fp16", "expected input image_features float16"),
        (["graphs", 0, "file"], "graphs/nothing.onnx", "not in the table of files"),
        (["graphs", 0, "weights"], ["graphs/weights/none.bin"], "not in the table of files"),
        (["graphs", 0, "weights"], [1], r"'graphs\[0\].weights\[0\]' must be a text, found 1"),
        (["graphs", 0, "inputs", 0, "dtype"], "int32", "expected input input_ids int64"),
        (
            ["graphs", 0, "inputs", 0, "shape"],
            [0],
            r"'graphs\[0\].inputs\[0\].shape\[0\]' must be a size >= 1 or a text, found 0",
        ),
        (["graphs", 1, "outputs", 0, "name"], "ids", "expected output next_rep_ids"),
        (["files", "tokenizer.json", "sha256"], "00", "64 hexadecimal digits"),
        (["files", "tokenizer.json", "size"], -1, "whole number >= 0"),
        (["files", "tokenizer.json", "size"], 50, "'bundle_id' must be .* as the table of files has it"),
        (["bundle_id"], "0123456789abcdef", "'bundle_id' must be .* as the table of files has it"),
        (["model", "num_layers"], 10**12, "num_layers must be at most 1024"),  # would fill the memory with names
        (["created_by", "torch"], 2, "must be a text"),
        (["verified"], None, "'verified' must be an object"),
        (["verified", "fp32"], 7, "'verified.fp32' must be an object"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(path, value, message):
    content = sample_manifest().to_dict()
    set_at(content, path, value)
    with pytest.raises(RFError, match=message):
        read(content)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "a\\b", "./a", "a//b", "", ".", "C:/x"])
def test_a_path_that_leads_out_of_the_bundle_is_refused(name):
    content = sample_manifest().to_dict()
    content["files"][name] = {"sha256": "0" * 64, "size": 1}
    with pytest.raises(RFError, match="is not a path inside the folder"):
        read(content)


def test_a_graph_twice_is_refused():
    content = sample_manifest().to_dict()
    content["graphs"].append(content["graphs"][0])
    with pytest.raises(RFError, match="graph text_decoder fp32 classic is there twice"):
        read(content)


def _paths(content, path=()):
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _paths(value, (*path, key))


ALL_PATHS = [list(path) for path in _paths(sample_manifest().to_dict()) if path and path[0] != "verified"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(ALL_PATHS), json_values)
def test_any_change_is_read_or_refused_and_never_crashes(path, value):
    content = copy.deepcopy(sample_manifest().to_dict())
    set_at(content, path, value)
    try:
        read(content)
    except RFError as error:
        message = str(error)
    else:
        return
    assert "manifest.json" in message


@given(st.sampled_from([path for path in ALL_PATHS if isinstance(path[-1], str) and path[:1] != ["files"]]))
def test_a_missing_key_is_named(path):
    optional = ("lint", "understanding", "num_heads", "ffn_size", "shift_base_patches")
    if (len(path) > 1 and path[0] in ("created_by", "checkpoint")) or path[-1] in optional:
        return
    content = copy.deepcopy(sample_manifest().to_dict())
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    with pytest.raises(RFError, match=rf"['.]{path[-1]}' (is missing|must be)|no file of the format"):
        read(content)


def test_the_bundle_id_depends_on_every_file_and_not_on_their_order():
    manifest = sample_manifest()
    content = manifest.to_dict()
    content["files"] = dict(reversed(content["files"].items()))
    assert read(content).bundle_id == manifest.bundle_id
    assert len(manifest.bundle_id) == 16


def test_cache_tensors_follow_the_names_of_hugging_face():
    assert kv_names("present", 2) == ["present.0.key", "present.0.value", "present.1.key", "present.1.value"]


def test_a_graph_with_one_input_more_is_refused():
    signature = GraphSignature.of("denoiser", MODEL, Variant("fp32"))
    more = GraphSignature((*signature.inputs, TensorSpec("extra", "int64", (1,))), signature.outputs)
    check_signature(signature, signature, "denoiser")
    with pytest.raises(RFError, match="denoiser: unexpected input extra int64"):
        check_signature(signature, more, "denoiser")


def test_a_bundle_made_before_the_lint_is_read():
    content = sample_manifest().to_dict()
    for graph in content["graphs"]:
        del graph["lint"]
    assert all(graph.lint == () for graph in read(content).graphs)
