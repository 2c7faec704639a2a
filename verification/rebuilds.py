"""Builds an engine several times and verifies each: some builders choose other kernels every time.

Knows nothing of builders: who builds is given.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from runtime.events import Progress
from verification.candidates import NotRun, VerifyOptions
from verification.outcome import Outcome, worst_cosine
from verification.traces import Remembering
from verification.verify import verify


def verify_rebuilds(
    bundle: Path,
    options: VerifyOptions,
    reference: Remembering | None,
    build: Callable[[Path], object],
    num: int,
    on_progress: Progress,
) -> list[Outcome | NotRun]:
    """Build engines of a copy of a bundle `num` times; per engine the worst outcome.

    Args:
        bundle: It stays as it is.
        options: As for `verify`.
        reference: The same.
        build: Builds all engines of the bundle that it is given, again if they are there.
        num: How often.
        on_progress: Told before every case.
    """
    worst: dict[str, Outcome | NotRun] = {}
    alone = replace(options, engines_only=True, record=False, polygraphy=None)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / bundle.name
        shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("engines"))
        for number in range(1, num + 1):
            build(copy)

            def report(what: str, done: int, total: int, number: int = number) -> None:
                on_progress(f"rebuild {number} of {num}, {what}", (number - 1) * total + done, num * total)

            for outcome in verify(copy, alone, reference, report):
                before = worst.get(outcome.candidate.label)
                if before is None or _badness(outcome) > _badness(before):
                    worst[outcome.candidate.label] = outcome
    return list(worst.values())


def _badness(outcome: Outcome | NotRun) -> tuple[int, float]:
    if isinstance(outcome, NotRun):
        return 3, 0.0
    order = {"passed": 0, "unverified": 1, "failed": 2}
    return order[outcome.verdict], -worst_cosine(outcome.record)
