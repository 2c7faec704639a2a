"""Byte-level BPE and WordLevel are read as the tokenizers library reads them; other kinds are refused by name."""

import json
import shutil
import subprocess

import pytest
from building import NATIVE, require_compiler, run
from msgspec.structs import replace
from tokenizers_made import byte_level, compare_readings, known_texts, other_kinds, texts, word_level

from runtime import GenerationOptions
from runtime.bundle.folder import describe_file, open_bundle, write_manifest
from runtime.errors import RFError
from runtime.native.binding import NativePipeline
from runtime.text.tokenizer import PromptTokenizer
from verification.texts import CHECK_TEXTS


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Prints ids of texts."""
    require_compiler()
    out = tmp_path_factory.mktemp("tokens") / "rf_tokens"
    sources = [NATIVE / "src" / f"{name}.cpp" for name in ("tokenizer", "json", "unicode", "close_words")]
    include = ["-I", NATIVE / "src", "-I", NATIVE / "include"]
    run("c++", "-std=c++17", "-O1", *include, "tests/native/tokens.cpp", *sources, "-o", out, cwd=NATIVE.parents[1])
    return out


def compare(program, path, vocab_size, all_texts):
    python = PromptTokenizer(path, vocab_size)
    lines = "\n".join(map(json.dumps, all_texts)) + "\n"
    done = subprocess.run([program, path, str(vocab_size)], input=lines, capture_output=True, text=True, check=True)
    return compare_readings(python, all_texts, map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize(("split", "prefix"), [("gpt2", False), ("gpt2", True), ("qwen", False), ("llama", False)])
def test_byte_level_bpe_is_read_exactly(split, prefix, program, tmp_path):
    path = tmp_path / "tokenizer.json"
    byte_level(split, prefix).save(str(path))
    read, refused = compare(program, path, 1000, list(texts(1500)))
    print(f"{split}: {read} texts read alike, {refused} refused alike")
    assert read > 1000


def test_words_are_read_exactly(program, tmp_path):
    path = tmp_path / "tokenizer.json"
    word_level().save(str(path))
    read, refused = compare(program, path, 10, [*known_texts(300), *texts(300)])
    assert read >= 300
    assert refused > 100


def test_other_kinds_are_refused_by_name(program, tmp_path):
    path = tmp_path / "tokenizer.json"
    for tokenizer in other_kinds():
        tokenizer.save(str(path))
        assert "which this library does not read. Give token ids" in run(program, path, 10, input="")


def with_check_texts(bundle, content):
    """Exchanges the check texts of a bundle, or removes them."""
    manifest = open_bundle(bundle).manifest
    files = {name: entry for name, entry in manifest.files.items() if name != CHECK_TEXTS}
    (bundle / CHECK_TEXTS).unlink()
    if content is not None:
        (bundle / CHECK_TEXTS).write_text(content)
        files[CHECK_TEXTS] = describe_file(bundle / CHECK_TEXTS)
    write_manifest(bundle, replace(manifest, files=files))
    return bundle


def test_texts_are_refused_where_a_check_text_has_other_ids_and_ids_are_not(tiny_bundle, tmp_path, native_library):
    texts = json.loads((tiny_bundle / CHECK_TEXTS).read_text())["texts"]
    known = next(each for each in texts if each["ids"])
    unknown = next(each for each in texts if each["ids"] is None)
    changes = (
        {**known, "ids": [*known["ids"], 1]},
        {**known, "ids": list(map(str, known["ids"]))},
        {**known, "ids": None},
        {**unknown, "ids": [1]},
        {"text": "\ud800", "ids": []},
    )
    for number, change in enumerate(changes):
        bundle = shutil.copytree(tiny_bundle, tmp_path / f"bundle{number}")
        with_check_texts(bundle, json.dumps({"texts": [*texts, change]}))
        options = GenerationOptions(num_steps=1)
        with NativePipeline.load(bundle, engine="none", library=native_library) as native:
            assert native.info()["tokenizer"] is None
            with pytest.raises(RFError, match=r"reads the bundle's tokenizer otherwise .* Give token ids in place"):
                native.draw(known["text"], options=options)
            assert len(native.draw_all([known["ids"], ""], options=options)) == 2


def test_a_bundle_without_check_texts_is_read(tiny_bundle, tmp_path, native_library, native):
    bundle = with_check_texts(shutil.copytree(tiny_bundle, tmp_path / "bundle"), None)
    with NativePipeline.load(bundle, engine="none", library=native_library) as older:
        assert older.tokenize("a red car") == native.tokenize("a red car")


@pytest.mark.parametrize(
    "content", ["{}", '{"texts": [{"text": 1, "ids": []}]}', '{"texts": [{"text": "a", "ids": 2}]}', "["]
)
def test_check_texts_that_are_damaged_are_refused(content, tiny_bundle, tmp_path, native_library):
    bundle = with_check_texts(shutil.copytree(tiny_bundle, tmp_path / "bundle"), content)
    with pytest.raises(RFError, match=CHECK_TEXTS) as raised:
        NativePipeline.load(bundle, engine="none", library=native_library)
    assert raised.value.kind == "damaged"
