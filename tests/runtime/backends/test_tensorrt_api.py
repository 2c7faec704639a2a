"""What our code asks of TensorRT is what each version has, by the dumps of its real API; and what it does with the
answers.

The emulation has the classes, methods and enumerations of a version's dump and nothing else, and checks the arguments
of every call against its signatures. So a build and a drawing that pass on it call nothing that the version lacks.
"""

import inspect
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engines import DimRange, EngineConfig, TensorRTConfig, build
from engines.tensorrt import network as tensorrt_network
from engines.tensorrt.refit import refit
from runtime import Pipeline, RFError
from runtime.backends.cuda.tensorrt_library import _EXPECTED, Messages
from runtime.bundle.engine import open_engine
from runtime.bundle.folder import describe_file, open_bundle, write_manifest
from tests.emulation.api import DUMPS, VERSIONS, read_api
from tests.emulation.cuda import Gpu, make_driver
from tests.emulation.machine import GPU, machine
from tests.emulation.tensorrt import KINDS, make_tensorrt

__all__ = ["machine"]  # a fixture

STRONG = [version for version in VERSIONS if not version.startswith("8.")]


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


def build_engine(bundle, here, precision="fp16", force=False, **options):
    config = EngineConfig(
        backend=here.backend,
        precision=precision,
        num_threads=1,
        force=force,
        window=1,  # not measured
        tensorrt=TensorRTConfig(**options),
    )
    return build(bundle, config)


def test_there_is_a_dump_of_every_supported_version():
    assert [version.split(".")[:2] for version in VERSIONS if version[0] != "r"] == [
        ["10", "13"],
        ["10", "16"],
        ["10", "3"],
        ["11", "4"],
        ["8", "6"],
    ]


def test_the_emulation_has_nothing_that_no_version_has():
    known = {kind: set() for version in VERSIONS for kind in read_api(version)}
    for version in VERSIONS:
        for kind, members in read_api(version).items():
            known[kind] |= set(members)
    for kind in KINDS:
        names = {name for name in vars(kind) if not name.startswith("_")}
        if kind.__name__ != "Dims":
            assert names <= known[kind.__name__], kind


def test_a_call_with_a_wrong_argument_is_seen():
    trt = make_tensorrt("10.3.0", Gpu())
    config = trt.IBuilderConfig()
    with pytest.raises(AssertionError, match="set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, bytes=1)
    with pytest.raises(AssertionError, match="no property max_workspace"):
        config.max_workspace = 1
    with pytest.raises(AttributeError):
        make_tensorrt("11.4.0", Gpu()).BuilderFlag.FP16  # noqa: B018


@pytest.mark.parametrize("version", STRONG)
def test_networks_are_strongly_typed_where_that_exists(bundle, machine, version):
    here = machine(version)
    build_engine(bundle, here)
    flag = here.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert here.trt.settings.network_flags == 1 << int(flag)
    assert not here.trt.settings.config._flags & {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "TF32"}


@pytest.mark.parametrize(("precision", "flags"), [("fp32", set()), ("fp16", {"FP16"})])
def test_version_8_takes_flags(bundle, machine, precision, flags):
    here = machine("8.6.1")
    build_engine(bundle, here, precision)
    assert here.trt.settings.network_flags == 1 << int(here.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    assert here.trt.settings.config._flags == {"OBEY_PRECISION_CONSTRAINTS"} | flags


ALL_OPTIONS = {
    "workspace_mib": 64,
    "builder_optimization_level": 4,
    "profiling_verbosity": "detailed",
    "version_compatible": True,
    "hardware_compatibility": "ampere_plus",
    "weights": "refittable",
    "dims": {"batch": DimRange(1, 1, 2)},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_option_is_one_that_the_version_takes(bundle, machine, version):
    here = machine(version)
    record = open_engine(build_engine(bundle, here, **ALL_OPTIONS)).record
    config = here.trt.settings.config
    assert {"VERSION_COMPATIBLE", "REFIT"} <= config._flags
    assert config._limits == {"WORKSPACE": 64 << 20}
    assert config.builder_optimization_level == 4
    assert config.hardware_compatibility_level == here.trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.profiling_verbosity == here.trt.ProfilingVerbosity.DETAILED
    assert record.target.version == f"{here.trt.__version__}+"
    assert record.target.device.endswith(" sm_80+")
    assert record.build["gpu"]["compute_capability"] == "8.7"


@pytest.mark.parametrize("options", [{"weight_streaming": True}, {"weights": "stripped"}])
def test_an_option_that_a_version_lacks_is_refused(bundle, machine, options):
    with pytest.raises(RFError, match=r"needs a newer TensorRT than 8\.6\.1"):
        build_engine(bundle, machine("8.6.1"), **options)


def test_text_is_read_with_three_profiles(bundle, machine):
    here = machine()
    path = build_engine(bundle, here)
    plan = json.loads((path / "text_decoder.fp16.engine").read_bytes())
    prefill, decode, further = plan["profiles"]
    assert prefill["input_ids"] == [[1, 1], [1, 32], [4, 120]]
    assert decode["input_ids"] == [[1, 1], [1, 1], [4, 1]]
    assert prefill["past_key_values.0.key"][2][2] == 1
    assert decode["past_key_values.0.key"][2][2] >= 120 + 6 + 1
    assert (further["input_ids"], further["past_key_values.0.key"]) == (
        prefill["input_ids"],
        decode["past_key_values.0.key"],
    )
    assert prefill["image_features"] == [[1, 32], [6, 32], [24, 32]]


def test_timings_are_kept_per_version_and_gpu_and_used_again(bundle, machine, caplog):
    here = machine()
    record = open_engine(build_engine(bundle, here)).record
    (cache,) = (bundle / "engines/timing").iterdir()
    assert cache.name == record.build["timing_cache"]
    for part in ("10.13.3", "sm_87", GPU.name):
        assert part in cache.name
    build_engine(bundle, here, force=True)
    assert here.trt.settings.config._cache._data == b"|timed"
    cache.write_bytes(b"foreign")
    with caplog.at_level(logging.WARNING):
        build_engine(bundle, here, force=True)
    assert "is of another GPU or version" in caplog.text
    assert cache.read_bytes() == b"|timed"


def test_a_timing_cache_may_be_shared_between_bundles(bundle, machine, tmp_path):
    build_engine(bundle, machine(), timing_cache=str(tmp_path / "shared/timings"))
    assert (tmp_path / "shared/timings").read_bytes() == b"|timed"


@pytest.mark.parametrize("version", STRONG)
def test_a_cancelled_build_stops_at_the_next_step(bundle, machine, monkeypatch, version):
    here = machine(version)

    def interrupted(call, cancelled):
        cancelled.set()
        assert call() is None, "the library was told to stop"
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_network, "run_cancellable", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, here)
    assert list((bundle / "engines").iterdir()) == []


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ("parse", r"parser of TensorRT 10\.13\.3 refuses text_decoder.*: node 7: Unsupported operator Magic\. Export"),
        ("build", r"does not build text_decoder.*: Could not find any implementation for node x\. Try other --dim"),
    ],
)
def test_what_the_library_refuses_is_told_with_its_reason(bundle, machine, refuse, message):
    here = machine()
    here.trt.settings.refuse = refuse
    with pytest.raises(RFError, match=message):
        build_engine(bundle, here)


def test_the_layer_that_is_timed_is_told(bundle, machine):
    machine()
    told = []
    config = EngineConfig(backend="tensorrt", precision="fp16", num_threads=1)
    build(bundle, config, lambda what, done, total: told.append(what))
    assert "compiling denoiser: timing {ForeignNode[a...b]}" in told
    assert "compiling rep_decoder: building engine 2/3" in told


def test_an_engine_of_another_version_or_gpu_is_refused_with_what_to_run(bundle, machine, monkeypatch):
    build_engine(bundle, machine("10.13.3"))
    command = r"engines only\. Run: rf-export build-engine .* --backend tensorrt --precision fp16"
    with pytest.raises(RFError, match=rf"built with tensorrt 10\.13\.3, and 10\.16\.1 is installed, .* {command}"):
        Pipeline.load(bundle, "fp16", machine("10.16.1").backend)
    here = machine("10.13.3")
    other = type(GPU)(**{**vars(GPU), "compute_capability": "11.0"})
    monkeypatch.setattr("runtime.backends.cuda.device.require_gpu", lambda: other)
    with pytest.raises(RFError, match=r"built on another device \(has sm_87, lacks sm_110\)"):
        Pipeline.load(bundle, "fp16", here.backend)


def test_a_version_compatible_engine_runs_on_a_later_version(bundle, machine):
    build_engine(bundle, machine("10.3.0"), version_compatible=True)
    pipeline = Pipeline.load(bundle, "fp16", machine("10.16.1").backend)
    assert pipeline.draw("a red car").any()
    with pytest.raises(RFError, match=r"built with tensorrt 10\.3\.0\+, and 11\.4\.0 is installed"):
        Pipeline.load(bundle, "fp16", machine("11.4.0").backend)


def test_where_there_is_no_engine_the_message_says_how_to_build_one(bundle, machine):
    here = machine()
    with pytest.raises(RFError, match=r"has no engine of the backend tensorrt in fp16, .* Run: rf-export build-engine"):
        Pipeline.load(bundle, "fp16", here.backend)


def test_a_plan_that_the_library_does_not_load_is_told_with_its_reason(bundle, machine, tmp_path):
    from runtime.backends import create_backend

    machine()
    (tmp_path / "x.engine").write_bytes(b"garbage")
    with pytest.raises(RFError, match=r"cannot load .*x\.engine: Magic tag does not match\. Build the engine again"):
        create_backend("tensorrt").open(tmp_path / "x.engine", num_threads=None, compiled=True)


REFITTING = [version for version in STRONG if "OnnxParserRefitter" in read_api(version)]


@pytest.fixture
def second(bundle, tmp_path):
    """A bundle of the same architecture with other weights."""
    path = shutil.copytree(bundle, tmp_path / "second")
    weights = path / "graphs/weights/fp16.bin"
    values = np.fromfile(weights, np.float16)
    values.view(np.uint16)[values != 0] ^= 1
    values.tofile(weights)
    manifest = open_bundle(path).manifest
    changed = manifest.replace(files={**manifest.files, "graphs/weights/fp16.bin": describe_file(weights)})
    write_manifest(path, changed)
    return path


@pytest.mark.parametrize("version", REFITTING)
@pytest.mark.parametrize("weights", ["refittable", "stripped"])
def test_an_engine_takes_the_weights_of_another_bundle(bundle, second, machine, version, weights):
    here = machine(version)
    first = build_engine(bundle, here, weights=weights)
    if weights == "stripped":
        assert open_engine(first).record.verified == {}
        with pytest.raises(RFError, match=r"has no weights yet\. Fill them in: rf-export refit-engine"):
            Pipeline.load(bundle, "fp16", here.backend)
    record = open_engine(refit(first, second)).record
    assert record.bundle_id == open_bundle(second).manifest.bundle_id != open_bundle(bundle).manifest.bundle_id
    assert record.build["refitted_from"] == open_bundle(bundle).manifest.bundle_id
    assert max(record.verified["largest_relative_error"].values()) < 1e-2
    drawn = Pipeline.load(second, "fp16", here.backend, allow_unverified=True).draw("a red car")
    plain = Pipeline.load(second, "fp16", engine="none", allow_unverified=True).draw("a red car")
    assert np.abs(drawn.astype(int) - plain).max() <= 12
    assert not any(path.name.endswith("partial") for path in (second / "engines").iterdir())


def test_an_engine_that_keeps_its_weights_is_not_refitted(bundle, second, machine):
    first = build_engine(bundle, machine())
    with pytest.raises(RFError, match=r"cannot take other weights\. .* --weights refittable"):
        refit(first, second)


def test_weights_that_do_not_fit_are_refused_and_leave_nothing(bundle, second, machine):
    here = machine()
    first = build_engine(bundle, here, weights="refittable")
    here.trt.settings.refuse = "refit"
    with pytest.raises(RFError, match=r"does not take the weights of text_decoder.*: Weights of another shape\. Use"):
        refit(first, second)
    assert list((second / "engines").iterdir()) == []


def test_a_refitted_engine_is_compared_with_its_own_graphs(bundle, second, machine, monkeypatch):
    """Mutation: the library keeps the old weights, and says that all went well."""
    here = machine()
    first = build_engine(bundle, here, "fp16", weights="refittable")
    monkeypatch.setattr("engines.tensorrt.builder.MAX_RELATIVE_ERROR", {"fp16": 1e-6})
    monkeypatch.setattr(here.trt.OnnxParserRefitter, "refit_from_file", lambda self, model: True)
    with pytest.raises(RFError, match="differs from the ONNX graph"):
        refit(first, second)


def test_real_cuda_bindings_take_our_calls():
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    emulated = make_driver(Gpu())
    for name, value in vars(emulated).items():
        if name.startswith("cu"):
            text = (getattr(driver, name).__doc__ or "").splitlines()[0]
            assert text.count(",") + 1 == len(inspect.signature(value).parameters), text
    assert hasattr(driver.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")
    assert int(driver.CUstream(1234)) == 1234
    assert driver.CUresult(0) == driver.CUresult.CUDA_SUCCESS


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_dump_is_what_the_real_bindings_say(version):
    """Fetches a wheel of 1 MB; without network or a wheel for this Python there is nothing to compare with."""
    code = f"import json, dump; print(json.dumps(dump.dump({version!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(DUMPS), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no bindings: {done.stderr.strip().splitlines()[-1]}")
    assert json.loads(done.stdout) == json.loads((DUMPS / f"{version}.json").read_text())


def test_what_is_expected_is_not_warned_of_and_every_word_is_handed_on(caplog):
    heard = []
    library = SimpleNamespace(last_error="", _on_text=heard.append)
    expected = f"so {_EXPECTED[0]} then"
    with caplog.at_level("INFO"):
        for severity, text in (("WARNING", expected), ("WARNING", "odd"), ("ERROR", "broken"), ("INFO", "fine")):
            Messages._hear(library, severity, text)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "TensorRT: odd"),
        ("INFO", "TensorRT: broken"),
    ]
    assert heard == [expected, "odd", "broken", "fine"]
    assert library.last_error == "broken"
