"""What a bundle holds, for people and as JSON: graphs, sizes, memory, engines, what verified it.

Knows nothing of running graphs.
"""

from pathlib import Path
from typing import Any

from runtime.bundle.atomic import is_temporary
from runtime.bundle.engine import ENGINE_NAME, open_engine
from runtime.bundle.folder import Bundle, Verify, check_files, open_bundle
from runtime.bundle.manifest import GraphEntry
from runtime.bundle.verdict import engine_verdict
from runtime.commands.memory_plan import MIB, Fit, Workload, fits
from runtime.errors import RFError


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
        "model": vars(manifest.model),
        "sampling": vars(manifest.sampling),
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
                "target": vars(record.target),
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
    lines.append(f"  answers questions, between id {ids['start_id']} and {ids['stop_ids']}" if ids else "  draws only")
    for graph in description["graphs"]:
        lines.append(f"\n{graph['name']} {graph['precision']} {graph['dialect']} (opset {graph['opset']})")
        lines += [f"  in   {text}" for text in _folded(graph["inputs"])]
        lines += [f"  out  {text}" for text in _folded(graph["outputs"])]
        lines.append("  lint passed for " + (", ".join(graph["lint"]) or "no target"))
    lines.append("\nfiles")
    lines += [f"  {size / MIB:10.2f} MiB  {name}" for name, size in sorted(description["files"].items())]
    lines.append("\nengines" + ("" if description["engines"] else ": none; build one with rf-export build-engine"))
    for engine in description["engines"]:
        lines.append(
            f"  {engine['path']}: "
            + (engine.get("error") or f"{engine['precision']}, {engine['verdict']}, {engine['target']}")
        )
    lines.append("\nverified" + ("" if description["verified"] else ": by nobody"))
    for precision, figures in description["verified"].items():
        plain = {name: value for name, value in figures.items() if not isinstance(value, dict | list)}
        lines.append(f"  {precision}: " + ", ".join(f"{name} {value}" for name, value in plain.items()))
    lines.append(f"files checked by {description['files_checked_by']}")
    return "\n".join(lines)


def _folded(specs: list[str]) -> list[str]:
    """The cache tensors of all layers as one line."""
    plain = [text for text in specs if not text.startswith(("past_key_values.", "present."))]
    cached = [text for text in specs if text not in plain]
    if cached:
        plain.append(f"{cached[0]}  ... {len(cached)} tensors: .key and .value of every layer")
    return plain
