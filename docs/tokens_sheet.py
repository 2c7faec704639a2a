"""Shows what representation tokens hold: docs/images/tokens.png, and the figures of docs/tokens.md.

    python docs/tokens_sheet.py BUNDLE [CHECKPOINT]

BUNDLE is exported from CHECKPOINT, examples/reference/checkpoint by default. Takes some minutes on one core.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rf_export.evaluation.checker import Detection, load_checker
from rf_export.evaluation.metric import Rate, evaluation_demands
from rf_export.tokens.codebook import make_codebook
from rf_export.tokens.figure import token_figure
from rf_export.tokens.view import stack_figures
from rf_export.training.scenes import Demand, SceneConfig
from runtime.commands.token_edits import choose_tokens, draw_rep_ids, parse_edit
from runtime.events import PictureEvent
from runtime.options import GenerationOptions
from runtime.pictures.png import save_png
from runtime.pictures.token_file import PNG_KEY, RepGrid
from runtime.pipeline import Pipeline

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs/images/tokens.png"
STAR = OUT.with_name("tokens-star.png")
PROMPT, SEED = "a pink cat left of a blue house", 8
EDITS = (
    (":,2:=0,0", "0,0 painted over the right half"),
    (":,:2=:,2:", "the right half copied to the left"),
    (":,2:=redraw:1", "the right half drawn again"),
    (f":,:2={STAR}", "a yellow star's left half, same text"),
)
REGIONS = {"top left quarter": "0:2,0:2", "middle": "1:3,1:3", "left half": ":,0:2"}
NUM_PICTURES = 48
BATCH = 8
NEAR = 4  # pixels


def main(bundle: str, checkpoint: str = str(ROOT / "examples/reference/checkpoint")) -> None:
    """Draw the picture, then measure."""
    pipeline = Pipeline.load(bundle, num_threads=1)
    draw_sheet(pipeline, Path(checkpoint))
    measure_reading(pipeline, Path(checkpoint))
    measure_places(pipeline)
    measure_texts(pipeline)


def draw_sheet(pipeline: Pipeline, checkpoint: Path) -> None:
    """The picture with its codes, and four edits of it."""
    manifest = pipeline.bundle.manifest
    (star,) = draw(pipeline, ["a yellow star"], SEED)
    save_png(STAR, star.picture, {PNG_KEY: RepGrid.of(star, manifest).to_dict()})
    (event,) = draw(pipeline, [PROMPT], SEED)
    before = RepGrid.of(event, manifest).rep_ids
    codebook = make_codebook(checkpoint, manifest.checkpoint["sha256"], 2000)
    first = token_figure(event.picture, before, f"{PROMPT}, seed {SEED}", codebook.explain(before, 6))
    edited = []
    for edit, caption in EDITS:
        rep_ids = choose_tokens(
            pipeline, [PROMPT], seed=SEED, options=GenerationOptions(), base=None, edits=[parse_edit(edit)]
        )
        (event,) = draw(pipeline, [PROMPT], SEED, rep_ids)
        after = RepGrid.of(event, manifest).rep_ids
        seen = pipeline.understand(event.picture)
        edited.append(token_figure(event.picture, after, f'{caption}; seen as "{seen}"', marked=after != before))
    rows = [np.concatenate(edited[i : i + 2], axis=1) for i in (0, 2)]
    edits = [edit.replace(str(STAR), STAR.name) for edit, _ in EDITS]
    save_png(OUT, stack_figures([first, *rows]), {"prompt": PROMPT, "seed": SEED, "edits": edits})
    STAR.unlink()
    print(OUT)


def measure_reading(pipeline: Pipeline, checkpoint: Path) -> None:
    """How many tokens that a picture was drawn from does the image encoder find in it?"""
    demands = evaluation_demands(NUM_PICTURES, 0, SceneConfig())
    codebook = make_codebook(checkpoint, pipeline.bundle.manifest.checkpoint["sha256"], 1000)
    events = draw(pipeline, [demand.caption for demand in demands], 0)
    equal = sum(int((codebook.encode(event.pixels).ravel() == event.rep_ids).sum()) for event in events)
    _, counts = np.unique([event.rep_ids for event in events], return_counts=True)
    chance = ((counts / counts.sum()) ** 2).sum()
    found = Rate(successes=equal, num=int(counts.sum()))
    print(f"codes read in a drawn picture that it was drawn from: {found}; any two tokens are equal: {chance:.1%}")


def measure_places(pipeline: Pipeline) -> None:
    """Where do pixels change when tokens change? Tokens come from the next picture, at the same place."""
    demands = evaluation_demands(NUM_PICTURES, 0, SceneConfig())
    prompts = [demand.caption for demand in demands]
    events = draw(pipeline, prompts, 0)
    before, rep_ids = pixels_of(events), np.stack([event.rep_ids for event in events])
    grids = rep_ids.reshape(len(events), 4, 4)
    floor = np.abs(pixels_of(draw(pipeline, prompts, 1000, rep_ids)) - before).mean()
    print(f"\nmean change of a pixel (0 to 255) over {len(events)} pictures; same tokens, other noise: {floor:.1f}")
    for name, text in REGIONS.items():
        region = parse_edit(f"{text}=0").region
        mask, changed = np.zeros((4, 4), np.int64), grids.copy()
        region.of(mask)[:] = 1
        for target, source in zip(changed, np.roll(grids, 1, axis=0), strict=True):
            region.of(target)[:] = region.of(source)
        change = np.abs(pixels_of(draw(pipeline, prompts, 0, changed.reshape(rep_ids.shape))) - before)  # [n, 48, 48]
        inside = np.kron(mask, np.ones((12, 12))) > 0
        within, beyond = change[:, inside], change[:, ~inside]
        share = within.sum() / change.sum()
        print(
            f"  {name}: inside {within.mean():.1f}, outside {beyond.mean():.1f}; {share:.0%} of the change is in the "
            f"{inside.mean():.0%} of pixels inside"
        )


def measure_texts(pipeline: Pipeline) -> None:
    """Tokens of one text, drawn with another: which of them says what is where?"""
    singles = evaluation_demands(NUM_PICTURES, 0, SceneConfig(kinds=("single",)))
    others = [next(d for d in singles[i:] + singles[:i] if differs(d, singles[i])) for i in range(len(singles))]
    prompts, texts = [d.caption for d in singles], [d.caption for d in others]
    rep_ids = np.concatenate(
        [draw_rep_ids(pipeline, prompts[i : i + BATCH], seed=i) for i in range(0, len(prompts), BATCH)]
    )
    places = [things[0].centre if things else None for things in seen_in(draw(pipeline, prompts, 0, rep_ids))]
    print(f"\ntokens of A drawn with seed + 1000 and another text; what the checker sees, {len(prompts)} pictures")
    for name, given in (("text A", prompts), ("no text", [""] * len(prompts)), ("text B", texts)):
        marks: dict[str, int] = dict.fromkeys(("object A", "object B", "colour A", "colour B", "near A's place"), 0)
        seen = seen_in(draw(pipeline, given, 1000, rep_ids))
        for things, a, b, place in zip(seen, singles, others, places, strict=True):
            if len(things) == 1:
                ((colour_a, object_a),), ((colour_b, object_b),) = a.items, b.items
                marks["object A"] += things[0].object == object_a
                marks["object B"] += things[0].object == object_b
                marks["colour A"] += things[0].colour == colour_a
                marks["colour B"] += things[0].colour == colour_b
                marks["near A's place"] += place is not None and is_near(things[0].centre, place)
        print(f"  {name}: " + ", ".join(f"{what} {count / len(prompts):.0%}" for what, count in marks.items()))


def is_near(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """At most NEAR pixels apart."""
    return float(np.hypot(one[0] - other[0], one[1] - other[1])) <= NEAR


def differs(a: Demand, b: Demand) -> bool:
    """Neither the colour nor the object is the same."""
    return a.items[0][0] != b.items[0][0] and a.items[0][1] != b.items[0][1]


def seen_in(events: list[PictureEvent]) -> Sequence[Sequence[Detection]]:
    """What the checker sees in every picture."""
    return load_checker().detect(np.stack([event.picture for event in events]))


def pixels_of(events: list[PictureEvent]) -> NDArray[np.float32]:
    """Pictures from 0 to 255, `[n, H, W, 3]`."""
    return np.stack([event.picture for event in events]).astype(np.float32)


def draw(
    pipeline: Pipeline, prompts: list[str], seed: int, rep_ids: NDArray[np.int64] | None = None
) -> list[PictureEvent]:
    """Prompt i with seed + i."""
    events: list[PictureEvent] = []
    for i in range(0, len(prompts), BATCH):
        given = None if rep_ids is None else rep_ids[i : i + BATCH]
        some = pipeline.generate(prompts[i : i + BATCH], seed=seed + i, rep_ids=given, previews=False)
        events += [event for event in some if isinstance(event, PictureEvent)]
    return events


if __name__ == "__main__":
    main(*sys.argv[1:])
