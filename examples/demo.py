"""The main path in one go: export the committed checkpoint, build its engine, draw, read, report.

    python examples/demo.py [--output demo]

Writes `demo/bundle`, `demo/sheet.png`, `demo/tuned.png`, `demo/steps.png`, `demo/bench.json` and `demo/report.html`, a
page that opens offline: the pictures, as the paper draws and by the tuned plan, what the checker says of them and what
the model itself sees in them; its answers about scenes that it never saw; parity, and latency against eager PyTorch.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines import EngineConfig, build
from rf_export.benchmark.bench import run_bench
from rf_export.benchmark.bench_report import latency
from rf_export.benchmark.tables import describe, footprint_lines, format_bench
from rf_export.benchmark.task import BenchOptions
from rf_export.evaluation.metric import SceneScore, Verdict, score_pictures
from rf_export.evaluation.understanding import SCENE_SEED, Asked, everything_to_ask
from rf_export.export import ExportOptions, export
from rf_export.training.scenes import Demand, SceneConfig, make_scene
from runtime.backends.host.machine import usable_cpus
from runtime.bundle.manifest import Manifest
from runtime.bundle.plan import describe_plan
from runtime.events import AnswerEvent, PictureEvent, StepEvent, to_picture
from runtime.options import GenerationOptions
from runtime.pictures.png import save_png
from runtime.pictures.sheet import contact_sheet
from runtime.pipeline import Pipeline
from runtime.understanding.caption_match import CaptionMatch, agreement
from verification.pages.page import Picture, render

CHECKPOINT = Path(__file__).parent / "reference" / "checkpoint"
SEED = 7
DEMANDS = (
    Demand(kind="single", items=(("red", "car"),)),
    Demand(kind="single", items=(("blue", "fish"),)),
    Demand(kind="single", items=(("green", "tree"),)),
    Demand(kind="single", items=(("purple", "umbrella"),)),
    Demand(kind="count", items=(("yellow", "star"),) * 2),
    Demand(kind="count", items=(("red", "heart"),) * 3),
    Demand(kind="count", items=(("blue", "balloon"),) * 4),
    Demand(kind="two", items=(("green", "guitar"), ("red", "mushroom"))),
    Demand(kind="two", items=(("yellow", "key"), ("pink", "apple"))),
    Demand(kind="relation", items=(("pink", "cat"), ("blue", "house")), relation="left of"),
    Demand(kind="relation", items=(("green", "cup"), ("purple", "key")), relation="above"),
    Demand(kind="relation", items=(("blue", "bell"), ("pink", "heart")), relation="right of"),
)
NUM_SCENES = 8  # that the model is asked about


@dataclass(frozen=True)
class Drawn:
    """What the drawing stage put out."""

    pictures: list[PictureEvent]
    steps: list[StepEvent]
    seconds: float
    score: SceneScore


@dataclass(frozen=True)
class Read:
    """What the model sees: in its own pictures, and in scenes that nobody trained it on."""

    own: list[CaptionMatch]
    scenes: list[list[tuple[Asked, str]]]  # per scene, what was asked and the answer
    seconds: float

    @property
    def marks(self) -> list[bool]:
        """Whether each answer about a scene is right."""
        return [answer in asked.right for scene in self.scenes for asked, answer in scene]


def main() -> None:
    """Run every stage and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"))
    out: Path = parser.parse_args().output
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    say("1/5 export: trace four graphs in fp32 and fp16, verify them against eager PyTorch (about a minute)")
    manifest = export(CHECKPOINT, out / "bundle", ExportOptions(force=True), progress_line)
    say("2/5 build the ONNX Runtime engines")
    for precision in manifest.precisions:
        build(out / "bundle", EngineConfig(precision=precision))
    say("3/5 draw twelve prompts")
    pipeline = Pipeline.load(out / "bundle", "fp32")
    drawn, tuned = draw(pipeline, out / "sheet.png", "paper"), draw(pipeline, out / "tuned.png", "tuned")
    write_steps(drawn, out)
    for name, each in (("as the paper draws", drawn), ("by the tuned plan", tuned)):
        score = each.score.overall
        say(f"    {name}: {each.seconds:.1f} s, the checker accepts {score.successes} of {score.num}")
    say(f"4/5 read the twelve pictures, and {NUM_SCENES} scenes that were never trained on")
    read = read_pictures(pipeline, drawn.pictures)
    say(f"    {sum(read.marks)} of {len(read.marks)} answers about scenes are right")
    say("5/5 measure against eager PyTorch (torch.compile too: rf-export bench)")
    threads = min(2, usable_cpus())
    options = BenchOptions(threads=(threads,), precisions=("fp32",), num_rounds=8, compile=False, scaling=False)
    bench = run_bench(out / "bundle", CHECKPOINT, options, progress_line)
    (out / "bench.json").write_text(json.dumps(bench, indent=1) + "\n")
    say(format_bench(bench))
    minutes = (time.perf_counter() - started) / 60
    write_report(out, manifest, (drawn, tuned), read, bench, minutes)
    say(f"done in {minutes:.1f} minutes: open {out / 'report.html'}")


def draw(pipeline: Pipeline, sheet_path: Path, plan: Literal["paper", "tuned"]) -> Drawn:
    """Draw all prompts as one batch with the fp32 engine; writes a sheet."""
    started = time.perf_counter()
    options = GenerationOptions(plan=plan)
    events = list(pipeline.generate([demand.caption for demand in DEMANDS], seed=SEED, options=options))
    seconds = time.perf_counter() - started
    pictures = [event for event in events if isinstance(event, PictureEvent)]
    steps = [event for event in events if isinstance(event, StepEvent)]
    sheet = contact_sheet([event.picture for event in pictures], [event.prompt for event in pictures])
    save_png(sheet_path, sheet, {"seed": SEED, "plan": plan, "bundle_id": pipeline.bundle.manifest.bundle_id})
    score = score_pictures(np.stack([event.picture for event in pictures]), DEMANDS)
    return Drawn(pictures, steps, seconds, score)


def write_steps(drawn: Drawn, out: Path) -> None:
    """Write what the first picture looked like on the way; a plain Python without torch draws too."""
    shown = preview_steps(drawn.steps)
    strip = contact_sheet([to_picture(s.x_pred[0]) for s in shown], [f"step {s.step + 1}" for s in shown], columns=8)
    save_png(out / "steps.png", strip, {"seed": SEED})
    torch_free = f"import sys; from runtime import Pipeline; Pipeline.load({str(out / 'bundle')!r}).draw('a red car'); "
    subprocess.run([sys.executable, "-c", torch_free + "assert 'torch' not in sys.modules"], check=True)


def read_pictures(pipeline: Pipeline, drawn: list[PictureEvent]) -> Read:
    """Caption what was drawn, then ask about new scenes; a scene is encoded once for all of its questions."""
    started = time.perf_counter()
    own = [agreement(event.prompt, pipeline.understand(event.picture)) for event in drawn]
    scenes = []
    for index in range(NUM_SCENES):
        scene = make_scene(SCENE_SEED, index, SceneConfig(), held_out=False)
        chat = pipeline.converse()
        chat.show(scene.picture)
        answered = []
        for asked in everything_to_ask(scene, index, SceneConfig()):
            *_, last = chat.ask(asked.question, history="forget")
            assert isinstance(last, AnswerEvent)
            answered.append((asked, last.text))
        scenes.append(answered)
    return Read(own, scenes, time.perf_counter() - started)


def preview_steps(steps: list[StepEvent]) -> list[StepEvent]:
    """Eight steps from the first to the last."""
    return [steps[round(i * (len(steps) - 1) / 7)] for i in range(8)]


COMMANDS = (  # that the report recommends
    'rf-export generate {bundle} "a red car" -o car.png --plan tuned',
    'rf-export understand {bundle} car.png "what colour is the car?"',
    "rf-export eval {bundle} --num-prompts 200",
    "rf-export bench {bundle} --checkpoint examples/reference/checkpoint --threads 1 --threads 2",
)


def write_report(
    out: Path, manifest: Manifest, both: tuple[Drawn, Drawn], read: Read, bench: dict[str, Any], minutes: float
) -> None:
    """Write `report.html`; `both` are the pictures as the paper draws, and by the tuned plan."""
    drawn, tuned = both
    assert manifest.tuned is not None
    text = render(
        Path(__file__).with_suffix(".html"),
        title="rf-export demo",
        subtitle=f"{manifest.model.num_parameters:,} parameters, bundle {manifest.bundle_id}, "
        f"{manifest.model.default_height} px, made in {minutes:.1f} minutes",
        pictures=_drawn_pictures(drawn, read),
        tuned=tuned,
        tuned_plan=describe_plan(manifest.tuned.plan),
        tuned_proof=manifest.tuned.evidence["summary"],
        tuned_pictures=[
            Picture(pixels=event.picture, caption=f"{event.prompt}: {_mark(verdict)}")
            for event, verdict in zip(tuned.pictures, tuned.score.verdicts, strict=True)
        ],
        scenes=[Picture(pixels=scene[0][0].picture, caption=_answers(scene)) for scene in read.scenes],
        previews=[
            Picture(pixels=to_picture(step.x_pred[0]), caption=f"step {step.step + 1}")
            for step in preview_steps(drawn.steps)
        ],
        drawn=drawn,
        read=read,
        seed=SEED,
        num_exact=sum(each.is_exact for each in read.own),
        verified=manifest.verified,
        latency=list(latency(bench)),
        ours=bench["runs"][0]["ours"],
        notes=[*describe(bench), *footprint_lines(bench)],
        commands=[command.format(bundle=shlex.quote(str(out / "bundle"))) for command in COMMANDS],
    )
    (out / "report.html").write_text(text, encoding="utf-8")


def _drawn_pictures(drawn: Drawn, read: Read) -> list[Picture]:
    pictures = []
    for event, verdict, seen in zip(drawn.pictures, drawn.score.verdicts, read.own, strict=True):
        what = "seen as the same" if seen.is_exact else f"seen as “{seen.caption}”"
        pictures.append(Picture(pixels=event.picture, caption=f"{event.prompt}: {_mark(verdict)}; {what}"))
    return pictures


def _mark(verdict: Verdict) -> str:
    return "right" if verdict.correct else "wrong"


def _answers(scene: list[tuple[Asked, str]]) -> str:
    """What was asked about a scene and answered, a line each."""
    lines = []
    for asked, answer in scene:
        question = asked.question.replace(" ?", "?") or "caption:"
        wrong = "" if answer in asked.right else f" (wrong: {min(asked.right)})"
        lines.append(f"{question} {answer}{wrong}")
    return "\n".join(lines)


def progress_line(what: str, done: int, total: int) -> None:
    """One line per stage on stderr."""
    print(f"    [{done}/{total}] {what}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A heading on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
