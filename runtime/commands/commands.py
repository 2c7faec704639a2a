"""The commands that run a bundle: generate, understand, inspect, doctor. They ship with the runtime, without torch.

`cli.py` gathers all commands, and turns errors into sentences. Each is a thin layer over a library call, and imports it
when it runs.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runtime.commands.terminal import DIALECT, FOLDER, PRECISION, parse_size, progress, require_writable

if TYPE_CHECKING:
    from runtime.events import AnswerEvent, Event, PictureEvent, StepEvent, WordEvent
    from runtime.pipeline import Pipeline

Command = TypeVar("Command", bound=Callable[..., Any])


def bundle_options(command: Command) -> Command:
    """The options of every command that loads a bundle."""
    for option in (
        click.option("--threads", type=click.IntRange(1), help="CPU threads; the default is the backend's."),
        click.option(
            "--allow-unverified", is_flag=True, help="Also run what failed a verification, or what nobody verified."
        ),
        click.option(
            "--engine", default="auto", show_default=True, help="auto, none (plain ONNX), or an engine folder."
        ),
        click.option("--backend", default="ort", show_default=True, help="ort, ort-cuda, tensorrt or tensorrt-rtx."),
        click.option("--dialect", type=DIALECT, default="classic", show_default=True),
        click.option("--precision", type=PRECISION, default="fp32", show_default=True),
    ):
        command = option(command)
    return command


def load(bundle: Path, options: dict[str, Any]) -> "Pipeline":
    """The bundle as `bundle_options` say."""
    from runtime.pipeline import Pipeline

    engine = options["engine"] if options["engine"] in ("auto", "none") else Path(options["engine"])
    return Pipeline.load(
        bundle,
        options["precision"],
        options["backend"],
        options["threads"],
        engine,
        dialect=options["dialect"],
        allow_unverified=options["allow_unverified"],
    )


@click.command()
@click.argument("bundle", type=FOLDER)
@click.argument("prompts", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    default=Path("picture.png"),
    show_default=True,
    help="PNG file; several prompts make a sheet.",
)
@click.option("--each", type=FOLDER, help="Also write every picture into this folder.")
@click.option("--seed", type=click.IntRange(0), help="Prompt i uses seed + i.  [default: 0, or that of --rep-tokens]")
@click.option(
    "--rep-tokens",
    type=FOLDER,
    metavar="FILE",
    help="Draw from these representation tokens: a PNG file of `generate`, or what `tokens --json` printed.",
)
@click.option(
    "--edit",
    "edits",
    multiple=True,
    metavar="ROWS,COLUMNS=SOURCE",
    help="Change representation tokens before the pixels are drawn; repeat it. SOURCE: a code, ROWS,COLUMNS "
    "to copy from, FILE or FILE@ROWS,COLUMNS, or redraw:SEED. [docs/tokens.md]",
)
@click.option("--steps", "num_steps", type=int, help="Denoising steps.")
@click.option("--rep-guidance", "rep_guidance_scale", type=float, help="Guidance of the representation tokens.")
@click.option("--pix-guidance", "pix_guidance_scale", type=float, help="Guidance of the pixels.")
@click.option("--temperature", type=float, help="Of the representation tokens; 0 is greedy.")
@click.option("--top-k", type=int, help="Draw among the k most likely representation tokens.")
@click.option("--size", metavar="HxW", help="Height and width in pixels, such as 48x48.")
@bundle_options
@click.option("--preview", type=FOLDER, help="Also write a PNG strip of what the picture looked like on the way.")
@click.option(
    "--then-understand", is_flag=True, help="Let the model say what it drew, and compare that with the prompts."
)
@click.option("--json", "as_json", is_flag=True, help="Print parameters, tokens and seconds.")
def generate(
    bundle: Path,
    prompts: tuple[str, ...],
    seed: int | None,
    rep_tokens: Path | None,
    edits: tuple[str, ...],
    then_understand: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw one picture per PROMPT; the parameters are kept in the PNG files.

    \b
    rf-export generate bundle "a red car" -o car.png --seed 7
    rf-export generate bundle "a red car" "two blue fish" -o sheet.png --preview steps.png
    rf-export generate bundle "a red car" --then-understand
    rf-export generate bundle "a red car" --rep-tokens car.png --edit 0:2,0:2=redraw:5 --edit 3,:=2,: -o edited.png
    """
    from runtime.commands.caption_match import agreement, format_agreements
    from runtime.commands.token_edits import choose_tokens, parse_edit
    from runtime.options import GenerationOptions
    from runtime.pictures.token_file import PNG_KEY, RepGrid, read_grid

    names = ("num_steps", "rep_guidance_scale", "pix_guidance_scale", "temperature", "top_k")
    height, width = parse_size(options["size"])
    changes = [parse_edit(text) for text in edits]
    base = None if rep_tokens is None else read_grid(rep_tokens)
    if base is not None:
        height = base.height if height is None else height
        width = base.width if width is None else width
    seed = seed if seed is not None else base.seed if base is not None else 0
    chosen = GenerationOptions(height=height, width=width, **{name: options[name] for name in names})
    require_writable(options["output"], "--output")
    require_writable(options["preview"], "--preview")
    _require_folder(options["each"])
    _require_different(options["output"], options["preview"], *_each_file(options["each"], len(prompts)))
    pipeline = load(bundle, options)
    if then_understand:
        pipeline.converse()  # refuses a model that answers nothing before anything is drawn
    started = time.perf_counter()
    rep_ids = choose_tokens(pipeline, prompts, seed=seed, options=chosen, base=base, edits=changes)
    events = pipeline.generate(prompts, seed=seed, options=chosen, rep_ids=rep_ids)
    pictures, previews = _draw(events, keep_steps=options["preview"] is not None)
    seconds = time.perf_counter() - started
    common = {
        "bundle_id": pipeline.bundle.manifest.bundle_id,
        "precision": options["precision"],
        "dialect": options["dialect"],
        **{name: value for name, value in vars(chosen).items() if value is not None},
        **({"edits": edits} if edits else {}),
    }
    rows = [
        {
            "prompt": picture.prompt,
            "seed": picture.seed,
            **common,
            PNG_KEY: RepGrid.of(picture, pipeline.bundle.manifest).to_dict(),
        }
        for picture in pictures
    ]
    files = _write_pictures(pictures, previews, rows, options)
    agreements = [agreement(p.prompt, pipeline.understand(p.picture)) for p in pictures] if then_understand else []
    if as_json:
        printed: list[dict[str, Any]] = [
            {"prompt": p.prompt, "seed": p.seed, "rep_ids": p.rep_ids.tolist()} for p in pictures
        ]
        for row, each in zip(printed, agreements, strict=False):
            row["understood"] = each.to_dict()
        click.echo(json.dumps({**common, "files": files, "seconds": seconds, "pictures": printed}, indent=1))
    else:
        click.echo("\n".join([*files, *format_agreements(agreements)]))


def _require_folder(path: Path | None) -> None:
    """Refuse a folder for pictures that could not be made, or written into."""
    if path is None:
        return
    there = _nearest_existing(path.absolute())
    if not there.is_dir():
        raise click.BadParameter(f"{there} is a file, or a link that leads nowhere", param_hint="--each")
    if not os.access(there, os.W_OK | os.X_OK):
        raise click.BadParameter(f"nothing can be written into {there}", param_hint="--each")


def _nearest_existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there; a name that is too long raises OSError."""
    while True:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
            return path
        path = path.parent


def _require_different(*outputs: Path | None) -> None:
    """Refuse two outputs of one path, of which the later one would replace the earlier one."""
    seen = set()
    for path in filter(None, outputs):
        real = os.path.realpath(path)
        if real in seen:
            raise click.UsageError(f"{path} is named for two outputs; give each of them a path of its own")
        seen.add(real)


def _each_file(folder: Path | None, num_pictures: int) -> list[Path]:
    """The files of --each."""
    return [] if folder is None else [folder / f"{i:03}.png" for i in range(num_pictures)]


def _draw(events: "Iterator[Event]", *, keep_steps: bool) -> "tuple[list[PictureEvent], list[StepEvent]]":
    """Run a drawing to its end under a progress bar; of its steps the ones of a preview are kept, if any."""
    from runtime.events import PictureEvent, StepEvent

    pictures: list[PictureEvent] = []
    previews: list[StepEvent] = []
    with progress("tokens") as report:
        for event in events:
            if isinstance(event, PictureEvent):
                pictures.append(event)
            else:
                denoising = isinstance(event, StepEvent)
                report("denoising" if denoising else "tokens", event.step + 1, event.num_steps)
                if isinstance(event, StepEvent) and keep_steps and _is_shown(event.step, event.num_steps):
                    previews.append(event)
    return pictures, previews


def _is_shown(step: int, num_steps: int) -> bool:
    """Whether a preview shows a step: the last one, and the first ones of the first seven eighths."""
    eighth, before, last = (i * 8 // num_steps for i in (step, step - 1, num_steps - 1))
    return step == num_steps - 1 or eighth not in (before, last)


def _write_pictures(
    pictures: "Sequence[PictureEvent]",
    previews: "Sequence[StepEvent]",
    rows: list[dict[str, Any]],
    options: dict[str, Any],
) -> list[str]:
    from runtime.commands.sheet import contact_sheet
    from runtime.events import to_picture
    from runtime.pictures.png import save_png

    out: Path = options["output"]
    if len(pictures) == 1:
        save_png(out, pictures[0].picture, rows[0])
    else:
        sheet = contact_sheet([p.picture for p in pictures], [p.prompt for p in pictures])
        save_png(out, sheet, {"pictures": rows})
    files = [str(out)]
    if options["each"] is not None:
        options["each"].mkdir(parents=True, exist_ok=True)
        paths = _each_file(options["each"], len(pictures))
        for path, picture, row in zip(paths, pictures, rows, strict=True):
            save_png(path, picture.picture, row)
            files.append(str(path))
    if options["preview"] is not None:
        strip = [
            (to_picture(step.x_pred[i]), f"step {step.step + 1}") for i in range(len(pictures)) for step in previews
        ]
        sheet = contact_sheet([s[0] for s in strip], [s[1] for s in strip], columns=len(previews))
        save_png(options["preview"], sheet, {"pictures": rows})
        files.append(str(options["preview"]))
    return files


@click.command()
@click.argument("bundle", type=FOLDER)
@click.argument("inputs", nargs=-1, required=True, metavar="IMAGE... [QUESTION]")
@click.option("-q", "--question", help="Where it could be taken for a file, such as a single word.")
@click.option("--each", is_flag=True, help="Answer once per image, not once for all of them together.")
@click.option("--max-tokens", type=int, help="Of an answer; the default is the bundle's.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, help="Draw among the k most likely tokens.")
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Draw among the fewest tokens that together have this probability.",
)
@click.option(
    "--repetition-penalty",
    type=float,
    default=1.0,
    show_default=True,
    help="Above 1, what was said becomes less likely.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Answer i uses seed + i.")
@click.option("--size", metavar="HxW", help="Height and width that images are fitted into, such as 48x48.")
@bundle_options
@click.option("--json", "as_json", is_flag=True, help="Print answers, token ids and times.")
def understand(
    bundle: Path,
    inputs: tuple[str, ...],
    question: str | None,
    each: bool,
    seed: int,
    size: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer a QUESTION about IMAGEs, or caption them; the answer is written as it comes.

    \b
    rf-export understand bundle photo.jpg
    rf-export understand bundle photo.jpg "how many fish?"
    rf-export understand bundle *.png --each --json
    """
    from runtime.options import AnswerOptions

    images, question = _split_question(inputs, question)
    height, width = parse_size(size)
    names = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty")
    chosen = AnswerOptions(**{name: options[name] for name in names})
    pipeline = load(bundle, options)
    rows = []
    for number, group in enumerate([[image] for image in images] if each else [images]):
        started = time.perf_counter()
        conversation = pipeline.converse()
        conversation.show(*group, height=height, width=width)
        if each and not as_json:
            click.echo(f"{group[0]}: ", nl=False)
        events = conversation.ask(question, seed=seed + number, options=chosen)
        rows.append({"images": group, **_tell(events, started, quiet=as_json)})
    if as_json:
        common = {
            "bundle_id": pipeline.bundle.manifest.bundle_id,
            "precision": options["precision"],
            "dialect": options["dialect"],
            **vars(chosen),
        }
        click.echo(json.dumps({**common, "answers": rows}, indent=1))


def _split_question(inputs: tuple[str, ...], question: str | None) -> tuple[list[str], str]:
    """Images and question; without --question, a last argument that is no file and looks like words is the question."""
    images = list(inputs)
    if question is None:
        last = inputs[-1]
        is_file = False
        with contextlib.suppress(OSError):  # a question may be longer than a name of a file
            is_file = Path(last).exists()
        is_question = not is_file and (" " in last.strip() or last.endswith("?") or not last.strip())
        question = images.pop() if is_question else ""
    if not images:
        raise click.UsageError("give at least one IMAGE before the question")
    return images, question


def _tell(events: "Iterator[WordEvent | AnswerEvent]", started: float, *, quiet: bool) -> dict[str, Any]:
    """Write an answer while it comes; returns what --json says of it."""
    from runtime.events import AnswerEvent

    times: list[float] = []
    answer: AnswerEvent | None = None
    for event in events:
        if isinstance(event, AnswerEvent):
            answer = event
        else:
            times.append(time.perf_counter() - started)
            if not quiet:
                click.echo(event.text, nl=False)
    if not quiet:
        click.echo()
    assert answer is not None
    return {
        "question": answer.question,
        "answer": answer.text,
        "token_ids": answer.token_ids,
        "seed": answer.seed,
        "ended_by": answer.ended_by,
        "seconds_to_first_token": times[0],
        "seconds": times[-1],
    }


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option("--verify", is_flag=True, help="Hash every file, whatever its size.")
@click.option("--memory", is_flag=True, help="Instead, what a drawing needs, and how many fit on which board.")
@click.option("--size", metavar="HxW", help="With --memory: height and width of the picture, such as 48x48.")
@click.option(
    "--batch",
    "num_requests",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="With --memory: pictures drawn together.",
)
@click.option("--prompt-tokens", type=click.IntRange(1), default=32, show_default=True, help="With --memory.")
@click.option("--json", "as_json", is_flag=True)
def inspect(
    bundle: Path, verify: bool, memory: bool, size: str | None, num_requests: int, prompt_tokens: int, as_json: bool
) -> None:
    """Show what a bundle holds: signatures, sizes, memory, engines, and what verified it.

    \b
    rf-export inspect bundle --verify
    rf-export inspect bundle --memory --batch 4
    """
    from runtime.commands.inspection import describe_bundle, describe_memory, format_description
    from runtime.commands.memory_plan import Workload, format_fits

    height, width = parse_size(size)
    if size is not None and not memory:
        raise click.UsageError("--size needs --memory")
    if memory:
        work = Workload(num_requests=num_requests, height=height, width=width, prompt_tokens=prompt_tokens)
        rows = describe_memory(bundle, work)
        click.echo(json.dumps([row.to_dict() for row in rows], indent=1) if as_json else format_fits(rows))
        return
    description = describe_bundle(bundle, verify="hash" if verify else "auto")
    click.echo(json.dumps(description, indent=1) if as_json else format_description(description))


@click.command()
@click.option("--json", "as_json", is_flag=True)
def doctor(as_json: bool) -> None:
    """Tell what this machine can export, build and run, and what is missing.

    \b
    rf-export doctor
    """
    from runtime.commands.doctor import examine, format_report

    facts = examine()
    click.echo(json.dumps(facts, indent=1) if as_json else format_report(facts))
