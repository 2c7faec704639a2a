"""Which window an engine draws with: what is measured, what is chosen, what is recorded, and what overrides it."""

import shutil
import types

import pytest

from engines import DimRange, EngineConfig, TensorRTConfig, build
from engines import windows as measuring
from engines.build import build_or_keep
from engines.windows import DrawingSizes, measure_windows
from runtime import GenerationOptions, Pipeline
from runtime.bundle.engine import open_engine
from tests.emulation.machine import machine

__all__ = ["machine"]  # a fixture

SIZES = DrawingSizes(1, 16, 24, 16)  # 6 tokens and the start token
FEW = GenerationOptions(num_steps=2)


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


class Runner:
    """Draws nothing: passes and the seconds of each are told by the window."""

    def __init__(self, monkeypatch, passes, seconds):
        self.now, self.passes, self.seconds, self.drawn = 0.0, passes, seconds, []
        clock = types.SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        monkeypatch.setattr(measuring, "time", clock)

    def stages(self, sessions, drawing):
        stages = types.SimpleNamespace(prefill=lambda prompts: None, close=lambda: None, num_passes=0)

        def draw_tokens(plan, fill_noise, forced):
            round_ = sum(window == plan.window for window in self.drawn)
            self.drawn.append(plan.window)
            stages.num_passes = self.passes[plan.window]
            self.now += stages.num_passes * self.seconds[plan.window] * (10 if round_ == 0 else 1)  # a slow start
            yield from ()

        stages.draw_tokens = draw_tokens
        return stages


def measure(pipeline, runner, sizes=SIZES):
    return measure_windows(pipeline.bundle.manifest, pipeline.model.variant, runner, pipeline.model.sessions, sizes)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1e-3, 2: 1.1e-3, 4: 1.3e-3}, 4),  # 7 ms, 5.5 and 3.9
        ({1: 1e-3, 2: 1.1e-3, 4: 2.2e-3}, 2),
        ({1: 1e-3, 2: 1.35e-3, 4: 2.3e-3}, 1),  # 6.75 ms are hardly a gain
        ({1: 1e-3, 2: 1.5e-3, 4: 2.5e-3}, 1),
    ],
)
def test_the_fastest_window_is_chosen_where_it_is_clearly_faster(pipeline, monkeypatch, seconds, best):
    runner = Runner(monkeypatch, {1: 7, 2: 5, 4: 3}, seconds)
    found = measure(pipeline, runner)
    assert found.best == best
    assert found.table == {
        window: (passes, pytest.approx(passes * seconds[window])) for window, passes in ((1, 7), (2, 5), (4, 3))
    }
    assert runner.drawn[:6] == [1, 2, 4, 1, 2, 4], "in turns"


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-4, 8), (0.5, 2)])
def test_slow_models_are_measured_less_often(pipeline, monkeypatch, seconds, rounds):
    runner = Runner(monkeypatch, {1: 7, 2: 5, 4: 3}, dict.fromkeys((1, 2, 4), seconds))
    measure(pipeline, runner)
    assert runner.drawn.count(1) == rounds


def test_no_window_is_longer_than_the_engine_takes_or_the_picture_is(pipeline):
    for longest, windows in ((16, {1, 2, 4}), (2, {1, 2}), (1, {1})):
        found = measure(pipeline, pipeline.model.runner, DrawingSizes(2, 16, 24, longest))
        assert set(found.table) == windows
        assert found.table[1][0] == 7
        assert all(passes < 7 for window, (passes, _) in found.table.items() if window > 1)


def test_an_engine_records_what_was_measured_and_draws_with_it(bundle, monkeypatch):
    told = []
    monkeypatch.setattr(measuring, "_CLEARLY", 1e9)  # one of them is the fastest
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)
    record = open_engine(build(bundle, EngineConfig(num_threads=1), lambda what, *_: told.append(what))).record
    assert told.count("measuring windows") == 1
    table = record.build["windows"]
    assert list(table) == ["1", "2", "4"]
    assert table["1"][0] == 7
    assert record.window == min((1, 2, 4), key=lambda window: table[str(window)][1])
    assert Pipeline.load(bundle, num_threads=1).model.window == record.window


def test_a_window_that_was_asked_for_is_not_measured_and_draws_the_same(bundle):
    plain = Pipeline.load(bundle, num_threads=1, engine="none").draw("a red car", options=FEW)
    for window in (4, 1):
        built = build_or_keep(bundle, EngineConfig(num_threads=1, window=window))
        assert built.is_new, "an engine of another window is built again"
        record = open_engine(built.path).record
        assert (record.window, record.build["windows"]) == (window, None)
        pipeline = Pipeline.load(bundle, num_threads=1)
        assert pipeline.model.window == window
        assert abs(pipeline.draw("a red car", options=FEW).astype(int) - plain).max() <= 1
        assert not build_or_keep(bundle, EngineConfig(num_threads=1, window=window)).is_new


def test_an_engine_of_tensorrt_is_measured_on_its_device(bundle, machine, monkeypatch):
    here = machine()
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)
    dims = {"batch": DimRange(2, 2, 3), "height": DimRange(8, 8, 16), "window": DimRange(1, 2, 3)}
    config = EngineConfig(backend=here.backend, num_threads=1, tensorrt=TensorRTConfig(dims=dims))
    record = open_engine(build(bundle, config)).record
    assert {window: passes for window, (passes, _) in record.build["windows"].items()}["1"] == 3 + 1
    assert list(record.build["windows"]) == ["1", "2"]
    assert record.window in (1, 2)
