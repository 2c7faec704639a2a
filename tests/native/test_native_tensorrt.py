"""The module for TensorRT, compiled with NVIDIA's headers: it runs engines on a machine with an emulated GPU.

No TensorRT and no GPU has run it. `RF_TENSORRT_HEADERS` names the folders of headers, and each is compiled with an
emulated library of its version (emulation/nvinfer.cpp), whose plans are those of the emulated builder of
tests/emulation: graphs that the real ONNX Runtime runs. Without headers these tests are skipped.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from building import build_tensorrt

from engines import DimRange, EngineConfig, TensorRTConfig, build
from runtime import Pipeline, RFError
from runtime.bundle.engine import open_engine
from tests.emulation.machine import machine

__all__ = ["machine"]  # a fixture

GET = (
    "name the folders of TensorRT's headers in RF_TENSORRT_HEADERS: git clone --depth 1 --branch v10.13.3 "
    "https://github.com/NVIDIA/TensorRT trt && export RF_TENSORRT_HEADERS=$PWD/trt/include"
)
HEADERS = [Path(each) for each in os.environ.get("RF_TENSORRT_HEADERS", "").split(os.pathsep) if each]
# By major version: the emulated builder's version, and the number that a library of it says it is.
BUILDERS = {"8": ("8.6.1", "8601"), "10": ("10.13.3", "101303"), "11": ("11.4.0", "110400")}
# A device's cache has more hidden slots than the CPU's, and prompts are padded, so sums have another order.
NEAR = 2e-4

pytestmark = pytest.mark.skipif(not HEADERS, reason=GET)


class Installed:
    """A version of TensorRT on the emulated machine."""

    def __init__(self, folder: Path, headers: Path) -> None:
        text = (headers / "NvInferVersion.h").read_text()
        self.major = re.findall(r"define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", text)[0]
        self.builder, self.number = BUILDERS[self.major]
        self.options = {
            "backend": "tensorrt",
            "backend_library": folder / "native/librf_tensorrt.so",
            "tensorrt": folder / "libnvinfer.so",
        }

    def environment(self, model, number=None):
        """What its library is told."""
        return {"EMULATED_TENSORRT": number or self.number, "EMULATED_CELL": str(2 * model.patch_size)}


@pytest.fixture(scope="session", params=HEADERS, ids=[each.parent.name for each in HEADERS])
def installed(request, gpu_machine, tmp_path_factory):
    """Each version whose headers are there."""
    folder = tmp_path_factory.mktemp("tensorrt") / "module"
    return Installed(build_tensorrt(folder, request.param, gpu_machine), request.param)


@pytest.fixture
def build_for(installed, machine, tmp_path):
    """Builds an engine of the installed version, from a copy of a bundle; its folder is in the copy's."""

    def built(bundle, precision="fp32", dialect="classic", **options):
        copy = shutil.copytree(bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
        here = machine(installed.builder)
        sizes = {
            "batch": (1, 1, 4),
            "prompt": (1, 8, 32),
            "height": (8, 16, 32),
            "width": (8, 16, 32),
            "images": (1, 1, 2),
        }
        dims = {name: DimRange(*ends) for name, ends in sizes.items()}
        if dialect == "modern":  # all that the 20 slots of its cache hold
            del dims["prompt"]
            dims["height"] = DimRange(8, 16, 24)
        config = EngineConfig(
            backend=here.backend,
            precision=precision,
            dialect=dialect,
            num_threads=1,
            window=1,
            tensorrt=TensorRTConfig(dims=dims, **options),
        )
        return copy, build(copy, config)

    return built


@pytest.fixture
def run_check(check, installed, pipeline):
    """Runs a check with the engine of a bundle."""

    def checked(name, bundle, number=None, **values):
        options = {**installed.options, **values}
        check(name, bundle, installed.environment(pipeline.model.manifest.model, number), **options)

    return checked


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_draws_what_the_cpu_draws(precision, build_for, run_check, tiny_bundle):
    bundle, _ = build_for(tiny_bundle, precision)
    run_check("draws", bundle, precision=precision, difference=NEAR if precision == "fp32" else 0.05)


def test_modern_graphs_write_the_cache_there(build_for, run_check, fixed_bundle, installed):
    if installed.major != "11":
        pytest.skip("TensorRT writes caches in place from 10.15 on")
    bundle, _ = build_for(fixed_bundle, dialect="modern")
    run_check("draws", bundle, dialect="modern", difference=NEAR)


def test_the_same_shapes_give_the_same_numbers(build_for, run_check, tiny_bundle, words):
    bundle, _ = build_for(tiny_bundle)
    run_check("draws", bundle, prompt=" ".join((words * 8)[:32]), difference=0)


def test_shows_the_same_events_and_gives_up_at_each(build_for, run_check, tiny_bundle):
    bundle, _ = build_for(tiny_bundle)
    run_check("events", bundle, difference=NEAR)


def test_answers_what_the_cpu_answers(build_for, run_check, tiny_bundle, words):
    bundle, _ = build_for(tiny_bundle)
    run_check("answers", bundle, words=" ".join(words[:3]), difference=NEAR)


def test_threads_share_the_gpu(build_for, run_check, tiny_bundle):
    bundle, _ = build_for(tiny_bundle)
    run_check("threads", bundle, difference=NEAR)


def test_nothing_large_crosses_between_steps(build_for, run_check, tiny_bundle):
    bundle, _ = build_for(tiny_bundle)
    run_check("copies", bundle)


def sentence(call):
    """What is said of what cannot be done."""
    with pytest.raises(RFError) as raised:
        call()
    return str(raised.value)


def test_refuses_sizes_that_it_was_not_built_for(build_for, run_check, tiny_bundle, machine, installed):
    bundle, _ = build_for(tiny_bundle)
    python = Pipeline.load(bundle, backend="tensorrt")
    says = sentence(lambda: list(python.generate(["a red car"] * 5)))
    assert "was built for other sizes" in says
    run_check("sentence", bundle, status="input", says=says.split(": ")[0], count=5)


def test_refuses_a_bundle_without_an_engine(run_check, tiny_bundle, machine, installed, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    machine(installed.builder)
    says = sentence(lambda: Pipeline.load(bundle, backend="tensorrt"))
    run_check("sentence", bundle, status="mismatch", says=says)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("version", "10.9.0", "was built with tensorrt 10.9.0, and "),
        ("device", "x86_64 sm_90", "was built on another device (has sm_90, lacks sm_87)"),
    ],
)
def test_refuses_an_engine_of_another_target(key, value, says, build_for, run_check, tiny_bundle):
    bundle, engine = build_for(tiny_bundle)
    path = engine / "engine.json"
    record = json.loads(path.read_text())
    record["target"][key] = value
    record.pop("checksum", None)
    path.write_text(json.dumps(record))
    run_check("sentence", bundle, status="mismatch", says=says, engine=engine)
    run_check("sentence", bundle, status="mismatch", says="and tensorrt runs engines only")


def test_refuses_an_engine_without_weights(build_for, run_check, tiny_bundle, installed):
    if installed.major == "8":
        pytest.skip("TensorRT 8 strips no weights")
    bundle, _ = build_for(tiny_bundle, weights="stripped")
    run_check("sentence", bundle, status="mismatch", says="has no weights yet. Fill them in")


def test_refuses_a_plan_that_is_none(build_for, run_check, tiny_bundle):
    bundle, engine = build_for(tiny_bundle)
    plan = engine / open_engine(engine).record.graphs["denoiser"].file
    plan.write_bytes(b"x" * plan.stat().st_size)
    run_check("sentence", bundle, status="damaged", says="The engine is damaged")
    run_check("sentence", bundle, status="mismatch", says="Magic tag does not match", verify="size")


@pytest.mark.parametrize(
    ("number", "says"), [("90100", "was built with the headers of"), ("120000", "was built with the headers of")]
)
def test_refuses_a_library_of_another_version(number, says, build_for, run_check, tiny_bundle):
    bundle, _ = build_for(tiny_bundle)
    run_check("sentence", bundle, number, status="mismatch", says=says)


def test_refuses_a_library_that_is_older_than_the_headers(build_for, run_check, tiny_bundle, installed):
    bundle, _ = build_for(tiny_bundle)
    older = {"8": "8500", "10": "100200", "11": "110000"}[installed.major]
    run_check("sentence", bundle, older, status="mismatch", says="or a later")


def test_refuses_modules_and_libraries_that_are_not_there(build_for, run_check, tiny_bundle, installed):
    bundle, _ = build_for(tiny_bundle)
    says = "There is no module for tensorrt"
    run_check("sentence", bundle, status="missing", says=says, backend_library="/none/librf_tensorrt.so")
    run_check("sentence", bundle, status="missing", says=f"{says}-rtx: ", backend="tensorrt-rtx")
    run_check("sentence", bundle, status="missing", says="cannot be opened", tensorrt="/none/libnvinfer.so")
    run_check("sentence", bundle, status="input", says="Leave one of them out", provider="CUDA")
