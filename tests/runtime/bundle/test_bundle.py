"""A bundle is opened only if it is whole; a changed byte is found."""

import json
import re
import shutil
from pathlib import Path

import pytest
from manifests import sample_manifest

from runtime.bundle import folder as folder_module
from runtime.bundle.folder import describe_file, open_bundle, write_atomically, write_manifest
from runtime.bundle.manifest import Manifest
from runtime.bundle.strict_json import read_json
from runtime.errors import RFError
from runtime.signature import Variant


@pytest.fixture
def bundle_path(tmp_path):
    """A bundle whose graphs are filler."""
    manifest = sample_manifest()
    content = manifest.to_dict()
    with write_atomically(tmp_path / "bundle") as folder:
        for index, name in enumerate(manifest.files):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([index]) * (100 + index))
            entry = describe_file(path)
            content["files"][name] = {"sha256": entry.sha256, "size": entry.size}
        content["bundle_id"] = folder_module.compute_bundle_id(
            {name: describe_file(folder / name) for name in manifest.files}
        )
        write_manifest(folder, Manifest.from_dict(content, "sample"))
    return tmp_path / "bundle"


def test_a_whole_bundle_opens_at_every_level(bundle_path):
    for verify in ("size", "auto", "hash"):
        assert open_bundle(bundle_path, verify=verify).manifest.precisions == ("fp32",)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(RFError, match="is not a folder"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(RFError, match=r"has no manifest.json"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', '{"format": "zip"}', "\xff", "[" * 100_000])
def test_a_damaged_manifest_is_refused(bundle_path, text):
    (bundle_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RFError, match=r"manifest\.json"):
        open_bundle(bundle_path)


def test_a_missing_file_and_a_wrong_size_are_always_found(bundle_path):
    weights = bundle_path / "graphs/weights/fp32.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RFError, match=re.escape(f"{weights} has 103 bytes and 104 are expected")):
        open_bundle(bundle_path)
    weights.unlink()
    with pytest.raises(RFError, match=re.escape(f"{weights} is missing")):
        open_bundle(bundle_path)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["tokenizer.json", "graphs/weights/fp32.bin", "graphs/denoiser.fp32.classic.onnx"])
def test_a_flipped_bit_is_found_by_hashing(bundle_path, name):
    flip(bundle_path / name)
    opened = open_bundle(bundle_path)
    with pytest.raises(RFError, match=rf"{name} differs from what was written"):
        opened.verify()
    with pytest.raises(RFError, match="differs"):
        open_bundle(bundle_path, verify="auto")


def test_only_the_files_asked_for_are_hashed(bundle_path):
    flip(bundle_path / "tokenizer.json")
    opened = open_bundle(bundle_path)
    opened.verify(opened.graph("denoiser", Variant("fp32")).files)


def test_large_files_are_not_hashed_unasked(bundle_path, monkeypatch):
    """Small files still are: the budget goes to them first."""
    monkeypatch.setattr(folder_module, "CHEAP_HASH_BYTES", 100 + 101 + 102)
    flip(bundle_path / "graphs/weights/fp32.bin")
    open_bundle(bundle_path, verify="auto")
    flip(bundle_path / "graphs/text_decoder.fp32.classic.onnx")
    with pytest.raises(RFError, match=r"text_decoder.* differs"):
        open_bundle(bundle_path, verify="auto")


def test_a_graph_that_is_not_there_is_refused_with_what_is(bundle_path):
    with pytest.raises(RFError, match="has no denoiser in fp16 classic; it has fp32 classic"):
        open_bundle(bundle_path).graph("denoiser", Variant("fp16"))


def test_the_manifest_is_readable_text(bundle_path):
    text = (bundle_path / "manifest.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text)["format_version"] == 3


@pytest.mark.parametrize(
    ("before", "after"), [('"num_steps": 25', '"num_steps": 24'), ('"logits_cosine": 1.0', '"logits_cosine": 0.9')]
)
def test_a_changed_number_of_the_manifest_is_found_and_one_of_before_there_was_a_checksum_is_read(
    bundle_path, before, after
):
    path = bundle_path / "manifest.json"
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
    with pytest.raises(RFError, match=r"manifest.json differs from what was written \(checksum\).*remove the key"):
        open_bundle(bundle_path)
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps(content))
    open_bundle(bundle_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "graphs", "graphs/weights/fp32.bin"])
def test_a_link_that_leads_out_of_the_bundle_is_refused_and_one_within_is_followed(bundle_path, tmp_path, name):
    for place, leads_out in ((tmp_path / "outside", True), (bundle_path / "inside", False)):
        folder = shutil.copytree(bundle_path, tmp_path / f"copy-{leads_out}")
        target = place if leads_out else folder / "inside"
        (folder / name).rename(target)
        (folder / name).symlink_to(target)
        if not leads_out:
            open_bundle(folder, verify="hash")
            continue
        for verify in ("size", "hash"):
            with pytest.raises(RFError, match="is a link out of the folder"):
                open_bundle(folder, verify=verify)


def test_a_manifest_that_would_fill_the_memory_or_hang_is_refused(bundle_path):
    path = bundle_path / "manifest.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: takes no room
    with pytest.raises(RFError, match="has 1099511627776 bytes, and at most 16777216 are read"):
        open_bundle(bundle_path)
    path.write_text('{"format": ' + "[" * 60 + "]" * 60 + "}")
    with pytest.raises(RFError, match="nested deeper than 50 levels"):
        open_bundle(bundle_path)
    path.write_text('{"format": "rf-export-bundle", "format": "x"}')
    with pytest.raises(RFError, match="the key 'format' is there twice"):
        open_bundle(bundle_path)
    with pytest.raises(RFError, match="is not a file"):
        read_json(Path("/dev/zero"))


def test_force_replaces_a_bundle_and_nothing_else(bundle_path, tmp_path):
    with pytest.raises(RFError, match=r"exists.*--force"), write_atomically(bundle_path):
        pass
    with write_atomically(bundle_path, force=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in bundle_path.iterdir()] == ["new"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "holiday.jpg").write_text("precious")
    with pytest.raises(RFError, match="is not a bundle"), write_atomically(other, force=True):
        pass
    assert (other / "holiday.jpg").read_text() == "precious"
