"""Who says how good a picture is: a scorer, from 0 to 1 per picture. Here is that of a user's own command.

Knows nothing of plans. A command that fails, answers nonsense or hangs ends the search, in one sentence.
"""

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from runtime.errors import RFError
from runtime.pictures.png import save_png
from tuning.drawings import Picture

WRONG: Final = 1  # the exit code of a command that prints nothing and finds a picture wrong
_SHOWN: Final = 200  # characters of what a command said


class Scorer(Protocol):
    """Judges pictures."""

    @property
    def name(self) -> str:
        """Names it in reports, and tells one from another when a search goes on."""

    def score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[float]:
        """From 0, wrong, to 1, right: one number per picture; raises RFError where it cannot tell."""


class CommandScorer:
    """A command that is run for every picture.

    It prints one number from 0 to 1; or nothing, and exit code 0 means right and 1 wrong.

    Args:
        command: With `{png}` in place of the file of the picture, and `{prompt}` of its prompt. No shell reads it.
        timeout: Seconds after which it hangs.

    Raises:
        RFError: Nothing can be run by that.
    """

    def __init__(self, command: str, timeout: float) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise RFError(f"score has a quotation mark too many or too few: {command!r} ({error}).") from error
        if not any("{png}" in word for word in self._words[1:]):
            raise RFError(f"score must name a command and then {{png}}, where it finds a picture, got {command!r}.")
        self._command, self._timeout = command, timeout

    @property
    def name(self) -> str:
        """The command."""
        return self._command

    def score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[float]:
        """Run the command for each picture."""
        scores = []
        with tempfile.TemporaryDirectory(prefix="rf-export-tune-") as folder:
            for picture, prompt in zip(pictures, prompts, strict=True):
                path = Path(folder) / "picture.png"
                save_png(path, picture, {"prompt": prompt})
                scores.append(self._judge(path, prompt))
        return scores

    def _judge(self, path: Path, prompt: str) -> float:
        words = [word.replace("{png}", str(path)).replace("{prompt}", prompt) for word in self._words]
        code, out, told = self._run(words, prompt)
        text = out.strip()
        if not text and code in (0, WRONG):
            return float(code != WRONG)
        if code:
            raise RFError(
                f"{self._what(prompt)} failed with exit code {code}: {_short(told or text) or 'it said nothing'}. "
                f"Let it print a number from 0 to 1, or nothing and exit with 0 for right and {WRONG} for wrong."
            )
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number <= 1:
            raise RFError(f"{self._what(prompt)} printed {_short(text)!r}, expected one number from 0 to 1.")
        return number

    def _run(self, words: list[str], prompt: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr; what hangs is ended with all that it started."""
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise RFError(f"The scorer {words[0]!r} cannot be run: {error.strerror}. Correct --score.") from error
        with process:  # closes its pipes, also where what left its group holds them open
            try:
                out, told = process.communicate(timeout=self._timeout)
            except BaseException as error:
                with suppress(ProcessLookupError):  # it may end in this moment
                    os.killpg(process.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise RFError(
                        f"{self._what(prompt)} did not answer within {self._timeout:g} seconds. Look why it hangs, or "
                        "give it more with --score-timeout."
                    ) from None
                raise
        return process.returncode, out, told

    def _what(self, prompt: str) -> str:
        return f"The scorer {self._words[0]!r}, asked about a picture of {prompt!r},"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"...{text[-_SHOWN:]}"
