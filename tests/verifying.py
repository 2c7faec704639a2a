"""What tests of verification share: a model against graphs, in the quick profile, with parts exchanged."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rf_export.eager_reference import EagerReference
from rf_export.model import RFModel
from runtime import Pipeline
from runtime.backends.interface import Session
from runtime.bundle.manifest import Manifest
from runtime.signature import Dialect, GraphName, Precision, Variant
from verification import Outcome, Remembering, VerifyOptions
from verification.candidates import Candidate
from verification.cases import choose_cases
from verification.trial import verify_pipeline


def load(bundle: Path, precision: Precision = "fp32", dialect: Dialect = "classic") -> Pipeline:
    """The graphs of a bundle, whatever the verdict on them."""
    return Pipeline.load(bundle, precision, num_threads=1, engine="none", dialect=dialect, allow_unverified=True)


def compare(
    reference: Remembering | RFModel,
    bundle: Path,
    precision: Precision = "fp32",
    dialect: Dialect = "classic",
    *,
    sessions: Mapping[GraphName, Session] | None = None,
    manifest: Manifest | None = None,
    **options: Any,
) -> Outcome:
    """Verify graphs of a bundle; some sessions or the manifest may be other ones."""
    if isinstance(reference, RFModel):
        reference = Remembering(EagerReference(reference))
    pipeline = load(bundle, precision, dialect).with_sessions(sessions or {})
    if manifest is not None:
        pipeline = Pipeline(replace(pipeline.model, bundle=replace(pipeline.bundle, manifest=manifest)))
    chosen = VerifyOptions(**{"profile": "quick", "num_threads": 1, "record": False, **options})
    slots = pipeline.sessions["rep_decoder"].signature.cache_slots
    cases = choose_cases(pipeline.bundle.manifest.model, slots, chosen.profile)
    candidate = Candidate(variant=Variant(precision, dialect))
    return verify_pipeline(pipeline, candidate, reference, cases, chosen, lambda name: None)
