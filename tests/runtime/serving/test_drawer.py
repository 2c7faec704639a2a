"""The drawer draws what a pipeline draws, tells as much as is asked for, and stops when nobody waits."""

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from runtime import GenerationOptions, PictureEvent, Pipeline, RFError
from runtime.bundle.folder import open_bundle
from runtime.bundle.manifest import TunedPlan
from runtime.bundle.plan import record_plan
from runtime.commands.token_edits import choose_tokens, parse_edit
from runtime.pictures.png import encode_png
from runtime.pictures.token_file import RepGrid, grid_in
from runtime.serving.drawer import Drawer
from runtime.serving.http.schemas import ImageBody
from runtime.serving.metrics import Metrics
from runtime.serving.orders import Accepted, Answer, Drawing, Picture, Preview, Progress, Question, Word, preview_steps

Result = TypeVar("Result")
CAR = Drawing(prompt="a red car", seed=7)


def with_drawer(pipeline: Pipeline, work: Callable[[Drawer], Awaitable[Result]], **limits: Any) -> Result:
    """Run a work in an event loop of its own."""

    async def run() -> Result:
        drawer = Drawer(pipeline, **limits)
        try:
            return await work(drawer)
        finally:
            await drawer.close("cancel")

    return asyncio.run(run())


async def all_of(events: AsyncGenerator[Any, None]) -> list[Any]:
    async with aclosing(events) as items:
        return [item async for item in items]


async def picture_of(drawer: Drawer, drawing: Drawing) -> Picture:
    return (await all_of(drawer.draw(drawing)))[-1]


def pixels(png: bytes) -> np.ndarray:
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(png)) as image:
        return np.asarray(image).astype(int)


def alone(pipeline: Pipeline, prompt: str, seed: int, **options: Any) -> PictureEvent:
    *_, last = pipeline.generate([prompt], seed=seed, options=GenerationOptions(**options))
    assert isinstance(last, PictureEvent)
    return last


def test_the_picture_is_that_of_the_pipeline_and_keeps_how_it_was_made(pipeline: Pipeline) -> None:
    drawn = with_drawer(pipeline, lambda drawer: picture_of(drawer, CAR))
    native = alone(pipeline, "a red car", 7)
    assert (pixels(drawn.png) == native.picture).all()
    grid = grid_in(drawn.png, "it")
    assert grid is not None
    assert grid.rep_ids.ravel().tolist() == native.rep_ids.tolist()
    assert grid.to_dict() == drawn.tokens
    assert (drawn.prompt, drawn.seed, drawn.width, drawn.height) == ("a red car", 7, 24, 16)


def test_everybody_gets_the_picture_that_is_drawn_alone(pipeline: Pipeline) -> None:
    prompts = ["a red car", "two blue fish", "a cup", "a yellow tree and a red car"] * 3

    async def together(drawer: Drawer) -> list[Picture]:
        return await asyncio.gather(
            *(picture_of(drawer, Drawing(prompt=prompt, seed=seed)) for seed, prompt in enumerate(prompts))
        )

    for seed, drawn in enumerate(with_drawer(pipeline, together, max_batch=4, num_workers=2)):
        native = alone(pipeline, prompts[seed], seed)
        assert drawn.tokens["rep_ids"] == native.rep_ids.reshape(drawn.tokens["rows"], -1).tolist()
        assert np.abs(pixels(drawn.png) - native.picture).max() <= 1


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 25, 1000])
@pytest.mark.parametrize("num_previews", [1, 2, 3, 24, 25])
def test_previews_are_as_many_as_asked_for_the_first_after_two_steps(num_previews: int, num_steps: int) -> None:
    steps = preview_steps(num_previews, num_steps)
    assert len(steps) == min(num_previews, num_steps)
    assert steps == sorted(set(steps))
    assert 1 <= steps[0] <= 2 and steps[-1] <= num_steps
    assert num_previews >= num_steps or steps[-1] < num_steps, "the last step is the picture itself"


def test_previews_and_progress_come_in_order(pipeline: Pipeline) -> None:
    drawing = Drawing(prompt="a cup", num_previews=3, tells_steps=True, options=GenerationOptions(num_steps=9))
    first, *told, last = with_drawer(pipeline, lambda drawer: all_of(drawer.draw(drawing)))
    assert first == Accepted()
    tokens = [each.rep_id for each in told if isinstance(each, Progress) and each.stage == "tokens"]
    assert tokens == [code for row in last.tokens["rep_ids"] for code in row]
    assert [each.step for each in told if isinstance(each, Progress) and each.stage == "pixels"] == list(range(1, 10))
    previews = [each for each in told if isinstance(each, Preview)]
    assert [each.index for each in previews] == [0, 1, 2]
    assert [each.step for each in previews] == preview_steps(3, 9)
    assert all(pixels(each.png).shape == (16, 24, 3) for each in previews)


def test_a_request_draws_by_the_tuned_plan_or_value_by_value(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")))
    record_plan(open_bundle(bundle), TunedPlan(num_steps=3, shift=2.0, guided=(0.0, 0.7), window=2, evidence={}))
    pipeline = Pipeline.load(bundle, num_threads=1)
    values = {"steps": 3, "shift": 2.0, "guided": [0.0, 0.7], "window": 2}
    native = alone(pipeline, "a red car", 7, plan="tuned").picture
    assert (native != alone(pipeline, "a red car", 7).picture).any()
    for own in ({"plan": "tuned"}, {"plan": "paper", **values}, values):
        (drawing,) = ImageBody(prompt="a red car", seed=7, **own).drawings()  # type: ignore[arg-type]
        drawn = with_drawer(pipeline, partial(picture_of, drawing=drawing))
        assert (pixels(drawn.png) == native).all()


EDITS = [("0,0=5",), ("0:1,:=1,0",), ("0,0=redraw:9",), ("1,1=3", "0,:=redraw", "0,1=redraw:4")]


@pytest.mark.parametrize("edits", EDITS, ids=" ".join)
@pytest.mark.parametrize("has_tokens", [True, False])
def test_edits_give_the_tokens_that_the_command_draws_from(
    pipeline: Pipeline, edits: tuple[str, ...], has_tokens: bool
) -> None:
    base = RepGrid.of(alone(pipeline, "a red car", 7), pipeline.bundle.manifest)
    drawing = Drawing(prompt="a red car", seed=7, tokens=base if has_tokens else None, edits=edits)
    drawn = with_drawer(pipeline, lambda drawer: picture_of(drawer, drawing))
    options = GenerationOptions(height=16, width=24)
    parsed = [parse_edit(edit) for edit in edits]
    chosen = choose_tokens(pipeline, ["a red car"], seed=7, options=options, base=drawing.tokens, edits=parsed)
    assert chosen is not None
    assert [code for row in drawn.tokens["rep_ids"] for code in row] == chosen[0].tolist()
    *_, native = pipeline.generate(["a red car"], seed=7, options=options, rep_ids=chosen)
    assert (pixels(drawn.png) == native.picture).all()


def test_it_tells_its_plans(pipeline: Pipeline, tiny_bundle: Path, tmp_path: Path) -> None:
    assert with_drawer(pipeline, Drawer.info)["plans"] == {"paper": {"steps": 25, "guidance": 3.0}}
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    record_plan(open_bundle(bundle), TunedPlan(num_steps=3, pix_guidance_scale=1.0))
    tuned = with_drawer(Pipeline.load(bundle, num_threads=1, engine="none"), Drawer.info)["plans"]["tuned"]
    assert tuned == {"steps": 3, "guidance": 1.0}


def refusal(pipeline: Pipeline, drawing: Drawing, **limits: Any) -> RFError:
    with pytest.raises(RFError) as refused:
        with_drawer(pipeline, lambda drawer: picture_of(drawer, drawing), **limits)
    return refused.value


def test_edits_read_no_file_of_the_server(pipeline: Pipeline, tmp_path: Path) -> None:
    for source in (tmp_path / "secret.png", "/etc/passwd", "/etc/passwd@0,0", "nothing"):
        error = refusal(pipeline, Drawing(prompt="a cup", edits=(f"0,0={source}",)))
        assert "a server reads no files" in str(error) and error.kind == "input"


@pytest.mark.parametrize(
    ("drawing", "told"),
    [
        (Drawing(prompt="a cup", edits=("9,9=1",)), "not inside"),
        (Drawing(prompt="a cup", edits=("0,0=99999",)), "does not exist"),
        (Drawing(prompt="a cup", edits=("0,0=:,:",)), "copies"),
        (Drawing(prompt="a cup", edits=("0,0",)), "not understood"),
        (Drawing(prompt="a cup", edits=("0,0=1",) * 65), "64 edits"),
        (Drawing(prompt="an elephant"), "elephant"),
        (Drawing(prompt="a cup", options=GenerationOptions(num_steps=251)), "250 steps"),
        (Drawing(prompt="a cup", options=GenerationOptions(height=17)), "17"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_drawn_is_refused_before_it_has_a_place(pipeline: Pipeline, drawing: Drawing, told: str) -> None:
    async def ask(drawer: Drawer) -> float:
        with pytest.raises(RFError, match=told):
            await picture_of(drawer, drawing)
        return drawer.metrics.registry.get_sample_value("rf_refused_total", {"kind": "input"}) or 0

    assert with_drawer(pipeline, ask) == 1


def test_tokens_of_another_model_or_size_are_refused(pipeline: Pipeline) -> None:
    event = alone(pipeline, "a red car", 7)
    own = RepGrid.of(event, pipeline.bundle.manifest)
    foreign = RepGrid(**{**vars(own), "checkpoint": "0" * 64})
    assert "another model" in str(refusal(pipeline, Drawing(prompt="a cup", tokens=foreign)))
    larger = Drawing(prompt="a cup", tokens=own, options=GenerationOptions(height=32, width=32))
    assert "Leave out size" in str(refusal(pipeline, larger))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Denoising steps take 5 ms longer: nothing ends while a test looks at it, however fast the machine."""
    from runtime.scheduling.batches import PixelBatch

    step = PixelBatch.step
    monkeypatch.setattr(PixelBatch, "step", lambda batch: time.sleep(0.005) or step(batch))


def num_steps_made(drawer: Drawer) -> float:
    return sum(
        drawer.metrics.registry.get_sample_value("rf_step_seconds_count", {"stage": stage}) or 0
        for stage in ("tokens", "pixels")
    )


@pytest.mark.parametrize("stage", ["tokens", "pixels"])
@pytest.mark.usefixtures("slow")
def test_who_leaves_stops_the_drawing_within_two_steps(pipeline: Pipeline, stage: str) -> None:
    drawing = Drawing(prompt="a cup", tells_steps=True, options=GenerationOptions(num_steps=250))

    async def leave(drawer: Drawer) -> tuple[float, float]:
        async with aclosing(drawer.draw(drawing)) as events:
            async for event in events:
                if isinstance(event, Progress) and event.stage == stage:
                    break
        left = num_steps_made(drawer)
        await asyncio.sleep(0.5)
        assert drawer.metrics.registry.get_sample_value("rf_cancelled_total", {"work": "picture"}) == 1
        assert drawer._count("tokens") + drawer._count("pixels") == 0
        return left, num_steps_made(drawer)

    left, later = with_drawer(pipeline, leave, num_workers=1)
    assert later - left <= 2


@pytest.mark.usefixtures("slow")
def test_a_cancelled_task_leaves_nothing_behind_also_while_it_redraws_tokens(pipeline: Pipeline) -> None:
    async def cancel(drawer: Drawer) -> None:
        for delay in (0, 0.001, 0.003, 0.01):
            edits = ("0,0=redraw",) * 20
            task = asyncio.create_task(picture_of(drawer, Drawing(prompt="a cup", edits=edits)))
            await asyncio.sleep(delay)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not drawer._drawings
        assert (await picture_of(drawer, CAR)).seed == 7

    with_drawer(pipeline, cancel)


@pytest.mark.usefixtures("slow")
def test_a_full_queue_is_told_and_is_free_again_when_somebody_leaves(pipeline: Pipeline) -> None:
    slow = Drawing(prompt="a cup", options=GenerationOptions(num_steps=250))

    async def fill(drawer: Drawer) -> None:
        running: list[AsyncGenerator[Any, None]] = []
        with pytest.raises(RFError) as refused:
            for _ in range(20):
                running.append(drawer.draw(slow))
                await anext(running[-1])
        assert refused.value.kind == "busy"
        assert len(running) <= 1 + 2 + 2 + 1, "two stages, the queue, and the one that was refused"
        assert drawer.retry_after_s >= 1
        for each in running:
            await each.aclose()
        assert (await picture_of(drawer, CAR)).seed == 7

    with_drawer(pipeline, fill, max_batch=1, max_queue=2, num_workers=1)


def test_a_stopping_drawer_finishes_what_it_has_and_takes_no_more(pipeline: Pipeline) -> None:
    async def stop() -> Picture:
        drawer = Drawer(pipeline)
        running = asyncio.create_task(picture_of(drawer, CAR))
        await asyncio.sleep(0.005)
        closing = asyncio.create_task(drawer.close())
        await asyncio.sleep(0)
        assert drawer.state == "stopping"
        with pytest.raises(RFError, match="no more work"):
            await picture_of(drawer, CAR)
        with pytest.raises(RFError, match="no more work"):
            await all_of(drawer.ask(Question(pictures=(b"",))))
        await closing
        return await running

    assert (pixels(asyncio.run(stop()).png) == alone(pipeline, "a red car", 7).picture).all()


def test_questions_are_answered_as_by_the_pipeline(pipeline: Pipeline) -> None:
    picture = alone(pipeline, "a red car", 7).picture
    question = Question(pictures=(encode_png(picture),), text="what colour is the car ?")
    first, *words, answer = with_drawer(pipeline, lambda drawer: all_of(drawer.ask(question)))
    assert first == Accepted()
    assert isinstance(answer, Answer)
    assert answer.text == pipeline.understand(picture, question=question.text)
    assert "".join(word.text for word in words) == answer.text
    num_image_tokens, num_words = 16 * 24 // pipeline.bundle.manifest.model.cell**2, 6
    assert answer.num_prompt_tokens == num_image_tokens + 1 + num_words


def test_a_question_that_was_given_up_stops_and_frees_its_place(pipeline: Pipeline) -> None:
    picture = encode_png(alone(pipeline, "a red car", 7).picture)

    async def leave(drawer: Drawer) -> None:
        for _ in range(3):
            async with aclosing(drawer.ask(Question(pictures=(picture,)))) as events:
                async for event in events:
                    if isinstance(event, Word):
                        break
        assert drawer._num_questions == 0
        assert drawer.metrics.registry.get_sample_value("rf_cancelled_total", {"work": "question"}) == 3
        assert isinstance((await all_of(drawer.ask(Question(pictures=(picture,)))))[-1], Answer)

    with_drawer(pipeline, leave, max_queue=1)


def test_a_bug_in_a_step_is_no_refusal_and_the_next_one_is_drawn(pipeline: Pipeline, monkeypatch) -> None:
    from runtime.scheduling.batches import PixelBatch

    async def fail(drawer: Drawer) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(PixelBatch, "step", lambda self: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                await picture_of(drawer, CAR)
        assert (await picture_of(drawer, CAR)).seed == 7
        assert drawer.state == "ready"

    with_drawer(pipeline, fail)


def test_steps_are_counted_also_where_nobody_looks_for_long() -> None:
    metrics = Metrics()
    for index in range(2500):
        metrics.on_step("pixels" if index % 2 else "tokens", 3, 0.25)
        assert len(metrics.steps.waiting) <= 1001
    for stage in ("tokens", "pixels"):
        told = [
            metrics.registry.get_sample_value(name, {"stage": stage})
            for name in ("rf_step_seconds_count", "rf_step_seconds_sum", "rf_batch_size_sum")
        ]
        assert told == [1250, 312.5, 3750]
