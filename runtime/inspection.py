"""What a bundle holds, for people and as JSON: graphs, sizes, memory of a picture, engines, what verified it.

Knows nothing of running graphs.
"""

from pathlib import Path
from typing import Any

from runtime.atomic import is_temporary
from runtime.bundle import Bundle, Verify, open_bundle
from runtime.engine import ENGINE_NAME, open_engine
from runtime.errors import RFError
from runtime.manifest import GraphEntry
from runtime.signature import ModelSpec, is_half
from runtime.verdict import engine_verdict

_MIB = 2**20

_TYPICAL_PROMPT = 32  # tokens, for the size of a cache


def describe_bundle(path: str | Path, verify: Verify = "auto") -> dict[str, Any]:
    """Describe a bundle.

    Args:
        path: The folder.
        verify: How files are checked, as in `Bundle.verify`.

    Returns:
        JSON-ready: the manifest's facts, sizes in bytes, engines, and how the files were checked.

    Raises:
        RFError: It is no bundle, or it is damaged.
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
        "cache_bytes": {name: cache_bytes(manifest.model, name) for name in manifest.precisions},
        "engines": _describe_engines(bundle.path),
        "verified": manifest.verified,
        "files_checked_by": verify,
    }


def cache_bytes(model: ModelSpec, precision: str, num_requests: int = 1) -> int:
    """Bytes of the key/value cache of a default picture with a prompt of 32 tokens: two rows per request."""
    rows, columns = model.rep_grid(model.default_height, model.default_width)
    slots = _TYPICAL_PROMPT + rows * columns + 1
    values = 2 * model.num_layers * 2 * num_requests * model.num_kv_heads * slots * model.head_dim
    return values * (2 if is_half(precision) else 4)


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


def _describe_engines(path: Path) -> list[dict[str, Any]]:
    engines: list[dict[str, Any]] = []
    for file in sorted((path / "engines").glob(f"*/{ENGINE_NAME}")):
        if is_temporary(file.parent):
            continue
        try:
            engine = open_engine(file.parent)
        except RFError as error:
            engines.append({"path": str(file.parent), "error": str(error)})
            continue
        record = engine.record
        size = sum(entry.size for entry in record.files.values())
        engines.append({"path": str(file.parent), "precision": record.precision, "dialect": record.dialect,
                        "bytes": size, "target": vars(record.target), "build": record.build,
                        "verdict": engine_verdict(engine)[0]})  # fmt: skip
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
    lines += [f"  {size / _MIB:10.2f} MiB  {name}" for name, size in sorted(description["files"].items())]
    lines.append("\nmemory of a default picture, beside the weights")
    lines += [f"  {size / _MIB:10.2f} MiB  cache, {name}" for name, size in description["cache_bytes"].items()]
    lines.append("\nengines" + ("" if description["engines"] else ": none; build one with rf-export build-engine"))
    for engine in description["engines"]:
        lines.append(f"  {engine['path']}: " + (engine.get("error") or f"{engine['precision']}, {engine['verdict']}, "
                                                  f"{engine['target']}"))  # fmt: skip
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
