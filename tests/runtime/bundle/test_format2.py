"""A bundle that was exported before windows still opens, and draws and answers as one that is exported now.

format2.zip is the bundle of the tiny checkpoint (tests/exporting.py) as rf-export wrote it in format 2.
"""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engines import EngineConfig, build
from runtime import GenerationOptions, PictureEvent, Pipeline, RFError, open_bundle
from runtime.bundle.manifest import format_manifest


@pytest.fixture(scope="module")
def old_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("format2") / "bundle"
    with zipfile.ZipFile(Path(__file__).parent / "format2.zip") as file:
        file.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def old(old_bundle):
    return Pipeline.load(old_bundle, num_threads=1, engine="none")


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(num_steps=3),
        GenerationOptions(num_steps=4, shift=2.0, guided=(0.1, 0.5), rep_guidance_scale=1),
        GenerationOptions(times=(0, 0.4, 1), pix_guidance_scale=1, height=32, width=16, temperature=0.5),
    ],
)
def test_it_draws_the_same(old, pipeline, words, options):
    assert old.bundle.manifest.format_version == 2
    prompts = [" ".join(words[:4]), "", words[4]]
    pictures = [
        [event for event in each.generate(prompts, seed=3, options=options) if isinstance(event, PictureEvent)]
        for each in (old, pipeline)
    ]
    for ours, right in zip(*pictures, strict=True):
        assert ours.rep_ids.tolist() == right.rep_ids.tolist()
        np.testing.assert_allclose(ours.pixels, right.pixels, atol=1e-4)


def test_it_reads_the_same(old, pipeline, words):
    picture = pipeline.draw(words[0])
    conversations = [each.converse() for each in (old, pipeline)]
    answers = []
    for conversation in conversations:
        conversation.show(picture)
        answers.append([list(conversation.ask(question))[-1].token_ids for question in ("", words[1])])
    assert answers[0] == answers[1]


def test_what_its_graphs_cannot_do_is_refused(old_bundle, old):
    with pytest.raises(RFError, match=r"take one token a pass\. Draw with window 1, or export it again"):
        old.draw("", options=GenerationOptions(window=2))
    with pytest.raises(RFError, match="is in format 2, of which classic graphs run on the backend ort alone"):
        Pipeline.load(old_bundle, dialect="modern")


def test_its_manifest_keeps_its_format(old_bundle):
    manifest = open_bundle(old_bundle).manifest
    assert json.loads(format_manifest(manifest)) == json.loads((old_bundle / "manifest.json").read_text())


def test_what_a_host_does_not_know_is_refused(tiny_bundle, tmp_path):
    manifest = open_bundle(tiny_bundle).manifest.replace(requires=("no-representation-stage",))
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "manifest.json").write_text(format_manifest(manifest))
    with pytest.raises(RFError, match="requires what this rf-export does not know: no-representation-stage"):
        Pipeline.load(bundle)


def test_an_engine_is_built_of_todays_graphs(old_bundle):
    with pytest.raises(RFError, match=r"is in format 2, and engines are built of bundles in format 3\. Export it"):
        build(old_bundle, EngineConfig(num_threads=1))
    assert not list(old_bundle.glob("engines/*"))
