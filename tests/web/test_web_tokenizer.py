"""Byte-level BPE and WordLevel are read as the tokenizers library reads them; other kinds are refused by name."""

import base64
import json

import pytest
from browsing import require_browser
from tokenizers_made import byte_level, known_texts, other_kinds, texts, word_level

from runtime.errors import RFError
from runtime.text.tokenizer import PromptTokenizer

require_browser()

KINDS = {
    "gpt2": lambda: byte_level("gpt2"),
    "gpt2 with a blank in front": lambda: byte_level("gpt2", prefix=True),
    "qwen": lambda: byte_level("qwen"),
    "llama": lambda: byte_level("llama"),
    "words": word_level,
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_read_exactly(kind, web, tmp_path):
    path = tmp_path / "tokenizer.json"
    KINDS[kind]().save(str(path))
    python, content = PromptTokenizer(path, 1000), base64.b64encode(path.read_bytes()).decode()
    every = [*(known_texts(200) if kind == "words" else ()), *texts(500)]
    read = refused = 0
    for text, found in zip(every, web("tokenize", content, 1000, every), strict=True):
        try:
            ids = python.encode(text, 1 << 20, "text")
        except RFError as error:
            assert len(found) == 1, (text, str(error), found)
            refused += 1
            continue
        assert found == [ids, python.decode(ids)], text
        read += 1
    print(f"{kind}: {read} texts read alike, {refused} refused alike")
    assert read > 200


def test_other_kinds_are_refused_by_name(web, tmp_path):
    path = tmp_path / "tokenizer.json"
    for tokenizer in other_kinds():
        tokenizer.save(str(path))
        message, kind = web("refusedTokenizer", base64.b64encode(path.read_bytes()).decode())
        assert f"a model of the kind '{json.loads(path.read_text())['model']['type']}', which this library" in message
        assert kind == "unsupported"


def test_a_bundle_whose_texts_are_read_otherwise_takes_ids(tiny, tiny_bundle, web, site):
    """Its check texts say so: one is changed here, and the manifest with it."""
    from hashlib import sha256

    from runtime.bundle.manifest import FileEntry, Manifest, format_manifest

    manifest = Manifest.from_dict(json.loads((tiny_bundle / "manifest.json").read_text()), "manifest.json")
    texts = json.dumps({"texts": [{"text": "a red car", "ids": [1, 2, 3]}]}).encode()
    entry = FileEntry(sha256=sha256(texts).hexdigest(), size=len(texts))
    changed = manifest.replace(files={**manifest.files, "check_texts.json": entry})
    site.spoilt.update({"tiny/check_texts.json": texts, "tiny/manifest.json": format_manifest(changed).encode()})
    try:
        assert web("open", "ids", tiny, {"open": {"precision": "fp32"}})["tokenizer"] is None
    finally:
        site.spoilt.clear()
    ((message, kind),) = web("refusedDrawings", "ids", [{"prompt": "a red car"}])
    assert message.startswith(
        "This library reads the bundle's tokenizer otherwise than the bundle was made with: 'a red"
    )
    assert kind == "unsupported"
    ids = web("draw", "ids", [{"ids": [4, 14, 20], "numSteps": 1}])
    assert ids[0]["rgba"] == web("draw", "fp32", [{"prompt": "a red car", "numSteps": 1}])[0]["rgba"]
