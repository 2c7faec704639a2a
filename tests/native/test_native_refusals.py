"""What the Python runtime refuses, the native host refuses with the same sentence."""

import shutil
from dataclasses import fields
from random import Random

import pytest
from damages import damage
from fuzz import mutate
from fuzz.targets import write_filler_bundle

from runtime import GenerationOptions, Pipeline, RFError
from runtime.bundle.folder import open_bundle
from runtime.native.binding import NativePipeline
from runtime.native.library import load_library


def sentence(call):
    try:
        call()
    except RFError as error:
        return str(error), error.kind
    return None


def unchecked(**values):
    """Options that nobody has checked before the native host does."""
    options = object.__new__(GenerationOptions)
    for each in fields(GenerationOptions):
        object.__setattr__(options, each.name, values.get(each.name))
    return options


@pytest.mark.parametrize(
    ("prompt", "more"),
    [
        ("a red car", {"height": 7}),
        ("a red car", {"width": 4000}),
        ("a red car", {"num_steps": 1001}),
        ("a red car", {"num_steps": -1}),
        ("a red car", {"shift": 1e4}),
        ("a red car", {"times": (0.0, 0.5, 0.5, 1.0)}),
        ("a red car", {"times": (0.1, 1.0)}),
        ("a red car", {"times": (0.0, 1.0), "num_steps": 1}),
        ("a red car", {"guided": (0.7, 0.2)}),
        ("a red car", {"rep_guidance_scale": -1e9}),
        ("a red car", {"temperature": -0.5}),
        ("a red car", {"temperature": float("inf")}),
        ("a red car", {"window": 99}),
        ("a red car", {"top_k": 41}),
        ("a red car", {"plan": "tuned"}),
        ("a red zebra", {}),
        ("a red carr, 'Wilma' and twoo", {}),
        ("a red \u2603", {}),
        ("a red car " * 60, {}),
        ("a" * 100_001, {}),
        ("\ud800", {}),
    ],
)
def test_the_same_sentence_for_what_cannot_be_drawn(prompt, more, pipeline, native):
    expected = sentence(lambda: pipeline.check([prompt], options=GenerationOptions(**more)))
    assert expected is not None
    found = sentence(lambda: native.draw_all([prompt], options=unchecked(**more)))
    if prompt == "\ud800":  # each says in its own words why that is no text
        assert found[0].startswith("The prompt '\\ud800' cannot be read: ")
        assert found[0].endswith(". Write it in valid Unicode.")
    else:
        assert found == expected


def test_the_same_sentence_for_tokens_and_seeds(pipeline, native):
    size = native.draw_all(["a red car"], options=GenerationOptions(num_steps=1))[0].rep_ids.size
    for rep_ids in ([[40] * size], [[-2] * size], [[-1] * size, [0] * size]):
        prompts = ["a red car"] * len(rep_ids)
        expected = sentence(lambda p=prompts, r=rep_ids: pipeline.check(p, rep_ids=r))
        assert expected is not None
        assert sentence(lambda p=prompts, r=rep_ids: native.draw_all(p, rep_ids=r)) == expected
    prompts = ["a red car"] * 2
    assert sentence(lambda: native.draw_all(prompts, seed=2**64 - 1)) == sentence(
        lambda: pipeline.check(prompts, seed=2**64 - 1)
    )


@pytest.mark.parametrize(
    "how",
    [
        *("no manifest", "no graph", "cut off", "one bit", "lfs", "a link out", "checksum", "version", "format"),
        *("unknown key", "missing key", "wrong type", "path", "path in table", "bundle_id", "failed", "nobody"),
        *("other graphs", "no precision"),
    ],
)
def test_the_same_sentence_for_a_damaged_bundle(how, tiny_bundle, tmp_path, native_library):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    damage(bundle, how)
    expected = sentence(lambda: Pipeline.load(bundle, engine="none"))
    assert expected is not None
    assert sentence(lambda: NativePipeline.load(bundle, engine="none", library=native_library)) == expected


def test_a_folder_that_is_none(tmp_path, native_library):
    for path in (tmp_path / "nothing", tmp_path):
        expected = sentence(lambda p=path: Pipeline.load(p))
        assert sentence(lambda p=path: NativePipeline.load(p, library=native_library)) == expected


def test_changed_manifests_are_refused_alike(tmp_path, native_library):
    """Both refuse, or neither, and nearly always in the same words; for what is no JSON each has words of its own."""
    manifest = write_filler_bundle(tmp_path)
    path, rng, differ, refused = tmp_path / "manifest.json", Random(5), [], 0
    for _ in range(400):
        changed = mutate.change_json(manifest, rng)
        path.write_bytes(changed)
        expected = sentence(lambda: open_bundle(tmp_path))
        found = sentence(lambda: NativePipeline.load(tmp_path, engine="none", library=native_library))
        assert found is not None  # its graphs are filler
        if expected is None:  # so what is refused is a graph, its verdict or the tokenizer
            assert not found[0].startswith(str(path)), changed
        else:
            refused += 1
            is_json = " is not valid JSON (" not in expected[0] or " is not valid JSON (" not in found[0]
            if found != expected and is_json:
                differ.append((expected, found))
                assert found[0].startswith(str(tmp_path)), (expected, found)
    print(f"{refused} refused, {len(differ)} in other words: {differ[:20]}")
    assert refused > 200
    assert len(differ) <= refused // 20


def test_misuse_of_the_library_is_refused(native_library, tmp_path):
    library = load_library(native_library)
    for function, count in {"rf_open": 3, "rf_draw": 7, "rf_info": 3, "rf_converse": 2, "rf_tokenize": 4}.items():
        assert getattr(library, function)(*[None] * count) == 1
        assert b"NULL" in library.rf_last_error()
    library.rf_close(None)
    library.rf_conversation_close(None)


def test_a_library_that_is_none_is_refused_in_a_sentence(tiny_bundle, native_library, tmp_path):
    from building import run

    script = f"""
from pathlib import Path
from runtime.native.binding import NativePipeline
NativePipeline.load({str(tiny_bundle)!r}, library=Path({str(native_library)!r}), onnxruntime="/none/libonnxruntime.so")
"""
    import sys

    code = f"import subprocess, sys\nsys.exit(subprocess.run([sys.executable, '-c', {script!r}]).returncode == 0)"
    run(sys.executable, "-c", code)
