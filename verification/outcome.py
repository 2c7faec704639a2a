"""What comes of verifying a candidate, for people and for the files where the runtime reads verdicts.

Knows nothing of how anything was compared.
"""

from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np

from runtime.backends import create_backend
from runtime.backends.host.machine import cpu_name
from runtime.bundle.folder import Bundle
from runtime.bundle.verdict import Verdict
from runtime.errors import RFError
from runtime.signature import GRAPHS, GraphName
from verification.candidates import Candidate, NotRun, VerifyOptions
from verification.limits import limits_of
from verification.tally import Tally


@dataclass(kw_only=True)
class Outcome:
    """The verdict on graphs or on an engine."""

    candidate: Candidate
    verdict: Verdict
    reason: str = ""  # where nothing failed and the verdict is not "passed"
    tally: Tally = field(default_factory=Tally)
    skipped: list[str] = field(default_factory=list)  # cases that an engine was not built for
    inside: str = ""  # what a look into the graph tells
    taps: dict[GraphName, list[Any]] = field(default_factory=dict)  # `bisect.TapFigure`s, where they were asked for
    record: dict[str, Any] = field(default_factory=dict)  # for the manifest

    def line(self) -> str:
        """For people."""
        found, figures = self.tally, self.record
        text = (
            f"{self.candidate.label}: {self.verdict}, {found.num_cases} cases, "
            f"worst cosine {worst_cosine(figures):.8f}, tokens {found.rep_tokens_equal}/{found.rep_tokens}, "
            f"in windows {found.windowed_tokens_equal}/{found.windowed_tokens}, "
            f"answers {found.answer_tokens_equal}/{found.answer_tokens}, "
            f"picture PSNR {figures['picture_psnr_db']:.1f} dB"
        )
        for more in (self.record.get("first_failure"), self.inside, self.reason):
            text += f"\n    {more}" if more else ""
        return text

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        taps = {name: [asdict(tap) for tap in taps] for name, taps in self.taps.items()}
        return {"target": self.candidate.label, **self.record, **({"taps": taps} if taps else {})}


class NotRecordedError(RFError):
    """Everything was verified, and the verdicts could not be written into the bundle."""

    def __init__(self, reason: RFError, outcomes: list[Outcome | NotRun]) -> None:
        super().__init__(f"The verdicts were not recorded: {reason}")
        self.outcomes = outcomes


def worst_cosine(record: dict[str, Any]) -> float:
    """The smallest cosine of a verdict."""
    return min((each["cosine"] for tensors in record["figures"].values() for each in tensors.values()), default=-1.0)


def record_of(outcome: Outcome, bundle: Bundle, reference: str, options: VerifyOptions) -> dict[str, Any]:
    """What a manifest or an engine says of a verification against the reference of that name."""
    candidate, found = outcome.candidate, outcome.tally
    backend = create_backend(candidate.backend).target()
    more = {
        "skipped": outcome.skipped,
        "reason": outcome.reason,
        "inside": outcome.inside,
        "failures": [str(failure) for failure in found.failures],
    }
    return {
        "verdict": outcome.verdict,
        "reference": reference,
        "profile": options.profile,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {backend.backend: backend.version.split()[0], "numpy": np.__version__},
        "cpu": cpu_name(),
        "graphs": {name: bundle.graph_sha256(name, candidate.variant) for name in GRAPHS},
        "limits": asdict(limits_of(candidate.variant.precision)),
        **found.to_dict(),
        "first_failure": str(found.first) if found.first else None,
        **{name: value for name, value in more.items() if value},
    }
