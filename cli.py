"""The `rf-export` command: one function per subcommand, each a thin layer over a library call.

Results go to stdout, progress and messages to stderr. A user's mistake ends in one sentence and exit code 1 (2 for
wrong options); a bug keeps its traceback. Heavy libraries are imported inside the commands that need them.
"""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rf_export.training.trainer import RateDecay
    from runtime.events import Event, PictureEvent, StepEvent

EXTRAS = {"torch": "export", "onnx": "export", "onnx_ir": "export", "onnxscript": "export", "safetensors": "export",
          "matplotlib": "export", "onnxruntime": "ort", "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx",
          "pycuda": "cuda"}  # fmt: skip
FOLDER = click.Path(path_type=Path)
PRECISION = click.Choice(["fp32", "fp16", "int8"])
DIALECT = click.Choice(["classic", "modern"])


class OneSentenceErrors(click.Group):
    """Turns what users can cause into one message; lets everything else show its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        from runtime.errors import RFError

        try:
            return super().invoke(ctx)
        except RFError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            raise click.ClickException(
                f"this command needs {error.name}, which is not installed; run: pip install 'rf-export[{extra}]'"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
                raise
            where = error.filename or "writing"
            raise click.ClickException(f"{where}: {error.strerror}; choose another place") from error


@click.group(cls=OneSentenceErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rf-export", prog_name="rf-export")
def main() -> None:
    """Compile Representation-Forcing models and draw with them.

    \b
    rf-export export examples/reference/checkpoint -o bundle
    rf-export build-engine bundle --backend ort
    rf-export generate bundle "a red car" "two blue fish" -o sheet.png
    """


@main.command()
@click.argument("run_folder", type=FOLDER)
@click.option("--resume", is_flag=True, help="Continue the run in RUN_FOLDER.")
@click.option("--without-rep", is_flag=True, help="The ablation: no representation tokens.")
@click.option("--steps", "joint_steps", type=click.IntRange(1), default=8000, show_default=True)
@click.option("--describe-steps", type=click.IntRange(0),
              help="Steps that train only the image encoder and captions, before the joint objective. "
                   "[default: 1250; with --from 0]")
@click.option("--from", "start", type=FOLDER, metavar="CHECKPOINT",
              help="Continue from these weights, with new optimiser state: no describe steps, and by default a lower "
                   "rate that falls to zero.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="[default: 6e-4; with --from 5e-4]")
@click.option("--decay", "rate_decay", type=click.Choice(["constant", "cosine"]),
              help="[default: constant; with --from cosine]")
@click.option("--questions", "questions_per_picture", type=click.IntRange(0), default=2, show_default=True,
              help="Questions asked about every picture, besides its caption.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--objects", "num_objects", type=click.IntRange(2, 32), default=16, show_default=True)
@click.option("--style", "styles", multiple=True, default=("fluent-flat", "fluent-3d"), show_default=True)
@click.option("--preset", default="reference", show_default=True, help="Shape of the model.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; the default is PyTorch's.")
@click.option("--compile/--no-compile", "compile_", default=True, show_default=True,
              help="torch.compile: two minutes at the start, steps a quarter faster.")
def train(run_folder: Path, resume: bool, without_rep: bool, num_objects: int, styles: tuple[str, ...], preset: str,
          threads: int | None, compile_: bool, start: Path | None, learning_rate: float | None,
          rate_decay: "RateDecay | None", describe_steps: int | None, **recipe: int) -> None:  # fmt: skip
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
    with _usage_errors():
        scenes = SceneConfig(num_objects=num_objects, styles=styles)
        rate, decay, describe = (6e-4, "constant", 1250) if start is None else (5e-4, "cosine", 0)
        config = TrainConfig(
            scenes=scenes, with_rep=not without_rep, compile=compile_, learning_rate=learning_rate or rate,
            rate_decay=rate_decay or decay, describe_steps=describe if describe_steps is None else describe_steps,
            **recipe,
        )  # fmt: skip
        model_config = model_preset(preset) if start is None else load_config(start)
        checkpoint = run_training(config, model_config, run_folder, resume=resume, start=start)
    click.echo(checkpoint)


@main.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("-o", "--output", "bundle", type=FOLDER, required=True, help="The bundle to write.")
@click.option("--precision", "precisions", type=click.Choice(["fp32", "fp16"]), multiple=True, default=("fp32", "fp16"),
              show_default=True)
@click.option("--dialect", "dialects", type=click.Choice(["classic", "modern", "both"]), multiple=True,
              help="Spelling of the graphs: classic runs everywhere, modern (opset 24) writes its cache in place. "
                   "[default: what the targets ask for, or classic]")
@click.option("--target", "targets", multiple=True, metavar="NAME",
              help="Who has to take the graphs, such as tensorrt-10.3; picks dialect and opset, and refuses what would "
                   "not parse there.")
@click.option("--opset", type=click.IntRange(17, 18), help="Of classic graphs: 17 for TensorRT 8.6.")
@click.option("--cache-slots", type=click.IntRange(2), help="Fixed length of the cache of modern graphs, for TensorRT.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--no-verify", is_flag=True, help="Skip the parity check; the manifest tells that nobody verified it.")
@click.option("--json", "as_json", is_flag=True)
def export(checkpoint: Path, bundle: Path, precisions: tuple[Any, ...], dialects: tuple[Any, ...],
           targets: tuple[str, ...], opset: int | None, cache_slots: int | None, force: bool, no_verify: bool,
           as_json: bool) -> None:  # fmt: skip
    """Trace CHECKPOINT into ONNX graphs, verify them against eager PyTorch, and write a bundle.

    \b
    rf-export export examples/reference/checkpoint -o bundle
    rf-export export examples/reference/checkpoint -o bundle --target tensorrt-8.6 --precision fp16
    """
    from rf_export.export import ExportOptions, export

    chosen: Any = tuple(name for name in DIALECT.choices if name in dialects or "both" in dialects)
    options = ExportOptions(precisions=tuple(dict.fromkeys(precisions)), targets=targets, dialects=chosen or None,
                            opset=opset, cache_slots=cache_slots, force=force, verify=not no_verify)  # fmt: skip
    with _progress("export") as report:
        manifest = export(checkpoint, bundle, options, report)
    if as_json:
        click.echo(json.dumps(manifest.to_dict(), indent=1))
        return
    click.echo(f"{bundle}  id {manifest.bundle_id}")
    for precision, figures in manifest.verified.items():
        click.echo(
            f"  {precision}  worst cosine {min(figures['rep_logits_cosine'], figures['x_pred_cosine']):.8f}  "
            f"tokens {figures['rep_tokens_equal']}/{figures['rep_tokens']}  "
            f"picture PSNR {figures['picture_psnr_db']:.1f} dB against eager fp32"
        )


@main.command("build-engine")
@click.argument("bundle", type=FOLDER)
@click.option("--backend", default="ort", show_default=True, help="ort, tensorrt or tensorrt-rtx.")
@click.option("--precision", type=PRECISION, default="fp32", show_default=True)
@click.option("--force", is_flag=True, help="Build again where a fitting engine is there already.")
@click.option("--dim", "dims", multiple=True, metavar="NAME=MIN:OPT:MAX",
              help="TensorRT: sizes of batch (pictures at once), prompt (tokens), height, width; repeat it.")
@click.option("--workspace-mib", type=click.IntRange(1), help="TensorRT: most device memory of one layer.")
@click.option("--builder-optimization-level", type=click.IntRange(0, 5), help="TensorRT: 5 searches longest.")
@click.option("--timing-cache", metavar="FILE", help="TensorRT: the default is one per GPU in the bundle.")
@click.option("--profiling-verbosity", type=click.Choice(["layer_names_only", "detailed", "none"]),
              default="layer_names_only", show_default=True)
@click.option("--version-compatible", is_flag=True, help="TensorRT: runs with later minor versions too.")
@click.option("--hardware-compatibility", type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
              default="none", show_default=True)
@click.option("--weight-streaming", is_flag=True, help="TensorRT: for models larger than the GPU's memory.")
@click.option("--weights", type=click.Choice(["fixed", "refittable", "stripped"]), default="fixed", show_default=True,
              help="TensorRT: refittable ones can be exchanged (refit-engine), stripped ones are left out until then.")
@click.option("--compute-capability", "compute_capabilities", multiple=True, metavar="8.6",
              help="tensorrt-rtx: compile for these GPUs, on any machine; repeat it.")
@click.option("--json", "as_json", is_flag=True)
def build_engine(bundle: Path, backend: str, precision: Any, force: bool, as_json: bool, dims: tuple[str, ...],
                 **options: Any) -> None:  # fmt: skip
    """Compile the graphs of BUNDLE for this machine, or ahead of time for RTX cards.

    \b
    rf-export build-engine bundle --backend ort --precision fp32
    rf-export build-engine bundle --backend tensorrt --precision fp16 --dim batch=1:1:4 --dim prompt=1:32:256
    rf-export build-engine bundle --backend tensorrt-rtx --precision fp16 --compute-capability 8.9
    """
    from engines import EngineConfig, TensorRTConfig, build, estimate, parse_dims
    from runtime.engine import open_engine

    with _usage_errors():
        tensorrt = TensorRTConfig(dims=parse_dims(dims), **options)
    config = EngineConfig(backend=backend, precision=precision, force=force, tensorrt=tensorrt)
    need = estimate(bundle, config)
    click.echo(f"needs at most {need.memory_mib} MiB of memory and {need.disk_mib} MiB of disk", err=True)
    with _progress("build") as report:
        path = build(bundle, config, report)
    record = open_engine(path).record
    if as_json:
        click.echo(json.dumps({"path": str(path), **record.to_dict()}, indent=1))
    else:
        click.echo(f"{path}  built in {record.build['seconds']} s, peak memory {record.build['peak_memory_mib']} MiB")
        click.echo("  checked against the ONNX graphs" if record.verified else "  not verified: no such device is here")


@main.command("refit-engine")
@click.argument("engine", type=FOLDER)
@click.argument("bundle", type=FOLDER)
def refit_engine(engine: Path, bundle: Path) -> None:
    """Make an engine of BUNDLE from a TensorRT ENGINE of the same architecture that takes other weights.

    \b
    rf-export build-engine first --backend tensorrt --precision fp16 --weights refittable
    rf-export refit-engine first/engines/tensorrt-... second
    """
    from engines.tensorrt_refit import refit

    with _progress("refit") as report:
        click.echo(refit(engine, bundle, report))


@main.command()
@click.argument("bundle", type=FOLDER)
@click.argument("prompts", nargs=-1, required=True)
@click.option("-o", "--output", type=FOLDER, default=Path("picture.png"), show_default=True,
              help="PNG file; several prompts make a sheet.")
@click.option("--each", type=FOLDER, help="Also write every picture into this folder.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Prompt i uses seed + i.")
@click.option("--steps", "num_steps", type=int, help="Denoising steps.")
@click.option("--rep-guidance", "rep_guidance_scale", type=float, help="Guidance of the representation tokens.")
@click.option("--pix-guidance", "pix_guidance_scale", type=float, help="Guidance of the pixels.")
@click.option("--temperature", type=float, help="Of the representation tokens; 0 is greedy.")
@click.option("--top-k", type=int)
@click.option("--size", metavar="HxW", help="Height and width in pixels, such as 48x48.")
@click.option("--precision", type=PRECISION, default="fp32", show_default=True)
@click.option("--dialect", type=DIALECT, default="classic", show_default=True)
@click.option("--backend", default="ort", show_default=True)
@click.option("--engine", default="auto", show_default=True, help="auto, none (plain ONNX), or an engine folder.")
@click.option("--threads", type=click.IntRange(1))
@click.option("--preview", type=FOLDER, help="Also write a PNG strip of what the picture looked like on the way.")
@click.option("--json", "as_json", is_flag=True, help="Print parameters, tokens and seconds.")
def generate(bundle: Path, prompts: tuple[str, ...], seed: int, as_json: bool, **options: Any) -> None:
    """Draw one picture per PROMPT; the parameters are kept in the PNG files.

    \b
    rf-export generate bundle "a red car" -o car.png --seed 7
    rf-export generate bundle "a red car" "two blue fish" -o sheet.png --preview steps.png
    """
    import time

    from runtime.options import GenerationOptions
    from runtime.pipeline import Pipeline

    engine = options["engine"] if options["engine"] in ("auto", "none") else Path(options["engine"])
    names = ("num_steps", "rep_guidance_scale", "pix_guidance_scale", "temperature", "top_k")
    height, width = _parse_size(options["size"])
    chosen = GenerationOptions(height=height, width=width, **{name: options[name] for name in names})
    for path in (options["output"], options["preview"]):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.BadParameter(f"{path.absolute().parent} is not a folder", param_hint="--output")
    pipeline = Pipeline.load(bundle, options["precision"], options["backend"], options["threads"], engine,
                             dialect=options["dialect"])  # fmt: skip
    started = time.perf_counter()
    pictures, previews = _draw(pipeline.generate(prompts, seed=seed, options=chosen))
    seconds = time.perf_counter() - started
    common = {"bundle_id": pipeline.bundle.manifest.bundle_id, "precision": options["precision"],
              "dialect": options["dialect"],
              **{name: value for name, value in vars(chosen).items() if value is not None}}  # fmt: skip
    files = _write_pictures(pictures, previews, common, options)
    if as_json:
        rows = [{"prompt": p.prompt, "seed": p.seed, "rep_ids": p.rep_ids.tolist()} for p in pictures]
        click.echo(json.dumps({**common, "files": files, "seconds": seconds, "pictures": rows}, indent=1))
    else:
        click.echo("\n".join(files))


def _draw(events: "Iterator[Event]") -> "tuple[list[PictureEvent], list[StepEvent]]":
    """Run a drawing to its end under a progress bar."""
    from runtime.events import PictureEvent, StepEvent

    pictures: list[PictureEvent] = []
    previews: list[StepEvent] = []
    with _progress("tokens") as report:
        for event in events:
            if isinstance(event, PictureEvent):
                pictures.append(event)
            else:
                denoising = isinstance(event, StepEvent)
                report("denoising" if denoising else "tokens", event.step + 1, event.num_steps)
                if isinstance(event, StepEvent):
                    previews.append(event)
    return pictures, previews


def _write_pictures(
    pictures: "Sequence[PictureEvent]", previews: "Sequence[StepEvent]", common: dict[str, Any], options: dict[str, Any]
) -> list[str]:
    from runtime.events import to_picture
    from runtime.png import save_png
    from runtime.sheet import contact_sheet

    rows = [{"prompt": picture.prompt, "seed": picture.seed, **common} for picture in pictures]
    out: Path = options["output"]
    if len(pictures) == 1:
        save_png(out, pictures[0].picture, rows[0])
    else:
        sheet = contact_sheet([p.picture for p in pictures], [p.prompt for p in pictures])
        save_png(out, sheet, {"pictures": rows})
    files = [str(out)]
    if options["each"] is not None:
        options["each"].mkdir(parents=True, exist_ok=True)
        for i, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
            path = options["each"] / f"{i:03}.png"
            save_png(path, picture.picture, row)
            files.append(str(path))
    if options["preview"] is not None:
        shown = [step for i, step in enumerate(previews) if i * 8 // len(previews) != (i - 1) * 8 // len(previews)]
        shown = [*shown[:-1], previews[-1]]
        strip = [(to_picture(step.x_pred[i]), f"step {step.step + 1}") for i in range(len(pictures)) for step in shown]
        sheet = contact_sheet([s[0] for s in strip], [s[1] for s in strip], columns=len(shown))
        save_png(options["preview"], sheet, {"pictures": rows})
        files.append(str(options["preview"]))
    return files


@main.command("eval")
@click.argument("model", type=FOLDER)
@click.option("--num-prompts", type=click.IntRange(1), default=200, show_default=True)
@click.option("--understanding", is_flag=True,
              help="Instead, ask a checkpoint about this many scenes of each of four sets, none of them trained on.")
@click.option("--objects", "num_objects", type=click.IntRange(2, 32), default=16, show_default=True,
              help="Objects that MODEL was trained with.")
@click.option("--held-out", is_flag=True, help="Prompts with (colour, object) pairs that training never showed.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Prompt i uses seed + i.")
@click.option("--precision", type=PRECISION, default="fp32", show_default=True, help="Graphs of a bundle to draw with.")
@click.option("--without-rep", is_flag=True, help="A checkpoint of the ablation: draw without representation tokens.")
@click.option("--sheet", type=FOLDER, help="Also write a PNG of the first 24 pictures; [x] marks wrong ones.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--json", "as_json", is_flag=True)
def evaluate(model: Path, as_json: bool, threads: int | None, understanding: bool, **options: Any) -> None:
    """Score MODEL, a checkpoint (eager PyTorch) or a bundle (compiled): does each picture show what its prompt demands?

    With --understanding, score its answers: captions, counts, colours, objects and positions, by exact match.

    \b
    rf-export eval examples/reference/checkpoint --num-prompts 200
    rf-export eval bundle --precision fp16 --sheet sheet.png
    rf-export eval examples/reference/checkpoint --understanding --num-prompts 500
    """
    if understanding:
        _evaluate_understanding(model, as_json=as_json, threads=threads, **options)
        return
    from rf_export.evaluation.evaluate import EvaluationOptions, evaluate_model

    if options["sheet"] is not None and not options["sheet"].absolute().parent.is_dir():
        raise click.BadParameter(f"{options['sheet'].absolute().parent} is not a folder", param_hint="--sheet")
    with _progress("drawing") as report:
        result = evaluate_model(model, EvaluationOptions(num_threads=threads, **options), report)
    click.echo(json.dumps(result.to_dict(), indent=1) if as_json else result.table())


def _evaluate_understanding(
    model: Path, *, as_json: bool, threads: int | None, num_prompts: int, num_objects: int, **drawing: object
) -> None:
    import torch

    from rf_export.evaluation.understanding import evaluate_understanding

    for name in ("held_out", "without_rep", "sheet"):
        if drawing[name]:
            raise click.UsageError(f"--{name.replace('_', '-')} is about drawing; leave it out with --understanding")
    if threads is not None:
        torch.set_num_threads(threads)
    with _progress("answering") as report:
        result = evaluate_understanding(model, num_prompts, num_objects, report)
    click.echo(json.dumps(result.as_dict(), indent=1) if as_json else result)


@main.command()
@click.argument("bundle", type=FOLDER)
@click.option("--checkpoint", type=FOLDER, required=True, help="The checkpoint that the bundle was exported from.")
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1,), show_default=True, help="Repeatable.")
@click.option("--rounds", "num_rounds", type=click.IntRange(1), default=12, show_default=True,
              help="Turns of every contender per kind of step.")
@click.option("--prompt-tokens", "num_prompt_tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("--compile/--no-compile", default=True, show_default=True, help="torch.compile too: minutes more.")
@click.option("--json", "as_json", is_flag=True)
def bench(bundle: Path, checkpoint: Path, as_json: bool, **options: Any) -> None:
    """Measure BUNDLE against eager PyTorch and torch.compile, in turns in one run, and against the machine's limits.

    \b
    rf-export bench bundle --checkpoint examples/reference/checkpoint --threads 1 --threads 2
    """
    from rf_export.benchmark.bench import BenchOptions, run_bench
    from rf_export.benchmark.tables import format_bench

    with _progress("bench") as report:
        result = run_bench(bundle, checkpoint, BenchOptions(**options), report)
    click.echo(json.dumps(result, indent=1) if as_json else format_bench(result))


@main.command()
@click.argument("bundle", type=FOLDER)
@click.option("--verify", is_flag=True, help="Hash every file, whatever its size.")
@click.option("--json", "as_json", is_flag=True)
def inspect(bundle: Path, verify: bool, as_json: bool) -> None:
    """Show what a bundle holds: signatures, sizes, memory, engines, and what verified it.

    \b
    rf-export inspect bundle --verify
    """
    from runtime.inspection import describe_bundle, format_description

    description = describe_bundle(bundle, verify="hash" if verify else "auto")
    click.echo(json.dumps(description, indent=1) if as_json else format_description(description))


@main.command()
@click.option("--json", "as_json", is_flag=True)
def doctor(as_json: bool) -> None:
    """Tell what this machine can export, build and run, and what is missing.

    \b
    rf-export doctor
    """
    from runtime.doctor import examine, format_report

    facts = examine()
    click.echo(json.dumps(facts, indent=1) if as_json else format_report(facts))


@contextmanager
def _progress(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr with time left; calls are (what, done, total)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=not sys.stderr.isatty()) as progress:
        task = progress.add_task(description, total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Values that a config refuses are wrong options."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _parse_size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise click.BadParameter(f"expected HxW in pixels such as 48x48, got {text!r}", param_hint="--size")
    return int(height), int(width)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    main()
