"""An engine for ONNX Runtime draws what the ONNX graphs draw, and runs only where it belongs."""

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import cli
from engines import EngineConfig, build, estimate
from engines.external_data import external_sizes
from engines.pool import WeightPool
from engines.probe import largest_error, probe_inputs
from runtime import GenerationOptions, Pipeline, RFError
from runtime.backends import create_backend
from runtime.backends.host.machine import UsableMemory
from runtime.bundle.engine import EngineRecord, open_engine
from runtime.bundle.folder import compute_bundle_id, describe_file, open_bundle
from runtime.bundle.manifest import FileEntry
from runtime.signature import GRAPHS, GraphSignature, Variant

CONFIG = EngineConfig(num_threads=1)
FEW = GenerationOptions(num_steps=2)


@pytest.fixture(scope="module")
def built(tiny_bundle, tmp_path_factory):
    """A copy of the bundle with an engine; not to be changed."""
    path = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(tiny_bundle, path, ignore=shutil.ignore_patterns("engines"))
    build(path, CONFIG)
    return path


@pytest.fixture
def bundle(built, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(built, tmp_path / "bundle")


def engine_folder(bundle):
    (folder,) = (bundle / "engines").iterdir()
    return folder


def load(bundle, **arguments):
    return Pipeline.load(bundle, num_threads=1, **arguments)


def change_record(bundle, **changes):
    path = engine_folder(bundle) / "engine.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (content[section] if section else content)[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_draws_exactly_what_the_graphs_draw(bundle, precision):
    if precision != "fp32":
        build(bundle, EngineConfig(precision=precision, num_threads=1))
    compiled, plain = load(bundle, precision=precision), load(bundle, precision=precision, engine="none")
    assert compiled.engine is not None
    assert plain.engine is None
    assert (compiled.draw("", seed=3, options=FEW) == plain.draw("", seed=3, options=FEW)).all()


def test_the_record_tells_what_the_engine_is(built):
    record = open_engine(engine_folder(built)).record
    manifest = open_bundle(built).manifest
    assert record.target == create_backend("ort").target()
    assert (record.precision, record.bundle_id) == ("fp32", manifest.bundle_id)
    assert set(record.graphs) == set(GRAPHS)
    assert record.verified["largest_relative_error"] == dict.fromkeys(GRAPHS, 0.0)
    assert record.build["seconds"] > 0
    assert record.build["peak_memory_mib"] > 10
    assert set(record.files) == {"weights.bin", *(f"{name}.fp32.onnx" for name in GRAPHS)}
    assert EngineRecord.from_dict(json.loads(json.dumps(record.to_dict())), "record") == record


def test_a_graph_of_the_engine_has_the_signature_of_the_graph(built):
    engine, manifest = open_engine(engine_folder(built)), open_bundle(built).manifest
    for name in GRAPHS:
        session = create_backend("ort").open(engine.file(name), num_threads=1, compiled=True)
        assert session.signature == GraphSignature.of(name, manifest.model, Variant("fp32"))


def test_weights_are_shared_and_mapped(built):
    """Attention, as it is and packed, is in the pool once, and a process maps the pool instead of copying it."""
    folder = engine_folder(built)
    blobs = [external_sizes(folder / f"{name}.fp32.onnx") for name in GRAPHS]
    shared = set(blobs[0]) & set(blobs[1]) & set(blobs[2])
    assert len(shared) >= 2 * open_bundle(built).manifest.model.num_layers
    if sys.platform == "linux":
        pipeline = load(built)
        assert str(folder / "weights.bin") in Path("/proc/self/maps").read_text()
        del pipeline


def test_building_again_does_nothing_unless_forced(bundle):
    first = engine_folder(bundle)
    before = (first / "engine.json").stat().st_mtime_ns
    assert build(bundle, CONFIG) == first
    assert (first / "engine.json").stat().st_mtime_ns == before
    assert build(bundle, dataclasses.replace(CONFIG, force=True)) == first
    assert (first / "engine.json").stat().st_mtime_ns > before
    assert list((bundle / "engines").iterdir()) == [first]


def test_a_damaged_engine_is_built_again(bundle):
    weights = engine_folder(bundle) / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    build(bundle, CONFIG)
    assert load(bundle).engine is not None


def test_progress_is_reported_from_start_to_end(bundle):
    told = []
    build(bundle, dataclasses.replace(CONFIG, force=True), lambda *stage: told.append(stage))
    assert [(done, total) for _, done, total in told] == [(i, 10) for i in range(10)]
    assert told[0][0] == "compiling text_decoder"
    assert told[-1][0] == "writing"


def test_the_estimate_is_not_exceeded_on_the_disk(built):
    need = estimate(built, CONFIG)
    used = sum(path.stat().st_size for path in engine_folder(built).iterdir())
    graphs = sum((engine_folder(built) / f"{name}.fp32.onnx").stat().st_size for name in GRAPHS)
    assert used - graphs <= need.disk_mib << 20
    assert need.memory_mib >= 250


MISMATCHES = [
    ({"target__version": "1.0.0 abc"}, r"was built with ort 1\.0\.0 abc, and .* is installed"),
    ({"target__device": "x86_64 avx9000"}, r"was built on another device \(has .*avx9000.*, lacks .*\)"),
    ({"target__backend": "tensorrt"}, "is of the backend tensorrt, and ort was asked for"),
    ({"precision": "fp16"}, "is in fp16, and fp32 was asked for"),
]


@pytest.mark.parametrize(("changes", "message"), MISMATCHES)
def test_an_engine_of_another_target_is_refused_with_what_to_run(bundle, changes, message):
    change_record(bundle, **changes)
    with pytest.raises(RFError, match=message + rf"\. Run: rf-export build-engine {bundle} --backend ort$"):
        load(bundle, engine=engine_folder(bundle))


@pytest.mark.parametrize("changes", [changes for changes, _ in MISMATCHES[:2]])
def test_where_none_fits_the_graphs_are_used_with_a_warning(bundle, changes, caplog):
    change_record(bundle, **changes)
    with caplog.at_level(logging.WARNING):
        assert load(bundle).engine is None
    assert "the ONNX graphs are used instead" in caplog.text
    assert f"rf-export build-engine {bundle} --backend ort" in caplog.text


@pytest.mark.parametrize("changes", [changes for changes, _ in MISMATCHES[2:]])
def test_engines_that_nobody_asked_for_are_passed_over_silently(bundle, changes, caplog):
    change_record(bundle, **changes)
    assert load(bundle).engine is None
    assert not caplog.text


def change_files(bundle, changes):
    """Entries of the manifest's table of files, with the id that they give."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    content["files"] |= {name: msgspec.structs.asdict(entry) for name, entry in changes.items()}
    content["bundle_id"] = compute_bundle_id({name: FileEntry(**entry) for name, entry in content["files"].items()})
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("changed", ["graphs/denoiser.fp32.classic.onnx", "graphs/weights/fp32.bin"])
def test_an_engine_of_another_bundle_is_refused(bundle, changed):
    size = open_bundle(bundle).manifest.files[changed].size
    change_files(bundle, {changed: FileEntry(sha256=64 * "0", size=size)})
    for engine in ("auto", engine_folder(bundle)):
        with pytest.raises(RFError, match=r"built from another \w+: from bundle .*, and this is .* Run: rf-"):
            Pipeline.load(bundle, num_threads=1, engine=engine, verify="size")


def test_an_engine_outlives_graphs_that_the_bundle_gets_afterwards(bundle):
    (bundle / "more.bin").write_bytes(b"more")
    change_files(bundle, {"more.bin": describe_file(bundle / "more.bin")})
    assert load(bundle).engine is not None


@pytest.mark.parametrize("name", ["weights.bin", "denoiser.fp32.onnx"])
def test_a_flipped_bit_is_refused(bundle, name):
    path = engine_folder(bundle) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        RFError, match=rf"The engine is damaged: .*{name} differs .*Build it again: rf-export build-engine"
    ):
        load(bundle)
    assert load(bundle, engine="none").engine is None
    assert CliRunner().invoke(cli.main, ["inspect", str(bundle), "--verify"]).exit_code == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "rf-export-engine", "format_version": 3}'])
def test_a_record_that_cannot_be_read_is_passed_over_with_a_warning(bundle, text, caplog):
    (engine_folder(bundle) / "engine.json").write_text(text)
    assert load(bundle).engine is None
    assert "An engine is passed over" in caplog.text
    with pytest.raises(RFError, match=r"engine.json"):
        load(bundle, engine=engine_folder(bundle))


def test_a_half_written_engine_is_never_picked_up(bundle):
    folder = engine_folder(bundle)
    folder.rename(folder.with_name(f"{folder.name}.partial-4000000"))
    assert load(bundle).engine is None


KILLED = textwrap.dedent("""
    import sys, time
    from engines import EngineConfig, build
    def report(what, done, total):
        if what == "writing":
            print("writing", flush=True)
            time.sleep(60)
    build(sys.argv[1], EngineConfig(num_threads=1, force=True), report)
""")


def test_a_killed_build_leaves_the_old_engine_and_the_next_one_cleans_up(bundle):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(bundle)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(list((bundle / "engines").iterdir())) == 3  # with what the killed one wrote, and its lock
    assert load(bundle).engine is not None
    build(bundle, dataclasses.replace(CONFIG, force=True))
    assert len(list((bundle / "engines").iterdir())) == 1


@pytest.mark.parametrize("fault", ["swapped", "zeroed"])
def test_a_fault_in_the_pool_is_found_by_the_check(bundle, monkeypatch, fault):
    """Mutation: the check has to see what a wrong offset or lost bytes would do."""
    shutil.rmtree(bundle / "engines")
    add = WeightPool.add

    def faulty(pool, blob):
        if fault == "zeroed":
            return add(pool, memoryview(bytes(len(blob))))
        offset = add(pool, blob)
        return offset - 64 if offset >= 64 else offset

    monkeypatch.setattr(WeightPool, "add", faulty)
    with pytest.raises(RFError, match=r"The compiled \w+ differs from the ONNX graph: .* No engine was written"):
        build(bundle, CONFIG)
    assert list((bundle / "engines").iterdir()) == []


def test_a_damaged_bundle_builds_no_engine(bundle):
    weights = bundle / "graphs/weights/fp32.bin"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RFError, match=r"fp32\.bin differs"):
        build(bundle, dataclasses.replace(CONFIG, force=True))


def test_a_precision_that_is_not_there_is_refused(bundle):
    for call in (build, estimate):
        with pytest.raises(RFError, match="has no text_decoder in int8"):
            call(bundle, EngineConfig(precision="int8"))


def test_an_unknown_backend_is_refused(bundle):
    with pytest.raises(RFError, match="There is no backend 'magic'"):
        build(bundle, EngineConfig(backend="magic"))


@given(st.lists(st.binary(max_size=300) | st.sampled_from([b"a" * 70_000, b"b" * 70_000]), max_size=8))
def test_the_pool_gives_back_every_blob_and_stores_equal_ones_once(tmp_path_factory, blobs):
    path = tmp_path_factory.mktemp("pool") / "weights.bin"
    with WeightPool(path) as pool:
        offsets = [pool.add(memoryview(blob)) for blob in blobs]
    data = path.read_bytes()
    for blob, offset in zip(blobs, offsets, strict=True):
        assert data[offset : offset + len(blob)] == blob
        assert offset % (65536 if len(blob) >= 65536 else 64) == 0
    assert len(set(zip(blobs, offsets, strict=True))) == len(set(blobs))
    assert pool.num_bytes_shared == sum(map(len, blobs)) - sum(map(len, set(blobs)))


def test_only_the_places_of_weights_change_in_a_pooled_graph(tmp_path):
    """Everything else of the file goes through untouched, entries with the same key too."""
    onnx = pytest.importorskip("onnx")
    values = np.arange(64, dtype=np.float32)
    (tmp_path / "a.bin").write_bytes(bytes(100) + values.tobytes() + b"pack" * 64)
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[64], data_location=1, doc_string="kept")
    for key, value in [
        ("location", "a.bin"),
        ("offset", "100"),
        ("length", "256"),
        ("prepacked_1", "MatMul+1|356;128;0"),
        ("prepacked_1", "Gemm+2|356;256;0"),
        ("prepacked_2", "X+3|356;64;0|420;64;7"),
    ]:
        tensor.external_data.add(key=key, value=value)
    inline = onnx.numpy_helper.from_array(np.float32(1), "one")
    nodes = [onnx.helper.make_node("Add", ["x", "w"], ["z"]), onnx.helper.make_node("Add", ["z", "one"], ["y"])]
    info = [onnx.helper.make_tensor_value_info(name, 1, ["n", 64]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", info[:1], info[1:], [tensor, inline]))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "out").mkdir()
    with WeightPool(tmp_path / "out" / "weights.bin") as pool:
        pool.absorb(tmp_path / "a.onnx", tmp_path / "out" / "a.onnx")
    moved = onnx.load(tmp_path / "out" / "a.onnx", load_external_data=False)
    entries = [(entry.key, entry.value) for entry in moved.graph.initializer[0].external_data]
    assert entries == [
        ("location", "weights.bin"),
        ("offset", "0"),
        ("length", "256"),
        ("prepacked_1", "MatMul+1|256;128;0"),
        ("prepacked_1", "Gemm+2|384;256;0"),
        ("prepacked_2", "X+3|640;64;0|640;64;7"),
    ]
    for graph in (model.graph, moved.graph):
        del graph.initializer[0].external_data[:]
    assert moved == model
    assert not (tmp_path / "a.bin").exists()
    assert not (tmp_path / "a.onnx").exists()


def test_an_unknown_form_of_prepacked_weights_is_a_bug_and_not_passed_on(tmp_path):
    with WeightPool(tmp_path / "weights.bin") as pool, pytest.raises(ValueError, match="unknown form of prepacked"):
        pool._move_prepacked("MatMul+1|12", memoryview(b""))


def test_probes_fit_every_signature(built):
    model = open_bundle(built).manifest.model
    for name in GRAPHS:
        for precision in ("fp32", "fp16"):
            signature = GraphSignature.of(name, model, Variant(precision))
            inputs = probe_inputs(signature, model)
            assert [(spec.name, spec.dtype) for spec in signature.inputs] == [
                (key, str(array.dtype)) for key, array in inputs.items()
            ]
            assert all(np.isfinite(array).all() for array in inputs.values())


def test_the_error_is_relative_and_never_hides_nan():
    one = {"a": np.array([3.0, 4.0])}
    assert largest_error(one, one) == 0
    assert largest_error(one, {"a": np.array([3.0, 4.5])}) == pytest.approx(0.5 / np.sqrt(12.5))
    assert largest_error(one, {"a": np.array([3.0, np.nan])}) == np.inf


def test_the_command_in_a_message_is_the_one_that_helps(bundle):
    """What the message says to run makes the refused engine fit again."""
    change_record(bundle, target__version="1.0.0 abc")
    with pytest.raises(RFError) as caught:
        load(bundle, engine=engine_folder(bundle))
    command = re.search(r"Run: rf-export build-engine (\S+) --backend (\w+)$", str(caught.value))
    assert command is not None
    build(command[1], EngineConfig(backend=command[2], num_threads=1))
    assert load(bundle, engine=engine_folder(bundle)).engine is not None


def test_who_builds_is_told_before_that_memory_or_disk_may_not_suffice(built, monkeypatch):
    need = estimate(built, CONFIG)
    half = need.memory_mib << 19
    enough = UsableMemory(total=4 * half, available=half, swap=half)
    assert need.warning(enough, need.disk_mib << 20) is None
    assert need.warning(None, need.disk_mib << 20) is None  # a system that does not tell
    short = need.warning(replace(enough, swap=0), (need.disk_mib << 20) - 1)
    assert f"{need.memory_mib // 2} MiB of memory and swap" in short
    assert f"{need.disk_mib - 1} MiB of disk" in short
    monkeypatch.setattr("runtime.backends.host.machine.usable_memory", lambda: UsableMemory(8 << 30, 1 << 20, 0))
    result = CliRunner().invoke(cli.main, ["build-engine", str(built)], catch_exceptions=False)
    assert result.exit_code == 0  # an estimate is an upper bound: it warns and goes on
    assert "warning: only 1 MiB of memory and swap are free" in result.stderr


def test_a_bundle_whose_replacement_was_killed_is_brought_back_and_built(built, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(built, tmp_path / "bundle.replaced-12345")
    shutil.rmtree(engine_folder(tmp_path / "bundle.replaced-12345"))
    result = CliRunner().invoke(cli.main, ["build-engine", str(bundle)], catch_exceptions=False)
    assert result.exit_code == 0
    assert engine_folder(bundle).is_dir()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["bundle"]
