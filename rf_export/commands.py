"""The commands of the workshop: train, eval, bench, tokens. All but some uses of `tokens` need the `export` extra.

`cli.py` gathers all commands, and turns errors into sentences. Each is a thin layer over a library call, and imports it
when it runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from runtime.commands.commands import bundle_options, load
from runtime.commands.terminal import FOLDER, PRECISION, parse_size, progress, require_writable, usage_errors

if TYPE_CHECKING:
    from rf_export.training.trainer import RateDecay

OLD_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.argument("run_folder", type=FOLDER)
@click.option("--resume", is_flag=True, help="Continue the run in RUN_FOLDER.")
@click.option("--without-rep", is_flag=True, help="The ablation: no representation tokens.")
@click.option("--steps", "joint_steps", type=click.IntRange(1), default=8000, show_default=True)
@click.option(
    "--describe-steps",
    type=click.IntRange(0),
    help="Steps that train only the image encoder and captions, before the joint objective. "
    "[default: 1250; with --from 0]",
)
@click.option(
    "--from",
    "start",
    type=FOLDER,
    metavar="CHECKPOINT",
    help="Continue from these weights, with new optimiser state: no describe steps, and by default a lower "
    "rate that falls to zero.",
)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="[default: 6e-4; with --from 5e-4]")
@click.option(
    "--decay", "rate_decay", type=click.Choice(["constant", "cosine"]), help="[default: constant; with --from cosine]"
)
@click.option(
    "--questions",
    "questions_per_picture",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Questions asked about every picture, besides its caption.",
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option(
    "--objects",
    "num_objects",
    type=click.IntRange(2, 32),
    default=16,
    show_default=True,
    help="Kinds of objects in the scenes.",
)
@click.option(
    "--style",
    "styles",
    multiple=True,
    default=("fluent-flat", "fluent-3d"),
    show_default=True,
    help="Artwork: fluent-flat, fluent-3d, noto, twemoji; repeat it.",
)
@click.option(
    "--preset",
    default="reference",
    show_default=True,
    help="Shape of the model: tiny, reference, base-90m, qwen3-0.6b, qwen3-1.7b or qwen3-4b.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; the default is PyTorch's.")
@click.option(
    "--compile/--no-compile",
    "compile_",
    default=True,
    show_default=True,
    help="torch.compile: two minutes at the start, steps a quarter faster.",
)
def train(
    run_folder: Path,
    resume: bool,
    without_rep: bool,
    num_objects: int,
    styles: tuple[str, ...],
    preset: str,
    threads: int | None,
    compile_: bool,
    start: Path | None,
    learning_rate: float | None,
    rate_decay: "RateDecay | None",
    describe_steps: int | None,
    **recipe: int,
) -> None:
    """Train a model on captioned emoji scenes; log, samples, curves and checkpoint go to RUN_FOLDER.

    \b
    rf-export train runs/reference --steps 8000 --seed 0
    rf-export train runs/reference --steps 12000 --resume
    rf-export train runs/questions --steps 4000 --from examples/reference/checkpoint
    """
    import torch

    from rf_export.checkpoint import load_config
    from rf_export.config import preset as model_preset
    from rf_export.training.run import run_training
    from rf_export.training.scenes import SceneConfig
    from rf_export.training.trainer import TrainConfig

    if threads is not None:
        torch.set_num_threads(threads)
    with usage_errors():
        scenes = SceneConfig(num_objects=num_objects, styles=styles)
        rate, decay, describe = (6e-4, "constant", 1250) if start is None else (5e-4, "cosine", 0)
        config = TrainConfig(
            scenes=scenes,
            with_rep=not without_rep,
            compile=compile_,
            learning_rate=learning_rate or rate,
            rate_decay=rate_decay or decay,
            describe_steps=describe if describe_steps is None else describe_steps,
            **recipe,
        )
        model_config = model_preset(preset) if start is None else load_config(start)
        checkpoint = run_training(config, model_config, run_folder, resume=resume, start=start)
    click.echo(checkpoint)


@click.command("eval")
@click.argument("model", type=FOLDER)
@click.option("--num-prompts", type=click.IntRange(1), default=200, show_default=True)
@click.option(
    "--understanding",
    is_flag=True,
    help="Instead, ask MODEL about this many scenes of each of four sets, none of them trained on.",
)
@click.option(
    "--against",
    metavar="PRECISION|MODEL",
    help="With --understanding: also compare all answers, token by token, with those of another precision of "
    "the bundle, or of another model, such as its checkpoint.",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 100),
    default=0.0,
    help="With --against: fail unless at least so many percent of the tokens agree for sure.",
)
@click.option(
    "--objects",
    "num_objects",
    type=click.IntRange(2, 32),
    default=16,
    show_default=True,
    help="Objects that MODEL was trained with.",
)
@click.option("--held-out", is_flag=True, help="Prompts with (colour, object) pairs that training never showed.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63), default=0, show_default=True, help="Of drawing: prompt i uses seed + i."
)
@click.option("--precision", type=PRECISION, default="fp32", show_default=True, help="Graphs of a bundle to use.")
@click.option("--without-rep", is_flag=True, help="A checkpoint of the ablation: draw without representation tokens.")
@click.option("--sheet", type=FOLDER, help="Also write a PNG of the first 24 pictures; [x] marks wrong ones.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--json", "as_json", is_flag=True)
def evaluate(
    model: Path,
    as_json: bool,
    threads: int | None,
    understanding: bool,
    against: str | None,
    min_agreement: float,
    **options: Any,
) -> None:
    """Score MODEL, a checkpoint (eager PyTorch) or a bundle (compiled): does each picture show what its prompt demands?

    With --understanding, score its answers: captions, counts, colours, objects and positions, by exact match.

    \b
    rf-export eval examples/reference/checkpoint --num-prompts 200
    rf-export eval bundle --precision fp16 --sheet sheet.png
    rf-export eval examples/reference/checkpoint --understanding --num-prompts 500
    rf-export eval bundle --understanding --precision int8 --against fp32
    """
    if min_agreement and against is None:
        raise click.UsageError("--min-agreement judges a comparison; name what with --against")
    if understanding:
        _evaluate_understanding(
            model, as_json=as_json, threads=threads, against=against, min_agreement=min_agreement, **options
        )
        return
    if against is not None:
        raise click.UsageError("--against compares answers; use it with --understanding")
    from rf_export.evaluation.evaluate import EvaluationOptions, evaluate_model

    require_writable(options["sheet"], "--sheet")
    with progress("drawing") as report:
        result = evaluate_model(model, EvaluationOptions(num_threads=threads, **options), report)
    click.echo(json.dumps(result.to_dict(), indent=1) if as_json else result.table())


def _evaluate_understanding(
    model: Path,
    *,
    as_json: bool,
    threads: int | None,
    num_prompts: int,
    num_objects: int,
    precision: Any,
    against: str | None,
    min_agreement: float,
    **drawing: object,
) -> None:
    from rf_export.evaluation.understanding import evaluate_understanding
    from runtime.errors import RFError

    for name in ("held_out", "without_rep", "sheet"):
        if drawing[name]:
            raise click.UsageError(f"--{name.replace('_', '-')} is about drawing; leave it out with --understanding")
    with progress("answering") as report:
        result = evaluate_understanding(
            model, num_prompts, num_objects, report, precision=precision, num_threads=threads, against=against
        )
    click.echo(json.dumps(result.as_dict(), indent=1) if as_json else result)
    failure = result.total.failure(min_agreement / 100) if result.total is not None else None
    if failure is not None:
        raise RFError(f"{result.answered_by} against {result.against}: {failure}")


@click.command()
@click.argument("bundle", type=FOLDER, required=False)
@click.option("--checkpoint", type=FOLDER, help="The checkpoint that the bundle was exported from.")
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1,), show_default=True, help="Repeatable.")
@click.option(
    "--precision",
    "precisions",
    type=PRECISION,
    multiple=True,
    help="Of our graphs; repeatable, such as fp32 and int8.  [default: all that the bundle has]",
)
@click.option(
    "--rounds",
    "num_rounds",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Turns of every contender per kind of step, at most.",
)
@click.option("--prompt-tokens", "num_prompt_tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("--compile/--no-compile", default=True, show_default=True, help="torch.compile too: minutes more.")
@click.option("--scaling/--no-scaling", default=True, show_default=True, help="Over lengths, batches and threads too.")
@click.option(
    "--repeat",
    "repeats",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Time our graphs again in so many fresh processes; --compare needs three or more of each result.",
)
@click.option(
    "--allow-unverified", is_flag=True, help="Also measure what failed a verification, or what nobody verified."
)
@click.option("--json", "as_json", is_flag=True)
@click.option("--output", type=NEW_FILE, help="Write the JSON there as well, with every sample.")
@click.option("--report", "page", type=NEW_FILE, help="Write a page with plots and tables that opens offline.")
@click.option(
    "--compare",
    "results",
    type=OLD_FILE,
    nargs=2,
    metavar="EARLIER LATER",
    help="Measure nothing: is the later result slower? Exit code 1 where it is, 2 where that cannot be said.",
)
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="Of --compare: CPU time tells more where others use the machine.",
)
@click.option(
    "--min-effect",
    type=click.FloatRange(0, 1),
    default=0.03,
    show_default=True,
    help="Of --compare: a smaller slowdown is none.",
)
@click.option("--despite-differences", is_flag=True, help="Of --compare: also where machines or versions differ.")
def bench(
    bundle: Path | None,
    checkpoint: Path | None,
    as_json: bool,
    output: Path | None,
    page: Path | None,
    results: tuple[Path, Path] | None,
    min_effect: float,
    despite_differences: bool,
    clock: Literal["wall", "cpu"],
    **options: Any,
) -> None:
    """Measure BUNDLE against eager PyTorch and torch.compile, in turns in one run, and against the machine's limits.

    \b
    rf-export bench bundle --checkpoint examples/reference/checkpoint --threads 1 --threads 2
    rf-export bench bundle --checkpoint examples/reference/checkpoint --precision fp32 --precision int8
    rf-export bench bundle --checkpoint examples/reference/checkpoint --repeat 5 --output new.json --report bench.html
    rf-export bench --compare old.json new.json
    """
    if results is not None:
        _compare(*results, min_effect, clock, as_json=as_json, despite_differences=despite_differences)
        return
    if bundle is None or checkpoint is None:
        raise click.UsageError("name a BUNDLE and its --checkpoint, or two results with --compare")
    require_writable(output, "--output")
    require_writable(page, "--report")
    from rf_export.benchmark.bench import run_bench
    from rf_export.benchmark.bench_report import bench_page
    from rf_export.benchmark.tables import format_bench
    from rf_export.benchmark.task import BenchOptions
    from runtime.bundle.atomic import write_text

    with progress("bench") as report:
        result = run_bench(bundle, checkpoint, BenchOptions(**options), report)
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")
    if page is not None:
        write_text(page, bench_page(result))
    click.echo(json.dumps(result, indent=1) if as_json else format_bench(result))


def _compare(
    earlier: Path,
    later: Path,
    min_effect: float,
    clock: Literal["wall", "cpu"],
    *,
    as_json: bool,
    despite_differences: bool,
) -> None:
    from rf_export.benchmark.compare import compare, differences, format_changes, read_result

    results = read_result(earlier), read_result(later)
    found = differences(*results)
    for line in found:
        click.echo(f"differs: {line}", err=True)
    if found and not despite_differences:
        click.echo(
            "No verdict: a difference in time may come from these. To have one all the same: --despite-differences",
            err=True,
        )
        raise SystemExit(2)
    changes = compare(*results, min_effect=min_effect, clock=clock)
    click.echo(
        json.dumps([vars(change) for change in changes], indent=1) if as_json else format_changes(changes, min_effect)
    )
    verdicts = {change.verdict for change in changes}
    if "slower" in verdicts:
        raise SystemExit(1)
    if verdicts == {"unclear"}:
        click.echo(
            "No verdict: processes differ, and each result needs three or more fresh ones. Measure both again "
            "with --repeat 5.",
            err=True,
        )
        raise SystemExit(2)


@click.command()
@click.argument("bundle", type=FOLDER)
@click.argument("inputs", nargs=-1, required=True, metavar="PROMPT|IMAGE...")
@click.option("-o", "--output", type=FOLDER, default=Path("tokens.png"), show_default=True, help="PNG file.")
@click.option(
    "--checkpoint",
    type=FOLDER,
    help="What BUNDLE was exported from: shows the training cells nearest to a code, and tells the codes of "
    "pictures that `generate` did not draw. Needs PyTorch.",
)
@click.option(
    "--top",
    "num_codes",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="Codes of a picture to explain, the rarest in training first.",
)
@click.option(
    "--scenes",
    "num_scenes",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Training scenes to look through.",
)
@click.option(
    "--objects",
    "num_objects",
    type=click.IntRange(2, 32),
    default=16,
    show_default=True,
    help="Objects that the model was trained with.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Input i uses seed + i.")
@click.option("--size", metavar="HxW", help="Height and width in pixels, such as 48x48.")
@bundle_options
@click.option("--json", "as_json", is_flag=True, help="Print the tokens, for `generate --rep-tokens`.")
def tokens(
    bundle: Path,
    inputs: tuple[str, ...],
    output: Path,
    checkpoint: Path | None,
    num_codes: int,
    num_scenes: int,
    num_objects: int,
    seed: int,
    size: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the representation tokens over a picture: of a PROMPT, or of an IMAGE; and what their codes stand for.

    \b
    rf-export tokens bundle "a red car" --seed 7 -o tokens.png
    rf-export tokens bundle "a red car" photo.jpg --checkpoint examples/reference/checkpoint
    rf-export tokens bundle "a red car" --json > grid.json
    """
    from rf_export.tokens.view import look_at, stack_figures
    from runtime.options import GenerationOptions
    from runtime.pictures.png import save_png
    from runtime.pictures.token_file import PNG_KEY

    require_writable(output, "--output")
    height, width = parse_size(size)
    chosen = GenerationOptions(height=height, width=width)
    pipeline, guide = load(bundle, options), None
    if checkpoint is not None:
        import torch

        from rf_export.tokens.codebook import make_codebook

        if options["threads"] is not None:
            torch.set_num_threads(options["threads"])
        expected = pipeline.bundle.manifest.checkpoint["sha256"]
        with usage_errors(), progress("training scenes") as report:
            guide = make_codebook(checkpoint, expected, num_scenes, num_objects, report)
    shown = [look_at(pipeline, source, seed=seed + i, options=chosen, guide=guide) for i, source in enumerate(inputs)]
    grids = [each.grid.to_dict() for each in shown]
    figures = [each.figure(guide.explain(each.grid.rep_ids, num_codes) if guide else []) for each in shown]
    parameters = {PNG_KEY: grids[0]} if len(grids) == 1 else {"pictures": [{PNG_KEY: grid} for grid in grids]}
    save_png(output, stack_figures(figures), parameters)
    click.echo(json.dumps(grids[0] if len(grids) == 1 else grids, indent=1) if as_json else output)
