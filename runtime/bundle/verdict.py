"""Who verified graphs and engines, and what came of it: read before anything runs, written by `rf-export verify`.

Knows nothing of how anything is verified. A verdict belongs to the graphs whose hashes it names, and lies in the
manifest; that of an engine lies in its `engine.json`. What nobody verified does not run unless the caller says so.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from runtime.bundle.atomic import locked, write_text
from runtime.bundle.engine import ENGINE_NAME, Engine, open_engine
from runtime.bundle.folder import Bundle, open_bundle
from runtime.bundle.manifest import MANIFEST_NAME, format_manifest
from runtime.errors import RFError
from runtime.signature import GRAPHS, Variant

Verdict: TypeAlias = Literal["passed", "failed", "unverified"]

_ANYWAY: Final = (
    "To use it anyway, generate, understand, tokens, bench and build-engine take --allow-unverified (Pipeline.load: "
    "allow_unverified=True)."
)


def graphs_verdict(bundle: Bundle, variant: Variant) -> tuple[Verdict, str]:
    """The verdict on some graphs, and why it is not "passed"."""
    record = bundle.manifest.verified.get(variant.key)
    if record is None:
        return "unverified", "nobody verified them"
    hashes = record.get("graphs", {})  # bundles of before there was `verify` name none
    if not isinstance(hashes, Mapping):
        return "unverified", "the verdict on them is damaged"
    names = {graph.name for graph in bundle.manifest.graphs_of(variant)}
    for name in GRAPHS:
        known = hashes.get(name)
        if known is not None and name in names and known != bundle.graph_sha256(name, variant):
            return "unverified", f"{name} is another one than the one that was verified"
    return _read(record)


def engine_verdict(engine: Engine) -> tuple[Verdict, str]:
    """The verdict on an engine, and why it is not "passed"; its build has compared it with its graphs, if it could."""
    record = engine.record.verified
    if not record:
        return "unverified", "nobody ran it yet: it was built where no such device is"
    return _read(record)


def _read(record: Mapping[str, Any]) -> tuple[Verdict, str]:
    verdict = record.get("verdict", "passed" if record.get("passed", True) else "failed")
    if verdict == "passed":
        return "passed", ""
    if verdict == "failed":
        return "failed", f"{record.get('first_failure') or 'they do not agree with their reference'}"
    return "unverified", str(record.get("reason") or "their reference is not verified")


def require_verified(bundle: Bundle, variant: Variant, engine: Engine | None = None, *, allow_unverified: bool) -> None:
    """Refuse graphs, and an engine of them, that failed a verification or that nobody verified.

    Args:
        bundle: The bundle.
        variant: The graphs that are to be used.
        engine: The engine that is to be used; it stands on the verdict of its graphs.
        allow_unverified: Refuse nothing.

    Raises:
        RFError: Says what verifies them.
    """
    if allow_unverified:
        return
    findings = [
        (
            f"The {variant} graphs of {bundle.path}",
            *graphs_verdict(bundle, variant),
            f"rf-export verify {bundle.path} --checkpoint CHECKPOINT",
        )
    ]
    if engine is not None:
        backend = engine.record.target.backend
        findings.append(
            (
                f"The engine {engine.path}",
                *engine_verdict(engine),
                f"rf-export verify {bundle.path} --backend {backend}",
            )
        )
    for what, verdict, reason, command in findings:
        if verdict != "passed":
            found = "failed verification" if verdict == "failed" else "may not be right"
            raise RFError(f"{what} {found}: {reason}. Verify with: {command}. {_ANYWAY}")


def record_graphs(bundle: Bundle, verdicts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write verdicts on graphs into the manifest, which changes as a whole or not at all.

    Args:
        bundle: The bundle as it was when it was verified.
        verdicts: By `Variant.key`. What the calibration found out about the same graphs is kept.

    Raises:
        RFError: The bundle has become another one meanwhile.
    """
    with locked(bundle.path.resolve()):  # a calibration may be adding graphs
        now = open_bundle(bundle.path).manifest
        if now.bundle_id != bundle.manifest.bundle_id:
            raise RFError(f"{bundle.path} was changed while it was verified. Verify it again.", "mismatch")
        verified = dict(now.verified)
        for key, verdict in verdicts.items():
            before = verified.get(key, {})
            verified[key] = {**(before if "calibration" in before else {}), **verdict}
        write_text(bundle.path / MANIFEST_NAME, format_manifest(now.replace(verified=verified)))


def record_engine(engine: Engine, verdict: Mapping[str, Any]) -> None:
    """Write a verdict on an engine into its `engine.json`; what its build found out is kept.

    Raises:
        RFError: The engine has become another one meanwhile.
    """
    record = open_engine(engine.path).record
    if record.files != engine.record.files:
        raise RFError(f"{engine.path} was built anew while it was verified. Verify it again.", "mismatch")
    write_text(engine.path / ENGINE_NAME, record.replace(verified={**record.verified, **verdict}).text())
