"""What there is to verify in a bundle: graphs, and engines as far as this machine runs them. Knows no reference."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends import create_backend
from runtime.bundle.atomic import is_temporary
from runtime.bundle.engine import ENGINE_NAME, Engine, check_engine, open_engine, runs_on
from runtime.bundle.folder import Bundle
from runtime.errors import RFError
from runtime.signature import DIALECTS, PRECISIONS, Dialect, Precision, Variant
from verification.cases import Profile


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What is verified, and how.

    Attributes:
        profile: "full", or "quick" as an export does it.
        backends: Engines of these only, and the graphs where "ort" is among them; empty for all that are there.
        precisions: These only; empty for all that are there.
        dialects: The same.
        engines_only: Leave out the graphs themselves.
        seed: Of the random cases.
        num_random: Random drawings.
        num_threads: Of a run.
        record: Write the verdicts into the bundle.
        look_inside: Find the first tensor that departs, where something fails.
        taps: Also compare the inputs and outputs of every product, in the first step of every graph.
        polygraphy: A new folder of runs for `polygraphy run`, with a folder for each of the graphs and engines.
    """

    profile: Profile = "full"
    backends: tuple[str, ...] = ()
    precisions: tuple[Precision, ...] = ()
    dialects: tuple[Dialect, ...] = ()
    engines_only: bool = False
    seed: int = 0
    num_random: int = 2
    num_threads: int | None = None
    record: bool = True
    look_inside: bool = True
    taps: bool = False
    polygraphy: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Graphs, or an engine of them."""

    variant: Variant
    backend: str = "ort"
    engine: Engine | None = None

    @property
    def label(self) -> str:
        """For people."""
        return f"graphs {self.variant}" if self.engine is None else f"engine {self.engine.path.name}"


@dataclass(frozen=True, kw_only=True)
class NotRun:
    """An engine that this machine cannot run; or (`refused`) could and must not: damaged, or of other graphs."""

    candidate: Candidate
    reason: str
    refused: bool = False

    @property
    def verdict(self) -> str:
        """Nobody's fault, or a fault."""
        return "refused" if self.refused else "not run"

    def line(self) -> str:
        """For people."""
        return f"{self.candidate.label}: {self.verdict}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"target": self.candidate.label, "verdict": self.verdict, "reason": self.reason}


def find_candidates(bundle: Bundle, options: VerifyOptions) -> Iterator[Candidate | NotRun]:
    """All graphs that are complete, and all engines; those that cannot run here with the reason."""
    wanted = [
        variant
        for variant in bundle.manifest.variants
        if variant.precision in (options.precisions or PRECISIONS) and variant.dialect in (options.dialects or DIALECTS)
    ]
    if "ort" in (options.backends or ("ort",)) and not options.engines_only:
        yield from (Candidate(variant=variant) for variant in wanted)
    for file in sorted((bundle.path / "engines").glob(f"*/{ENGINE_NAME}")):
        if is_temporary(file.parent):
            continue
        engine = open_engine(file.parent)
        variant, backend = engine.record.variant, engine.record.target.backend
        if variant not in wanted or backend not in (options.backends or (backend,)):
            continue
        candidate = Candidate(variant=variant, backend=backend, engine=engine)
        fits = False
        try:
            here = create_backend(backend).target()
            fits = runs_on(engine, here)
            check_engine(engine, bundle, variant, here, "hash")
        except RFError as error:
            yield NotRun(candidate=candidate, reason=str(error), refused=fits)
        else:
            yield candidate


def own_reference(bundle: Bundle) -> Candidate:
    """The fp32 graphs of a bundle, to compare the others with; raises RFError where there are none."""
    for variant in bundle.manifest.variants:
        if variant.precision == "fp32":
            return Candidate(variant=variant)
    raise RFError(
        f"{bundle.path} has no fp32 graphs to compare with. Name the checkpoint that it was exported from: "
        f"rf-export verify {bundle.path} --checkpoint CHECKPOINT"
    )
