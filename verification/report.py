"""The verification as one HTML file that opens offline: verdicts, figures, agreement per step, the worst pictures.

Knows nothing of how anything was compared.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from runtime.bundle.atomic import write_text
from runtime.events import to_picture
from verification.candidates import NotRun
from verification.outcome import Outcome, worst_cosine
from verification.pages.page import Columns, Picture, render
from verification.tally import WorstPicture

_MOST_DIGITS: Final = 16.0  # of a cosine in float64


def write_report(path: Path, bundle: Path, outcomes: Sequence[Outcome | NotRun]) -> None:
    """Write the report of a verification."""
    done = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
    references = sorted({outcome.record["reference"] for outcome in done}) or ["nothing"]
    text = render(
        Path(__file__).with_suffix(".html"),
        title=f"Verification of {bundle.name}",
        subtitle=f"against {', '.join(references)}",
        verdicts=[_verdict(outcome) for outcome in outcomes],
        outcomes=done,
        curves=[agreement_curves(outcome.tally.curves) for outcome in done],
        pictures=[_pictures(outcome.tally.pictures) for outcome in done],
    )
    write_text(path, text)


def _verdict(outcome: Outcome | NotRun) -> list[object]:
    if isinstance(outcome, NotRun):
        return [outcome.candidate.label, outcome.verdict, "", "", "", outcome.reason]
    record = outcome.record
    why = record["first_failure"] or outcome.reason or ", ".join(outcome.skipped)
    psnr = f"{record['picture_psnr_db']:.1f} dB"
    return [outcome.candidate.label, outcome.verdict, record["cases"], f"{worst_cosine(record):.8f}", psnr, why]


def agreement_curves(curves: Mapping[str, Sequence[float]]) -> list[Columns]:
    """In how many digits each step of the case with all defaults agrees: -log10(1 - cosine), a column each."""
    return [_curve(name, [1 - cosine for cosine in cosines]) for name, cosines in curves.items() if cosines]


def _curve(name: str, errors: Sequence[float]) -> Columns:
    worst = int(np.argmax(errors))
    return Columns(
        name=f"{name}, {len(errors)} step(s): 1 - cosine at most {errors[worst]:.2g}, in step {worst}",
        values=[min(_MOST_DIGITS, max(0.0, -math.log10(max(error, 1e-16)))) for error in errors],
        labels=[f"step {step}: 1 - cosine {error:.2g}" for step, error in enumerate(errors)],
        highest=_MOST_DIGITS,
    )


def _pictures(pairs: Sequence[WorstPicture]) -> list[Picture]:
    shown: list[tuple[Any, str]] = []
    for pair in pairs:
        found, expected = (np.nan_to_num(side).astype(np.float64) for side in (pair.found, pair.expected))
        difference = np.abs(found - expected)
        scale = 2 / max(float(difference.max()), 1e-12)
        shown += [
            (expected, f"reference: {pair.case}, request {pair.request}"),
            (found, f"found: {pair.psnr_db:.1f} dB"),
            (scale * difference - 1, f"difference, times {scale:.3g}"),
        ]
    return [Picture(pixels=to_picture(each.astype(np.float32)), caption=caption) for each, caption in shown]
