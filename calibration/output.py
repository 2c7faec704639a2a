"""Writes the INT8 graphs into the bundle to be, and the rest of the bundle beside them. Knows nothing of quality."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from calibration.config import CalibrationConfig
from calibration.decide import Decision
from calibration.job import CalibrationJob
from calibration.workbench import Workbench
from runtime.bundle.atomic import is_temporary
from runtime.bundle.folder import Bundle, describe_file
from runtime.bundle.manifest import MANIFEST_NAME, GraphEntry, Manifest
from runtime.signature import GraphName, GraphSignature, Variant
from verification.graphs.weights import WeightFile

Lint = Callable[[ir.Model], Sequence[str]]  # the targets that would take a graph


def write_graphs(
    job: CalibrationJob,
    benches: Mapping[GraphName, Workbench],
    decisions: Mapping[GraphName, Decision],
    lint: Lint | None,
) -> Bundle:
    """Write all graphs; the manifest of the result names them instead of those that were there before."""
    bundle, precision = job.base.bundle, job.config.precision
    location, entries = f"weights/{precision}.bin", []
    with WeightFile(job.folder / "graphs", location) as file:
        for name, bench in benches.items():
            model = bench.rewrite(decisions[name].formats)
            targets = tuple(lint(model)) if lint is not None else ()
            file_name = f"{name}.{precision}.classic.onnx"
            file.save(model, file_name)
            signature = GraphSignature.of(name, bundle.manifest.model, Variant(precision))
            entry = bundle.graph(name, Variant(job.config.base)).replace(
                precision=precision,
                opset=model.opset_imports[""],
                file=f"graphs/{file_name}",
                weights=(f"graphs/{location}",),
                inputs=signature.inputs,
                outputs=signature.outputs,
                lint=targets,
            )
            entries.append(entry)
    return Bundle(job.folder, _with_graphs(bundle.manifest, job.folder, entries))


def _with_graphs(manifest: Manifest, folder: Path, entries: Sequence[GraphEntry]) -> Manifest:
    others = [graph for graph in manifest.graphs if graph.precision != entries[0].precision]
    old = {name for graph in manifest.graphs if graph not in others for name in graph.files}
    used = {name for graph in (*others, *entries) for name in graph.files}
    files = {name: entry for name, entry in manifest.files.items() if name not in old or name in used}
    for name in dict.fromkeys(name for entry in entries for name in entry.files):
        files[name] = describe_file(folder / name)
    return manifest.replace(graphs=(*others, *entries), files=files)


def weights_share(manifest: Manifest, config: CalibrationConfig) -> float:
    """Bytes of the new weights, of those in fp32: twice those of fp16 where fp32 is not there."""

    def size(precision: str) -> int:
        names = {file for graph in manifest.graphs if graph.precision == precision for file in graph.weights}
        return sum(manifest.files[name].size for name in names)

    return size(config.precision) / (size("fp32") or 2 * size("fp16"))


def link_rest(source: Path, target: Path) -> None:
    """Give a folder those files of a bundle that it lacks, its engines too, without copying them.

    The last step: onnx refuses weights in files that have two names, so nothing may read them meanwhile.
    """
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if any(is_temporary(Path(part)) for part in relative.parts) or relative.as_posix() == MANIFEST_NAME:
            continue
        if path.is_dir():
            (target / relative).mkdir(exist_ok=True)
        elif not (target / relative).exists():
            _link(path, target / relative)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # a file system without links
        shutil.copy2(path, target)
