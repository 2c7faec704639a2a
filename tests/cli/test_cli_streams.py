"""Commands work whatever their streams are: closed, a file, a pipe; and end as shells expect it."""

import io
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from running import invoke, refused, run

import cli
from runtime import Pipeline
from runtime.commands.terminal import SECONDS_BETWEEN_LINES, PlainProgress
from runtime.pictures.png import read_parameters

ROOT = Path(__file__).parents[2]
PROGRAM = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'cli.py'))}"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(f"{PROGRAM} {command}", shell=True, cwd=folder, capture_output=True, check=False)


@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_a_picture_is_drawn_with_closed_streams(tiny_bundle: Path, tmp_path: Path, streams: str) -> None:
    done = shell(f"generate {tiny_bundle} 'a red car' -o car.png --threads 1 {streams}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_parameters(tmp_path / "car.png")["prompt"] == "a red car"
    Image.open(tmp_path / "car.png").load()


@pytest.mark.parametrize(
    "command",
    [
        "understand {0} {1}/photo.png",
        "inspect {0}",
        "inspect {0} --memory",
        "doctor",
        "build-engine {0} --output {1}/engine",
        "verify {0} --quick --precision fp16 --no-record",
        "tokens {0} 'a red car' -o {1}/tokens.png",
    ],
)
def test_no_command_needs_stdout_or_stderr(tiny_bundle: Path, tmp_path: Path, command: str) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "photo.png")
    done = shell(command.format(tiny_bundle, tmp_path) + " >&- 2>&-", tmp_path)
    assert done.returncode == 0


def test_a_refusal_ends_with_its_code_also_where_nobody_hears_it(tmp_path: Path) -> None:
    assert shell("inspect nowhere 2>&-", tmp_path).returncode == 1
    assert shell("inspect 2>&-", tmp_path).returncode == 2


def test_stdout_gets_the_picture_and_stderr_the_results(tiny_bundle: Path, tmp_path: Path) -> None:
    run("generate", tiny_bundle, "a red car", "-o", tmp_path / "file.png")
    result = invoke("generate", tiny_bundle, "a red car", "-o", "-", "--json")
    assert result.exit_code == 0
    assert result.stdout_bytes == (tmp_path / "file.png").read_bytes()
    assert '"prompt": "a red car"' in result.stderr
    assert Image.open(io.BytesIO(result.stdout_bytes)).size == (24, 16)
    assert not Path("-").exists()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["generate", "-o"], "x.jpg"),
        (["generate", "-o"], "x.png.bak"),
        (["generate", "-o", "x.png", "--preview"], "x.gif"),
        (["generate", "-o", "x.png", "--preview"], "-"),
        (["tokens", "-o"], "x.WEBP"),
        (["tokens", "-o"], "-"),
    ],
)
def test_only_png_files_are_written(tiny_bundle: Path, command: list[str], name: str) -> None:
    first, *options = command
    refused(invoke(first, tiny_bundle, "a red car", *options, name), options[-1], "PNG", code=2)


@pytest.mark.parametrize("name", ["x", "x.png", "x.PNG"])
def test_a_png_file_needs_no_suffix(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    run("generate", tiny_bundle, "a red car", "-o", tmp_path / name, "--steps", "1")
    assert read_parameters(tmp_path / name)["num_steps"] == 1


@pytest.mark.parametrize("command", [["generate", "a red car"], ["understand", "photo.png"], ["tokens", "a red car"]])
def test_an_interrupt_ends_with_130(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "load", interrupt)
    result = CliRunner().invoke(cli.main, [command[0], str(tiny_bundle), *command[1:]])
    assert result.exit_code == 130
    assert result.stderr == "Interrupted.\n"


def test_ctrl_c_ends_a_drawing_with_130_and_no_file(tiny_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "generate", str(tiny_bundle), "--steps", "1000", "-o", "x.png"]
    with subprocess.Popen([*command, *["a red car"] * 64], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("tokens")  # it draws
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert rest.endswith("Interrupted.\n")
    assert not list(tmp_path.iterdir())


class Log:
    """A log with a clock that moves when it is told to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 100.0
        self.progress = PlainProgress(self.lines.append, lambda: self.now)

    def after(self, seconds: float, what: str, done: int, total: int) -> None:
        self.now += seconds
        self.progress.report(what, done, total)


def test_a_log_has_a_line_per_stage_with_time_gone_and_left() -> None:
    log = Log()
    log.after(0, "tokens", 1, 10)
    for done in range(2, 11):
        log.after(0.2, "tokens", done, 10)
    log.after(2, "denoising", 1, 25)
    log.after(5, "denoising", 2, 25)
    log.after(11, "denoising", 3, 25)
    log.after(0.1, "checking", 1, 2)  # so soon that nobody could read both
    assert log.lines == [
        "tokens: 1 of 10, 0:00 gone",
        "denoising: 1 of 25, 0:03 gone",
        "denoising: 3 of 25, 0:19 gone, about 2:56 left",
    ]


def test_a_long_stage_is_told_again_and_again() -> None:
    log = Log()
    for done in range(1, 101):
        log.after(5, "tracing", done, 100)
    assert len(log.lines) == 1 + 99 * 5 // SECONDS_BETWEEN_LINES
    assert log.lines[-1] == "tracing: 100 of 100, 8:20 gone, about 0:00 left"


def test_a_step_that_takes_minutes_is_no_silence() -> None:
    log = Log()
    log.after(0, "compiling denoiser", 2, 9)
    for _ in range(360):
        log.now += 1
        log.progress.tick()
    assert len(log.lines) == 1 + 360 // SECONDS_BETWEEN_LINES
    assert log.lines[-1] == "compiling denoiser: 2 of 9, 6:00 gone"


def test_figures_that_change_at_every_step_make_no_line_each() -> None:
    log = Log()
    for step in range(1, 101):
        log.after(2, f"train, loss {1 / step:.3f}", step, 1000)
    assert len(log.lines) == 1 + 99 * 2 // (SECONDS_BETWEEN_LINES + 1)


def test_stderr_that_is_no_terminal_gets_plain_lines(tiny_bundle: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    lines = invoke("generate", tiny_bundle, "a red car", "-o", tmp_path / "x.png").stderr.splitlines()
    assert lines[0].startswith("tokens: 1 of 6, 0:0")
    assert len(lines) <= 3 + (time.monotonic() - started)
    assert all(line.isprintable() for line in lines)
