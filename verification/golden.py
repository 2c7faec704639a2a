"""Golden vectors of a bundle: numbers that a host in any language has to come to, and the pictures behind them.

    golden.json         noise, times, texts with their ids, drawings, conversations; see docs/host.md
    <drawing>.rgb       the pictures of a drawing, one after another: [height, width, 3] bytes each

Whole numbers beyond 2**53 are texts, since readers of JSON may round them: seeds decimal, raw numbers hexadecimal.
Knows nothing of who compares; what is drawn is what a verification draws (cases.py).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from runtime import noise
from runtime.backends import create_backend
from runtime.bundle.atomic import write_folder
from runtime.bundle.folder import open_bundle
from runtime.errors import RFError
from runtime.events import AnswerEvent, PictureEvent, Progress
from runtime.options import AnswerOptions, GenerationOptions
from runtime.pipeline import Pipeline
from runtime.plans import plan_drawing
from runtime.request import make_requests
from runtime.schedule import timesteps
from runtime.signature import Variant
from runtime.understanding.conversation import History
from verification.cases import DrawCase, choose_cases
from verification.texts import check_texts

GOLDEN_NAME: Final = "golden.json"
_SEEDS: Final = (0, 7, 2**32, 2**53 + 1, 2**64 - 1)
_MOST_IN_A_ROW: Final = 3  # prompts of a case, so that the largest seed has room above it


def write_golden(bundle: Path, folder: Path, *, force: bool = False, on_progress: Progress | None = None) -> None:
    """Draw and answer with every precision and dialect of a bundle, on the host with one thread, and write it down.

    Args:
        bundle: The bundle; graphs that nobody verified are taken too.
        folder: The folder to write.
        force: Replace golden vectors that are there.
        on_progress: Told before every precision.

    Raises:
        RFError: The bundle cannot be opened, or the folder may not be replaced.
    """
    variants = open_bundle(bundle).manifest.variants
    with write_folder(folder, replaceable=_is_golden, force=force, what="folder of golden vectors") as out:
        content: dict[str, Any] = {"format": "rf-export-golden", "format_version": 1}
        drawings: list[dict[str, Any]] = []
        answers: list[dict[str, Any]] = []
        for number, variant in enumerate(variants):
            if on_progress is not None:
                on_progress(f"golden vectors of {variant}", number, len(variants))
            with Pipeline.load(
                bundle, variant.precision, num_threads=1, engine="none", dialect=variant.dialect, allow_unverified=True
            ) as pipeline:
                texts = check_texts(pipeline.model.tokenizer)
                if not number:
                    content |= _of_the_bundle(pipeline, texts)
                readable = [each["text"] for each in texts if each["ids"] and len(each["ids"]) <= _most_words(pipeline)]
                its_drawings = list(_drawings(pipeline, readable[-1:], variant, out))
                drawings += its_drawings
                answers += _answers(pipeline, readable[-2:], variant, its_drawings, out)
        text = json.dumps({**content, "drawings": drawings, "answers": answers}, allow_nan=False)
        (out / GOLDEN_NAME).write_text(text.replace('{"name"', '\n{"name"') + "\n", encoding="utf-8")


def require_folder(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder that `write_golden` would refuse after minutes; raises RFError."""
    if folder.exists() and not (force and _is_golden(folder)):
        raise RFError(f"{folder} exists already. Name a new folder for the golden vectors: --golden DIR.")


def _is_golden(folder: Path) -> bool:
    return (folder / GOLDEN_NAME).is_file()


def _of_the_bundle(pipeline: Pipeline, texts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    manifest, target = pipeline.bundle.manifest, create_backend("ort").target()
    return {
        "bundle_id": manifest.bundle_id,
        "drawn_by": {"library": f"{target.backend} {target.version}", "device": target.device},
        "noise": [_noise(seed, stage, step) for seed in _SEEDS for stage, step in ((0, 0), (0, 5), (1, 0), (2, 1))],
        "times": [
            _times(*each) for each in ((1, 4, 1.0, None), (4, 144, 2.0, 64), (25, 1024, 3.0, 256), (7, 9, 0.5, 4))
        ],
        "texts": list(texts),
    }


def _noise(seed: int, stage: int, step: int) -> dict[str, Any]:
    """The first numbers of a key: raw, and what the stage makes of them."""
    raw = np.random.Philox(key=np.array([seed, stage << 32 | step], np.uint64)).random_raw(6)
    values = noise.normal(seed, (7,)) if stage == noise.PIXEL_STAGE else noise.gumbel(seed, step, 7, stage)
    kind = "normal" if stage == noise.PIXEL_STAGE else "gumbel"
    key = {"seed": str(seed), "stage": stage, "step": step}
    return {**key, "raw": [f"{int(each):#018x}" for each in raw], kind: values.tolist()}


def _times(num_steps: int, num_patches: int, shift: float, base: int | None) -> dict[str, Any]:
    values = timesteps(num_steps, num_patches, shift=shift, shift_base_patches=base)
    of = {"num_steps": num_steps, "num_patches": num_patches, "shift": shift, "shift_base_patches": base}
    return {**of, "values": values.tolist()}


def _most_words(pipeline: Pipeline) -> int:
    """Tokens of a text that fit beside the default picture."""
    model = pipeline.bundle.manifest.model
    rows, columns = model.rep_grid(model.default_height, model.default_width)
    return min(model.max_positions, pipeline.model.cache_slots or model.max_positions) - rows * columns - 2


@dataclass(frozen=True)
class _Drawing:
    """What is drawn together."""

    case: DrawCase
    texts: tuple[str, ...] = ()  # that the ids are of
    forced: tuple[tuple[int, ...], ...] | None = None


def _chosen(pipeline: Pipeline, texts: Sequence[str]) -> Iterator[_Drawing]:
    """The cases of a verification with seeds of all sizes, a text, forced tokens, and the tuned plan."""
    manifest, slots = pipeline.bundle.manifest, pipeline.model.cache_slots
    cases = choose_cases(manifest.model, slots, num_random=0).draws
    for number, case in enumerate(cases):
        seed = _SEEDS[number % len(_SEEDS)]
        yield _Drawing(replace(case, seed=min(seed, 2**64 - len(case.prompts)), prompts=case.prompts[:_MOST_IN_A_ROW]))
    small = replace(cases[0], options=replace(cases[0].options, num_steps=2), seed=2**64 - 1)
    size = plan_drawing(small.options, manifest).num_rep_tokens
    ids = tuple(tuple(pipeline.model.tokenizer.encode(text, manifest.model.max_positions)) for text in texts)
    if ids:
        yield _Drawing(replace(small, name="text", prompts=ids), tuple(texts))
    codes = manifest.model.rep_vocab_size
    some = tuple(place * 5 % codes if place % 3 else -1 for place in range(size))
    for window in (1, min(4, size + 1)):
        options = replace(small.options, window=window)
        forced = _Drawing(
            replace(small, name=f"forced tokens, window {window}", prompts=small.prompts[:1], options=options)
        )
        yield replace(forced, forced=(some,))
    if manifest.tuned is not None:
        options = replace(cases[0].options, num_steps=None, plan="tuned")
        yield _Drawing(replace(small, name="tuned plan", prompts=small.prompts[:1], options=options))


def _drawings(pipeline: Pipeline, texts: Sequence[str], variant: Variant, out: Path) -> Iterator[dict[str, Any]]:
    for number, drawing in enumerate(_chosen(pipeline, texts)):
        case, forced = drawing.case, None if drawing.forced is None else np.array(drawing.forced, np.int64)
        plan = plan_drawing(case.options, pipeline.bundle.manifest)
        requests = make_requests(list(map(list, case.prompts)), case.seed, plan, forced)
        pictures = [each for each in pipeline.run(requests, previews=False) if isinstance(each, PictureEvent)]
        name = f"{variant.precision}.{variant.dialect}.{number:02}.rgb"
        data = b"".join(each.picture.tobytes() for each in pictures)
        (out / name).write_bytes(data)
        yield {
            "name": case.name,
            "precision": variant.precision,
            "dialect": variant.dialect,
            "texts": list(drawing.texts) or None,
            "ids": [list(each) for each in case.prompts],
            "seed": str(case.seed),
            "options": _given(case.options),
            "forced_rep_ids": drawing.forced,
            "height": plan.height,
            "width": plan.width,
            "times": list(plan.times),
            "rep_ids": [each.rep_ids.tolist() for each in pictures],
            "file": name,
            "sha256": hashlib.sha256(data).hexdigest(),
        }


def _given(options: GenerationOptions | AnswerOptions) -> dict[str, Any]:
    return {name: value for name, value in asdict(options).items() if value is not None}


def _answers(
    pipeline: Pipeline, texts: Sequence[str], variant: Variant, drawings: Sequence[dict[str, Any]], out: Path
) -> Iterator[dict[str, Any]]:
    """Conversations about the first pictures of two of the drawings, greedy and drawn, kept and forgotten."""
    if pipeline.bundle.manifest.understanding is None:
        return
    hot = AnswerOptions(max_tokens=6, temperature=1.3, top_k=5, top_p=0.9, repetition_penalty=1.2)
    questions = ["", *texts]
    for seed, options in ((0, AnswerOptions(max_tokens=6)), (2**64 - 1, hot)):
        conversation, turns = pipeline.converse(), []
        shown = [each for each in drawings if each["name"] in ("alone", "wide")]
        try:
            for each in shown:
                conversation.show(_first_picture(each, out), height=each["height"], width=each["width"])
            histories: tuple[History, ...] = ("forget", "keep", "keep")
            for question, history in zip(questions, histories, strict=False):
                *_, last = conversation.ask(question, seed=seed, options=options, history=history)
                assert isinstance(last, AnswerEvent)
                answer = {"answer_ids": last.token_ids, "answer": last.text, "ended_by": last.ended_by}
                ids = pipeline.model.tokenizer.encode(question, 1 << 20)
                turns.append({"question": question, "ids": ids, "history": history, **answer})
        except RFError:
            if not turns:  # a model with no room for pictures and a question
                continue
        yield {
            "name": "greedy" if options.temperature == 0 else "drawn",
            "precision": variant.precision,
            "dialect": variant.dialect,
            "pictures": [{name: each[name] for name in ("file", "height", "width")} for each in shown],
            "seed": str(seed),
            "options": _given(options),
            "turns": turns,
        }


def _first_picture(drawing: dict[str, Any], out: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shape = (drawing["height"], drawing["width"], 3)
    return np.frombuffer((out / drawing["file"]).read_bytes(), np.uint8, int(np.prod(shape))).reshape(shape)
