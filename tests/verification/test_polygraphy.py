"""Polygraphy's own command agrees with what a verification wrote, for every graph, and notices another output."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from engines import EngineConfig, build
from runtime.bundle.folder import open_bundle
from runtime.pipeline import Pipeline
from runtime.signature import GRAPHS, Variant
from verification.cases import choose_cases
from verification.polygraphy import outputs_json, write_runs

pytest.importorskip("polygraphy", reason="pip install polygraphy")
CODE = "import sys; from polygraphy.tools import main; sys.exit(main())"  # as its command does


def compare(graph: Path, runs: Path) -> subprocess.CompletedProcess[str]:
    arguments = ["run", graph, "--onnxrt", "--atol", "1e-4", "--rtol", "1e-4", "--load-inputs", f"{runs}.inputs.json"]
    command = [sys.executable, "-c", CODE, *arguments, "--load-outputs", f"{runs}.outputs.json"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=quiet)


def check_agreement(bundle, runs, variant):
    """The command draws the same with the graphs as what wrote the runs."""
    for name in GRAPHS:
        agreed = compare(bundle.file(bundle.graph(name, variant).file), runs / name)
        assert agreed.returncode == 0, agreed.stdout + agreed.stderr


def test_polygraphy_agrees_on_modern_graphs(modern_bundle, tmp_path):
    variant = Variant("fp32", "modern")
    pipeline = Pipeline.load(modern_bundle, dialect="modern", num_threads=1, engine="none", allow_unverified=True)
    case = choose_cases(pipeline.bundle.manifest.model, None, "quick").draws[0]
    write_runs(tmp_path / "runs", "graphs fp32 modern", pipeline, pipeline.sessions, case)
    check_agreement(pipeline.bundle, tmp_path / "runs", variant)


def test_polygraphy_agrees_on_what_verify_writes_of_an_engine(tiny_bundle, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    build(folder, EngineConfig(num_threads=1))
    options = ["--checkpoint", tiny_checkpoint, "--quick", "--no-record", "--backend", "ort", "--precision", "fp32"]
    command = ["verify", folder, *options, "--polygraphy", tmp_path / "runs"]
    result = CliRunner().invoke(cli.main, [str(argument) for argument in command])
    assert result.exit_code == 0, result.output
    graphs, runs = sorted((tmp_path / "runs").iterdir(), key=lambda path: not path.name.startswith("graphs"))
    assert graphs.name == "graphs-fp32-classic" and not runs.name.startswith("graphs")
    check_agreement(open_bundle(folder), runs, Variant("fp32"))
    written = runs / "denoiser.outputs.json"
    written.write_text((runs / "text_decoder.outputs.json").read_text())
    graph = open_bundle(folder).graph("denoiser", Variant("fp32")).file
    assert compare(folder / graph, runs / "denoiser").returncode == 1


def test_polygraphy_agrees_on_every_graph_and_notices_an_output_that_is_changed(tiny_bundle, tmp_path):
    from polygraphy.comparator import RunResults

    bundle = open_bundle(tiny_bundle)
    pipeline = Pipeline.load(tiny_bundle, num_threads=1, engine="none")
    case = choose_cases(bundle.manifest.model, None, "quick").draws[0]
    write_runs(tmp_path / "runs", "graphs fp32 classic", pipeline, pipeline.sessions, case)
    for name in GRAPHS:
        graph = bundle.file(bundle.graph(name, Variant("fp32")).file)
        agreed = compare(graph, tmp_path / "runs" / name)
        assert agreed.returncode == 0, agreed.stdout + agreed.stderr
        written = tmp_path / "runs" / f"{name}.outputs.json"
        ((runner, results),) = RunResults.load(str(written)).items()
        assert runner == "graphs fp32 classic" and len(results) >= (3 if name in ("rep_decoder", "denoiser") else 1)
        changed = [dict(result.items()) for result in results]
        last = next(key for key, array in changed[-1].items() if array.dtype.kind == "f" and array.size)
        changed[-1][last] = changed[-1][last] + np.float32(0.01)
        written.write_text(outputs_json(runner, changed))
        assert compare(graph, tmp_path / "runs" / name).returncode == 1, f"{name}: nobody noticed"
