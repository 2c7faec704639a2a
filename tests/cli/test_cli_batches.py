"""Many prompts: from a file, and drawn in batches that fit into the memory, with the pictures of one batch."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from running import invoke, refused, run

from runtime import GenerationOptions, Pipeline
from runtime.backends.host.machine import UsableMemory
from runtime.commands.generate import BATCH, fitting_batch
from runtime.commands.memory_plan import Workload, drawing_memory
from runtime.pictures.png import read_parameters

PROMPTS = ("a red car", "two blue fish", "", "a cup", "a green tree")


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("0*.png"))])


@pytest.mark.parametrize("batch_size", ["1", "2", "4", "99"])
@pytest.mark.parametrize("edits", [[], ["--edit", "0,:=redraw:7", "--edit", "1,0=3"]], ids=["plain", "edited"])
def test_batches_draw_what_one_batch_draws(
    tiny_bundle: Path, tmp_path: Path, batch_size: str, edits: list[str]
) -> None:
    common = ("generate", tiny_bundle, *PROMPTS, "--steps", "2", "--seed", "3", *edits)
    for name, size in (("together", "5"), ("apart", batch_size)):
        folder = tmp_path / name
        run(
            *common,
            "--each",
            folder,
            "-o",
            tmp_path / f"{name}.png",
            "--batch-size",
            size,
            "--preview",
            tmp_path / f"{name}-steps.png",
        )
    assert np.abs(pictures(tmp_path / "together") - pictures(tmp_path / "apart")).max() <= 1
    rows = [read_parameters(tmp_path / f"{name}.png")["pictures"] for name in ("together", "apart")]
    assert rows[0] == rows[1]
    assert [row["seed"] for row in rows[0]] == [3, 4, 5, 6, 7]
    strips = [np.asarray(Image.open(tmp_path / f"{name}-steps.png")).astype(int) for name in ("together", "apart")]
    assert np.abs(strips[0] - strips[1]).max() <= 1


@pytest.mark.parametrize("available", [None, 1 << 40, 96 << 20, 80 << 20, 70 << 20, 1])
def test_a_batch_is_what_half_of_the_memory_holds(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, available: int | None
) -> None:
    memory = None if available is None else UsableMemory(1 << 40, available, 0)
    monkeypatch.setattr("runtime.backends.host.machine.usable_memory", lambda: memory)
    requests = pipeline.check(["a red car"] * 500, options=GenerationOptions(height=32, width=32))
    model, prompt = pipeline.bundle.manifest.model, len(requests[0].ids)

    def fits(num_requests: int) -> bool:
        work = Workload(num_requests=num_requests, height=32, width=32, prompt_tokens=prompt)
        return available is None or drawing_memory(model, "fp32", 0, work).total <= available // 2

    size = fitting_batch(pipeline, requests)
    assert size == 1 or fits(size)
    assert size == BATCH or not fits(size + 1)


def test_more_prompts_take_no_more_memory_at_once(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    run_batch = Pipeline.run

    def watched(self: Pipeline, requests: Any, **options: Any) -> Any:
        drawn.append(len(requests))
        return run_batch(self, requests, **options)

    monkeypatch.setattr(Pipeline, "run", watched)
    run("generate", tiny_bundle, *["a red car"] * 19, "--steps", "1", "-o", tmp_path / "x.png")
    assert drawn == [8, 8, 3]


def test_an_old_bundle_that_tells_no_sizes_is_drawn_in_small_batches(pipeline: Pipeline) -> None:
    manifest = pipeline.bundle.manifest
    old = manifest.replace(model=msgspec.structs.replace(manifest.model, num_heads=None))

    loaded: Any = SimpleNamespace(bundle=replace(pipeline.bundle, manifest=old), precision="fp32", engine=None)
    assert fitting_batch(loaded, pipeline.check(["a red car"])) == BATCH


@pytest.mark.parametrize(("dims", "size"), [({"batch": "1:1:4"}, 4), ({"batch": "2:2:2"}, 2), ({}, None)])
def test_a_batch_is_no_larger_than_what_an_engine_takes(
    pipeline: Pipeline, dims: dict[str, str], size: int | None
) -> None:
    engine = SimpleNamespace(record=SimpleNamespace(build={"dims": dims}))
    built: Any = SimpleNamespace(bundle=pipeline.bundle, precision="fp32", engine=engine)
    requests = pipeline.check(["a red car"])
    assert fitting_batch(built, requests) == (size or fitting_batch(pipeline, requests))


def test_prompts_may_be_lines_of_a_file(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# two lines\na red car\n\n  two blue fish  \n")
    out = tmp_path / "x.png"
    run("generate", tiny_bundle, "--prompts", file, "-o", out, "--steps", "1")
    assert [row["prompt"] for row in read_parameters(out)["pictures"]] == ["a red car", "two blue fish"]
    run("generate", tiny_bundle, "a cup", "--prompts", file, "-o", out, "--steps", "1")
    assert [row["prompt"] for row in read_parameters(out)["pictures"]] == ["a cup", "a red car", "two blue fish"]


@pytest.mark.parametrize(
    ("content", "word", "code"),
    [(b"# nothing\n\n", "--prompts", 2), (b"caf\xe9", "prompts.txt is no text in UTF-8 (byte 3). Give a text file", 1)],
)
def test_a_file_without_prompts_is_refused(
    tiny_bundle: Path, tmp_path: Path, content: bytes, word: str, code: int
) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    refused(invoke("generate", tiny_bundle, "--prompts", tmp_path / "prompts.txt"), word, code=code)


def test_no_prompt_at_all_is_refused(tiny_bundle: Path) -> None:
    refused(invoke("generate", tiny_bundle), "give a PROMPT", "--prompts", code=2)
