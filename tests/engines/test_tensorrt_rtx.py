"""Our graphs parse, type-check and compile in NVIDIA's own compiler, on a machine without a GPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import calibration.quantise as quantise_module
import cli
from calibration.config import PER_COLUMN
from calibration.layers import find_layers
from calibration.quantise import Choice, quantise
from engines import DimRange, EngineConfig, TensorRTConfig, build, estimate
from engines.tensorrt import network as tensorrt_network
from runtime import RFError
from runtime.backends.cuda.driver import Gpu, probe_gpu
from runtime.backends.cuda.tensorrt_library import messages_of
from runtime.bundle.engine import open_engine
from runtime.bundle.folder import describe_file, open_bundle, write_manifest
from runtime.signature import GRAPHS, GraphSignature, Variant
from verification.graphs.weights import WeightFile

pytest.importorskip("tensorrt_rtx", reason="pip install 'rf-export[tensorrt-rtx]'")


@pytest.fixture(scope="module")
def tiny_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: engines are built into it, and others look what is in theirs."""
    return shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("rtx") / "bundle")


ROOT = Path(__file__).parents[2]
TARGETS = ("8.6", "8.9", "12.0")


def config(*capabilities, precision="fp16", dialect="classic", force=False, **options):
    tensorrt = TensorRTConfig(compute_capabilities=capabilities or TARGETS, **options)
    return EngineConfig(
        backend="tensorrt-rtx",
        precision=precision,
        dialect=dialect,
        force=force,
        tensorrt=tensorrt,
        allow_unverified=True,
    )  # some bundles here are not verified, to save time


def no_gpu():
    return not isinstance(probe_gpu(), Gpu)


def test_the_reference_checkpoint_compiles_for_three_rtx_generations(reference_bundle):
    need = estimate(reference_bundle, config())
    path = build(reference_bundle, config())
    record = open_engine(path).record
    assert {record.graphs[name].file for name in GRAPHS} == {f"{name}.fp16.engine" for name in GRAPHS}
    assert [device.split()[1] for device in record.target.device.split(" | ")] == ["sm_86", "sm_89", "sm_120"]
    assert record.build["profiles"]["text_decoder"][0]["sequence"] == "1:32:256"
    used = sum(entry.size for entry in record.files.values())
    assert used <= need.disk_mib << 20
    assert all(entry.size > 1_000_000 for entry in record.files.values()), "the weights are in the plans"


def test_the_modern_graphs_of_the_reference_checkpoint_compile_for_three_generations_too(reference_modern):
    record = open_engine(build(reference_modern, config(dialect="modern"))).record
    assert record.dialect == "modern"
    assert [device.split()[1] for device in record.target.device.split(" | ")] == ["sm_86", "sm_89", "sm_120"]
    assert record.build["cache_slots"] == 192
    assert record.build["profiles"]["rep_decoder"] == [
        {"request": "1:1:4", "row": "1:2:8", "window": "1:1:1"},
        {"request": "1:1:4", "row": "1:2:8", "window": "2:8:8"},
    ]
    assert all(entry.size > 1_000_000 for entry in record.files.values()), "the weights are in the plans"


@pytest.mark.parametrize("capability", TARGETS)
def test_fp32_attention_has_no_fused_kernel_and_compiles_all_the_same(fixed_bundle, capability):
    path = build(fixed_bundle, config(capability, precision="fp32", dialect="modern"))
    assert path.name.endswith("-fp32-modern")


def test_attention_that_may_not_be_taken_apart_is_refused_with_the_reason(fixed_bundle, monkeypatch):
    """Why every attention is marked: this is what would be told otherwise."""
    monkeypatch.setattr(tensorrt_network, "_let_attention_decompose", lambda *_: None)
    with pytest.raises(RFError, match="does not build"):
        build(fixed_bundle, config("8.9", precision="fp32", dialect="modern", force=True))


def test_no_input_has_to_lie_in_the_memory_of_the_host(tiny_bundle, fixed_bundle):
    """A tensor that shapes depend on would; the runtime hands out device memory alone."""
    import tensorrt_rtx as trt

    for bundle, dialect in ((tiny_bundle, "classic"), (fixed_bundle, "modern")):
        opened = open_bundle(bundle)
        for name in GRAPHS:
            network = trt.Builder(messages_of(trt).logger).create_network(0)
            parser = trt.OnnxParser(network, messages_of(trt).logger)
            assert parser.parse_from_file(str(opened.file(opened.graph(name, Variant("fp32", dialect)).file)))
            tensors = [network.get_input(i) for i in range(network.num_inputs)]
            assert [tensor.name for tensor in tensors if tensor.is_shape_tensor] == []


@pytest.mark.parametrize("capability", TARGETS)
def test_an_engine_is_compiled_for_one_generation(tiny_bundle, capability):
    record = open_engine(build(tiny_bundle, config(capability))).record
    assert record.target.device.endswith(f"sm_{capability.replace('.', '')}")
    assert record.build["options"]["compute_capabilities"] == [capability]
    if no_gpu():
        assert record.verified == {}


def test_fp32_compiles_too(tiny_bundle):
    assert open_engine(build(tiny_bundle, config("8.9", precision="fp32"))).record.precision == "fp32"


@pytest.mark.parametrize(
    "options",
    [
        {"workspace_mib": 64, "builder_optimization_level": 0, "profiling_verbosity": "detailed"},
        {"weight_streaming": True},
        {"dims": {"batch": DimRange(1, 1, 1), "prompt": DimRange(1, 8, 16), "height": DimRange(8, 16, 32)}},
    ],
)
def test_options_reach_the_compiler(tiny_bundle, options):
    record = open_engine(build(tiny_bundle, config("8.9", **options))).record
    assert {name: record.build["options"][name] for name in options if name != "dims"} == {
        name: value for name, value in options.items() if name != "dims"
    }


def test_an_engine_of_other_options_is_built_again(tiny_bundle):
    path = build(tiny_bundle, config("8.6"))
    first = (path / "engine.json").stat().st_mtime_ns
    assert build(tiny_bundle, config("8.6")) == path
    assert (path / "engine.json").stat().st_mtime_ns == first
    build(tiny_bundle, config("8.6", workspace_mib=128))
    assert (path / "engine.json").stat().st_mtime_ns > first


def test_progress_names_the_layer_that_is_compiled(tiny_bundle):
    told = []
    build(tiny_bundle, config("8.9", force=True), lambda *stage: told.append(stage))
    assert any("compiling denoiser: timing {ForeignNode" in what for what, _, _ in told)
    assert any("compiling rep_decoder: building engine" in what for what, _, _ in told)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.parametrize(
    ("capability", "message"), [("8.7", r"cannot compile for compute capability 8\.7; it can for 7\.5, 8\.0, 8\.6")]
)
def test_a_gpu_that_the_compiler_lacks_is_refused(tiny_bundle, capability, message):
    with pytest.raises(RFError, match=message):
        build(tiny_bundle, config(capability))


@pytest.mark.skipif(not no_gpu(), reason="there is a GPU")
@pytest.mark.parametrize("weights", ["refittable", "stripped"])
def test_weights_that_can_be_exchanged_are_refused_without_a_gpu(tiny_bundle, weights):
    with pytest.raises(RFError, match=f"with {weights} weights on a machine with a GPU only"):
        build(tiny_bundle, config("8.9", weights=weights))


@pytest.mark.skipif(not no_gpu(), reason="there is a GPU")
def test_without_a_gpu_and_without_a_target_the_message_tells_both_ways_out(tiny_bundle):
    nothing = EngineConfig(backend="tensorrt-rtx", precision="fp16")
    with pytest.raises(RFError, match=r"No GPU can be used: .*--compute-capability 8\.9.*--backend ort"):
        build(tiny_bundle, nothing)


def test_the_command_says_what_it_needs_and_that_nothing_verified_the_engine(tiny_bundle):
    arguments = [
        "build-engine",
        tiny_bundle,
        "--backend",
        "tensorrt-rtx",
        "--precision",
        "fp16",
        "--compute-capability",
        "8.6",
        "--dim",
        "batch=1:1:2",
        "--dim",
        "prompt=1:8:16",
    ]
    result = CliRunner().invoke(cli.main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "needs at most" in result.stderr
    if no_gpu():
        assert "not verified: no such device is here" in result.stdout
    shown = CliRunner().invoke(cli.main, [*map(str, arguments), "--json"], catch_exceptions=False)
    record = json.loads(shown.stdout)
    assert record["build"]["dims"]["batch"] == "1:1:2"
    wrong = CliRunner().invoke(cli.main, [*map(str, arguments), "--dim", "cells=3"])
    assert wrong.exit_code == 2
    assert "no dimension 'cells'" in wrong.output


# A shell that starts tests in the background has them ignore SIGINT, and the child would inherit that.
INTERRUPTED = textwrap.dedent("""
    import signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from engines import EngineConfig, TensorRTConfig, build
    def report(what, done, total):
        if "timing" in what:
            print("timing", flush=True)
    tensorrt = TensorRTConfig(compute_capabilities=("8.6",), dims={})
    build(sys.argv[1], EngineConfig(backend="tensorrt-rtx", precision="fp16", force=True, tensorrt=tensorrt,
                                    allow_unverified=True), report)
""")


def test_ctrl_c_stops_the_compiler_and_leaves_nothing_half_written(reference_bundle):
    engines = reference_bundle / "engines"
    before = sorted(path.name for path in engines.iterdir()) if engines.exists() else []
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(reference_bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "timing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)  # a busy machine takes its time; a build that goes on ends with code 0
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert "Aborted" not in errors
    assert "Segmentation" not in errors
    assert sorted(path.name for path in engines.iterdir()) == before


def add_integers(bundle):
    """INT8 graphs for a bundle in fp16, every layer quantised; the ranges are made up, since nothing is drawn."""
    opened = open_bundle(bundle)
    with WeightFile(bundle / "graphs", "weights/int8-fp16.bin") as file:
        entries = []
        for name in GRAPHS:
            entry = opened.graph(name, Variant("fp16"))
            model = ir.load(opened.file(entry.file))
            format = "static" if name in ("denoiser", "vision_encoder") else "weight-only"
            quantise(model, {weight: Choice(format, 8.0, block=PER_COLUMN) for weight in find_layers(model.graph)})
            path = file.save(model, f"{name}.int8-fp16.classic.onnx")
            signature = GraphSignature.of(name, opened.manifest.model, Variant("int8-fp16"))
            entries.append(
                entry.replace(
                    precision="int8-fp16",
                    file=f"graphs/{path.name}",
                    inputs=signature.inputs,
                    outputs=signature.outputs,
                    weights=("graphs/weights/int8-fp16.bin",),
                    opset=19,
                )
            )
    files = {name: describe_file(bundle / name) for entry in entries for name in entry.files}
    manifest = opened.manifest
    changed = manifest.replace(graphs=(*manifest.graphs, *entries), files={**manifest.files, **files})
    write_manifest(bundle, changed)
    return bundle


def test_int8_graphs_of_the_reference_checkpoint_compile_for_two_generations(reference_bundle, tmp_path):
    bundle = add_integers(shutil.copytree(reference_bundle, tmp_path / "bundle"))
    record = open_engine(build(bundle, config("8.6", "8.9", precision="int8-fp16"))).record
    assert {record.graphs[name].file for name in GRAPHS} == {f"{name}.int8-fp16.engine" for name in GRAPHS}


def test_integers_that_the_parser_refuses_are_calibrated_again_and_not_exported(tiny_bundle, tmp_path, monkeypatch):
    """Here: the scale of an input that became 0."""
    honest = quantise_module.stored_scales

    def zero_for_inputs(largest, levels, dtype):
        return honest(largest, levels, dtype) if np.ndim(largest) else np.zeros((), dtype)

    monkeypatch.setattr(quantise_module, "stored_scales", zero_for_inputs)
    bundle = add_integers(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with pytest.raises(
        RFError, match=r"Scale coefficients must all be positive.*Calibrate the bundle again: rf-export"
    ):
        build(bundle, config("8.9", precision="int8-fp16"))


@pytest.mark.slow
def test_a_model_of_twelve_layers_compiles_within_the_predicted_memory(tmp_path):
    """d = 768, 16,384 representation tokens. In a process of its own, whose memory is its own."""
    code = textwrap.dedent("""
        import sys, torch
        from pathlib import Path
        from rf_export.checkpoint import save_checkpoint
        from rf_export.config import EXPERTS, EncoderConfig, ModelConfig
        from rf_export.export import ExportOptions, export
        from rf_export.model import RFModel
        from rf_export.training.scenes import SceneConfig
        from rf_export.training.tokens import build_tokenizer
        torch.manual_seed(0)
        config = ModelConfig(
            hidden_size=768, num_layers=12, num_heads=12, num_kv_heads=4, head_dim=64,
            ffn_sizes=dict.fromkeys(EXPERTS, 2048), vocab_size=8192, rep_vocab_size=16_384, patch_size=16, max_grid=32,
            default_height=256, default_width=256,
            encoder=EncoderConfig(hidden_size=64, num_layers=1, num_heads=2, ffn_size=64),
        )
        out = Path(sys.argv[1])
        save_checkpoint(RFModel(config), build_tokenizer(SceneConfig()).to_str(), out / "checkpoint", torch.float16)
        export(out / "checkpoint", out / "bundle", ExportOptions(precisions=("fp16",), verify=False))
    """)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=env)
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "build-engine",
        str(tmp_path / "bundle"),
        "--backend",
        "tensorrt-rtx",
        "--precision",
        "fp16",
        "--compute-capability",
        "8.6",
        "--json",
        "--allow-unverified",
    ]
    done = subprocess.run(command, check=True, env=env, capture_output=True, text=True)
    record = json.loads(done.stdout)["build"]
    assert record["peak_memory_mib"] <= record["predicted_memory_mib"]
    # Weights of INT8 graphs stay INT8 in the engine.
    add_integers(tmp_path / "bundle")
    sizes = {}
    for precision in ("fp16", "int8-fp16"):
        path = build(tmp_path / "bundle", config("8.6", precision=precision))
        sizes[precision] = {name: (path / f"{name}.{precision}.engine").stat().st_size for name in GRAPHS}
    print(sizes)
    for name in ("rep_decoder", "denoiser"):
        assert sizes["int8-fp16"][name] < 0.7 * sizes["fp16"][name]
