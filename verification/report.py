"""The verification as one HTML file that opens offline: verdicts, figures, error per step, the worst pictures.

Knows nothing of how anything was compared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.bundle.atomic import write_text
from runtime.events import to_picture
from verification.compare import WorstPicture
from verification.pages import html as report
from verification.pages.plots import Axis, Series, plot, spans
from verification.targets import NotRun
from verification.verify import Outcome, worst_cosine

_FLOOR: Final = 1e-16  # of 1 - cosine in float64


def write_report(path: Path, bundle: Path, outcomes: Sequence[Outcome | NotRun]) -> None:
    """Write the report of a verification."""
    done = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
    sections = [report.Section("Verdicts", _verdicts(outcomes))]
    for outcome in done:
        body = _figures(outcome.record) + _failures(outcome) + error_plot(outcome.comparison.curves)
        body += _taps(outcome) + _pictures(outcome.comparison.pictures)
        sections.append(report.Section(outcome.target.label, body))
    names = sorted({outcome.record["reference"] for outcome in done}) or ["nothing"]
    text = report.page(f"Verification of {bundle.name}", f"against {', '.join(names)}", sections)
    write_text(path, text)


def _verdicts(outcomes: Sequence[Outcome | NotRun]) -> str:
    rows: list[Sequence[object]] = []
    for outcome in outcomes:
        if isinstance(outcome, NotRun):
            rows.append([outcome.target.label, outcome.verdict, "", "", "", outcome.reason])
            continue
        found = outcome.comparison
        why = outcome.record["first_failure"] or outcome.reason or ", ".join(outcome.skipped)
        rows.append(
            [
                outcome.target.label,
                outcome.verdict,
                found.num_cases,
                f"{worst_cosine(outcome.record):.8f}",
                f"{outcome.record['picture_psnr_db']:.1f} dB",
                why,
            ]
        )
    return report.table(["what", "verdict", "cases", "worst cosine", "worst picture", "why"], rows)


def _figures(record: Mapping[str, Any]) -> str:
    rows = [
        [
            graph,
            tensor,
            f"{each['cosine']:.9f}",
            each["step"],
            each["case"],
            f"{each['norm_ratio']:.6f}",
            f"{each['max_abs_error']:.3g}",
        ]
        for graph, tensors in record["figures"].items()
        for tensor, each in tensors.items()
    ]
    header = ["graph", "tensor", "worst cosine", "at step", "of case", "norm ratio", "largest error"]
    effects = [
        f"{graph} {each['found']:.3g} (expected {each['expected']:.3g})"
        for graph, each in record["guidance_effect"].items()
    ]
    return report.table(header, rows) + report.note(
        f"Tokens equal after the same history: {record['rep_tokens_equal']} of {record['rep_tokens']}; of answers "
        f"{record['answer_tokens_equal']} of {record['answer_tokens']}. Guidance changes, relative to the norm: "
        f"{'; '.join(effects) or 'not measured'}."
    )


def _failures(outcome: Outcome) -> str:
    if not outcome.comparison.failures:
        return ""
    inside = report.note(outcome.inside) if outcome.inside else ""
    return inside + report.table(["failure"], [[failure] for failure in outcome.comparison.failures])


def _taps(outcome: Outcome) -> str:
    rows = [
        [graph, tap.name, f"{tap.cosine:.9f}", f"{tap.norm_ratio:.6f}", f"{tap.largest:.4g}"]
        for graph, taps in outcome.taps.items()
        for tap in taps
    ]
    header = ["graph", "inside, first step", "cosine", "norm ratio", "largest value"]
    return report.table(header, rows) if rows else ""


def error_plot(curves: Mapping[str, Sequence[float]]) -> str:
    """1 - cosine over the steps of the case with all defaults, on a logarithmic scale, as inline SVG."""
    errors = {name: [max(1 - cosine, _FLOOR) for cosine in each] for name, each in curves.items() if each}
    if not errors:
        return ""
    low, high = spans([error for each in errors.values() for error in each])
    steps = Axis(label="step", low=0.0, high=max(1.0, *(len(each) - 1.0 for each in errors.values())))
    error = Axis(label="1 - cosine", low=low, high=high, log=True)
    series = [
        Series(name=f"{name}, {len(each)} steps", points=list(enumerate(each)), marks=len(each) == 1)
        for name, each in errors.items()
    ]
    return plot(steps, error, series)


def _pictures(pairs: Sequence[WorstPicture]) -> str:
    items: list[tuple[npt.NDArray[np.uint8], str]] = []
    for pair in pairs:
        where = f"{pair.case}, request {pair.request}"
        found, expected = np.nan_to_num(pair.found), np.nan_to_num(pair.expected)
        difference = np.abs(found.astype(np.float64) - expected)
        scale = 1 / max(float(difference.max()), 1e-12)
        items += [
            (to_picture(expected.astype(np.float32)), f"reference: {where}"),
            (to_picture(found.astype(np.float32)), f"found: {pair.psnr_db:.1f} dB"),
            (to_picture((2 * scale * difference - 1).astype(np.float32)), f"difference, times {2 * scale:.3g}"),
        ]
    return report.pictures(items)
