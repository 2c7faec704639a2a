"""The native host on a machine with an emulated GPU: what it draws and answers there is what it does on the CPU.

No GPU has run it. The emulations (emulation/*.cpp) stand between it and the real ONNX Runtime on the CPU, so the
numbers are real; and what mixes up the two memories, or runs before its copies were made, crashes or is seen in them.
"""

import pytest

from runtime import RFError
from runtime.native.binding import NativePipeline

CUDA = {"provider": "CUDA"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_draws_what_the_cpu_draws(precision, check, tiny_bundle):
    check("draws", tiny_bundle, precision=precision, **CUDA)


def test_modern_graphs_write_the_cache_there(check, modern_bundle):
    check("draws", modern_bundle, dialect="modern", **CUDA)


def test_draws_by_the_tuned_plan(check, reference_bundle):
    check("tuned", reference_bundle, precision="fp16", **CUDA)


def test_shows_the_same_events_and_gives_up_at_each(check, tiny_bundle):
    check("events", tiny_bundle, **CUDA)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_answers_what_the_cpu_answers(precision, check, tiny_bundle, words):
    check("answers", tiny_bundle, precision=precision, words=" ".join(words[:3]), **CUDA)


def test_threads_share_the_gpu(check, tiny_bundle):
    check("threads", tiny_bundle, **CUDA)


@pytest.mark.parametrize("dialect", ["classic", "modern"])
def test_nothing_large_crosses_between_steps(dialect, check, tiny_bundle, modern_bundle):
    check("copies", modern_bundle if dialect == "modern" else tiny_bundle, dialect=dialect, **CUDA)


PLUGIN = {"provider": "NvTensorRTRTXExecutionProvider", "provider_library": "/a/plugin.so"}


@pytest.mark.parametrize("provider", [{"provider": "TensorRT"}, PLUGIN])
def test_other_providers_of_nvidia_share_its_memory(provider, check, tiny_bundle):
    check("copies", tiny_bundle, **provider)


def test_refuses_a_machine_without_a_gpu_in_a_sentence(check, tiny_bundle):
    says = "cannot run on the execution provider CUDA: the driver finds no GPU (CUDA_ERROR_NO_DEVICE)"
    check("sentence", tiny_bundle, {"EMULATED_GPUS": "0"}, status="missing", says=says, **CUDA)


def test_a_full_gpu_is_told_in_a_sentence(check, tiny_bundle):
    says = "MiB of memory left. Draw fewer pictures at once or smaller ones"
    check("sentence", tiny_bundle, {"EMULATED_BYTES": "1000"}, status="memory", says=says, **CUDA)


def test_refuses_a_machine_without_a_driver_in_a_sentence(tiny_bundle, native_library):
    try:
        NativePipeline.load(tiny_bundle, engine="none", library=native_library, provider="CUDA").close()
    except RFError as error:
        assert error.kind == "missing"
        assert "cannot run on the execution provider CUDA: " in str(error)
    else:
        pytest.skip("this machine has a GPU and a driver")


def test_refuses_engines_of_tensorrt_without_a_gpu_or_the_module(check, tiny_bundle):
    says = (
        "No GPU can be used: the driver finds no GPU (CUDA_ERROR_NO_DEVICE); in a container, start it with --gpus all."
    )
    given = {"status": "missing", "backend": "tensorrt"}
    check("sentence", tiny_bundle, {"EMULATED_GPUS": "0"}, says=says, **given)
    given["backend_library"] = "/none/librf_tensorrt.so"
    check("sentence", tiny_bundle, says="There is no module for tensorrt: /none/librf_tensorrt.so", **given)
    given["backend_library"] = "libcuda.so.1"
    check("sentence", tiny_bundle, says="There is no module for tensorrt: libcuda.so.1 is none.", **given)
