"""A JSON document is read only where every key is known, present, of its type and in its range."""

import json
import math
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from runtime.backends.interface import Target
from runtime.bundle.engine import EngineGraph, EngineRecord
from runtime.bundle.manifest import FileEntry
from runtime.bundle.strict_json import (
    MAX_JSON_DEPTH,
    Finite,
    NotNegative,
    Record,
    parse_json,
    read_as,
    read_document,
    read_json,
    seal,
    shortened,
)
from runtime.errors import RFError
from runtime.signature import GRAPHS


class Part(Record, frozen=True, kw_only=True):
    size: NotNegative
    kind: Literal["near", "far"] = "near"


class Whole(Record, frozen=True, kw_only=True):
    name: str
    factor: Finite
    parts: tuple[Part, ...]
    table: dict[Literal["a", "b"], Part]
    sizes: Annotated[tuple[NotNegative, ...], Meta(min_length=1, description="a list of one size at least")]
    more: Part | None = None
    measured: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "nobody":
            raise ValueError("name must not be 'nobody'")


def right() -> dict[str, Any]:
    one, two, three, four = ({"size": 1, "kind": "far"} for _ in range(4))
    return {"name": "x", "factor": 1.5, "parts": [one, two], "table": {"b": three}, "sizes": [1], "more": four}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["name"], 3, "'name' must be a text, found 3"),
        (["name"], "nobody", "file: name must not be 'nobody'"),
        (["factor"], True, "'factor' must be a finite number, found true"),
        (["factor"], math.nan, "'factor' must be a finite number, found NaN"),
        (["factor"], -math.inf, "'factor' must be a finite number, found -Infinity"),
        (["factor"], 10**400, "'factor' must be a finite number, found 1000"),
        (["parts"], {"0": {"size": 1}}, "'parts' must be a list, found {"),
        (["parts", 1], 3, "'parts[1]' must be an object, found 3"),
        (["parts", 1, "size"], True, "'parts[1].size' must be a whole number >= 0, found true"),
        (["parts", 1, "size"], 1.0, "'parts[1].size' must be a whole number >= 0, found 1.0"),
        (["parts", 0, "size"], -1, "'parts[0].size' must be a whole number >= 0, found -1"),
        (["parts", 0, "size"], None, "'parts[0].size' must be a whole number >= 0, found null"),
        (["parts", 0, "kind"], "distant", "'parts[0].kind' must be 'near' or 'far', found \"distant\""),
        (["parts", 0, "kind"], 7, "'parts[0].kind' must be 'near' or 'far', found 7"),
        (["parts", 0, "colour"], 7, "unknown 'parts[0].colour'"),
        (["parts", 0], {"kind": "far"}, "'parts[0].size' is missing"),
        (["parts", 0], {}, "'parts[0].size' is missing"),
        (["table"], [], "'table' must be an object, found []"),
        (["table", "c"], {"size": 1}, "'table.c' must be 'a' or 'b', found \"c\""),
        (["table", "b", "size"], "1", "'table.b.size' must be a whole number >= 0, found \"1\""),
        (["sizes"], [], "'sizes' must be a list of one size at least, found []"),
        (["sizes"], [1, False], "'sizes[1]' must be a whole number >= 0, found false"),
        (["more"], 5, "'more' must be an object, found 5"),
        (["more", "size"], "x" * 100, "'more.size' must be a whole number >= 0, found \"xxx"),
        (["measured"], 5, "'measured' must be an object, found 5"),
        (["other"], 5, "unknown 'other'"),
        (["parts", 0, "\ud800"], 5, r"unknown 'parts[0].\ud800'"),
        (["parts", 0, "kind"], "\udfff", 'found "\\udfff"'),
        (["table", "\ud800"], {"size": 1}, r"'table.\ud800' must be 'a' or 'b', found " + '"'),
    ],
)
def test_what_is_wrong_is_told_with_its_path_and_what_to_do(path: list[Any], value: Any, message: str) -> None:
    assert read_as(Whole, right(), "file") == read_as(Whole, read_as(Whole, right(), "file").to_dict(), "file")
    content = right()
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(RFError) as caught:
        read_as(Whole, content, "file")
    text = str(caught.value)
    assert text.startswith("file") and message in text and text.endswith(". Correct the file, or make it again.")
    assert len(text) < 200


@pytest.mark.parametrize("content", [None, 3, [], "x", True])
def test_what_is_no_object_is_refused(content: Any) -> None:
    with pytest.raises(RFError, match="file must be an object, found"):
        read_as(Whole, content, "file")
    with pytest.raises(RFError, match="file is no file of the format 'form'"):
        read_document(content, "file", "form", 1, "Write it")


def test_several_keys_that_are_missing_or_unknown_are_all_named() -> None:
    with pytest.raises(RFError, match="'name', 'factor', 'parts', 'table', 'sizes' are missing"):
        read_as(Whole, {}, "file")
    with pytest.raises(RFError, match="unknown 'one', 'two'"):
        read_as(Whole, {**right(), "two": 1, "one": 2}, "file")


TEXTS = st.text(st.characters(codec=None, categories=None), max_size=5)  # half surrogate pairs too
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_read_or_refused_and_never_crashes(content: Any) -> None:
    for key in (None, "parts", "table", "more", "measured"):
        try:
            read_as(Whole, content if key is None else {**right(), key: content}, "file")
        except RFError as error:
            assert str(error).startswith("file")


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_a_document_comes_back_from_what_was_sealed_and_a_change_is_found(content: dict[str, Any]) -> None:
    content = json.loads(json.dumps(content).replace("NaN", "1").replace("-Infinity", "1").replace("Infinity", "1"))
    content = {key: value for key, value in content.items() if key not in ("format", "format_version", "checksum")}
    whole = {"format": "form", "format_version": 3, **content}
    sealed = json.loads(json.dumps(seal(whole)))
    assert read_document(sealed, "file", "form", 3, "Write it") == content
    assert read_document(whole, "file", "form", 3, "Write it") == content, "there was no checksum once"
    with pytest.raises(RFError, match=r"differs from what was written \(checksum\)"):
        read_document({**sealed, "one more": 1}, "file", "form", 3, "Write it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no file of the format 'form', found \"other\". Give a file that rf-export wrote"),
        ({"format": None}, "no file of the format 'form', found null"),
        ({"format_version": 4}, "has format version 4, and this rf-export reads 3. Install a newer rf-export, or"),
        ({"format_version": 2}, "has format version 2, and this rf-export reads 3. Write it again"),
        ({"format_version": True}, "'format_version' must be a whole number >= 1, found true"),
        ({"format_version": 3.0}, "'format_version' must be a whole number >= 1, found 3.0"),
        ({"format_version": "3"}, "'format_version' must be a whole number >= 1, found \"3\""),
        ({"format_version": 0}, "'format_version' must be a whole number >= 1, found 0"),
    ],
)
def test_another_format_or_version_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RFError) as caught:
        read_document({"format": "form", "format_version": 3, **change}, "file", "form", 3, "Write it")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 1}', "the key 'a' is there twice"),
        (b'[{"x": {"b": 1, "c": 2, "b": 3}}]', "the key 'b' is there twice"),
        (b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1), "nested deeper than 50 levels"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": \xff}', "utf-8"),
        (b'{"a": 1', "was cut off"),
        (b"", "was cut off"),
    ],
)
def test_text_that_is_no_sound_json_is_refused(tmp_path: Any, text: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(RFError, match=message):
        read_json(tmp_path / "a.json")
    with pytest.raises(RFError, match=f"it: .*{message}|it is not valid JSON .*{message}|{message}"):
        parse_json(text, "it")


def test_more_bytes_than_any_such_file_has_are_not_read(tmp_path: Any) -> None:
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    assert read_json(tmp_path / "a.json", 9) == [1, 2, 3]
    with pytest.raises(RFError, match="has 9 bytes, and at most 8 are read"):
        read_json(tmp_path / "a.json", 8)


def engine() -> EngineRecord:
    return EngineRecord(
        target=Target("ort", "1.24", "avx2"),
        precision="fp32",
        dialect="classic",
        bundle_id="0" * 16,
        graphs={name: EngineGraph(file=f"{name}.onnx", source_sha256="0" * 64) for name in GRAPHS},
        files={f"{name}.onnx": FileEntry(sha256="0" * 64, size=1) for name in GRAPHS},
        build={"seconds": np.float64(1.5), "options": {"num_threads": 1}},
        verified={},
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "rf-export-bundle", "no file of the format 'rf-export-engine'"),
        (["format_version"], 1, "has format version 1, and this rf-export reads 2. Build the engine again"),
        (["target", "cores"], 2, "unknown 'target.cores'"),
        (["target", "device"], None, "'target.device' must be a text, found null"),
        (["precision"], "fp8", "'precision' must be 'fp32' or 'fp16'"),
        (["dialect"], 7, "'dialect' must be 'classic' or 'modern', found 7"),
        (["graphs"], {}, "graph 'text_decoder' is missing"),
        (["graphs", "denoiser", "file"], "other.onnx", "'other.onnx' is not in the table of files"),
        (["graphs", "encoder"], {"file": "denoiser.onnx", "source_sha256": ""}, "'graphs.encoder' must be"),
        (["files", "denoiser.onnx", "sha256"], "0" * 63 + "G", "must be 64 hexadecimal digits"),
        (["files", "denoiser.onnx", "sha256"], "0" * 64 + "\n", "must be 64 hexadecimal digits"),
        (["files", "denoiser.onnx", "size"], 1.5, "'files.denoiser.onnx.size' must be a whole number >= 0, found 1.5"),
        (["files", "../x"], {"sha256": "0" * 64, "size": 1}, "'../x' is not a path inside the folder"),
        (["build"], [], "'build' must be an object"),
        (["more"], 1, "unknown 'more'"),
    ],
)
def test_a_wrong_value_of_an_engine_is_refused_with_its_place(path: list[str], value: Any, message: str) -> None:
    assert EngineRecord.from_dict(json.loads(engine().text()), "engine.json") == engine()
    content = engine().to_dict()
    del content["dialect"]
    assert EngineRecord.from_dict(content, "engine.json") == engine(), "engines of before there was a choice"
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(RFError) as caught:
        EngineRecord.from_dict(content, "engine.json")
    assert str(caught.value).startswith("engine.json") and message in str(caught.value)


@pytest.mark.parametrize("length", [57, 58, 59, 100])
def test_a_value_in_a_message_has_sixty_characters_at_most(length):
    text = shortened("x" * length)
    assert text == (f'"{"x" * length}"' if length <= 58 else '"' + "x" * 56 + "...")
