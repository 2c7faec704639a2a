"""The native host reads changed files under sanitizers: none ends the program, hangs it or leads out of a folder.

`CC=clang CXX=clang++ RF_FUZZ_RUNS=1000000 pytest -m slow tests/native/test_native_fuzz.py` takes libFuzzer, which
follows what is run, and that many inputs of each kind.
"""

import json
import os
from pathlib import Path

import pytest
from building import build, run
from tokenizers_made import byte_level, word_level

from verification.texts import CHECK_TEXTS

RUNS = int(os.environ.get("RF_FUZZ_RUNS", "20000"))
SMALL_TEXTS = [{"text": "a red car", "ids": [1, 2, 3]}, {"text": "a x", "ids": None}, {"text": "\u00e9 1", "ids": [6]}]
LATER_ENGINE = {"backend": "tensorrt", "version": "10.3+", "device": "Orin sm_87+ | Thor sm_110"}


def write_inputs(bundle: Path, folder: Path) -> None:
    """Files to begin with, in a folder for each reader."""

    def write(reader: str, name: str, text: str) -> None:
        (folder / reader).mkdir(parents=True, exist_ok=True)
        (folder / reader / name).write_text(text)

    write("manifest", "whole", (bundle / "manifest.json").read_text())
    manifest = json.loads((bundle / "manifest.json").read_text())
    write("manifest", "one line", json.dumps({**manifest, "requires": [], "graphs": manifest["graphs"][:4]}))
    write("check_texts", "whole", (bundle / CHECK_TEXTS).read_text())
    write("check_texts", "small", json.dumps({"texts": SMALL_TEXTS}))
    write("tokenizer", "whole", (bundle / "tokenizer.json").read_text())
    write("tokenizer", "words", word_level().to_str())
    for split in ("gpt2", "qwen", "llama"):
        write("tokenizer", split, byte_level(split, prefix=split == "gpt2").to_str(pretty=True))
    record = json.loads(next(bundle.glob("engines/*/engine.json")).read_text())
    write("engine", "whole", json.dumps(record, indent=1))
    write("engine", "later", json.dumps({**record, "target": LATER_ENGINE, "build": {"options": {}}}))


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    options = ("-DRF_FUZZ=ON", "-DRF_EXAMPLES=OFF", "-DRF_SANITIZE=address,undefined")
    return build(tmp_path_factory.mktemp("fuzz") / "build", *options)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("reader", ["manifest", "engine", "tokenizer", "check_texts"])
def test_changed_files_are_read_or_refused(reader, programs, calibrated_bundle, tmp_path):
    write_inputs(calibrated_bundle, tmp_path / "inputs")
    found = tmp_path / "found"
    found.mkdir()
    options = (f"-runs={RUNS}", "-seed=1", "-timeout=20", f"-artifact_prefix={tmp_path}/")
    run(programs / f"rf_fuzz_{reader}", *options, found, tmp_path / "inputs" / reader)
