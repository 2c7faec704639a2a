"""Verifies every graph and engine of a bundle, and writes the verdicts where the runtime reads them.

Knows nothing of torch and of what the reference is. A fault of one case is looked for inside of the graph, where that
can be done; an engine can only be compared as a whole.
"""

import itertools
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from runtime.bundle.folder import Bundle, open_bundle
from runtime.bundle.verdict import graphs_verdict, record_engine, record_graphs
from runtime.errors import RFError
from runtime.events import Progress
from runtime.pipeline import Pipeline
from verification.candidates import Candidate, NotRun, VerifyOptions, find_candidates, own_reference
from verification.cases import Cases, choose_cases
from verification.graph_reference import GraphReference
from verification.outcome import NotRecordedError, Outcome
from verification.polygraphy import write_runs
from verification.traces import Reference, Remembering
from verification.trial import verify_pipeline


def verify(
    path: str | Path,
    options: VerifyOptions,
    reference: Reference | Remembering | None = None,
    on_progress: Progress | None = None,
) -> list[Outcome | NotRun]:
    """Verify a bundle.

    Args:
        path: The bundle.
        options: What, and how.
        reference: What is right; None takes the bundle's own fp32 graphs. One that remembers serves several calls.
        on_progress: Told before every case.

    Returns:
        What came of each: graphs first, then engines.

    Raises:
        RFError: The bundle is damaged, or has no fp32 graphs and there is no reference, or cannot be written.
        NotRecordedError: The verdicts, which it holds, could not be written into the bundle at the end.
    """
    bundle = open_bundle(path, verify="hash")
    candidates = list(find_candidates(bundle, options))
    own = None
    if reference is None:
        own = own_reference(bundle)
        reference = GraphReference(_load(bundle, own, options))
        candidates = [each for each in candidates if each != own]
    if not candidates:
        raise RFError(f"{bundle.path} has nothing of that kind to verify{', but its reference' if own else ''}.")
    if options.record:
        _require_recordable(bundle, candidates)
    if options.polygraphy is not None and options.polygraphy.exists():
        raise RFError(f"{options.polygraphy} exists already. Name a new folder for the runs: --polygraphy DIR.")
    memory = reference if isinstance(reference, Remembering) else Remembering(reference)
    outcomes = list(_verify_all(bundle, candidates, memory, options, on_progress or (lambda what, done, total: None)))
    if own is not None:
        for outcome in outcomes:
            _stand_on(outcome, bundle, own)
    if options.record:
        try:
            record(bundle, outcomes)
        except RFError as error:
            raise NotRecordedError(error, outcomes) from error
    return outcomes


def _verify_all(
    bundle: Bundle,
    candidates: list[Candidate | NotRun],
    memory: Remembering,
    options: VerifyOptions,
    on_progress: Progress,
) -> Iterator[Outcome | NotRun]:
    cases = _cases(bundle, options)
    num_runs = sum(isinstance(each, Candidate) for each in candidates)
    total = num_runs * (len(cases.draws) + len(cases.answers))
    done = itertools.count()

    def step(label: str, case: str) -> None:
        on_progress(f"{label}: {case}", next(done), total)

    for candidate in candidates:
        if isinstance(candidate, NotRun):
            yield candidate
        else:
            pipeline = _load(bundle, candidate, options)
            yield verify_pipeline(pipeline, candidate, memory, cases, options, partial(step, candidate.label))
            if options.polygraphy is not None:
                plain = _load(bundle, Candidate(variant=candidate.variant), options) if candidate.engine else pipeline
                folder = options.polygraphy / candidate.label.replace(" ", "-")
                write_runs(folder, candidate.label, plain, pipeline.sessions, cases.draws[0])
    on_progress("done", total, total)


def _cases(bundle: Bundle, options: VerifyOptions) -> Cases:
    """Cases that all graphs of a bundle take."""
    manifest = bundle.manifest
    slots = [entry.signature.cache_slots for entry in manifest.graphs if entry.signature.cache_slots]
    return choose_cases(
        manifest.model,
        min(slots, default=None),
        options.profile,
        seed=options.seed,
        num_random=options.num_random,
        tuned=None if manifest.tuned is None else manifest.tuned.plan,
    )


def _require_recordable(bundle: Bundle, candidates: list[Candidate | NotRun]) -> None:
    """Before the work is done: whether `record` could write the verdicts."""
    for candidate in candidates:
        if isinstance(candidate, Candidate):
            folder = bundle.path if candidate.engine is None else candidate.engine.path
            if not os.access(folder, os.W_OK | os.X_OK):
                raise RFError(
                    f"Nothing can be written into {folder}, where the verdict would go. Make it writable, or verify "
                    "without recording: --no-record (VerifyOptions: record=False)."
                )


def record(bundle: Bundle, outcomes: list[Outcome | NotRun]) -> None:
    """Write the verdicts into the bundle."""
    graphs = {}
    for outcome in outcomes:
        if isinstance(outcome, NotRun):
            continue
        candidate = outcome.candidate
        if candidate.engine is None:
            graphs[candidate.variant.key] = outcome.record
        else:
            record_engine(candidate.engine, outcome.record)
    if graphs:
        record_graphs(bundle, graphs)


def _stand_on(outcome: Outcome | NotRun, bundle: Bundle, own: Candidate) -> None:
    """What agrees with graphs that are not verified is not verified."""
    verdict, reason = graphs_verdict(bundle, own.variant)
    if isinstance(outcome, Outcome) and outcome.verdict == "passed" and verdict != "passed":
        outcome.verdict = "unverified"
        outcome.reason = f"it agrees with the fp32 graphs, but these are not verified: {reason}"
        outcome.record |= {"verdict": outcome.verdict, "reason": outcome.reason}


def _load(bundle: Bundle, candidate: Candidate, options: VerifyOptions) -> Pipeline:
    return Pipeline.load(
        bundle.path,
        candidate.variant.precision,
        candidate.backend,
        options.num_threads,
        candidate.engine.path if candidate.engine else "none",
        "size",
        candidate.variant.dialect,
        allow_unverified=True,
    )
