"""How commands declare arguments and options: `command`, `option`, `flag`, the kinds of values, and wrong ones.

The help of an option stands right behind its names, so that none goes without; click adds defaults and ranges. Knows no
command.
"""

import ast
import contextlib
import inspect
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runtime.bundle.atomic import is_no_file
from runtime.errors import RFError

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline
    from runtime.signature import ModelSpec

Function = TypeVar("Function", bound=Callable[..., Any])
STDOUT = Path("-")


class _Number(click.FloatRange):
    """A number within limits, and none that is not one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return float(number)


class _Seed(click.IntRange):
    """64 bits without a sign, whose limit help writes short."""

    def _describe_range(self) -> str:
        return "0<=x<2**64"


class _Size(click.ParamType):  # type: ignore[type-arg]
    """Height and width in pixels."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if not (found := re.fullmatch(r"(\d{1,6})x(\d{1,6})", value, re.ASCII | re.IGNORECASE)):
            self.fail(f"expected HxW in pixels such as 48x48, got {value!r}", param, ctx)
        return int(found[1]), int(found[2])


class _Png(click.ParamType):  # type: ignore[type-arg]
    """A picture to be written; `-` is stdout, where that may be."""

    name = "FILE"

    def __init__(self, *, or_stdout: bool = False) -> None:
        self._or_stdout = or_stdout

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path == STDOUT and not self._or_stdout:
            self.fail("nothing but a PNG file is written here; name one", param, ctx)
        if path.suffix.lower() not in ("", ".png"):
            told = f"pictures are written as PNG only, and {path.name!r} is named as another kind"
            self.fail(f"{told}; name it {path.stem}.png", param, ctx)
        return path


class _Times(click.ParamType):  # type: ignore[type-arg]
    """Times with commas between; which ones make sense, `Plan` says."""

    name = "T,T,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        return tuple(_NUMBER.convert(each.strip(), param, ctx) for each in value.split(","))


class _Interval(click.ParamType):  # type: ignore[type-arg]
    """Two times with a colon between; which ones make sense, `Plan` says."""

    name = "FROM:TO"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        ends = value.split(":")
        if len(ends) != 2:
            self.fail(f"expected FROM:TO such as 0:0.7, got {value!r}", param, ctx)
        return _NUMBER.convert(ends[0], param, ctx), _NUMBER.convert(ends[1], param, ctx)


class _Plan(click.ParamType):  # type: ignore[type-arg]
    """The name of a plan of the bundle, or the file of one."""

    name = "paper|tuned|FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:
        if value in ("paper", "tuned"):
            return str(value)
        if not Path(value).is_file():
            self.fail(f"{value!r} is neither paper, nor tuned, nor a file", param, ctx)
        return Path(value)


PATH = click.Path(path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
OLD_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PNG, PNG_OR_STDOUT = _Png(), _Png(or_stdout=True)
_NUMBER = _Number(-1e9, 1e9)
TIMES, INTERVAL, PLAN_OF = _Times(), _Interval(), _Plan()
COUNT, NATURAL, SEED, SIZE = click.IntRange(1), click.IntRange(0), _Seed(0, 2**64 - 1), _Size()
PRECISION = click.Choice(["fp32", "fp16", "int8", "int8-fp16"])
DIALECT = click.Choice(["classic", "modern"])
BACKEND = click.Choice(["ort", "ort-cuda", "tensorrt", "tensorrt-rtx"])
BUNDLES = "the bundle's"


def number(least: float, most: float | None = None, **open_ends: bool) -> click.FloatRange:
    """The kind of value that is a number within limits."""
    return _Number(least, most, **open_ends)


def command(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Any]:
    """`click.command`, with the docstring as help also where PYTHONOPTIMIZE=2 has dropped it."""

    def declare(function: Callable[..., Any]) -> Any:
        settings.setdefault("help", function.__doc__ or _written_docstring(function))
        make: Callable[..., Any] = click.command(name, **settings)
        return make(function)

    return declare


def _written_docstring(function: Callable[..., Any]) -> str | None:
    with contextlib.suppress(OSError, SyntaxError):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        return ast.get_docstring(definition) if isinstance(definition, ast.FunctionDef) else None
    return None


def option(
    names: str, text: str, kind: Any = None, default: Any = None, *, shown: str = "", **more: Any
) -> Callable[[Function], Function]:
    """An option.

    Args:
        names: As on the command line, and in Python where that is another one: "-o --output bundle".
        text: The help, which begins with what the option sets.
        kind: What values it takes.
        default: Taken where it is not given.
        shown: What help tells of the default where that is no value.
        more: As for `click.option`.
    """
    if default is not None:
        more["default"] = default
    return click.option(*names.split(), type=kind, help=text, show_default=shown or True, **more)


def many(names: str, text: str, kind: Any = None, default: Any = None, **more: Any) -> Callable[[Function], Function]:
    """An option that may be given several times."""
    return option(names, f"{text} Repeatable.", kind, default, multiple=True, **more)


def flag(names: str, text: str) -> Callable[[Function], Function]:
    """An option without a value."""
    return click.option(*names.split(), is_flag=True, help=text)


BUNDLE = click.argument("bundle", type=PATH)
THREADS = option("--threads", "CPU threads of a run.", COUNT, shown="the backend's")
OBJECTS = option("--objects num_objects", "Kinds of objects in the scenes, as in training.", click.IntRange(2, 32), 16)
SPINNING = flag("--no-spinning", "Let idle threads sleep: for cores that others need too. Backend ort.")
UNVERIFIED = flag("--allow-unverified", "Run also what failed a verification, or what nobody verified.")


def plan_option(text: str) -> Callable[[Function], Function]:
    """The option that names a plan; `open_plan` opens it."""
    return option("--plan", f"{text}: as the paper draws, as `rf-export tune` found, or as in FILE.", PLAN_OF, "paper")


def open_plan(named: "str | Path", bundle: Path) -> Any:
    """What `GenerationOptions.plan` takes.

    Raises:
        RFError: The bundle cannot be opened or has no tuned plan, or the file is no plan, or one of another checkpoint.
    """
    from runtime.bundle.folder import open_bundle
    from runtime.bundle.plan import read_plan
    from runtime.options import GenerationOptions
    from runtime.plans import named_plan

    if named == "paper":  # every bundle has it
        return named
    manifest = open_bundle(bundle).manifest
    if isinstance(named, Path):
        return read_plan(named, manifest.checkpoint["sha256"]).plan
    chosen: Any = named
    named_plan(GenerationOptions(plan=chosen), manifest)
    return chosen


def bundle_options(function: Function) -> Function:
    """The options of every command that loads a bundle."""
    for add in (
        SPINNING,
        THREADS,
        UNVERIFIED,
        option("--engine", "Engine that runs: auto, none (the ONNX graphs), or the folder of one.", default="auto"),
        option("--backend", "Library that runs the graphs.", BACKEND, "ort"),
        option("--dialect", "Spelling of the graphs that run.", DIALECT, "classic"),
        option("--precision", "Precision of the graphs that run.", PRECISION, "fp32"),
    ):
        function = add(function)
    return function


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
        allow_spinning=not options["no_spinning"],
    )


@contextlib.contextmanager
def usage_errors(kinds: tuple[type[Exception], ...] = (ValueError, RFError)) -> Iterator[None]:
    """What a config refuses is a wrong option, told by its name on the command line."""
    try:
        yield
    except kinds as error:
        raise click.UsageError(_as_on_the_command_line(str(error))) from error


def _as_on_the_command_line(text: str) -> str:
    """Names of parameters in Python become those of options; a plain word is one where a message begins with it."""
    for parameter in click.get_current_context().command.params:
        name = str(parameter.name)
        if isinstance(parameter, click.Option):
            before = r"\b" if "_" in name else r"\A(?:[\w-]+, )*"
            text = re.sub(rf"({before}){name}\b", rf"\g<1>{max(parameter.opts, key=len)}", text)
    return text


def require_size(size: tuple[int, int] | None, model: "ModelSpec") -> None:
    """Refuse pictures that a model neither draws nor reads; raises click.BadParameter."""
    try:
        model.rep_grid(*size or (model.default_height, model.default_width))
    except ValueError as error:
        raise click.BadParameter(f"{error}", param_hint="--size") from error


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there; a name that is too long raises OSError."""
    while True:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
            return path
        path = path.parent


def require_writable(path: Path | None, option: str) -> None:
    """Refuse, before the work is done, a file that could not be written afterwards; raises click.BadParameter."""
    if path is None or path == STDOUT:
        return
    parent = path.absolute().parent
    if not parent.is_dir():
        raise click.BadParameter(f"{parent} is not a folder", param_hint=option)
    if path.is_dir():
        raise click.BadParameter(f"{path} is a folder", param_hint=option)
    if is_no_file(path):
        raise click.BadParameter(f"{path} is not a regular file, so it cannot be replaced", param_hint=option)
    if not os.access(parent, os.W_OK):
        raise click.BadParameter(f"nothing can be written into {parent}", param_hint=option)
