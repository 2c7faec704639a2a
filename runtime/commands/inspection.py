"""What a bundle holds, for people and as JSON: graphs, sizes, memory, engines, what verified it, words.

Knows nothing of running graphs.
"""

import textwrap
from pathlib import Path
from typing import Any, Final

from msgspec.structs import asdict

from runtime.bundle.atomic import is_temporary
from runtime.bundle.engine import ENGINE_NAME, open_engine
from runtime.bundle.folder import Bundle, Verify, check_files, open_bundle
from runtime.bundle.manifest import GraphEntry
from runtime.bundle.plan import describe_plan
from runtime.bundle.verdict import engine_verdict
from runtime.commands.memory_plan import MIB, Fit, Workload, fits
from runtime.errors import RFError
from runtime.loading import open_tokenizer
from runtime.options import Plan

_SHOWN: Final = 500  # words of a large vocabulary
_CHECKED = {
    "size": "files: sizes are as the manifest says",
    "auto": "files: sizes are as the manifest says, and sha256 of the smallest ones, up to 200 MB; --verify hashes all",
    "hash": "files: sha256 of all is as the manifest says",
}


def describe_bundle(path: str | Path, verify: Verify = "auto") -> dict[str, Any]:
    """Describe a bundle.

    Args:
        path: The folder.
        verify: How files are checked, as in `Bundle.verify`.

    Returns:
        JSON-ready: the manifest's facts, sizes in bytes, engines, and how the files were checked.

    Raises:
        RFError: It is no bundle, or it is damaged. A damaged engine is told in its place, and is an error with "hash".
    """
    bundle = open_bundle(path, verify=verify)
    manifest = bundle.manifest
    return {
        "bundle": str(path),
        "bundle_id": manifest.bundle_id,
        "created_by": manifest.created_by,
        "checkpoint": manifest.checkpoint,
        "model": asdict(manifest.model),
        "sampling": asdict(manifest.sampling),
        "tuned": manifest.tuned.to_dict() if manifest.tuned else None,
        "understanding": manifest.understanding.to_dict() if manifest.understanding else None,
        "graphs": [_describe_graph(bundle, graph) for graph in manifest.graphs],
        "files": {name: entry.size for name, entry in manifest.files.items()},
        "engines": _describe_engines(bundle.path, verify),
        "verified": manifest.verified,
        "files_checked_by": verify,
    }


def describe_memory(path: str | Path, work: Workload) -> list[Fit]:
    """Memory of a drawing in every precision of a bundle; see `runtime.commands.memory_plan.fits`. Raises RFError."""
    manifest = open_bundle(path, verify="size").manifest
    weights = {}
    for precision in manifest.precisions:
        graphs = [graph for graph in manifest.graphs if graph.precision == precision]
        names = {name for graph in graphs for name in graph.weights}
        weights[precision] = sum(manifest.files[name].size for name in names)
    return fits(manifest.model, weights, work)


def _describe_graph(bundle: Bundle, graph: GraphEntry) -> dict[str, Any]:
    files = bundle.manifest.files
    return {
        "name": graph.name,
        "precision": graph.precision,
        "dialect": graph.dialect,
        "opset": graph.opset,
        "file": graph.file,
        "bytes": files[graph.file].size,
        "weights": {name: files[name].size for name in graph.weights},
        "lint": list(graph.lint),
        "inputs": list(map(str, graph.signature.inputs)),
        "outputs": list(map(str, graph.signature.outputs)),
    }


def _describe_engines(path: Path, verify: Verify) -> list[dict[str, Any]]:
    engines: list[dict[str, Any]] = []
    for file in sorted((path / "engines").glob(f"*/{ENGINE_NAME}")):
        if is_temporary(file.parent):
            continue
        try:
            engine = open_engine(file.parent)
            check_files(file.parent, engine.record.files, verify)
        except RFError as error:
            if verify == "hash":
                raise
            engines.append({"path": str(file.parent), "error": str(error)})
            continue
        record = engine.record
        size = sum(entry.size for entry in record.files.values())
        engines.append(
            {
                "path": str(file.parent),
                "precision": record.precision,
                "dialect": record.dialect,
                "bytes": size,
                "target": asdict(record.target),
                "build": record.build,
                "verdict": engine_verdict(engine)[0],
            }
        )
    return engines


def format_description(description: dict[str, Any]) -> str:
    """The text that `rf-export inspect` prints."""
    model = description["model"]
    lines = [
        f"{description['bundle']}  id {description['bundle_id']}",
        f"  checkpoint {description['checkpoint'].get('name')}, {model['num_parameters']:,} parameters, "
        f"default picture {model['default_height']} x {model['default_width']}",
        "  " + ", ".join(f"{name} {version}" for name, version in description["created_by"].items()),
    ]
    ids = description["understanding"]
    stops = " or ".join(map(str, ids["stop_ids"])) if ids else ""
    lines.append(f"  answers questions, from id {ids['start_id']} to id {stops}" if ids else "  draws only")
    lines.append(f"  {_tuned_text(description['tuned'])}")
    for graph in description["graphs"]:
        lines.append(f"\n{graph['name']} {graph['precision']} {graph['dialect']} (opset {graph['opset']})")
        lines += [f"  in   {text}" for text in _folded(graph["inputs"])]
        lines += [f"  out  {text}" for text in _folded(graph["outputs"])]
        lines.append("  lint passed for " + (", ".join(graph["lint"]) or "no target"))
    lines.append("\nfiles")
    lines += [f"  {size / MIB:10.2f} MiB  {name}" for name, size in sorted(description["files"].items())]
    lines.append("\nengines" + ("" if description["engines"] else ": none; build one with rf-export build-engine"))
    lines += [f"  {_engine_text(engine)}" for engine in description["engines"]]
    lines.append("\nverified" + ("" if description["verified"] else ": by nobody"))
    lines += [f"  {name}: {_verdict_text(record)}" for name, record in description["verified"].items()]
    lines.append(_CHECKED[description["files_checked_by"]])
    return "\n".join(lines)


def _tuned_text(tuned: dict[str, Any] | None) -> str:
    """The tuned plan in short, with the sentence that its evidence begins with, of whatever version wrote it."""
    if tuned is None:
        return "no tuned plan; make one with rf-export tune"
    plan = {name: value for name, value in tuned.items() if name != "evidence"}
    proof = tuned.get("evidence", {}).get("summary", "without evidence")
    return f"tuned plan: {describe_plan(Plan(**plan))}; {proof}"


def _engine_text(engine: dict[str, Any]) -> str:
    if "error" in engine:
        return f"{engine['path']}: {engine['error']}"
    target = engine["target"]
    return (
        f"{engine['path']}\n    {engine['precision']} {engine['dialect']}, {engine['bytes'] / MIB:.2f} MiB, for "
        f"{target['backend']} {target['version']} on {target['device']}; verification: {engine['verdict']}"
    )


def _verdict_text(record: dict[str, Any]) -> str:
    """A verdict as it is in the manifest, of whatever version wrote it."""
    parts = [str(record.get("verdict", "verdict unknown"))]
    if "reference" in record:
        parts.append(f"against {record['reference']}")
    if "date" in record:
        parts.append(f"on {str(record['date'])[:10]}")
    text = " ".join(parts)
    for name, what in (("rep_tokens", "representation tokens"), ("answer_tokens", "tokens of answers")):
        if f"{name}_equal" in record:
            text += f", {record[f'{name}_equal']} of {record.get(name)} {what} equal"
    if isinstance(psnr := record.get("picture_psnr_db"), int | float):
        text += f", PSNR of pictures {psnr:.1f} dB"
    return text + "".join(f"; {record[name]}" for name in ("first_failure", "reason") if record.get(name))


def _folded(specs: list[str]) -> list[str]:
    """The cache tensors of all layers as one line."""
    plain = [text for text in specs if not text.startswith(("past_key_values.", "present."))]
    cached = [text for text in specs if text not in plain]
    if cached:
        plain.append(f"{cached[0]}  ... {len(cached)} tensors: .key and .value of every layer")
    return plain


def describe_vocabulary(path: str | Path) -> dict[str, Any]:
    """The vocabulary of a bundle, JSON-ready: words, pieces of words and control tokens, each in the order of ids.

    Raises:
        RFError: It is no bundle, or its tokenizer is damaged.
    """
    bundle = open_bundle(path)
    bundle.verify([bundle.manifest.tokenizer.file])
    return {"bundle": str(path), **open_tokenizer(bundle).vocabulary._asdict()}


def format_vocabulary(description: dict[str, Any]) -> str:
    """The text that `rf-export inspect --vocabulary` prints.

    All words of a small vocabulary in the order of the alphabet; the first ones, mostly the commonest, of a large one.
    """
    words, pieces, control = (description[name] for name in ("words", "pieces", "control"))
    lines = [f"{len(words)} words, {len(pieces)} pieces of words, {len(control)} control tokens"]
    if len(words) <= _SHOWN:
        lines += ["", *_wrapped(sorted(words))]
    else:
        lines += ["", *_wrapped(words[:_SHOWN]), f"... and {len(words) - _SHOWN} more; all of them with --json"]
    if pieces:
        lines += ["", "Other words are made of pieces, if these spell them: a prompt that they do not is refused."]
    if control:
        more = " ..." if len(control) > _SHOWN // 10 else ""
        lines += ["", *_wrapped(["control:", *control[: _SHOWN // 10]])]
        lines[-1] += more
    return "\n".join(lines)


def _wrapped(words: list[str]) -> list[str]:
    """Words in lines, those that would not show spelt out."""
    shown = [word if word.isprintable() and word.strip() else repr(word) for word in words]
    return textwrap.wrap(" ".join(shown), 100, break_long_words=False, break_on_hyphens=False)
