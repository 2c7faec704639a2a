"""What was verified runs, and what was not is refused; verdicts say against what, and lie where the runtime reads."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from mutations import MUTATIONS, mutate
from verifying import compare, load

import cli
from engines import EngineConfig, build
from rf_export.checkpoint import load_checkpoint
from rf_export.eager import EagerQuestion, sample_text
from rf_export.eager_reference import EagerReference
from rf_export.training.samples import draw_eager
from runtime import GenerationOptions, Pipeline
from runtime.bundle.engine import Engine, open_engine
from runtime.bundle.folder import open_bundle, write_manifest
from runtime.bundle.manifest import FileEntry
from runtime.bundle.verdict import engine_verdict, graphs_verdict, record_engine, record_graphs
from runtime.errors import RFError
from runtime.pipeline import draw_stages
from runtime.plans import plan_drawing
from runtime.request import make_requests
from runtime.signature import Variant
from verification import NotRun, Outcome, VerifyOptions, verify
from verification.cases import choose_cases
from verification.measures.metrics import agreement
from verification.measures.sampling import is_drawn

QUICK = VerifyOptions(profile="quick", num_threads=1)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


def change(bundle: Path, **changes: object) -> None:
    write_manifest(bundle, open_bundle(bundle).manifest.replace(**changes))  # type: ignore[arg-type]


def forget(bundle: Path) -> None:
    change(bundle, verified={})


def fail(bundle: Path) -> None:
    change(bundle, verified={"fp32": {"verdict": "failed", "first_failure": "denoiser x_pred: cosine 0.9"}})


def exchange(bundle: Path) -> None:
    """Another denoiser with a right hash, under the verdict of the old one."""
    mutation = next(each for each in MUTATIONS if each.name == "a layer's weight zeroed")
    verified = open_bundle(bundle).manifest.verified
    mutated = mutate(bundle, bundle.with_name("mutated"), mutation)
    shutil.rmtree(bundle)
    mutated.rename(bundle)
    change(bundle, verified=verified)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (forget, "may not be right: nobody verified them"),
        (fail, "failed verification: denoiser x_pred: cosine 0.9"),
        (exchange, "may not be right: denoiser is another one than the one that was verified"),
    ],
)
def test_graphs_without_a_good_verdict_are_refused(bundle: Path, spoil: Callable[[Path], None], reason: str) -> None:
    spoil(bundle)
    command = rf"{reason}\. Verify with: rf-export verify .* --checkpoint CHECKPOINT\. .*--allow-unverified"
    with pytest.raises(RFError, match=command):
        Pipeline.load(bundle, engine="none")
    with pytest.raises(RFError, match=command):
        build(bundle, EngineConfig(num_threads=1))
    assert Pipeline.load(bundle, engine="none", allow_unverified=True).precision == "fp32"
    result = CliRunner().invoke(cli.main, ["generate", str(bundle), "a red car", "-o", str(bundle / "x.png")])
    assert result.exit_code == 1 and "--allow-unverified" in result.output
    result = CliRunner().invoke(
        cli.main, ["generate", str(bundle), "a red car", "-o", str(bundle / "x.png"), "--allow-unverified"]
    )
    assert result.exit_code == 0, result.output


def test_an_engine_without_a_good_verdict_is_refused(bundle: Path) -> None:
    engine = open_engine(build(bundle, EngineConfig(num_threads=1)))
    assert engine_verdict(engine) == ("passed", "")
    for verified in ({}, {"verdict": "failed", "first_failure": "denoiser x_pred"}):
        text = engine.record.replace(verified=verified).to_dict()
        (engine.path / "engine.json").write_text(json.dumps(text))
        with pytest.raises(RFError, match=r"The engine .* Verify with: rf-export verify .* --backend ort"):
            Pipeline.load(bundle)
        assert Pipeline.load(bundle, allow_unverified=True).engine is not None
        assert Pipeline.load(bundle, engine="none").engine is None


def test_verify_with_the_checkpoint_writes_what_generate_reads(bundle: Path, tiny_checkpoint: Path) -> None:
    build(bundle, EngineConfig(num_threads=1))
    forget(bundle)
    outcomes = verify(bundle, QUICK, EagerReference(load_checkpoint(tiny_checkpoint)))
    assert [outcome.verdict for outcome in outcomes if isinstance(outcome, Outcome)] == ["passed"] * 3
    opened = open_bundle(bundle)
    for precision in ("fp32", "fp16"):
        record = opened.manifest.verified[precision]
        assert record["reference"].startswith("eager PyTorch")
        assert set(record["graphs"]) == {graph.name for graph in opened.manifest.graphs_of(Variant(precision))}
    pipeline = Pipeline.load(bundle)
    assert pipeline.engine is not None
    assert pipeline.engine.record.verified["verdict"] == "passed"
    assert "largest_relative_error" in pipeline.engine.record.verified, "what the build found out is kept"


def test_without_a_checkpoint_the_fp32_graphs_are_the_reference(bundle: Path) -> None:
    outcomes = verify(bundle, QUICK)
    (half,) = (outcome for outcome in outcomes if isinstance(outcome, Outcome))
    assert half.candidate.label == "graphs fp16 classic"
    assert half.verdict == "passed"
    assert half.record["reference"].startswith("the fp32 graphs on ONNX Runtime")
    assert open_bundle(bundle).manifest.verified["fp32"]["reference"].startswith("eager PyTorch"), "as it was"


def test_what_agrees_with_unverified_graphs_is_not_verified(bundle: Path) -> None:
    forget(bundle)
    (half,) = verify(bundle, QUICK)
    assert isinstance(half, Outcome)
    assert (half.verdict, half.reason) == (
        "unverified",
        "it agrees with the fp32 graphs, but these are not verified: nobody verified them",
    )
    assert graphs_verdict(open_bundle(bundle), Variant("fp16"))[0] == "unverified"


def test_an_engine_of_another_machine_is_not_run_and_says_so(bundle: Path) -> None:
    engine = open_engine(build(bundle, EngineConfig(num_threads=1)))
    target = msgspec.structs.replace(engine.record.target, device="another CPU")
    (engine.path / "engine.json").write_text(json.dumps(engine.record.replace(target=target).to_dict()))
    (outcome,) = verify(bundle, dataclasses.replace(QUICK, engines_only=True))
    assert isinstance(outcome, NotRun)
    assert "not run: " in outcome.line() and "another device" in outcome.line()


def flip_a_byte(engine: Engine) -> None:
    path = max(engine.path.iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def pass_off(engine: Engine) -> None:
    graphs = {name: graph.replace(source_sha256="0" * 64) for name, graph in engine.record.graphs.items()}
    (engine.path / "engine.json").write_text(engine.record.replace(graphs=graphs).text())


@pytest.mark.parametrize(("fault", "message"), [(flip_a_byte, "is damaged"), (pass_off, "built from another")])
def test_an_engine_that_no_command_would_take_is_no_success(bundle: Path, fault: Any, message: str) -> None:
    fault(open_engine(build(bundle, EngineConfig(num_threads=1))))
    result = CliRunner().invoke(
        cli.main, ["verify", str(bundle), "--quick", "--no-record", "--precision", "fp32", "--json", "--backend", "ort"]
    )
    told = json.loads(result.stdout)
    assert told[-1]["verdict"] == "refused"
    assert message in told[-1]["reason"]
    assert result.exit_code == 1


def test_a_verdict_keeps_the_checksum_and_is_not_given_to_a_new_engine(bundle: Path) -> None:
    config = EngineConfig(num_threads=1)
    engine = open_engine(build(bundle, config))
    record_engine(engine, {"verdict": "failed"})
    text = (engine.path / "engine.json").read_text()
    assert "checksum" in json.loads(text)
    (engine.path / "engine.json").write_text(text.replace('"verdict": "failed"', '"verdict": "passed"'))
    with pytest.raises(RFError, match="checksum"):
        open_engine(engine.path)
    (engine.path / "engine.json").write_text(text)
    files = {**engine.record.files, "more.bin": FileEntry(sha256="0" * 64, size=1)}
    other = dataclasses.replace(engine, record=engine.record.replace(files=files))
    with pytest.raises(RFError, match="was built anew while it was verified"):
        record_engine(other, {"verdict": "passed"})
    assert open_engine(build(bundle, config)).record.verified.get("verdict") != "failed", "what failed is built again"


def test_a_faulty_engine_fails_against_its_graphs(bundle: Path) -> None:
    """Built from other weights, and passed off as an engine of these graphs."""
    mutation = next(each for each in MUTATIONS if each.name == "a transposed square weight")
    other = mutate(bundle, bundle.with_name("other"), mutation)
    path = build(other, EngineConfig(num_threads=1, allow_unverified=True))
    shutil.copytree(path, bundle / "engines" / path.name)
    opened = open_bundle(bundle)
    record = open_engine(bundle / "engines" / path.name).record
    graphs = {
        name: graph.replace(source_sha256=opened.graph_sha256(name, Variant("fp32")))
        for name, graph in record.graphs.items()
    }
    text = json.dumps(record.replace(graphs=graphs).to_dict())
    (bundle / "engines" / path.name / "engine.json").write_text(text)
    assert Pipeline.load(bundle, num_threads=1).engine is not None, "the build has compared it with its own graphs"
    (outcome,) = verify(bundle, dataclasses.replace(QUICK, engines_only=True))
    assert isinstance(outcome, Outcome)
    assert (outcome.verdict, outcome.tally.first and outcome.tally.first.graph) == ("failed", "denoiser")
    with pytest.raises(RFError, match="failed verification: denoiser x_pred"):
        Pipeline.load(bundle, num_threads=1)


def test_the_command_needs_no_torch_writes_a_report_and_exits_with_the_verdict(bundle: Path) -> None:
    report = bundle.with_name("report.html")
    code = (
        "import sys\n"
        "for name in ('torch', 'onnxscript', 'safetensors', 'matplotlib'): sys.modules[name] = None\n"
        "sys.path.insert(0, sys.argv[1]); import cli\n"
        "cli.main(['verify', sys.argv[2], '--quick', '--threads', '1', '--report', sys.argv[3]])"
    )
    root = Path(__file__).parents[2]
    run = [sys.executable, "-c", code, root, bundle, report]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "graphs fp16 classic: passed" in result.stdout
    page = report.read_text()
    assert page.count('<figure class="columns">') >= 3 and page.count("data:image/png") == 9
    assert "http" not in page.replace("http-equiv", "")
    forget(bundle)
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "unverified" in result.stdout


def test_rebuilds_build_again_and_leave_the_bundle_alone(bundle: Path) -> None:
    arguments = ["verify", str(bundle), "--quick", "--threads", "1", "--precision", "fp16", "--rebuilds", "2", "--json"]
    before = sorted(path.name for path in bundle.iterdir())
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [each["verdict"] for each in found] == ["passed", "passed"]
    assert found[1]["target"].startswith("engine ort-")
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_a_verdict_on_a_bundle_that_was_changed_meanwhile_is_refused(bundle: Path) -> None:
    opened = open_bundle(bundle)
    exchange(bundle)
    with pytest.raises(RFError, match="was changed while it was verified"):
        record_graphs(opened, {"fp32": {"verdict": "passed"}})


def test_a_verdict_that_cannot_be_written_leaves_the_old_one(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, before = open_engine(build(bundle, EngineConfig(num_threads=1))), (bundle / "manifest.json").read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(RFError, match="was not written: no"):
        record_graphs(open_bundle(bundle), {"fp32": {"verdict": "failed"}})
    with pytest.raises(RFError, match="was not written: no"):
        record_engine(engine, {"verdict": "failed"})
    assert (bundle / "manifest.json").read_text() == before
    assert not list(bundle.rglob("*.partial-*"))


@given(st.integers(0, 2**32), st.floats(0.2, 3), st.integers(1, 12), st.floats(0.05, 1), st.booleans())
def test_the_rule_of_drawing_is_the_one_of_eager_pytorch(seed, temperature, top_k, top_p, greedy):
    import torch

    rng = np.random.default_rng(seed)
    logits, noise = rng.standard_normal((2, 12)).astype(np.float32)
    how = EagerQuestion(
        images=[], ids=torch.zeros(1), max_tokens=1, temperature=0 if greedy else temperature, top_k=top_k, top_p=top_p
    )
    token = sample_text(torch.from_numpy(logits), [], torch.from_numpy(noise), how)
    gumbel = None if greedy else noise
    taken = [other for other in range(12) if is_drawn(other, logits, gumbel, temperature, top_k, top_p)]
    assert token in taken
    assert len(taken) == 1 or top_p < 1, "two only where rounding decides what the nucleus is"


def test_what_is_not_finite_agrees_in_nothing_and_zeros_agree():
    a = np.ones((3, 4), np.float32)
    a[1] = 0
    b = a.copy()
    b[2, 0] = np.nan
    cosines, ratios, errors = agreement(b, a)
    assert cosines.tolist() == [1, 1, -1]
    assert ratios.tolist() == [1, 1, 0]
    assert errors.tolist() == [0, 0, 1e30]


@pytest.mark.parametrize("slots", [None, 14, 26])
def test_cases_fit_into_the_cache_and_go_to_the_ends(tiny_bundle: Path, slots: int | None) -> None:
    model = open_bundle(tiny_bundle).manifest.model
    cases = choose_cases(model, slots)
    lengths = [len(ids) for case in cases.draws for ids in case.prompts]
    assert min(lengths) == 0
    assert {len(case.prompts) for case in cases.draws} >= {1, 2, 3}
    for case in cases.draws:
        height, width = case.options.height or model.default_height, case.options.width or model.default_width
        rows, columns = model.rep_grid(height, width)
        longest = rows * columns + 1 + max(map(len, case.prompts))
        assert longest <= (slots or model.max_positions - 1)
    for question in cases.answers:
        images = sum(height * width // model.cell**2 for height, width in question.sizes)
        assert images + len(question.question) + question.max_tokens - 1 <= (slots or model.max_positions)


def test_every_default_of_sampling_counts_on_both_sides(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """Times, when pixels are guided, and the scale of the noise: from the config here, from the manifest there."""
    changed = {"times": (0.0, 0.2, 0.7, 1.0), "guided": (0.1, 0.5), "noise_scale": 1.5}
    model = load_checkpoint(tiny_checkpoint)
    manifest = open_bundle(tiny_bundle).manifest
    manifest = manifest.replace(sampling=manifest.sampling.replace(**changed))
    assert compare(model, tiny_bundle, manifest=manifest).verdict == "failed"
    model.config = msgspec.structs.replace(model.config, sampling=model.config.sampling.replace(**changed))
    outcome = compare(model, tiny_bundle, manifest=manifest)
    assert (outcome.verdict, outcome.tally.denoising_steps) == ("passed", 3)
    ids = [1, 2]
    picture, _ = draw_eager(model, ids, 7)
    plan = plan_drawing(GenerationOptions(), manifest)
    stages = load(tiny_bundle).begin(make_requests([ids], 7, plan))
    *_, drawn = draw_stages(stages, make_requests([ids], 7, plan), "fp32")
    assert np.abs(picture.astype(int) - drawn.picture).max() <= 1
