"""The commands of the workshop: import-qwen3, train, eval, bench, tokens.

All but some uses of `tokens` need the `export` extra.

`cli.py` gathers all commands, and turns errors into sentences. Each is a thin layer over a library call, and imports it
when it runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from runtime.commands import parameters as arg
from runtime.commands.terminal import progress

if TYPE_CHECKING:
    from rf_export.training.trainer import RateDecay


@arg.command("import-qwen3")
@click.argument("folder", type=arg.PATH)
@arg.option("-o --output", "Checkpoint to write.", arg.PATH, required=True, metavar="CHECKPOINT")
@arg.option(
    "--parts",
    "Preset that the new parts take their shape from: tokens, patches, sizes of pictures, image encoder.",
    default="qwen3-0.6b",
)
@arg.option("--seed", "Seed of the new parts.", click.IntRange(0, 2**31 - 1), 0)
@arg.option("--dtype", "Type of the weights.", click.Choice(["source", "fp32", "fp16", "bf16"]), "source")
@arg.option("--start-id", "Id before a question about a picture.", arg.NATURAL, shown="none: it only draws")
@arg.many("--stop-id stop_ids", "Id that ends an answer.", arg.NATURAL, shown="none: it only draws")
@arg.flag("--force", "Replace an existing checkpoint.")
def import_qwen3(
    folder: Path, output: Path, start_id: int | None, stop_ids: tuple[int, ...], dtype: Any, **options: Any
) -> None:
    """Make a checkpoint to train on of FOLDER, a dense Qwen3 decoder from Hugging Face.

    All three experts start as its feed-forward, so that the text side answers with its logits; what it has not
    (representation tokens, pixels, the image encoder) starts from --seed.

    \b
    rf-export import-qwen3 Qwen3-0.6B -o mine
    rf-export import-qwen3 Qwen3-0.6B -o mine --start-id 151644 --stop-id 151645 --dtype bf16
    """
    from rf_export.config import UnderstandingConfig
    from rf_export.qwen3 import ImportOptions
    from rf_export.qwen3 import import_qwen3 as run_import

    if (start_id is None) != (not stop_ids):
        raise click.UsageError(
            "--start-id and --stop-id belong together; name both, or none for a model that draws only"
        )
    with arg.usage_errors((ValueError,)), progress("import") as report:
        understanding = None if start_id is None else UnderstandingConfig(start_id=start_id, stop_ids=stop_ids)
        run_import(folder, output, ImportOptions(understanding=understanding, dtype=dtype, **options), report)
    click.echo(output)


@arg.command()
@click.argument("run_folder", type=arg.PATH)
@arg.flag("--resume", "Continue the run in RUN_FOLDER.")
@arg.flag("--without-rep", "Train the ablation, which has no representation tokens.")
@arg.option("--steps joint_steps", "Steps of the joint objective.", arg.COUNT, 8000)
@arg.option(
    "--describe-steps",
    "Steps before these that train only the image encoder and captions.",
    arg.NATURAL,
    shown="1250; with --from 0",
)
@arg.option(
    "--from start",
    "Checkpoint to continue from, with new optimiser state and by default a lower rate that falls to zero.",
    arg.PATH,
    metavar="CHECKPOINT",
)
@arg.option("--learning-rate", "Learning rate.", arg.number(0, min_open=True), shown="6e-4; with --from 5e-4")
@arg.option(
    "--decay rate_decay",
    "Course of the learning rate.",
    click.Choice(["constant", "cosine"]),
    shown="constant; with --from cosine",
)
@arg.option("--questions questions_per_picture", "Questions about every picture, besides its caption.", arg.NATURAL, 2)
@arg.option("--batch-size", "Pictures per step.", arg.COUNT, 64)
@arg.option("--seed", "Seed of weights and scenes.", click.IntRange(0, 2**31 - 1), 0)
@arg.OBJECTS
@arg.option(
    "--style styles",
    "Artwork: fluent-flat, fluent-3d, noto or twemoji; repeat it.",
    default=("fluent-flat", "fluent-3d"),
    multiple=True,
)
@arg.option(
    "--preset",
    "Shape of the model: tiny, reference, base-90m, qwen3-0.6b, qwen3-1.7b or qwen3-4b.",
    default="reference",
)
@arg.option("--threads", "CPU threads.", arg.COUNT, shown="PyTorch's")
@arg.option(
    "--compile/--no-compile compile_",
    "Use torch.compile: two minutes at the start, steps a quarter faster.",
    default=True,
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
    decay: RateDecay
    rate, decay, describe = (6e-4, "constant", 1250) if start is None else (5e-4, "cosine", 0)
    model_config = None if start is None else load_config(start)
    with arg.usage_errors():
        config = TrainConfig(
            scenes=SceneConfig(num_objects=num_objects, styles=styles),
            with_rep=not without_rep,
            compile=compile_,
            learning_rate=learning_rate or rate,
            rate_decay=rate_decay or decay,
            describe_steps=describe if describe_steps is None else describe_steps,
            **recipe,
        )
        model_config = model_config or model_preset(preset)
    with arg.usage_errors((ValueError,)), progress("train") as report:
        checkpoint = run_training(config, model_config, run_folder, resume=resume, start=start, on_progress=report)
    click.echo(checkpoint)


@arg.command("eval")
@click.argument("model", type=arg.PATH)
@arg.option("--num-prompts", "Prompts to draw, or scenes of every set to ask about.", arg.COUNT, 200)
@arg.flag("--understanding", "Ask MODEL instead about scenes of four sets, none of them trained on.")
@arg.option(
    "--against",
    "Precision of the bundle, or another model, such as its checkpoint, with whose answers all answers are compared "
    "token by token; with --understanding.",
    metavar="PRECISION|MODEL",
)
@arg.option(
    "--min-agreement", "Least share of tokens that agree for sure, in percent; with --against.", arg.number(0, 100), 0.0
)
@arg.OBJECTS
@arg.flag("--held-out", "Take prompts with (colour, object) pairs that training never showed.")
@arg.option("--seed", "Seed of the first drawing; prompt i uses seed + i.", arg.SEED, 0)
@arg.option("--precision", "Precision of the graphs of a bundle.", arg.PRECISION, "fp32")
@arg.flag("--without-rep", "Draw without representation tokens, with a checkpoint of the ablation.")
@arg.option("--sheet", "PNG file of the first 24 pictures to write as well; [x] marks wrong ones.", arg.PNG)
@arg.option("--threads", "CPU threads of a run.", arg.COUNT, shown="the backend's, or PyTorch's")
@arg.flag("--json as_json", "Print the score as JSON.")
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
    if against is not None and not understanding:
        raise click.UsageError("--against compares answers; use it with --understanding")
    if understanding:
        _evaluate_understanding(
            model, as_json=as_json, threads=threads, against=against, min_agreement=min_agreement, **options
        )
        return
    from rf_export.evaluation.evaluate import EvaluationOptions, evaluate_model

    arg.require_writable(options["sheet"], "--sheet")
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


@arg.command()
@click.argument("bundle", type=arg.PATH, required=False)
@arg.option("--checkpoint", "Checkpoint that the bundle was exported from.", arg.PATH)
@arg.option("--threads", "CPU threads of a run; repeat it.", arg.COUNT, (1,), multiple=True)
@arg.option("--precision precisions", "Precision of our graphs; repeat it.", arg.PRECISION, multiple=True, shown="all")
@arg.option("--rounds num_rounds", "Turns of every contender per kind of step, at most.", arg.COUNT, 20)
@arg.option("--prompt-tokens num_prompt_tokens", "Tokens of the prompt.", arg.COUNT, 32)
@arg.option("--compile/--no-compile", "Measure torch.compile too, which takes minutes more.", default=True)
@arg.many("--rival rivals", "Other library to measure too, over our graphs.", click.Choice(["openvino", "aotinductor"]))
@arg.plan_option("Plan that all contenders draw by")
@arg.SPINNING
@arg.option("--scaling/--no-scaling", "Measure over lengths, batches and threads too.", default=True)
@arg.option(
    "--repeat repeats",
    "Number of fresh processes in which our graphs are timed again; --compare needs three or more of each result.",
    arg.NATURAL,
    0,
)
@arg.UNVERIFIED
@arg.flag("--json as_json", "Print the result as JSON.")
@arg.option("--output", "JSON file of the result, with every sample, to write as well.", arg.PATH, metavar="FILE")
@arg.option(
    "--report page", "HTML page to write, with plots and tables, which opens offline.", arg.PATH, metavar="FILE"
)
@arg.option(
    "--compare results",
    "Two results to compare instead of measuring. Exit code 1 where the later is slower, 2 where that cannot be said.",
    arg.FILE,
    nargs=2,
    metavar="EARLIER LATER",
)
@arg.option(
    "--clock",
    "Clock of --compare: CPU time tells more where others use the machine.",
    click.Choice(["wall", "cpu"]),
    "wall",
)
@arg.option("--min-effect", "Least slowdown that counts as one; with --compare.", arg.number(0, 1), 0.03)
@arg.flag("--despite-differences", "Compare also where machines or versions differ; with --compare.")
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
    plan: str | Path,
    no_spinning: bool,
    **options: Any,
) -> None:
    """Measure BUNDLE against eager PyTorch and torch.compile, in turns in one run, and against the machine's limits.

    \b
    rf-export bench bundle --checkpoint examples/reference/checkpoint --threads 1 --threads 2
    rf-export bench bundle --checkpoint examples/reference/checkpoint --precision fp32 --precision int8
    rf-export bench bundle --checkpoint examples/reference/checkpoint --plan tuned --rival openvino
    rf-export bench bundle --checkpoint examples/reference/checkpoint --repeat 5 --output new.json --report bench.html
    rf-export bench --compare old.json new.json
    """
    if results is not None:
        _compare(*results, min_effect, clock, as_json=as_json, despite_differences=despite_differences)
        return
    if bundle is None or checkpoint is None:
        raise click.UsageError("name a BUNDLE and its --checkpoint, or two results with --compare")
    arg.require_writable(output, "--output")
    arg.require_writable(page, "--report")
    from rf_export.benchmark.bench import run_bench
    from rf_export.benchmark.bench_report import bench_page
    from rf_export.benchmark.tables import format_bench
    from rf_export.benchmark.task import BenchOptions
    from runtime.bundle.atomic import write_text

    with progress("bench") as report:
        chosen = BenchOptions(plan=arg.open_plan(plan, bundle), allow_spinning=not no_spinning, **options)
        result = run_bench(bundle, checkpoint, chosen, report)
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
        _no_verdict("a difference in time may come from these. To have one all the same: --despite-differences")
    changes = compare(*results, min_effect=min_effect, clock=clock)
    click.echo(
        json.dumps([vars(change) for change in changes], indent=1) if as_json else format_changes(changes, min_effect)
    )
    verdicts = {change.verdict for change in changes}
    if "slower" in verdicts:
        raise SystemExit(1)
    if verdicts == {"unclear"}:
        _no_verdict(
            "processes differ, and each result needs three or more fresh ones. Measure both again with --repeat 5."
        )


def _no_verdict(reason: str) -> None:
    click.echo(f"No verdict: {reason}", err=True)
    raise SystemExit(2)


@arg.command()
@arg.BUNDLE
@click.argument("inputs", nargs=-1, required=True, metavar="PROMPT|IMAGE...")
@arg.option("-o --output", "PNG file of the tokens over the pictures.", arg.PNG, "tokens.png")
@arg.option(
    "--checkpoint",
    "Checkpoint that BUNDLE was exported from: shows the training cells nearest to a code, and tells the codes of "
    "pictures that `generate` did not draw. Needs PyTorch.",
    arg.PATH,
)
@arg.option("--top num_codes", "Codes of a picture to explain, the rarest in training first.", arg.COUNT, 6)
@arg.option("--scenes num_scenes", "Training scenes to look through.", arg.COUNT, 1000)
@arg.OBJECTS
@arg.option("--seed", "Seed of the first input; input i uses seed + i.", arg.SEED, 0)
@arg.option("--size", "Height and width in pixels.", arg.SIZE, shown="the model's")
@arg.bundle_options
@arg.flag("--json as_json", "Print the tokens as JSON, for `generate --rep-tokens`.")
def tokens(
    bundle: Path,
    inputs: tuple[str, ...],
    output: Path,
    checkpoint: Path | None,
    num_codes: int,
    num_scenes: int,
    num_objects: int,
    seed: int,
    size: tuple[int, int] | None,
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
    from runtime.plans import plan_drawing

    arg.require_writable(output, "--output")
    height, width = size or (None, None)
    chosen = GenerationOptions(height=height, width=width)
    pipeline, guide = arg.load(bundle, options), None
    with arg.usage_errors():
        plan_drawing(chosen, pipeline.bundle.manifest)
    if checkpoint is not None:
        import torch

        from rf_export.tokens.codebook import make_codebook

        if options["threads"] is not None:
            torch.set_num_threads(options["threads"])
        expected = pipeline.bundle.manifest.checkpoint["sha256"]
        with arg.usage_errors((ValueError,)), progress("training scenes") as report:
            guide = make_codebook(checkpoint, expected, num_scenes, num_objects, report)
    shown = [look_at(pipeline, source, seed=seed + i, options=chosen, guide=guide) for i, source in enumerate(inputs)]
    grids = [each.grid.to_dict() for each in shown]
    figures = [each.figure(guide.explain(each.grid.rep_ids, num_codes) if guide else []) for each in shown]
    parameters = {PNG_KEY: grids[0]} if len(grids) == 1 else {"pictures": [{PNG_KEY: grid} for grid in grids]}
    save_png(output, stack_figures(figures), parameters)
    click.echo(json.dumps(grids[0] if len(grids) == 1 else grids, indent=1) if as_json else output)
