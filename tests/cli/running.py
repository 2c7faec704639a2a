"""Runs commands in this process, and judges refusals. Knows no command."""

from pathlib import Path

from click.testing import CliRunner, Result

import cli


def invoke(*arguments: str | Path) -> Result:
    """What came of a command."""
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def run(*arguments: str | Path) -> str:
    """The output of a command that succeeds."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(result: Result, *words: str, code: int = 1) -> None:
    """One `Error: ...` sentence with these words, and no traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert result.stderr.count("Error:") == 1
    for word in words:
        assert word in result.stderr, result.stderr
