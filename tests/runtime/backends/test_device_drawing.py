"""The device backends draw what ONNX Runtime draws on the CPU: the whole real code, over an emulated device and
TensorRT.

Schedule, addresses, feedback, capture, memory and every call into the library are the product's own. Only the GPU is
not.
"""

import gc
import shutil
import threading
import types

import numpy as np
import pytest
from pipelines import pipeline_of

from engines import DimRange, EngineConfig, TensorRTConfig, build
from runtime import GenerationOptions, PictureEvent, Pipeline, RFError, StepEvent, TokenEvent
from runtime.backends.cuda import memory as device_memory
from runtime.backends.cuda import stages as device_stages
from runtime.backends.cuda.device import CudaDevice
from runtime.backends.cuda.ort import OrtCudaBackend
from runtime.backends.cuda.tensorrt import TensorRTSession
from runtime.bundle.engine import open_engine
from runtime.bundle.folder import open_bundle
from runtime.options import DrawingPlan
from runtime.signature import GRAPHS, Variant
from tests.emulation.api import VERSIONS
from tests.emulation.machine import machine

__all__ = ["machine"]  # a fixture

FEW = GenerationOptions(num_steps=5)
# fp32 graphs on the same kernels; the cache of a device has more hidden slots, so sums have another order.
TOLERANCE = 2e-4
PROMPTS = ["a red car", "", "two blue fish left of a green cat"]


@pytest.fixture(scope="session")
def bundle(tiny_bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / "bundle"
    return shutil.copytree(tiny_bundle, path, ignore=shutil.ignore_patterns("engines"))


def build_engine(bundle, machine, precision="fp32", **options):
    dims = {"batch": DimRange(1, 1, 4), "prompt": DimRange(1, 8, 32), "height": DimRange(8, 16, 32)}
    options.setdefault("dims", dims)
    config = EngineConfig(
        backend=machine.backend,
        precision=precision,
        num_threads=1,
        force=True,
        window=1,  # not measured
        tensorrt=TensorRTConfig(**options),
    )
    return build(bundle, config)


def load(bundle, machine, precision="fp32"):
    return Pipeline.load(bundle, precision, machine.backend)


def draw(pipeline, prompts=PROMPTS, options=FEW, **arguments):
    return list(pipeline.generate(prompts, seed=11, options=options, **arguments))


@pytest.fixture(scope="session")
def expected(bundle):
    return draw(Pipeline.load(bundle, num_threads=1, engine="none"))


def assert_same(events, expected):
    assert [type(event) for event in events] == [type(event) for event in expected]
    for event, other in zip(events, expected, strict=True):
        if isinstance(event, TokenEvent):
            assert (event.step, event.num_steps) == (other.step, other.num_steps)
            assert (event.rep_ids == other.rep_ids).all()
            np.testing.assert_allclose(event.logits, other.logits, atol=TOLERANCE)
        elif isinstance(event, StepEvent):
            assert (event.step, event.t, event.t_next) == (other.step, other.t, other.t_next)
            np.testing.assert_allclose(event.x_next, other.x_next, atol=TOLERANCE)
            np.testing.assert_allclose(event.x_pred, other.x_pred, atol=TOLERANCE)
        else:
            assert (event.rep_ids == other.rep_ids).all()
            np.testing.assert_allclose(event.pixels, other.pixels, atol=TOLERANCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_draws_what_the_cpu_draws(bundle, machine, expected, version):
    here = machine(version)
    path = build_engine(bundle, here)
    verified = open_engine(path).record.verified["largest_relative_error"]
    assert max(verified.values()) < 1e-5, "the builder ran every engine against its graph"
    assert_same(draw(load(bundle, here)), expected)


def test_half_precision_draws_the_same_tokens(bundle, machine):
    here = machine()
    build_engine(bundle, here, "fp16")
    plain = draw(Pipeline.load(bundle, "fp16", num_threads=1, engine="none"))
    events = draw(load(bundle, here, "fp16"))
    for event, other in zip(events, plain, strict=True):
        if isinstance(event, PictureEvent):
            assert (event.rep_ids == other.rep_ids).all()
            assert np.abs(event.pixels - other.pixels).max() < 0.05


def test_a_stage_is_one_graph_and_is_replayed_without_a_wait(bundle, machine):
    here = machine()
    build_engine(bundle, here)
    pipeline = load(bundle, here)
    log = here.gpu.log
    captured = len(log.captures)
    first = draw(pipeline, previews=False)
    # N + 1 runs, each with one copy of its keys and values; then the steps.
    assert log.captures[captured:] == [2 * (6 + 1), 5]
    launches, waits, work = log.launches, log.synchronisations, log.operations
    assert_same(draw(pipeline, previews=False), first)
    assert len(log.captures) == captured + 2, "nothing is captured again"
    assert log.launches - launches == 2
    assert log.synchronisations - waits <= 4, "after reading the prompts, for the tokens, and for the picture"
    assert log.operations > work


def test_another_seed_and_prompt_of_the_same_shape_replay_the_graphs(bundle, machine):
    here = machine()
    build_engine(bundle, here)
    pipeline, plain = load(bundle, here), Pipeline.load(bundle, num_threads=1, engine="none")
    draw(pipeline)
    captures = len(here.gpu.log.captures)
    for prompts in (["a green key", "a", "a cup"], ["", "", ""], ["two red cars", "a", ""]):
        for guidance in (0.5, 4.0):
            options = GenerationOptions(num_steps=5, rep_guidance_scale=guidance, pix_guidance_scale=guidance, top_k=3)
            assert_same(draw(pipeline, prompts, options), draw(plain, prompts, options))
    assert len(here.gpu.log.captures) == captures


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        (["a red car"], GenerationOptions(num_steps=1)),
        (["a red car"], GenerationOptions(num_steps=4, temperature=0)),
        ([""], GenerationOptions(num_steps=3, height=24, width=24)),
        (["a red car", "a cup"], GenerationOptions(num_steps=2, height=32, width=24)),
    ],
)
def test_all_kinds_of_drawings_agree(bundle, machine, prompts, options):
    here = machine()
    build_engine(bundle, here)
    plain = Pipeline.load(bundle, num_threads=1, engine="none")
    assert_same(draw(load(bundle, here), prompts, options), draw(plain, prompts, options))


def test_forced_tokens_are_used_and_the_drawn_ones_reported(bundle, machine):
    here = machine()
    build_engine(bundle, here)
    plain = Pipeline.load(bundle, num_threads=1, engine="none")
    pipeline = load(bundle, here)
    some = np.where([True, False, True, True, False, False], np.arange(12).reshape(2, 6), -1)
    for forced in (np.arange(12).reshape(2, 6), np.arange(12)[::-1].reshape(2, 6), some, np.full((2, 6), -1)):
        assert_same(draw(pipeline, PROMPTS[:2], rep_ids=forced), draw(plain, PROMPTS[:2], rep_ids=forced))
    assert_same(draw(pipeline, PROMPTS[:2]), draw(plain, PROMPTS[:2]))


def test_without_previews_only_pictures_are_reported_and_they_are_the_same(bundle, machine, expected):
    here = machine()
    build_engine(bundle, here)
    pictures = [event for event in expected if isinstance(event, PictureEvent)]
    assert_same(draw(load(bundle, here), previews=False), pictures)
    assert_same(draw(Pipeline.load(bundle, num_threads=1, engine="none"), previews=False), pictures)


def test_without_cuda_bindings_it_runs_the_same_and_says_so(bundle, machine, expected, caplog):
    here = machine(graphs=False)
    build_engine(bundle, here)
    assert_same(draw(load(bundle, here)), expected)
    assert "cuda-bindings is not installed" in caplog.text
    assert here.gpu.log.captures == []


def test_weights_that_are_streamed_are_not_captured(bundle, machine, expected):
    here = machine()
    build_engine(bundle, here, weight_streaming=True)
    assert_same(draw(load(bundle, here)), expected)
    assert here.gpu.log.captures == []


def test_nothing_of_an_earlier_drawing_is_left(bundle, machine, monkeypatch):
    """The memory of a drawing is used again; its cache is filled with NaN in between."""
    here = machine()
    build_engine(bundle, here)
    pipeline = load(bundle, here)
    draw(pipeline)
    plain = Pipeline.load(bundle, num_threads=1, engine="none")
    for address, size in here.gpu.sizes.items():
        if size > 20_000:
            here.gpu.view(address, (size,), np.uint8).fill(0xFF)
    assert_same(draw(pipeline, ["", "a cup", ""]), draw(plain, ["", "a cup", ""]))


def test_a_drawing_that_is_given_up_leaves_the_pipeline_usable(bundle, machine, expected):
    here = machine()
    build_engine(bundle, here)
    pipeline = load(bundle, here)
    for stop in (1, 4, 8):
        drawing = pipeline.generate(PROMPTS, seed=11, options=FEW)
        for _ in range(stop):
            next(drawing)
        drawing.close()
    assert_same(draw(pipeline), expected)


def test_two_drawings_at_once_have_memory_of_their_own(bundle, machine, expected):
    here = machine()
    build_engine(bundle, here)
    pipeline = load(bundle, here)
    one, other = (pipeline.generate(PROMPTS, seed=11, options=FEW) for _ in range(2))
    pairs = list(zip(one, other, strict=True))
    assert_same([pair[0] for pair in pairs], expected)
    assert_same([pair[1] for pair in pairs], expected)


def test_threads_take_turns(bundle, machine, expected):
    here = machine()
    build_engine(bundle, here)
    pipeline = load(bundle, here)
    gc.collect()  # the builder's own device
    here.gpu.log.freed_without_context = 0
    results = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: draw(pipeline)})) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for events in results.values():
        assert_same(events, expected)
    assert len(results) == 3
    assert here.gpu.log.freed_without_context == 0, "pycuda frees nothing of another thread"


def test_sizes_that_the_engine_lacks_are_refused_with_what_to_build(bundle, machine):
    here = machine()
    build_engine(bundle, here, dims={"batch": DimRange(1, 1, 2), "prompt": DimRange(1, 4, 4)})
    pipeline = load(bundle, here)
    with pytest.raises(RFError, match=r"built for other sizes: .* takes .*--dim batch=1:1:8, prompt, height or width"):
        draw(pipeline, ["a cup"] * 3)
    with pytest.raises(RFError, match="built for other sizes: input_ids"):
        draw(pipeline, ["two blue fish left of a green cat"])
    assert draw(pipeline, ["a cup"])


# ---- rows, windows and plans


def test_what_is_not_guided_costs_one_row(bundle, machine, monkeypatch):
    here = machine()
    build_engine(bundle, here)
    pipeline, plain = load(bundle, here), Pipeline.load(bundle, num_threads=1, engine="none")
    rows = {}
    original = TensorRTSession.prepare

    def prepare(self, shapes):
        if "row_requests" in shapes:
            rows.setdefault(self._name, []).append(shapes["row_requests"][0])
        return original(self, shapes)

    monkeypatch.setattr(TensorRTSession, "prepare", prepare)
    for tokens, pixels in ((1.0, 4.0), (4.0, 1.0), (1.0, 1.0)):
        options = GenerationOptions(num_steps=3, rep_guidance_scale=tokens, pix_guidance_scale=pixels)
        assert_same(draw(pipeline, options=options), draw(plain, options=options))
        prepared = {name.split(".")[0]: counts for name, counts in rows.items()}
        assert prepared.get("rep_decoder", []) in ([3], [6], [3, 6]), "once for each number of rows"
    assert prepared == {"rep_decoder": [3, 6], "denoiser": [6, 3]}


@pytest.mark.parametrize("guided", [(0.0, 0.5), (0.3, 0.7), (0.6, 1.0), (0.5, 0.5)])
def test_steps_with_and_without_guidance_are_one_graph(bundle, machine, guided):
    here = machine()
    build_engine(bundle, here)
    pipeline, plain = load(bundle, here), Pipeline.load(bundle, num_threads=1, engine="none")
    options = GenerationOptions(times=(0.0, 0.1, 0.35, 0.5, 0.8, 1.0), guided=guided)
    captured = len(here.gpu.log.captures)
    for previews in (True, False, True, False):
        events, expected = (draw(each, options=options, previews=previews) for each in (pipeline, plain))
        assert_same(events, expected)
    assert here.gpu.log.captures[captured:].count(5) == 4, "previews are another shape"
    always = draw(plain, options=GenerationOptions(times=options.times))
    with pytest.raises(AssertionError):
        assert_same(draw(pipeline, options=options), always)


@pytest.mark.parametrize("version", ["8.6.1", "10.13.3", "11.4.0"])
@pytest.mark.parametrize("window", [2, 3, 7])
def test_windows_draw_the_tokens_of_single_passes(bundle, machine, version, window):
    here = machine(version)
    build_engine(bundle, here)
    pipeline, plain = load(bundle, here), Pipeline.load(bundle, num_threads=1, engine="none")
    for number, changed in enumerate(({}, {"temperature": 0}, {"rep_guidance_scale": 1.0}, {"top_k": 3})):
        alone = draw(plain, options=GenerationOptions(num_steps=2, **changed))
        options = GenerationOptions(num_steps=2, window=window, **changed)
        for previews in (True, False):
            events = draw(pipeline, options=options, previews=previews)
            assert_same(events, alone if previews else [event for event in alone if isinstance(event, PictureEvent)])
        assert number or here.gpu.log.captures[-2:] == [1, 2], "a pass, and the steps"


def test_windows_go_on_from_forced_tokens(bundle, machine):
    here = machine()
    build_engine(bundle, here)
    pipeline, plain = load(bundle, here), Pipeline.load(bundle, num_threads=1, engine="none")
    some = np.where([True, False, True, True, False, False], np.arange(12).reshape(2, 6), -1)
    for forced in (np.arange(12).reshape(2, 6), some, np.full((2, 6), -1)):
        for window in (1, 2, 4):
            options = GenerationOptions(num_steps=2, window=window)
            events, expected = (
                draw(each, PROMPTS[:2], each_options, rep_ids=forced)
                for each, each_options in ((pipeline, options), (plain, GenerationOptions(num_steps=2)))
            )
            assert_same(events, expected)


def test_a_pass_over_a_window_uploads_no_noise(bundle, machine):
    here = machine()
    build_engine(bundle, here)
    pipeline, log = load(bundle, here), here.gpu.log
    draw(pipeline, options=GenerationOptions(num_steps=2, window=4), previews=False)
    sizes = []
    for window in (1, 4):
        before = log.uploaded
        draw(pipeline, options=GenerationOptions(num_steps=2, window=window), previews=False)
        sizes.append(log.uploaded - before)
    assert sizes[1] <= sizes[0] + 7 * 3 * 256


def test_an_engine_of_smaller_windows_takes_these(bundle, machine, expected):
    here = machine()
    dims = {"batch": DimRange(1, 1, 4), "prompt": DimRange(1, 8, 32)}
    for longest in (1, 2):
        build_engine(bundle, here, dims={**dims, "window": DimRange(1, longest, longest)})
        pipeline = load(bundle, here)
        assert_same(draw(pipeline, options=GenerationOptions(num_steps=5, window=7)), expected)


def break_kept_rows(monkeypatch):
    fill = device_memory.DeviceCache.fill
    monkeypatch.setattr(
        device_memory.DeviceCache,
        "fill",
        lambda self, new, line, row, tokens, slot: fill(self, new, line, row, tokens, slot + (new.shape[2] == 4)),
    )


def break_noise_of_windows(monkeypatch):
    original = device_stages.DeviceStages._move_noise
    monkeypatch.setattr(
        device_stages.DeviceStages,
        "_move_noise",
        lambda self, noise, gumbel, starts: original(self, noise, gumbel, [0] * len(starts)),
    )


def break_acceptance(monkeypatch):
    settle = device_stages.TokenWindow.settle

    def trusting(self, drawn):
        first, end = settle(self, drawn)
        if not self.ended:
            self.num_cached = end = min(first + self.size, self.num_tokens + 1)
            self.num_known, self.start = min(end, self.num_tokens), min(end, self.num_tokens + 1 - self.size)
        return first, end

    monkeypatch.setattr(device_stages.TokenWindow, "settle", trusting)


@pytest.mark.parametrize("mutation", [break_kept_rows, break_noise_of_windows, break_acceptance])
def test_a_mistake_in_a_window_is_seen(bundle, machine, expected, monkeypatch, mutation):
    here = machine()
    build_engine(bundle, here)
    pipeline, options = load(bundle, here), GenerationOptions(num_steps=5, window=4)
    assert_same(draw(pipeline, options=options), expected)
    mutation(monkeypatch)
    pipeline.model.runner._pool._kept.clear()
    with pytest.raises((AssertionError, ValueError)):
        assert_same(draw(pipeline, options=options), expected)


# ---- mutations: what the comparison has to see


def break_feedback(monkeypatch):
    address = device_memory.StepTable.address
    monkeypatch.setattr(device_memory.StepTable, "address", lambda self, step=0: address(self, max(step - 1, 0)))


def break_cache_slot(monkeypatch):
    append = device_memory.DeviceCache.append
    monkeypatch.setattr(device_memory.DeviceCache, "append", lambda self, new, slot, n: append(self, new, slot - 1, n))


def break_guidance(monkeypatch):
    original = device_stages.DeviceStages.draw_tokens

    def unguided(self, plan, fill_noise, forced):
        changed = DrawingPlan(**{**vars(plan), "rep_guidance_scale": 1.0})
        return original(self, changed, fill_noise, forced)

    monkeypatch.setattr(device_stages.DeviceStages, "draw_tokens", unguided)


def break_step_count(monkeypatch):
    original = device_stages.DeviceStages.denoise
    monkeypatch.setattr(
        device_stages.DeviceStages, "denoise", lambda self, plan, times, x: original(self, plan, times[1:], x)
    )


def break_last_token(monkeypatch):
    append = device_memory.DeviceCache.append

    def forgetful(self, new, slot, num_rows):
        if slot < 8 + 6:
            append(self, new, slot, num_rows)

    monkeypatch.setattr(device_memory.DeviceCache, "append", forgetful)


@pytest.mark.parametrize(
    "mutation", [break_feedback, break_cache_slot, break_guidance, break_step_count, break_last_token]
)
def test_a_mistake_in_the_schedule_is_seen(bundle, machine, expected, monkeypatch, mutation):
    here = machine()
    build_engine(bundle, here, dims={"batch": DimRange(1, 1, 4), "prompt": DimRange(8, 8, 8)})
    pipeline = load(bundle, here)
    assert_same(draw(pipeline), expected)
    mutation(monkeypatch)
    pipeline.model.runner._pool._kept.clear()
    with pytest.raises(AssertionError):
        assert_same(draw(pipeline), expected)


def test_onnx_runtime_on_a_device_draws_the_same(bundle, machine, expected):
    """ONNX Runtime's real binding of addresses, with the CPU in the place of the GPU."""
    here = machine()
    backend = OrtCudaBackend("CPUExecutionProvider", "cpu")
    opened = open_bundle(bundle)
    # The CPU does not wait for a stream: do what is on it first.
    enqueue = CudaDevice.synchronize
    sessions = {}
    for name in GRAPHS:
        session = backend.open(opened.file(opened.graph(name, Variant("fp32")).file), num_threads=1, compiled=False)
        run = session._session.run_with_iobinding

        def run_in_order(binding, options, run=run):
            enqueue(backend._device)
            run(binding, options)

        binding = session._session.io_binding
        session._session = types.SimpleNamespace(io_binding=binding, run_with_iobinding=run_in_order)
        sessions[name] = session
    assert_same(draw(pipeline_of(opened, sessions, runner=backend)), expected)
    windows = GenerationOptions(num_steps=5, window=4)
    assert_same(draw(pipeline_of(opened, sessions, runner=backend), options=windows), expected)
    assert here.gpu.log.captures == []


def test_a_gpu_that_onnx_runtime_does_not_use_is_refused(bundle, machine):
    machine()
    with pytest.raises(RFError, match=r"does not run on the GPU: it chose CPUExecutionProvider.*onnxruntime-gpu"):
        Pipeline.load(bundle, "fp32", "ort-cuda")


def test_memory_is_freed_the_next_time_the_gpu_is_taken(machine):
    """Never from a destructor: that may run in any thread, and in the middle of a capture."""
    gpu, device = machine().gpu, CudaDevice()
    with device.exclusive():
        memory = device.allocate(1000)
    del memory
    assert len(gpu.sizes) == 1
    with device.exclusive():
        assert len(gpu.sizes) == 0
    assert gpu.log.freed_without_context == 0
