"""The `rf-export` command: one function per subcommand, each a thin layer over a library call.

Here are the commands that make and judge bundles and engines; those that run a bundle ship with it, in
`runtime/commands/commands.py`, and those that only a workshop needs are in `rf_export/commands.py`.

Results go to stdout, progress and messages to stderr. A user's mistake ends in one sentence and exit code 1 (2 for
wrong options); a bug keeps its traceback. Heavy libraries are imported inside the commands that need them.
"""

import errno
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rf_export.commands import bench, evaluate, tokens, train
from runtime.commands.commands import doctor, generate, inspect, understand
from runtime.commands.terminal import DIALECT, FOLDER, PRECISION, progress, require_writable, usage_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from verification import VerifyOptions

# What users cause by a path, a disk or a right; other errors of the system are bugs, and keep their traceback.
SYSTEM_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.EBUSY,
    errno.EIO,
    errno.ELOOP,
)
EXTRAS = {
    "torch": "export",
    "onnx": "quantize",
    "onnx_ir": "quantize",
    "onnxscript": "export",
    "safetensors": "export",
    "matplotlib": "export",
    "onnxruntime": "ort",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "pycuda": "cuda",
}
NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
INT8_FORMAT = click.Choice(["static", "weight-only", "weight-only-4"])


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
        except MemoryError as error:
            raise click.ClickException(f"not enough memory ({error}); take fewer or smaller pictures") from error
        except OSError as error:
            if error.errno not in SYSTEM_ERRORS:
                raise
            where = error.filename or "writing"
            raise click.ClickException(f"{where}: {error.strerror}; choose another place") from error


@click.group(cls=OneSentenceErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rf-export", prog_name="rf-export")
def main() -> None:
    """Compile Representation-Forcing models, draw with them, and ask them about pictures.

    \b
    rf-export export examples/reference/checkpoint -o bundle
    rf-export build-engine bundle --backend ort
    rf-export generate bundle "a red car" "two blue fish" -o sheet.png
    rf-export understand bundle photo.jpg "how many fish?"
    """


@main.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("-o", "--output", "bundle", type=FOLDER, required=True, help="The bundle to write.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp32", "fp16"]),
    multiple=True,
    default=("fp32", "fp16"),
    show_default=True,
)
@click.option(
    "--dialect",
    "dialects",
    type=click.Choice(["classic", "modern", "both"]),
    multiple=True,
    help="Spelling of the graphs: classic runs everywhere, modern (opset 24) writes its cache in place. "
    "[default: what the targets ask for, or classic]",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="Who has to take the graphs: onnxruntime, tensorrt-8.6, tensorrt-10.0 to tensorrt-11.x, "
    "tensorrt-rtx-1.7; picks dialect and opset, and refuses what would not parse there.",
)
@click.option("--opset", type=click.IntRange(17, 18), help="Of classic graphs: 17 for TensorRT 8.6.")
@click.option("--cache-slots", type=click.IntRange(2), help="Fixed length of the cache of modern graphs, for TensorRT.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--no-verify", is_flag=True, help="Skip the verification; such graphs run with --allow-unverified only.")
@click.option("--json", "as_json", is_flag=True)
def export(
    checkpoint: Path,
    bundle: Path,
    precisions: tuple[Any, ...],
    dialects: tuple[Any, ...],
    targets: tuple[str, ...],
    opset: int | None,
    cache_slots: int | None,
    force: bool,
    no_verify: bool,
    as_json: bool,
) -> None:
    """Trace CHECKPOINT into ONNX graphs, verify them against eager PyTorch, and write a bundle.

    \b
    rf-export export examples/reference/checkpoint -o bundle
    rf-export export examples/reference/checkpoint -o bundle --target tensorrt-8.6 --precision fp16
    """
    from rf_export.export import ExportOptions, export

    chosen: Any = tuple(name for name in DIALECT.choices if name in dialects or "both" in dialects)
    options = ExportOptions(
        precisions=tuple(dict.fromkeys(precisions)),
        targets=targets,
        dialects=chosen or None,
        opset=opset,
        cache_slots=cache_slots,
        force=force,
        verify=not no_verify,
    )
    with progress("export") as report:
        manifest = export(checkpoint, bundle, options, report)
    if as_json:
        click.echo(json.dumps(manifest.to_dict(), indent=1))
        return
    click.echo(f"{bundle}  id {manifest.bundle_id}")
    from verification.verify import worst_cosine

    for precision, figures in manifest.verified.items():
        click.echo(
            f"  {precision}  worst cosine {worst_cosine(figures):.8f}  "
            f"tokens {figures['rep_tokens_equal']}/{figures['rep_tokens']}  "
            f"answers {figures['answer_tokens_equal']}/{figures['answer_tokens']}  "
            f"picture PSNR {figures['picture_psnr_db']:.1f} dB against {figures['reference']}"
        )


@main.command()
@click.argument("bundle", type=FOLDER)
@click.option(
    "--checkpoint",
    type=FOLDER,
    help="What BUNDLE was exported from: eager PyTorch is the reference then. "
    "[default: the fp32 graphs of the bundle are]",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    help="Only these: ort, ort-cuda, tensorrt, tensorrt-rtx; repeat it. [default: all]",
)
@click.option("--precision", "precisions", type=PRECISION, multiple=True, help="Only these. [default: all]")
@click.option("--dialect", "dialects", type=DIALECT, multiple=True, help="Only these. [default: all]")
@click.option("--quick", is_flag=True, help="Two prompts and two questions, as an export does it.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random cases.")
@click.option("--random", "num_random", type=click.IntRange(0), default=2, show_default=True, help="Random drawings.")
@click.option("--threads", "num_threads", type=click.IntRange(1), help="CPU threads; the default is the backend's.")
@click.option(
    "--rebuilds",
    type=click.IntRange(0),
    default=0,
    metavar="K",
    help="Also build engines of --backend K times, in a temporary place, and judge the worst.",
)
@click.option("--taps", is_flag=True, help="Also compare layer by layer inside of the graphs; see --report and --json.")
@click.option("--no-record", is_flag=True, help="Do not write the verdicts into the bundle.")
@click.option("--report", "report_path", type=FOLDER, help="Also write an HTML report.")
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def verify(
    ctx: click.Context,
    bundle: Path,
    checkpoint: Path | None,
    quick: bool,
    rebuilds: int,
    no_record: bool,
    report_path: Path | None,
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
    from verification.rebuilds import verify_rebuilds
    from verification.report import write_report
    from verification.verify import NotRecordedError

    require_writable(report_path, "--report")
    if not no_record:
        restore(bundle)
    reference = None
    if checkpoint is not None:
        import torch

        from rf_export.eager_reference import EagerReference
        from rf_export.export import open_exported

        torch.set_num_threads(options["num_threads"] or torch.get_num_threads())
        reference = EagerReference(open_exported(bundle, checkpoint)[1])
    chosen = VerifyOptions(profile="quick" if quick else "full", record=not no_record, **options)
    remembered = None if reference is None else Remembering(reference)
    not_recorded = None
    with progress("verify") as report:
        try:
            outcomes = verify(bundle, chosen, remembered, report)
        except NotRecordedError as error:
            outcomes, not_recorded = error.outcomes, error
        if rebuilds:
            outcomes += verify_rebuilds(bundle, chosen, remembered, _rebuild(chosen), rebuilds, report)
    if as_json:
        click.echo(json.dumps([outcome.to_dict() for outcome in outcomes], indent=1))
    else:
        click.echo("\n".join(outcome.line() for outcome in outcomes))
    if report_path is not None:
        write_report(report_path, bundle, outcomes)
    if not_recorded is not None:
        raise not_recorded
    if {outcome.verdict for outcome in outcomes} - {"not run"} != {"passed"}:
        ctx.exit(1)


def _rebuild(options: "VerifyOptions") -> "Callable[[Path], None]":
    """Builds the engines that are to be verified, into a copy of the bundle."""
    from engines import EngineConfig, build
    from runtime.bundle.folder import open_bundle

    def run(bundle: Path) -> None:
        precisions = options.precisions or open_bundle(bundle).manifest.precisions
        for backend, precision in itertools.product(options.backends or ("ort",), precisions):
            build(
                bundle,
                EngineConfig(
                    backend=backend,
                    precision=precision,
                    num_threads=options.num_threads,
                    force=True,
                    allow_unverified=True,
                ),
            )

    return run


@main.command()
@click.argument("bundle", type=FOLDER)
@click.option(
    "--prompts",
    "prompts_file",
    type=FOLDER,
    required=True,
    help="Text file, one prompt per line, 16 different ones at least; lines that begin with # are left out.",
)
@click.option("--images", type=FOLDER, help="More pictures for the image encoder and the gate, beside those drawn.")
@click.option(
    "--target",
    type=click.Choice(["ort", "tensorrt", "tensorrt-rtx"]),
    default="ort",
    show_default=True,
    help="ort makes int8 on fp32 and times every group here; the others int8-fp16, untimed without a GPU.",
)
@click.option(
    "--method",
    type=click.Choice(["mse", "percentile", "entropy", "minmax"]),
    default="mse",
    show_default=True,
    help="Range of activations.",
)
@click.option("--percentile", type=float, default=99.99, show_default=True, help="Of --method percentile.")
@click.option("--smooth/--no-smooth", default=True, show_default=True, help="Let norms take over outlying channels.")
@click.option(
    "--format",
    "formats",
    type=INT8_FORMAT,
    multiple=True,
    default=("static", "weight-only"),
    show_default=True,
    help="Tried for denoiser and vision_encoder.",
)
@click.option(
    "--decoder-format",
    "ar_formats",
    type=INT8_FORMAT,
    multiple=True,
    default=("weight-only",),
    show_default=True,
    help="Tried for text_decoder and rep_decoder; weight-only-4 is INT4.",
)
@click.option("--block", type=int, help="Rows of a weight per scale, 0 for all. [default: 128, TensorRT 0]")
@click.option(
    "--min-psnr", type=float, default=25.0, show_default=True, help="Of pictures from the same tokens, mean, dB."
)
@click.option(
    "--min-cosine", type=float, default=0.999, show_default=True, help="Of every step, mean over the prompts; below 1."
)
@click.option(
    "--min-token-agreement",
    type=click.FloatRange(0, 100, max_open=True),
    default=95.0,
    show_default=True,
    help="Of captions, percent, for sure; near ties may fall either way.",
)
@click.option(
    "--scene-score",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Also score so many pictures of scenes; for models that know their words, needs PyTorch.",
)
@click.option("--memory-mib", type=click.IntRange(1), default=1024, show_default=True, help="For recorded activations.")
@click.option("--threads", "num_threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Prompt i is drawn with seed + i.")
@click.option("--cache", "cache_path", type=FOLDER, help="Recorded activations. [default: BUNDLE.fp32.calibration.npz]")
@click.option("--report", "report_path", type=FOLDER, help="HTML report. [default: BUNDLE.calibration.html]")
@click.option("--export-inputs", type=FOLDER, help="Only write recorded inputs to this folder, as .npz for ModelOpt.")
@click.option("--force", is_flag=True, help="Write the graphs even if they are not faster or not good enough.")
@click.option("--json", "as_json", is_flag=True)
def calibrate(
    bundle: Path,
    prompts_file: Path,
    images: Path | None,
    min_psnr: float,
    min_cosine: float,
    min_token_agreement: float,
    scene_score: int,
    cache_path: Path | None,
    report_path: Path | None,
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

    prompts = calibration.read_prompts(prompts_file)
    pictures = calibration.find_pictures(images) if images is not None else []
    require_writable(cache_path, "--cache")
    require_writable(report_path, "--report")
    with usage_errors():
        limits = calibration.GateLimits(cosine=min_cosine, psnr_db=min_psnr, answer_tokens=min_token_agreement / 100)
        config = calibration.CalibrationConfig(limits=limits, **options)
    restore(bundle)
    if export_inputs is not None:
        if pictures:
            raise click.UsageError("--export-inputs writes what the model draws and reads; leave out --images")
        written = calibration.export_inputs(
            bundle, prompts, export_inputs, config.base, config.num_threads, config.seed
        )
        click.echo("\n".join(map(str, written)))
        return
    scorer = None
    if scene_score:
        from rf_export.evaluation.evaluate import scene_scorer

        scorer = scene_scorer(scene_score)
    with progress("calibrate") as report:
        outcome = calibration.calibrate(
            bundle,
            prompts,
            config,
            pictures=pictures,
            cache_path=cache_path,
            report_path=report_path,
            scorer=scorer,
            lint=takers,
            on_progress=report,
        )
    click.echo(json.dumps(outcome.to_dict(), indent=1) if as_json else outcome.table())


@main.command("build-engine")
@click.argument("bundle", type=FOLDER)
@click.option("--backend", default="ort", show_default=True, help="ort, tensorrt or tensorrt-rtx.")
@click.option("--precision", type=PRECISION, default="fp32", show_default=True)
@click.option("--force", is_flag=True, help="Build again where a fitting engine is there already.")
@click.option(
    "--dim",
    "dims",
    multiple=True,
    metavar="NAME=MIN:OPT:MAX",
    help="TensorRT: sizes of batch (pictures drawn at once), images (read at once), prompt (tokens), height, "
    "width; repeat it.",
)
@click.option("--workspace-mib", type=click.IntRange(1), help="TensorRT: most device memory of one layer.")
@click.option("--builder-optimization-level", type=click.IntRange(0, 5), help="TensorRT: 5 searches longest.")
@click.option("--timing-cache", metavar="FILE", help="TensorRT: the default is one per GPU in the bundle.")
@click.option(
    "--profiling-verbosity",
    type=click.Choice(["layer_names_only", "detailed", "none"]),
    default="layer_names_only",
    show_default=True,
)
@click.option("--version-compatible", is_flag=True, help="TensorRT: runs with later minor versions too.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
    default="none",
    show_default=True,
)
@click.option("--weight-streaming", is_flag=True, help="TensorRT: for models larger than the GPU's memory.")
@click.option(
    "--weights",
    type=click.Choice(["fixed", "refittable", "stripped"]),
    default="fixed",
    show_default=True,
    help="TensorRT: refittable ones can be exchanged (refit-engine), stripped ones are left out until then.",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="8.6",
    help="tensorrt-rtx: compile for these GPUs, on any machine; repeat it.",
)
@click.option(
    "--dialect",
    type=DIALECT,
    default="classic",
    show_default=True,
    help="TensorRT from 10.15 on and tensorrt-rtx: modern, from graphs exported with --cache-slots.",
)
@click.option("--allow-unverified", is_flag=True, help="Build from graphs that failed a verification, or had none.")
@click.option("--json", "as_json", is_flag=True)
def build_engine(
    bundle: Path,
    backend: str,
    precision: Any,
    dialect: Any,
    force: bool,
    as_json: bool,
    dims: tuple[str, ...],
    allow_unverified: bool,
    **options: Any,
) -> None:
    """Compile the graphs of BUNDLE for this machine, or ahead of time for RTX cards.

    \b
    rf-export build-engine bundle --backend ort --precision fp32
    rf-export build-engine bundle --backend tensorrt --precision fp16 --dim batch=1:1:4 --dim prompt=1:32:256
    rf-export build-engine bundle --backend tensorrt-rtx --precision fp16 --compute-capability 8.9
    """
    from engines import EngineConfig, TensorRTConfig, build, estimate, parse_dims
    from runtime.backends.host.machine import usable_memory
    from runtime.bundle.atomic import restore
    from runtime.bundle.engine import open_engine

    with usage_errors():
        tensorrt = TensorRTConfig(dims=parse_dims(dims), **options)
    config = EngineConfig(
        backend=backend,
        precision=precision,
        dialect=dialect,
        force=force,
        tensorrt=tensorrt,
        allow_unverified=allow_unverified,
    )
    restore(bundle)
    need = estimate(bundle, config)
    click.echo(f"needs at most {need.memory_mib} MiB of memory and {need.disk_mib} MiB of disk", err=True)
    warning = need.warning(usable_memory(), shutil.disk_usage(bundle).free)
    if warning is not None:
        click.echo(f"warning: {warning}", err=True)
    with progress("build") as report:
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
    from engines.tensorrt.refit import refit

    with progress("refit") as report:
        click.echo(refit(engine, bundle, report))


for command in (train, evaluate, bench, tokens, generate, understand, inspect, doctor):
    main.add_command(command)

if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    main()
