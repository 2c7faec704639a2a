"""Full disks, read-only folders, clocks that go back, and two processes at once: every command that writes."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from processes import mounting, start

import cli
from calibration import recordings as cache
from calibration.statistics import Activations
from engines import EngineConfig, build
from runtime import Pipeline
from runtime.bundle.folder import open_bundle

SMALL_DISK = Path(__file__).parents[1].joinpath("small_disk.py")
COLOURS = ("red", "blue", "green", "pink")
PROMPTS = [f"a {colour} {name}" for colour in COLOURS for name in ("hat", "bell", "key", "car")]
TRAIN = ["--resume", "--steps", "1", "--describe-steps", "0", "--batch-size", "1", "--no-compile"]


def on_a_small_disk(folder: Path, bundle: Path, how: str, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What came of a command on a disk that cannot take it, and on one that can."""
    within = mounting()
    if within is None:
        pytest.skip("this machine lets nobody mount a file system")
    disk, beside = folder / "disk", folder / "beside"
    disk.mkdir()
    beside.mkdir()
    (beside / "prompts.txt").write_text("\n".join(PROMPTS))
    (beside / "car.png").write_bytes(b"the old picture")
    command = [*within, sys.executable, SMALL_DISK, bundle, how, disk, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=disk.parent)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    return first, second


@pytest.mark.parametrize(
    ("how", "words"), [("60", ("disk is full", "No space left")), ("ro", ("Read-only", "othing can be written"))]
)
@pytest.mark.parametrize(
    "arguments",
    [
        ["build-engine", "disk/bundle"],
        ["generate", "disk/bundle", "a red car", "-o", "disk/car.png", "--preview", "disk/steps.png", "--steps", "2"],
        pytest.param(
            ["calibrate", "disk/bundle", "--prompts", "disk/prompts.txt", "--force", "--min-cosine", "0.9"],
            marks=pytest.mark.slow,
        ),
        pytest.param(["train", "disk/run", *TRAIN], marks=pytest.mark.slow),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_disk_that_cannot_take_it_ends_a_command_in_one_sentence_and_loses_nothing(
    tiny_bundle: Path, tmp_path: Path, arguments: list[str], how: str, words: tuple[str, ...]
) -> None:
    if arguments[0] == "generate" and how != "ro":
        how = "0"  # a picture takes little
    first, second = on_a_small_disk(tmp_path, tiny_bundle, how, *arguments)
    assert first["code"] in (1, 2), first  # 2: an option names what is told at once to be no place to write to
    assert first["stderr"].count("Error:") == 1, first["stderr"]
    assert "Traceback" not in first["stderr"]
    assert any(word in first["stderr"] for word in words), first["stderr"]
    before = ["bundle", "car.png", *(["filler"] if how != "ro" else []), "prompts.txt"]
    kept = {"bundle.fp32.calibration.npz", "bundle.calibration.html", "run", "log.jsonl"}  # whole files, and a folder
    assert set(first["names"]) - kept == set(before), "nothing half-written is left"
    assert first["bundle"] is not None
    assert second["code"] == 0, second
    assert [name for name in second["names"] if "partial" in name] == []
    assert second["bundle"] is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "{0}"], "is a folder"),
        (["-o", "{0}/none/a.png"], "is not a folder"),
        (["--each", "{0}/file"], "is a file"),
        (["--preview", "{0}"], "is a folder"),
    ],
)
def test_a_place_where_no_picture_can_be_is_refused_before_anything_is_drawn(
    tiny_bundle: Path, tmp_path: Path, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("it was loaded"))
    command = ["generate", str(tiny_bundle), "a red car", *(option.format(tmp_path) for option in options)]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_calibration_whose_cache_has_no_place_says_so_before_it_draws(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["calibrate", str(tiny_bundle), "--prompts", str(tmp_path / "prompts.txt"), "--cache"]
    started = time.monotonic()
    result = CliRunner().invoke(cli.main, [*command, str(tmp_path / "none" / "cache.npz")])
    assert result.exit_code == 2
    assert "none is not a folder" in result.stderr
    assert time.monotonic() - started < 10


def test_two_builds_at_once_make_one_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    both = [start("build-engine", bundle) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(list((bundle / "engines").iterdir())) == 1
    waited = [stderr for _, stderr in outputs if "Waiting for process" in stderr]
    assert len(waited) <= 1  # none if the first had finished before the second started
    assert not waited or any(f"Waiting for process {process.pid}, which is writing" in waited[0] for process in both)
    assert sorted("built in" in stdout for stdout, _ in outputs) == [False, True], (
        "the second found the engine of the first"
    )
    assert Pipeline.load(bundle, num_threads=1).engine is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_of_two_exports_at_once_the_second_is_refused(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("export", tiny_checkpoint, "-o", tmp_path / "bundle", "--precision", "fp32", "--no-verify")
    both = [start(*arguments, traces=tiny_bundle) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], outputs
    assert sum("exists. Choose another output path" in stderr for _, stderr in outputs) == 1
    open_bundle(tmp_path / "bundle", verify="hash")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.slow
def test_a_build_and_two_calibrations_at_once_lose_nothing_of_each_other(tiny_bundle: Path, tmp_path: Path) -> None:
    """A calibration replaces the whole bundle: what others wrote into the old one meanwhile would be lost."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    calibrate = ("calibrate", bundle, "--prompts", tmp_path / "prompts.txt", "--force", "--min-cosine", "0.9")
    other = (*calibrate, "--target", "tensorrt", "--cache", tmp_path / "b.npz")
    processes = [start(*command) for command in (calibrate, other, ("build-engine", bundle))]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert {"fp32", "fp16", "int8", "int8-fp16"} <= set(open_bundle(bundle, verify="hash").manifest.precisions)
    assert Pipeline.load(bundle, num_threads=1).engine is not None


def test_no_decision_depends_on_the_clock(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a battery starts in 1970, and files come from machines whose clocks are ahead."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    clock = itertools.count(4e9, -1e7)
    monkeypatch.setattr(time, "time", lambda: max(next(clock), 0.0))
    first = build(bundle, EngineConfig(num_threads=1))
    record = (first / "engine.json").read_bytes()
    for seconds in (0, 4_000_000_000):
        for number, path in enumerate(sorted(bundle.rglob("*"))):
            os.utime(path, (seconds, seconds) if number % 2 else (1, 1))
        assert build(bundle, EngineConfig(num_threads=1)) == first
        assert (first / "engine.json").read_bytes() == record, "it was not built again"
        assert Pipeline.load(bundle, num_threads=1).engine is not None
    activations = Activations(4, 2)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    cache.save(tmp_path / "cache.npz", {"a": 1}, {"denoiser": {"w": activations}}, cache.Reached(0, 3))
    os.utime(tmp_path / "cache.npz", (4e9, 4e9))
    assert cache.load(tmp_path / "cache.npz", {"a": 1})[1] == cache.Reached(0, 3)


def test_a_few_kills_lose_nothing(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    """Two of the hundreds of `python tests/kills.py`, of the commands that take a second."""
    assert "| generate | " in killed(tiny_checkpoint, tiny_bundle, "build-engine", "generate", "--kills", "12")


def killed(checkpoint: Path, bundle: Path, *arguments: str) -> str:
    command = [sys.executable, Path(__file__).parents[1].joinpath("kills.py"), *arguments, "--tiny", checkpoint, bundle]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_many_kills_of_all_commands_lose_nothing(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    assert "| train --resume | " in killed(tiny_checkpoint, tiny_bundle, "--kills", "150")
