"""The commands that repeat the comparison: they exist, and equal seconds are computed from what runs really cost."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from cli import main

SCRIPT = Path(__file__).parents[2] / "docs/replicate.py"
spec = importlib.util.spec_from_file_location("replicate", SCRIPT)
assert spec is not None
assert spec.loader is not None
replicate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(replicate)


def test_every_printed_command_is_one_that_the_program_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    replicate.main([str(tmp_path), "--steps", "2000"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(replicate.OBJECTS) * len(replicate.SEEDS) * 9
    for line in lines:
        program, name, *arguments = shlex.split(line.partition(" > ")[0])
        assert program == "rf-export"
        main.commands[name].make_context(name, arguments)
    assert sum("--without-rep" in line for line in lines) == len(lines) // 9 * 4  # two trainings, two drawings
    assert list(tmp_path.iterdir()) == []


def write_log(path: Path, num_steps: int, start: float, per_step: float) -> Path:
    rows = [{"step": n, "phase": "describe", "cpu_seconds": 0.1 * n} for n in range(1, 11)]
    rows += [{"step": 10 + n, "phase": "joint", "cpu_seconds": start + per_step * n} for n in range(1, num_steps + 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_cheaper_run_goes_on_until_it_has_cost_as_much(tmp_path: Path) -> None:
    """2,000 steps of 3 s against steps of 1.5 s after the same 100 s of compilation: 4,000 of them."""
    with_log = write_log(tmp_path / "with", 2000, 100, 3.0)
    without_log = write_log(tmp_path / "without", 2000, 100, 1.5)
    assert replicate.steps_for_equal_seconds(with_log, without_log) == 4000
    assert replicate.steps_for_equal_seconds(without_log, with_log) == 2000  # it has cost too much already


def test_steps_that_no_snapshot_shows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        replicate.main(["runs", "--steps", "1500"])
    assert "multiple of 1000" in capsys.readouterr().err
