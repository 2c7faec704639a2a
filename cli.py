"""The `rf-export` command: one function per subcommand, each a thin layer over a library call.

Here are the commands that make and judge bundles and engines; those that run a bundle ship with it, in
`runtime/commands/`, and those that only a workshop needs are in `rf_export/commands.py`.

Results go to stdout, progress and messages to stderr. A user's mistake ends in one sentence and exit code 1 (2 for
wrong options, 130 after Ctrl-C); a bug keeps its traceback. Heavy libraries are imported inside the commands that need
them.
"""

import errno
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rf_export.commands import bench, evaluate, import_qwen3, tokens, train
from rf_export.web.command import export_web
from runtime.commands import parameters as arg
from runtime.commands.doctor import doctor
from runtime.commands.generate import generate
from runtime.commands.inspect import inspect
from runtime.commands.terminal import open_streams, progress
from runtime.commands.understand import understand
from runtime.serving.command import serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from verification import VerifyOptions

# What users cause by a path, a disk or a right; other errors of the system are bugs, and keep their traceback.
SYSTEM_ERRORS: tuple[int, ...] = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
)
SYSTEM_ERRORS += (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EBUSY, errno.ELOOP, errno.ENAMETOOLONG)
# Module -> extra of the package that brings it; `calibrate` alone makes do with less than `export`.
EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "matplotlib"), "export"),
    **{"onnxruntime": "ort", "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx", "pycuda": "cuda"},
    "jinja2": "report",
    "ray": "ray",
    **dict.fromkeys(("fastapi", "uvicorn", "starlette", "pydantic", "prometheus_client"), "serve"),
}
INTERRUPTED = 130  # as shells report SIGINT
INT8_FORMAT = click.Choice(["static", "weight-only", "weight-only-4"])
VERBOSITY = click.Choice(["layer_names_only", "detailed", "none"])
HARDWARE = click.Choice(["none", "ampere_plus", "same_compute_capability"])
WEIGHTS = click.Choice(["fixed", "refittable", "stripped"])
COSINE, PERCENT = arg.number(-1, 1, max_open=True), arg.number(0, 100, max_open=True)
# What help tells of defaults.
OWN_REFERENCE, TARGETS = "none: the fp32 graphs of BUNDLE are", "what the targets ask for"
IN_BUNDLE, LIBRARYS = "one in the bundle", "the library's"


class OneSentenceErrors(click.Group):
    """Turns what users can cause into one message; lets everything else show its traceback."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """Run the program."""
        open_streams()
        return super().main(*arguments, **{"prog_name": "rf-export", **settings})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        from runtime.errors import RFError

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except RFError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module not in EXTRAS:
                raise
            needs_less = module.startswith("onnx") and ctx.invoked_subcommand == "calibrate"
            extra = "quantize" if needs_less and module != "onnxruntime" else EXTRAS[module]
            raise click.ClickException(
                f"this command needs {error.name}, which is not installed; run: pip install 'rf-export[{extra}]'"
            ) from error
        except MemoryError as error:
            raise click.ClickException(f"not enough memory ({error}); take fewer or smaller pictures") from error
        except OSError as error:
            if error.errno not in SYSTEM_ERRORS:
                raise
            where = error.filename or "writing"
            raise click.ClickException(f"{where}: {error.strerror}; choose another place") from error


@arg.command(cls=OneSentenceErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rf-export", prog_name="rf-export")
def main() -> None:
    """Compile Representation-Forcing models, draw with them, and ask them about pictures.

    \b
    rf-export export examples/reference/checkpoint -o bundle
    rf-export build-engine bundle --backend ort
    rf-export generate bundle "a red car" "two blue fish" -o sheet.png
    rf-export understand bundle photo.jpg "how many fish?"
    """


@arg.command()
@click.argument("checkpoint", type=arg.PATH)
@arg.option("-o --output bundle", "Bundle to write.", arg.PATH, required=True)
@arg.many("--precision precisions", "Precision of the graphs.", click.Choice(["fp32", "fp16"]), ("fp32", "fp16"))
@arg.many(
    "--dialect dialects",
    "Spelling of the graphs: classic runs everywhere, modern (opset 24) writes its cache in place.",
    click.Choice(["classic", "modern", "both"]),
    shown="what the targets ask for, or classic",
)
@arg.many(
    "--target targets",
    "Library that has to take the graphs: onnxruntime, tensorrt-8.6, tensorrt-10.0 to tensorrt-11.x, "
    "tensorrt-rtx-1.7; picks dialect and opset, and refuses what would not parse there.",
    metavar="NAME",
)
@arg.option("--opset", "Opset of classic graphs; TensorRT 8.6 reads 17.", click.IntRange(17, 18), shown=TARGETS)
@arg.option("--cache-slots", "Length of the cache of modern graphs.", click.IntRange(2), shown=TARGETS)
@arg.flag("--force", "Replace an existing bundle.")
@arg.flag("--no-verify", "Skip the verification; such graphs run with --allow-unverified only.")
@arg.option("--golden", "Folder of golden vectors to write as well, for hosts in other languages.", arg.PATH)
@arg.flag("--json as_json", "Print the manifest as JSON.")
def export(
    checkpoint: Path,
    bundle: Path,
    dialects: tuple[str, ...],
    no_verify: bool,
    golden: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Trace CHECKPOINT into ONNX graphs, verify them against eager PyTorch, and write a bundle.

    \b
    rf-export export examples/reference/checkpoint -o bundle
    rf-export export examples/reference/checkpoint -o bundle --target tensorrt-8.6 --precision fp16
    """
    from rf_export.checkpoint import load_config
    from rf_export.export import ExportOptions, export
    from rf_export.export_plan import ExportPlan
    from verification.golden import require_folder, write_golden
    from verification.outcome import worst_cosine

    wanted: Any = tuple(name for name in arg.DIALECT.choices if name in dialects or "both" in dialects)
    options["precisions"] = tuple(dict.fromkeys(options["precisions"]))
    config = load_config(checkpoint)
    with arg.usage_errors():
        chosen = ExportOptions(dialects=wanted or None, verify=not no_verify, **options)
        ExportPlan.of(chosen, config)
    if golden is not None:
        require_folder(golden, force=chosen.force)
    with progress("export") as report:
        manifest = export(checkpoint, bundle, chosen, report)
        if golden is not None:
            write_golden(bundle, golden, force=chosen.force, on_progress=report)
    if as_json:
        click.echo(json.dumps(manifest.to_dict(), indent=1))
        return
    click.echo(f"{bundle}  id {manifest.bundle_id}")
    for precision, figures in manifest.verified.items():
        click.echo(
            f"  {precision}  worst cosine {worst_cosine(figures):.8f}  "
            f"tokens {figures['rep_tokens_equal']}/{figures['rep_tokens']}  "
            f"answers {figures['answer_tokens_equal']}/{figures['answer_tokens']}  "
            f"picture PSNR {figures['picture_psnr_db']:.1f} dB against {figures['reference']}"
        )


@arg.command()
@arg.BUNDLE
@arg.option("--checkpoint", "Checkpoint of BUNDLE: eager PyTorch is the reference.", arg.PATH, shown=OWN_REFERENCE)
@arg.many("--backend backends", "Backend to verify.", arg.BACKEND, shown="all")
@arg.many("--precision precisions", "Precision to verify.", arg.PRECISION, shown="all")
@arg.many("--dialect dialects", "Dialect to verify.", arg.DIALECT, shown="all")
@arg.flag("--quick", "Take two prompts and two questions, as an export does it.")
@arg.option("--seed", "Seed of the random cases.", arg.SEED, 0)
@arg.option("--random num_random", "Number of random drawings.", arg.NATURAL, 2)
@arg.option("--threads num_threads", "CPU threads of a run.", arg.COUNT, shown="the backend's")
@arg.option("--rebuilds", "Number of builds to verify as well, of engines of --backend.", arg.NATURAL, 0)
@arg.flag("--taps", "Compare also layer by layer inside of the graphs; see --report and --json.")
@arg.option("--polygraphy", "New folder of runs to compare with by `polygraphy run`.", arg.PATH)
@arg.option("--golden", "New folder of golden vectors to write, for hosts in other languages.", arg.PATH)
@arg.flag("--no-record", "Do not write the verdicts into the bundle.")
@arg.option("--report report_path", "HTML report to write as well.", arg.FILE)
@arg.flag("--json as_json", "Print the verdicts as JSON.")
def verify(
    bundle: Path,
    checkpoint: Path | None,
    quick: bool,
    rebuilds: int,
    no_record: bool,
    report_path: Path | None,
    golden: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Verify every graph and engine of BUNDLE, write the verdicts into it, and exit with 1 unless all passed.

    \b
    rf-export verify bundle --checkpoint examples/reference/checkpoint --report verify.html
    rf-export verify bundle --backend tensorrt
    """
    from runtime.bundle.atomic import restore
    from verification import Remembering, VerifyOptions, verify
    from verification.golden import require_folder, write_golden
    from verification.outcome import NotRecordedError
    from verification.rebuilds import verify_rebuilds

    arg.require_writable(report_path, "--report")
    if report_path is not None:
        from verification.report import write_report  # needs Jinja2, which nothing else does here
    if golden is not None:
        require_folder(golden)
    if not no_record:
        restore(bundle)
    reference = None if checkpoint is None else Remembering(_eager(bundle, checkpoint, options["num_threads"]))
    chosen = VerifyOptions(profile="quick" if quick else "full", record=not no_record, **options)
    not_recorded = None
    with progress("verify") as report:
        try:
            outcomes = verify(bundle, chosen, reference, report)
        except NotRecordedError as error:
            outcomes, not_recorded = error.outcomes, error
        if rebuilds:
            outcomes += verify_rebuilds(bundle, chosen, reference, _rebuild(chosen), rebuilds, report)
        if golden is not None:
            write_golden(bundle, golden, on_progress=report)
    if as_json:
        click.echo(json.dumps([outcome.to_dict() for outcome in outcomes], indent=1))
    else:
        click.echo("\n".join(outcome.line() for outcome in outcomes))
    if report_path is not None:
        write_report(report_path, bundle, outcomes)
    if not_recorded is not None:
        raise not_recorded
    if {outcome.verdict for outcome in outcomes} - {"not run"} != {"passed"}:
        raise SystemExit(1)


def _eager(bundle: Path, checkpoint: Path, num_threads: int | None) -> Any:
    """The checkpoint as a reference."""
    import torch

    from rf_export.eager_reference import EagerReference
    from rf_export.export import open_exported

    torch.set_num_threads(num_threads or torch.get_num_threads())
    return EagerReference(open_exported(bundle, checkpoint)[1])


def _rebuild(options: "VerifyOptions") -> "Callable[[Path], None]":
    """Builds the engines that are to be verified, into a copy of the bundle."""
    from engines import EngineConfig, build
    from runtime.bundle.folder import open_bundle

    def run(bundle: Path) -> None:
        precisions = options.precisions or open_bundle(bundle).manifest.precisions
        for backend, precision in itertools.product(options.backends or ("ort",), precisions):
            config = EngineConfig(
                backend=backend, precision=precision, num_threads=options.num_threads, force=True, allow_unverified=True
            )
            build(bundle, config)

    return run


@arg.command()
@arg.BUNDLE
@arg.option("--prompts prompts_file", "Text file of prompts, one per line, 16 at least.", arg.FILE, required=True)
@arg.option("--images", "Folder of more pictures for the image encoder and the gate, beside those drawn.", arg.PATH)
@arg.option(
    "--target",
    "Library to calibrate for: ort makes int8 on fp32 and times every group here; the others int8-fp16, untimed "
    "without a GPU.",
    click.Choice(["ort", "tensorrt", "tensorrt-rtx"]),
    "ort",
)
@arg.option("--method", "Range of activations.", click.Choice(["mse", "percentile", "entropy", "minmax"]), "mse")
@arg.option("--percentile", "Percentile of --method percentile.", arg.number(50, 100, min_open=True), 99.99)
@arg.option("--smooth/--no-smooth", "Let norms take over outlying channels, or not.", default=True)
@arg.many("--format formats", "Format for denoiser and vision_encoder.", INT8_FORMAT, ("static", "weight-only"))
@arg.many(
    "--decoder-format ar_formats",
    "Format for both decoders; the last is INT4.",
    INT8_FORMAT,
    shown="weight-only; before ONNX Runtime 1.25 static, weight-only",
)
@arg.option("--block", "Rows of a weight per scale, 0 for all.", arg.NATURAL, shown="128, with TensorRT 0")
@arg.option("--min-psnr", "Least mean PSNR, in dB, of pictures from the same tokens.", arg.number(0), 25.0)
@arg.option("--min-cosine", "Least cosine of every step, mean over the prompts.", COSINE, 0.999)
@arg.option("--min-token-agreement", "Least percentage of caption tokens that agree for sure.", PERCENT, 95.0)
@arg.option("--scene-score", "Number of scenes to score as well; needs PyTorch.", arg.NATURAL, 0)
@arg.plan_option("Plan by which the gate draws, and --scene-score")
@arg.option("--memory-mib", "Memory of recorded activations, at most.", arg.COUNT, 1024)
@arg.option("--threads num_threads", "CPU threads of a run.", arg.COUNT, 1)
@arg.option("--seed", "Seed of the first prompt; prompt i is drawn with seed + i.", arg.SEED, 0)
@arg.option("--cache cache_path", "File of recorded activations.", arg.FILE, shown="BUNDLE.fp32.calibration.npz")
@arg.option("--report report_path", "HTML report to write.", arg.FILE, shown="BUNDLE.calibration.html")
@arg.option(
    "--export-inputs", "Folder to write inputs into, .npz for ModelOpt, .json for Polygraphy, and no more.", arg.PATH
)
@arg.flag("--force", "Write the graphs even if they are not faster or not good enough.")
@arg.flag("--json as_json", "Print the decisions as JSON.")
def calibrate(
    bundle: Path,
    prompts_file: Path,
    images: Path | None,
    min_psnr: float,
    min_cosine: float,
    min_token_agreement: float,
    scene_score: int,
    export_inputs: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Give BUNDLE INT8 graphs, calibrated on what it draws for the prompts, where they are faster and as good.

    \b
    rf-export calibrate bundle --prompts examples/reference/prompts.txt --scene-score 200
    rf-export calibrate bundle --prompts examples/reference/prompts.txt --target tensorrt
    """
    import calibration
    from rf_export.lint.rules import takers
    from runtime.bundle.atomic import restore

    if export_inputs is not None and images is not None:
        raise click.UsageError("--export-inputs writes what the model draws and reads; leave out --images")
    plan = arg.open_plan(options.pop("plan"), bundle)
    with arg.usage_errors():
        limits = calibration.GateLimits(cosine=min_cosine, psnr_db=min_psnr, answer_tokens=min_token_agreement / 100)
        config = calibration.CalibrationConfig(limits=limits, plan=plan, **options)
    prompts = calibration.read_prompts(prompts_file)
    pictures = [] if images is None else calibration.find_pictures(images)
    arg.require_writable(config.cache_path, "--cache")
    arg.require_writable(config.report_path, "--report")
    restore(bundle)
    if export_inputs is not None:
        threads, seed = config.num_threads, config.seed
        written = calibration.export_inputs(bundle, prompts, export_inputs, config.base, threads, seed)
        click.echo("\n".join(map(str, written)))
        return
    scorer = None
    if scene_score:
        from rf_export.evaluation.evaluate import scene_scorer
        from runtime.options import GenerationOptions

        scorer = scene_scorer(scene_score, options=GenerationOptions(plan=plan))
    with progress("calibrate") as report:
        outcome = calibration.calibrate(
            bundle, prompts, config, pictures=pictures, scorer=scorer, lint=takers, on_progress=report
        )
    click.echo(json.dumps(outcome.to_dict(), indent=1) if as_json else outcome.table())


@arg.command()
@arg.BUNDLE
@arg.option("--prompts prompts_file", "Text file of prompts, one per line, 16 at least.", arg.FILE, required=True)
@arg.flag(
    "--checker",
    "Score pictures by the checker of the reference's scenes: 1 where all that the prompt demands is there.",
)
@arg.option(
    "--score",
    "Command that scores a picture: it prints a number from 0 to 1, or nothing and exits with 0 (right) or 1 (wrong).",
    metavar="'CMD {png} {prompt}'",
    shown="none: pictures stay near to those of the full plan",
)
@arg.option("--score-timeout", "Seconds after which --score hangs.", arg.number(0, min_open=True), 60.0)
@arg.option("--max-loss", "Points of the score, of 100, that the plan may lose.", arg.number(0, 100), 1.0)
@arg.option("--min-psnr", "Least mean PSNR to the full plan, in dB.", arg.number(0), shown="25 without a scorer")
@arg.option("--pictures num_pictures", "Pictures of each plan; one half is held out.", click.IntRange(2), 400)
@arg.option("--seed", "Seed of the first picture; picture i is drawn with seed + i.", arg.SEED, 0)
@arg.option("-o --output", "File of the plan to write as well, for `generate --plan`.", arg.FILE, metavar="PLAN.json")
@arg.flag("--no-record", "Do not write the plan into the bundle.")
@arg.option("--cache cache_path", "File of what is known so far.", arg.FILE, shown="BUNDLE.tuning.jsonl")
@arg.flag("--resume", "Go on with an interrupted search.")
@arg.option("--report report_path", "HTML report to write.", arg.FILE, shown="BUNDLE.tuning.html")
@arg.bundle_options
@arg.flag("--json as_json", "Print the plan with its evidence as JSON.")
def tune(
    bundle: Path,
    prompts_file: Path,
    checker: bool,
    score: str | None,
    score_timeout: float,
    output: Path | None,
    no_record: bool,
    cache_path: Path | None,
    resume: bool,
    report_path: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the cheapest plan by which BUNDLE draws as well as by its full one: steps, shift, guidance, window.

    \b
    rf-export tune bundle --prompts prompts.txt --score './judge.py {png} {prompt}'
    rf-export tune bundle --prompts examples/reference/tuning-prompts.txt --checker -o plan.json
    """
    import tuning
    from runtime.bundle.atomic import restore
    from runtime.bundle.plan import record_plan, write_plan
    from runtime.errors import RFError
    from tuning.report import write_report  # needs Jinja2: tells so before anything is drawn

    if checker and score is not None:
        raise click.UsageError("--checker and --score are two scorers; name one of them")
    with arg.usage_errors():
        names = ("max_loss", "min_psnr", "num_pictures", "seed")
        config = tuning.TuneConfig(**{name: options.pop(name) for name in names})
        scorer: tuning.Scorer | None = None if score is None else tuning.CommandScorer(score, score_timeout)
    if checker:
        from rf_export.evaluation.evaluate import CheckerScorer

        scorer = CheckerScorer()
    restore(bundle)
    cache_path = cache_path or bundle.absolute().with_name(f"{bundle.absolute().name}.tuning.jsonl")
    report_path = report_path or bundle.absolute().with_name(f"{bundle.absolute().name}.tuning.html")
    for path, name in ((output, "--output"), (cache_path, "--cache"), (report_path, "--report")):
        arg.require_writable(path, name)
    prompts = tuning.read_prompts(prompts_file)
    pipeline = arg.load(bundle, options)
    try:
        with progress("tune") as report:
            result = tuning.tune(
                pipeline, prompts, config, cache_path=cache_path, scorer=scorer, resume=resume, on_progress=report
            )
    except (KeyboardInterrupt, RFError):
        if cache_path.exists():
            click.echo(f"note: what is known so far is in {cache_path}; go on with --resume", err=True)
        raise
    write_report(report_path, bundle.name, result)
    if result.tuned is not None and not no_record:
        record_plan(pipeline.bundle, result.tuned)
    if result.tuned is not None and output is not None:
        write_plan(output, result.tuned, pipeline.bundle.manifest.checkpoint["sha256"])
    click.echo(json.dumps(result.to_dict(), indent=1) if as_json else f"{result.table()}\n  report: {report_path}")
    if result.tuned is None:
        raise RFError(f"No plan was found for {bundle}: {result.reason}. The bundle is as it was; see {report_path}.")


@arg.command("build-engine")
@arg.BUNDLE
@arg.option("-o --output", "Folder of the engine, to draw with `--engine`.", arg.PATH, shown=IN_BUNDLE)
@arg.option("--backend", "Library that will run the engine.", arg.BACKEND, "ort")
@arg.option("--precision", "Precision of the graphs to compile.", arg.PRECISION, "fp32")
@arg.option("--dialect", "Spelling of the graphs to compile; modern ones have --cache-slots.", arg.DIALECT, "classic")
@arg.flag("--force", "Build again where a fitting engine is there already.")
@arg.option("--threads num_threads", "CPU threads of the build and of its check.", arg.COUNT, shown="the backend's")
@arg.SPINNING
@arg.option("--window", "Image tokens of a pass; 1 draws them one by one.", arg.COUNT, shown="measured")
@arg.many(
    "--dim dims",
    "TensorRT: sizes of batch (pictures drawn at once), images (read at once), prompt, window (tokens), height, width.",
    metavar="NAME=MIN:OPT:MAX",
)
@arg.option("--workspace-mib", "TensorRT: device memory of one layer, at most.", arg.COUNT, shown=LIBRARYS)
@arg.option("--builder-optimization-level", "TensorRT: effort.", click.IntRange(0, 5), shown=LIBRARYS)
@arg.option("--timing-cache", "TensorRT: file of measured times.", metavar="FILE", shown="one per GPU in the bundle")
@arg.option("--profiling-verbosity", "TensorRT: what it tells of its layers.", VERBOSITY, "layer_names_only")
@arg.flag("--version-compatible", "TensorRT: let later minor versions run it too.")
@arg.option("--hardware-compatibility", "TensorRT: devices that run it besides this one.", HARDWARE, "none")
@arg.flag("--weight-streaming", "TensorRT: leave weights in the host's memory, for models larger than the GPU's.")
@arg.option("--weights", "TensorRT: refittable and stripped ones are for `refit-engine`.", WEIGHTS, "fixed")
@arg.many(
    "--compute-capability compute_capabilities",
    "tensorrt-rtx: GPU to compile for, on any machine, such as 8.6.",
    metavar="X.Y",
    shown="the GPU that is here",
)
@arg.flag("--allow-unverified", "Build also from graphs that failed a verification, or had none.")
@arg.flag("--json as_json", "Print the record of the engine as JSON.")
def build_engine(bundle: Path, as_json: bool, dims: tuple[str, ...], **options: Any) -> None:
    """Compile the graphs of BUNDLE for this machine, or ahead of time for RTX cards.

    \b
    rf-export build-engine bundle --backend ort --precision fp32
    rf-export build-engine bundle --backend tensorrt --precision fp16 --dim batch=1:1:4 --dim prompt=1:32:256
    rf-export build-engine bundle --backend tensorrt-rtx --precision fp16 --compute-capability 8.9
    """
    from engines import EngineConfig, TensorRTConfig, estimate, parse_dims
    from engines.build import build_or_keep
    from engines.tensorrt.config import require_defaults
    from runtime.backends.host.machine import usable_memory
    from runtime.bundle.atomic import restore
    from runtime.bundle.engine import open_engine

    if options["backend"] == "ort-cuda":
        raise click.BadParameter(
            "ort-cuda runs the ONNX graphs as they are: there is nothing to build", param_hint="--backend"
        )
    common = ("backend", "precision", "dialect", "force", "num_threads", "allow_unverified", "output", "window")
    chosen = {name: options.pop(name) for name in common}
    chosen["allow_spinning"] = not options.pop("no_spinning")
    with arg.usage_errors():
        tensorrt = TensorRTConfig(dims=parse_dims(dims), **options)
        config = EngineConfig(tensorrt=tensorrt, **chosen)
        if config.backend == "ort":
            require_defaults(tensorrt, config.backend)
    restore(bundle)
    need = estimate(bundle, config)
    click.echo(f"needs at most {need.memory_mib} MiB of memory and {need.disk_mib} MiB of disk", err=True)
    place = arg.nearest_existing((config.output or bundle).absolute())
    warning = need.warning(usable_memory(), shutil.disk_usage(place).free)
    if warning is not None:
        click.echo(f"warning: {warning}", err=True)
    with progress("build") as report:
        built = build_or_keep(bundle, config, report)
    record = open_engine(built.path).record
    if as_json:
        click.echo(json.dumps({"path": str(built.path), "is_new": built.is_new, **record.to_dict()}, indent=1))
        return
    how = f"built in {record.build['seconds']} s, peak memory {record.build['peak_memory_mib']} MiB"
    click.echo(f"{built.path}  {how if built.is_new else 'is up to date: nothing was built'}")
    click.echo("  checked against the ONNX graphs" if record.verified else "  not verified: no such device is here")
    click.echo(f"  image tokens of a pass: {record.window}")


@arg.command("refit-engine")
@click.argument("engine", type=arg.PATH)
@arg.BUNDLE
def refit_engine(engine: Path, bundle: Path) -> None:
    """Make an engine of BUNDLE from a TensorRT ENGINE of the same architecture that takes other weights.

    \b
    rf-export build-engine first --backend tensorrt --precision fp16 --weights refittable
    rf-export refit-engine first/engines/tensorrt-... second
    """
    from engines.tensorrt.refit import refit

    with progress("refit") as report:
        click.echo(refit(engine, bundle, report))


for each in (export, verify, calibrate, tune, build_engine, refit_engine, train, evaluate, bench, tokens, generate):
    main.add_command(each)
for each in (understand, serve, export_web, inspect, doctor, import_qwen3):
    main.add_command(each)

if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    main()
