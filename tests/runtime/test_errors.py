"""An error says what kind it is, so that a host decides without reading the message; the message stays one sentence."""

import concurrent.futures
import shutil

import pytest

from runtime import GenerationOptions, Pipeline, RFError, Scheduler
from runtime.backends import create_backend


def kind_of(call, *arguments, **options):
    with pytest.raises(RFError) as caught:
        call(*arguments, **options)
    assert str(caught.value)
    return caught.value.kind


def test_what_the_caller_got_wrong_is_input(pipeline):
    assert kind_of(pipeline.generate, []) == "input"
    assert kind_of(pipeline.generate, ["red"], seed=-1) == "input"
    assert kind_of(GenerationOptions, num_steps=0) == "input"
    assert kind_of(pipeline.generate, ["xyzzy"]) == "input"


def test_a_spoilt_file_is_damaged(tiny_bundle, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    graph = next(bundle.glob("graphs/denoiser.fp32*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    assert kind_of(Pipeline.load, bundle) == "damaged"
    (bundle / "manifest.json").write_text("{")
    assert kind_of(Pipeline.load, bundle) == "damaged"


def test_a_package_that_is_not_there_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    monkeypatch.delitem(__import__("sys").modules, "runtime.backends.host.ort", raising=False)
    assert kind_of(create_backend, "ort") == "missing"


def test_a_full_queue_is_busy_and_a_drawing_given_up_is_cancelled(pipeline):
    options = GenerationOptions(num_steps=25)
    with Scheduler(pipeline, max_batch=1, max_queue=1) as scheduler:
        handles = []
        with pytest.raises(RFError) as caught:
            for seed in range(50):
                handles.append(scheduler.submit("", seed=seed, options=options))
        assert caught.value.kind == "busy"
        for handle in handles:
            handle.cancel()
        assert kind_of(handles[-1].result) == "cancelled"
        with pytest.raises(concurrent.futures.CancelledError):
            handles[-1].result()


def test_numbers_out_of_range_are_an_overflow(pipeline):
    class Overflowing:
        def __init__(self, session):
            self.signature, self._session = session.signature, session

        def run(self, inputs):
            return self._session.run(inputs)

        def bind(self, inputs, outputs):
            run = self._session.bind(inputs, outputs)

            def overflow():
                run()
                outputs["x_next"][:] = float("inf")

            return overflow

    broken = pipeline.with_sessions({"denoiser": Overflowing(pipeline.sessions["denoiser"])})
    assert kind_of(broken.draw, "", options=GenerationOptions(num_steps=1)) == "overflow"


def test_a_closed_pipeline_says_so_and_what_runs_ends(tiny_bundle):
    with Pipeline.load(tiny_bundle, num_threads=1, engine="none") as pipeline:
        events = pipeline.generate([""], options=GenerationOptions(num_steps=2))
        next(events)
    assert kind_of(pipeline.generate, [""]) == "input"
    assert kind_of(pipeline.converse) == "input"
    *_, last = events
    assert last.picture.any()
