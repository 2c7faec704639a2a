"""Help says what every option sets, and its default and range; it is there however Python and the shell are set."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from running import run

import cli
from runtime.backends import BACKENDS
from runtime.commands import parameters as arg
from runtime.signature import DIALECTS, PRECISIONS

ROOT = Path(__file__).parents[2]
OPTIONS = [
    pytest.param(command, option, id=f"{name} {option.opts[-1]}")
    for name, command in cli.main.commands.items()
    for option in command.params
    if isinstance(option, click.Option)
]
NO_SUBJECT = re.compile(r"(Of|For|Where|With|Above|Below|Only|Also|Instead|These|It|They|By|In|\d+)\b")


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_help_begins_with_what_an_option_sets_and_tells_default_and_range(
    command: click.Command, option: click.Option
) -> None:
    text = option.help or ""
    assert re.match(r"[A-Z][\w-]*:? ?\w", text) or text.startswith("tensorrt-rtx: ")
    assert text.endswith(".")
    assert not NO_SUBJECT.match(text)
    shown = option.get_help_record(click.Context(command, show_default=True))
    assert shown is not None
    if isinstance(option.type, click.IntRange | click.FloatRange):
        assert "default: " in shown[1]
        assert re.search(r"[x\d][<>]=?", shown[1])
    default = option.get_default(click.Context(command))
    if isinstance(default, str | int | float | tuple) and default and not option.is_flag:
        assert "default: " in shown[1]


def test_the_choices_are_those_of_the_runtime() -> None:
    assert set(arg.BACKEND.choices) == set(BACKENDS)
    assert set(arg.PRECISION.choices) == set(PRECISIONS)
    assert set(arg.DIALECT.choices) == set(DIALECTS)


def program(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--help"], "Compile Representation-Forcing models"),
        (["generate", "-h"], "Draw one picture per PROMPT"),
        (["eval", "-h"], "rf-export eval bundle --precision fp16"),
    ],
)
@pytest.mark.parametrize("level", ["1", "2"])
def test_help_is_there_without_docstrings(arguments: list[str], text: str, level: str) -> None:
    assert text in program(*arguments, PYTHONOPTIMIZE=level)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell: str) -> None:
    assert "_RF_EXPORT_COMPLETE" in program(_RF_EXPORT_COMPLETE=f"{shell}_source")


def test_options_are_completed() -> None:
    words = {"COMP_WORDS": "rf-export generate --pre", "COMP_CWORD": "2"}
    offered = program(_RF_EXPORT_COMPLETE="bash_complete", **words).split()
    assert {"plain,--preview", "plain,--precision"} <= set(offered)


def test_the_terminal_is_for_commands_only() -> None:
    """Whoever embeds a library has a log and a progress of their own."""
    commands = {"cli.py", "rf_export/commands.py", "rf_export/web/command.py", "runtime/serving/command.py"}
    allowed = {*commands, "rf_export/evaluation/train_checker.py"}  # which is a program
    packages = ("runtime", "engines", "calibration", "tuning", "verification", "rf_export")
    for path in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name not in allowed and not name.startswith("runtime/commands/"):
            assert not re.search(r"^\s*(import|from) (click|rich)\b", path.read_text("utf-8"), re.MULTILINE), name


def test_a_seed_has_64_bits_in_help() -> None:
    assert "0<=x<2**64" in run("generate", "--help")
