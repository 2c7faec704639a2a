"""The command `generate`: pictures for prompts, drawn in batches that fit into the memory."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.commands import parameters as arg
from runtime.commands.outputs import Outputs
from runtime.commands.provenance import common_parameters, parameters_of
from runtime.commands.terminal import progress
from runtime.options import MAX_GUIDANCE, MAX_SHIFT, MAX_STEPS, MAX_TEMPERATURE, MAX_WINDOW

if TYPE_CHECKING:
    from runtime.commands.outputs import Frame
    from runtime.events import PictureEvent, StepEvent
    from runtime.options import GenerationOptions
    from runtime.pictures.token_file import RepGrid
    from runtime.pipeline import Pipeline
    from runtime.request import Request
    from runtime.understanding.caption_match import CaptionMatch

BATCH: Final = 8  # prompts; more draw no faster on a CPU (reference model: 0.31 s a picture in 4 and 8, 0.34 in 16)
PLANS: Final = "the plan's"
SHIFT = arg.number(0, MAX_SHIFT, min_open=True)
GUIDANCE, TEMPERATURE = arg.number(-MAX_GUIDANCE, MAX_GUIDANCE), arg.number(0, MAX_TEMPERATURE)
EDIT_HELP: Final = (
    "Change of representation tokens before the pixels are drawn. SOURCE: a code, ROWS,COLUMNS to copy from, FILE or "
    "FILE@ROWS,COLUMNS, or redraw:SEED; see docs/tokens.md."
)


@arg.command()
@arg.BUNDLE
@click.argument("prompts", nargs=-1)
@arg.option("--prompts prompts_file", "Text file of more prompts, one per line; # begins a comment.", arg.OLD_FILE)
@arg.option(
    "-o --output",
    "PNG file of the picture; several prompts make a sheet. With - it goes to stdout, and results to stderr.",
    *(arg.PNG_OR_STDOUT, "picture.png"),
)
@arg.option("--each", "Folder into which every picture is written as well.", arg.PATH)
@arg.option("--preview", "PNG file of a strip: what the pictures looked like on the way.", arg.PNG)
@arg.option("--seed", "Seed of the first prompt; prompt i uses seed + i.", arg.SEED, shown="0, or that of --rep-tokens")
@arg.option("--rep-tokens", "Picture of `generate`, or output of `tokens --json`, whose tokens are drawn.", arg.FILE)
@arg.many("--edit edits", EDIT_HELP, metavar="ROWS,COLUMNS=SOURCE")
@arg.plan_option("Plan of the work, where no option beside it says otherwise")
@arg.option("--steps num_steps", "Denoising steps.", click.IntRange(1, MAX_STEPS), shown=PLANS)
@arg.option("--shift", "Shift of the steps towards noise; 1 is even.", SHIFT, shown=PLANS)
@arg.option(
    "--times", "Times between which the steps go, such as 0,0.2,0.5,1, in place of both.", arg.TIMES, shown=PLANS
)
@arg.option("--guided", "Times between which pixels are guided, such as 0:0.7.", arg.INTERVAL, shown=PLANS)
@arg.option("--rep-guidance rep_guidance_scale", "Guidance of representation tokens.", GUIDANCE, shown=PLANS)
@arg.option("--pix-guidance pix_guidance_scale", "Guidance of the pixels.", GUIDANCE, shown=PLANS)
@arg.option(
    "--window",
    "Representation tokens of a pass; they are the same with any, 1 is one by one.",
    click.IntRange(1, MAX_WINDOW),
    shown="the plan's, or the engine's",
)
@arg.option("--temperature", "Temperature of representation tokens; 0 is greedy.", TEMPERATURE, shown=arg.BUNDLES)
@arg.option("--top-k", "Number of likeliest tokens among which each is drawn.", arg.COUNT, shown=arg.BUNDLES)
@arg.option("--size", "Height and width in pixels.", arg.SIZE, shown="the model's, or that of --rep-tokens")
@arg.option(
    "--batch-size", "Prompts drawn together, at most.", arg.COUNT, shown=f"{BATCH}, or what memory and engine hold"
)
@arg.bundle_options
@arg.flag("--then-understand", "Let the model say what it drew, and compare that with the prompts.")
@arg.flag("--json as_json", "Print parameters, tokens and seconds as JSON.")
def generate(
    bundle: Path,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    rep_tokens: Path | None,
    edits: tuple[str, ...],
    seed: int | None,
    batch_size: int | None,
    then_understand: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw one picture per PROMPT; the parameters are kept in the PNG files.

    \b
    rf-export generate bundle "a red car" -o car.png --seed 7
    rf-export generate bundle "a red car" "two blue fish" -o sheet.png --preview steps.png
    rf-export generate bundle --prompts prompts.txt --each pictures --plan tuned
    rf-export generate bundle "a red car" --then-understand
    rf-export generate bundle "a red car" --rep-tokens car.png --edit 0:2,0:2=redraw:5 --edit 3,:=2,: -o edited.png
    """
    from runtime.commands.token_edits import choose_tokens, parse_edit, require_fit
    from runtime.pictures.token_file import read_grid
    from runtime.plans import plan_drawing
    from runtime.understanding.caption_match import agreement, format_agreements

    prompts = _all_prompts(prompts, prompts_file)
    outputs = Outputs(**{name: options[name] for name in ("output", "each", "preview")})
    with arg.usage_errors():
        changes = [parse_edit(text) for text in edits]
    base = None if rep_tokens is None else read_grid(rep_tokens)
    seed = seed if seed is not None else base.seed if base is not None else 0
    chosen, named = _chosen(options, base), options["plan"]
    outputs.require(len(prompts))
    chosen = dataclasses.replace(chosen, plan=arg.open_plan(named, bundle))
    pipeline = arg.load(bundle, options)
    _note_blank(prompts)
    with arg.usage_errors():
        plan = plan_drawing(chosen, pipeline.bundle.manifest, pipeline.model.window)
        require_fit(changes, plan.grid, pipeline.bundle.manifest)
    if then_understand:
        pipeline.converse()  # refuses a model that answers nothing before anything is drawn
    batch_size = batch_size or fitting_batch(pipeline, pipeline.check(prompts, seed=seed, options=chosen))
    started = time.perf_counter()
    rep_ids = choose_tokens(
        pipeline, prompts, seed=seed, options=chosen, base=base, edits=changes, batch_size=batch_size
    )
    requests = pipeline.check(prompts, seed=seed, options=chosen, rep_ids=rep_ids)
    pictures, strips = draw(pipeline, requests, batch_size, keep_steps=outputs.preview is not None)
    seconds = time.perf_counter() - started
    common = common_parameters(pipeline, chosen, edits, str(named))
    files = outputs.write(pictures, strips, [parameters_of(each, common, pipeline) for each in pictures])
    agreements = [agreement(p.prompt, pipeline.understand(p.picture)) for p in pictures] if then_understand else []
    facts = {**common, "files": files, "seconds": seconds}
    text = _json(facts, pictures, agreements) if as_json else "\n".join([*files, *format_agreements(agreements)])
    click.echo(text, err=outputs.output == arg.STDOUT)


def _json(facts: dict[str, Any], pictures: "Sequence[PictureEvent]", agreements: "Sequence[CaptionMatch]") -> str:
    printed: list[dict[str, Any]] = [
        {"prompt": p.prompt, "seed": p.seed, "rep_ids": p.rep_ids.tolist()} for p in pictures
    ]
    for row, each in zip(printed, agreements, strict=False):  # there are none without --then-understand
        row["understood"] = each.to_dict()
    return json.dumps({**facts, "pictures": printed}, indent=1)


def _all_prompts(prompts: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    from runtime.text.prompts import read_prompts

    prompts += () if file is None else tuple(read_prompts(file))
    if not prompts:
        raise click.UsageError("there is nothing to draw; give a PROMPT, or a file that holds some with --prompts")
    return prompts


def _note_blank(prompts: tuple[str, ...]) -> None:
    """Say that a blank prompt asks for nothing: a variable of a script may be empty unawares."""
    blank = [str(number) for number, prompt in enumerate(prompts, 1) if not prompt.strip()]
    if blank:
        which = "the prompt is" if len(prompts) == 1 else f"prompt {', '.join(blank)} of {len(prompts)} is"
        click.echo(f"note: {which} blank, so the model draws whatever it likes; give words to say what", err=True)


def _chosen(options: Mapping[str, Any], base: "RepGrid | None") -> "GenerationOptions":
    """How to draw; given tokens are of a size of their own."""
    from runtime.options import GenerationOptions, Plan

    height, width = options["size"] or ((None, None) if base is None else (base.height, base.width))
    if options["times"] is not None and (options["num_steps"] is not None or options["shift"] is not None):
        raise click.UsageError("--times says all of the steps; leave out --steps and --shift beside it")
    names = [each.name for each in dataclasses.fields(Plan)] + ["temperature", "top_k"]
    with arg.usage_errors():
        return GenerationOptions(height=height, width=width, **{name: options[name] for name in names})


def fitting_batch(pipeline: "Pipeline", requests: "Sequence[Request]") -> int:
    """How many pictures to draw together: what makes it faster, if the engine and half of the memory hold it."""
    from runtime.backends.host.machine import usable_memory
    from runtime.commands.memory_plan import Workload, largest_batch
    from runtime.errors import RFError

    plan, longest = requests[0].plan, max(len(request.ids) for request in requests)
    build = {} if pipeline.engine is None else pipeline.engine.record.build
    most = str(build.get("dims", {}).get("batch", "")).rpartition(":")[2]  # such as 1:1:4, of TensorRT
    is_bounded = most.isdecimal()
    work = Workload(height=plan.height, width=plan.width, prompt_tokens=longest, on_cpu=not is_bounded)
    memory, fitting = usable_memory(), BATCH
    with contextlib.suppress(RFError):  # an old bundle does not tell how much a picture takes
        if memory is not None:
            model = pipeline.bundle.manifest.model
            fitting = largest_batch(model, pipeline.precision, 0, work, memory.available // 2)
    return max(1, min(BATCH, fitting, int(most) if is_bounded else BATCH))


def draw(
    pipeline: "Pipeline", requests: "Sequence[Request]", batch_size: int, *, keep_steps: bool
) -> "tuple[list[PictureEvent], list[list[Frame]]]":
    """Draw batch by batch, and show how far it is; returns the pictures, and of each the steps of a preview, if any."""
    from runtime.events import PictureEvent, StepEvent

    pictures: list[PictureEvent] = []
    strips: list[list[Frame]] = []
    with progress("tokens") as report:
        for start in range(0, len(requests), batch_size):
            batch = requests[start : start + batch_size]
            which = "" if len(batch) == len(requests) else f" of pictures {start + 1} to {start + len(batch)}"
            shown: list[StepEvent] = []
            for event in pipeline.run(batch):
                if isinstance(event, PictureEvent):
                    pictures.append(event)
                    continue
                denoising = isinstance(event, StepEvent)
                report(f"{'denoising' if denoising else 'tokens'}{which}", event.step + 1, event.num_steps)
                if isinstance(event, StepEvent) and keep_steps and is_shown(event.step, event.num_steps):
                    shown.append(event)
            strips += [_strip(shown, index) for index in range(len(batch))]
    return pictures, strips


def is_shown(step: int, num_steps: int) -> bool:
    """Whether a preview shows a step: the last one, and the first ones of the first seven eighths."""
    eighth, before, last = (i * 8 // num_steps for i in (step, step - 1, num_steps - 1))
    return step == num_steps - 1 or eighth not in (before, last)


def _strip(steps: "Sequence[StepEvent]", index: int) -> "list[Frame]":
    """The estimates of a picture of a batch."""
    from runtime.events import to_picture

    return [(to_picture(step.x_pred[index]), f"step {step.step + 1}") for step in steps]
