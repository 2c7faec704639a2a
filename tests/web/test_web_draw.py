"""The browser host draws what the Python runtime draws: the same tokens, and pictures within 1 of 255; INT8 as good."""

from itertools import cycle, islice

import numpy as np
import pytest
from browsing import array, in_javascript
from chromium import require_browser

from runtime import GenerationOptions, Pipeline
from runtime.commands.token_edits import choose_tokens, parse_edit
from runtime.events import StepEvent, TokenEvent, to_picture
from runtime.options import Plan

require_browser()

SEEDS = (0, 7, 2**32, 2**53 + 1, 2**64 - 1)
PROMPTS = ("a red car", "", "Two blue FISH", "three green cats and a house")
SIZES = ({}, {"height": 8, "width": 32}, {"height": 32, "width": 32})
PLANS = (
    {"num_steps": 2},
    {"num_steps": 3, "shift": 2.5, "guided": (0.0, 0.5)},
    {"times": (0.0, 0.3, 1.0), "pix_guidance_scale": 1.0},
    {"num_steps": 1, "rep_guidance_scale": 1.0, "guided": (0.2, 0.9)},
    {"plan": "paper", "num_steps": 2, "rep_guidance_scale": 2.5},
)
TOKENS = ({}, {"temperature": 0.0}, {"temperature": 2.5, "top_k": 3}, {"temperature": 0.7})
WINDOWS = ({}, {"window": 3}, {"window": 2}, {"window": 7})
# Logarithms, sines and cosines of a browser may round otherwise than NumPy's, and products of its library otherwise.
MOST_DIFFERENT_BYTES = 0.02  # of fp16; of fp32 a tenth
INT8_PROMPTS = ("a red car", "two blue fish", "a green cat", "three red hearts")
LEAST_EQUAL_TOKENS = 0.75  # of INT8: the weights are random, so many codes are nearly as likely as another
MOST_WORSE_DB = 1.0


def last(pipeline, prompt, seed, options, **more):
    return list(pipeline.generate([prompt], seed=seed, options=options, previews=False, **more))[-1]


def drawings(count):
    """(prompt, seed, options): each size with each plan, and the rest in turn."""
    rest = zip(cycle(PROMPTS), cycle(SEEDS), cycle(TOKENS), cycle(WINDOWS), cycle(SIZES), cycle(PLANS), strict=False)
    for number, (prompt, seed, tokens, window, size, plan) in enumerate(islice(rest, count)):
        window = WINDOWS[(number // 4) % 4]  # else as long as the other cycles
        if "height" in size and size["height"] == 8 and window.get("window", 1) > 5:
            window = {"window": 5}
        yield prompt, seed, size | plan | tokens | window


class Tally:
    """Counts bytes that differ; tokens never may."""

    def __init__(self):
        self.drawings = self.values = self.different = 0

    def compare(self, expected, found):
        assert found["repIds"] == expected.rep_ids.tolist()
        assert int(found["seed"]) == expected.seed
        rgba = array(found["rgba"], np.uint8).reshape(*expected.picture.shape[:2], 4)
        assert (rgba[..., 3] == 255).all()
        away = np.abs(rgba[..., :3].astype(int) - expected.picture)
        assert away.max() <= 1
        pixels = array(found["pixels"], np.float32).reshape(expected.pixels.shape)
        assert np.array_equal(to_picture(pixels), rgba[..., :3])
        self.drawings += 1
        self.values += away.size
        self.different += int((away > 0).sum())

    def finish(self, most):
        print(f"{self.drawings} drawings, {self.different} of {self.values} bytes differ")
        assert self.different <= most * self.values


def test_draws_what_python_draws(precision, web, python):
    wanted, tally = list(drawings(30)), Tally()
    found = web("draw", precision, [{"prompt": p, "seed": str(s), **in_javascript(o)} for p, s, o in wanted])
    for (prompt, seed, options), picture in zip(wanted, found, strict=True):
        tally.compare(last(python[precision], prompt, seed, GenerationOptions(**options)), picture)
    tally.finish(MOST_DIFFERENT_BYTES if precision == "fp16" else MOST_DIFFERENT_BYTES / 10)


def test_draws_by_a_plan_with_two_threads_in_the_page_itself(tiny, web, python):
    plan = {"num_steps": 2, "guided": (0.0, 0.6), "window": 4}
    web("open", "threads", tiny, {"isHere": True, "open": {"precision": "fp32", "numThreads": 2}})
    web("warmUp", "threads")
    (found,) = web("draw", "threads", [{"prompt": "a red car", "seed": 3, "plan": in_javascript(plan), "window": 2}])
    tally = Tally()
    tally.compare(last(python["fp32"], "a red car", 3, GenerationOptions(plan=Plan(**plan), window=2)), found)
    tally.finish(MOST_DIFFERENT_BYTES)


def test_modern_graphs_draw_the_same(site, web, modern_bundle):
    url = site.add("modern", modern_bundle)
    more = {"dialect": "modern", "allowUnverified": True, "precision": "fp32"}
    web("open", "modern", url, {"open": more})
    python = Pipeline.load(modern_bundle, dialect="modern", num_threads=1, engine="none", allow_unverified=True)
    tally = Tally()
    for window in (1, 3):
        options = {"num_steps": 2, "window": window}
        (found,) = web("draw", "modern", [{"prompt": "a red car", "seed": 2, **in_javascript(options)}])
        tally.compare(last(python, "a red car", 2, GenerationOptions(**options)), found)
    tally.finish(MOST_DIFFERENT_BYTES)


def test_goes_on_with_forced_tokens_and_ids(tiny, web, python):
    options, pipeline, tally = GenerationOptions(num_steps=2, window=4), python["fp32"], Tally()
    free = last(pipeline, "a red car", 3, options)
    some = np.where(np.arange(free.rep_ids.size) % 2, -1, (free.rep_ids + 1) % 40)
    ids = pipeline.model.tokenizer.encode("a red car", 99)
    for forced in (free.rep_ids, some):
        request = {"ids": ids, "seed": 3, "numSteps": 2, "window": 4, "repIds": forced.tolist()}
        tally.compare(last(pipeline, "a red car", 3, options, rep_ids=forced[None]), *web("draw", "fp32", [request]))
    tally.finish(MOST_DIFFERENT_BYTES)


@pytest.mark.parametrize("is_given", [False, True])
def test_edits_come_to_the_tokens_of_generate(is_given, tiny, web, python):
    edits = ["0,:=1,:", "1,0=7", " 1 , 1: = 0,0 ", "0,1:3=redraw:5", "1,2=redraw"]
    options, pipeline = GenerationOptions(num_steps=1), python["fp32"]
    base = last(pipeline, "a red car", 4, options).rep_ids
    given = {"repIds": [(each + 1) % 40 for each in base.tolist()]} if is_given else {}
    request = {"prompt": "a red car", "seed": 4, "numSteps": 1, "edits": edits, **given}
    parsed = [parse_edit(each) for each in edits]
    if is_given:
        # As `generate --rep-tokens` does, whose grid is a file: the tokens that are drawn first are forced.
        from runtime.pictures.token_file import RepGrid

        checkpoint = pipeline.bundle.manifest.checkpoint["sha256"]
        grid = RepGrid(
            checkpoint=checkpoint, height=16, width=24, prompt="", seed=4, rep_ids=np.reshape(given["repIds"], (2, 3))
        )
    wanted = choose_tokens(
        pipeline, ["a red car"], seed=4, options=options, base=grid if is_given else None, edits=parsed
    )
    tally = Tally()
    tally.compare(last(pipeline, "a red car", 4, options, rep_ids=wanted), *web("draw", "fp32", [request]))
    tally.finish(MOST_DIFFERENT_BYTES)


@pytest.mark.parametrize("window", [1, 3])
def test_reports_the_same_events(window, tiny, web, python):
    request = {"prompt": "two fish", "seed": 1, "numSteps": 3, "window": window}
    found = web("events", "fp32", request, {})
    options = GenerationOptions(num_steps=3, window=window)
    *expected, _ = python["fp32"].generate(["two fish"], seed=1, options=options)
    assert len(found) == len(expected)
    for a, b in zip(expected, found, strict=True):
        assert (a.step, a.num_steps) == (b["step"], b["numSteps"])
        if isinstance(a, TokenEvent):
            assert (b["type"], b["repId"]) == ("token", a.rep_ids[0])
            assert np.allclose(a.logits[0], array(b["logits"], np.float32), atol=1e-4)
        elif isinstance(a, StepEvent):
            assert (b["type"], b["t"], b["tNext"]) == ("step", np.float32(a.t), np.float32(a.t_next))
            shown = array(b["rgba"], np.uint8).reshape(16, 24, 4)[..., :3].astype(int)
            assert np.abs(shown - to_picture(a.x_pred[0])).max() <= 1
    few = web("events", "fp32", request, {"previews": 2})
    assert [bool(each.get("rgba")) for each in few if each["type"] == "step"] == [False, True, True]


@pytest.mark.parametrize("by_leaving", [False, True])
def test_cancels_at_every_event_and_draws_the_same_again(by_leaving, tiny, web):
    request, total = {"prompt": "a red car", "numSteps": 2, "window": 2}, 6 + 2
    before = web("draw", "fp32", [request])
    for stop in range(1, total + 1):
        assert web("cancel", "fp32", request, stop, by_leaving) == [stop, None if by_leaving else "AbortError"]
    assert web("draw", "fp32", [request]) == before


def test_drawings_at_the_same_time_do_not_mix(tiny, opened, web):
    requests = [{"prompt": "a red car", "seed": seed, "numSteps": 2, "window": seed + 1} for seed in range(3)]
    alone = web("draw", "fp32", requests)
    together = opened[1].evaluate(
        "all => Promise.all(all.map(async each => (await rf.draw('fp32', [each]))[0]))", requests
    )
    assert together == alone


def test_a_hundred_pictures_leave_no_memory_behind(tiny, opened):
    """Of the graphs and of the script: measured after the first twenty, when all is there that is kept."""
    grown = opened[1].evaluate(
        """async url => {
          const memories = [], Memory = WebAssembly.Memory;
          WebAssembly.Memory = function (...args) { memories.push(new Memory(...args)); return memories.at(-1); };
          const open = { precision: "fp32", ort: "/ort/ort.wasm.min.mjs?again" };
          await rf.open("memory", url, { isHere: true, open });
          WebAssembly.Memory = Memory;
          const taken = async count => {
            const requests = Array.from({ length: count }, (_, seed) => ({ seed, height: 8, width: 8, numSteps: 1 }));
            await rf.draw("memory", requests);
            gc();
            return [memories.reduce((sum, each) => sum + each.buffer.byteLength, 0), performance.memory.usedJSHeapSize];
          };
          const before = await taken(20), after = await taken(80);
          await rf.pipelines.memory.close();
          return [memories.length, after[0] - before[0], after[1] - before[1]];
        }""",
        tiny,
    )
    assert grown[0] == 1
    assert grown[1] == 0
    assert grown[2] < 4 << 20


@pytest.fixture(scope="module")
def both(calibrated_bundle, site, web):
    """The Python runtime's graphs in fp32 and INT8; the browser has INT8 under that name."""
    web("open", "int8", site.add("int8", calibrated_bundle), {"open": {"precision": "int8", "allowUnverified": True}})
    options = {"num_threads": 1, "engine": "none", "allow_unverified": True}
    return {precision: Pipeline.load(calibrated_bundle, precision, **options) for precision in ("fp32", "int8")}


def decibels(one, other):
    return 10 * np.log10(255**2 / np.square(one.astype(float) - other).mean())


def test_int8_is_as_near_to_fp32_as_pythons(both, web):
    options, equal, drawn, ours, theirs = GenerationOptions(num_steps=4), 0, 0, [], []
    for seed, prompt in enumerate(INT8_PROMPTS):
        python = [*both["int8"].generate([prompt], seed=seed, options=options, previews=False)][-1]
        tokens = python.rep_ids[None]
        exact = [*both["fp32"].generate([prompt], seed=seed, options=options, previews=False, rep_ids=tokens)][-1]
        request = {"prompt": prompt, "seed": seed, "numSteps": 4}
        free, forced = web("draw", "int8", [request, {**request, "repIds": python.rep_ids.tolist()}])
        equal += sum(np.array(free["repIds"]) == python.rep_ids)
        drawn += python.rep_ids.size
        rgb = array(forced["rgba"], np.uint8).reshape(*exact.picture.shape[:2], 4)[..., :3]
        ours.append(decibels(rgb, exact.picture))
        theirs.append(decibels(python.picture, exact.picture))
    print(f"{equal} of {drawn} tokens equal; to fp32 {np.mean(ours):.1f} dB, Python {np.mean(theirs):.1f} dB")
    assert equal >= LEAST_EQUAL_TOKENS * drawn
    assert np.mean(ours) > np.mean(theirs) - MOST_WORSE_DB
