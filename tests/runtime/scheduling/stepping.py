"""A scheduler whose holder steps it, sessions that tell of their runs, and what counts as the same picture."""

import itertools
import time
from dataclasses import replace

import numpy as np

from runtime import GenerationOptions
from runtime.scheduling.batches import PixelBatch, TokenBatch, make_job
from runtime.scheduling.dispatch import Dispatcher
from runtime.scheduling.handle import DrawingHandle

# Together with others a request's buffers are longer, so that the attention may sum in another order.
# Measured: 5e-6 of 2 at most, which is 128 dB.
MIN_PSNR_DB = 100

FEW = GenerationOptions(num_steps=3)


class Stepped:
    """The scheduler without its threads: whoever holds it steps it."""

    def __init__(self, pipeline, max_batch=8, max_queue=64, num_pixel_batches=1, model=None):
        self.pipeline = pipeline
        loaded = pipeline.model
        if model is not None:
            manifest = loaded.manifest.replace(model=model)
            loaded = replace(loaded, bundle=replace(loaded.bundle, manifest=manifest))
        self.loaded = loaded
        self.tokens = TokenBatch(loaded, max_batch)
        share = -(-max_batch // num_pixel_batches)
        self.pixels = [PixelBatch(loaded, share) for _ in range(num_pixel_batches)]
        ticks = itertools.count()
        self.dispatcher = Dispatcher(
            self.tokens, self.pixels, max_batch=max_batch, max_queue=max_queue, clock=lambda: next(ticks)
        )
        self.handles = []

    def submit(self, prompt, seed=0, options=FEW, reports="all", **arguments):
        (request,) = self.pipeline.check([prompt], seed=seed, options=options, **arguments)
        handle = DrawingHandle(request, reports, self.dispatcher.forget_cancelled)
        self.dispatcher.submit(make_job(handle, self.loaded), "refuse")
        self.handles.append(handle)
        return handle

    def step(self, times=1):
        for _ in range(times):
            if not all(handle.ended for handle in self.handles):
                self.dispatcher.step()

    def finish(self):
        while not all(handle.ended for handle in self.handles):
            self.dispatcher.step()
        return [handle.result() for handle in self.handles if handle.status == "done"]

    def step_until(self, handle, status):
        while handle.status != status:
            assert not handle.ended
            self.dispatcher.step()


class Watched:
    """A real session that tells of every run: its bound inputs, and its outputs afterwards."""

    def __init__(self, session, before=lambda inputs: None, after=lambda inputs, outputs: None):
        self.session, self.signature = session, session.signature
        self.before, self.after = before, after

    def bind(self, inputs, outputs):
        run = self.session.bind(inputs, outputs)

        def watched():
            self.before(inputs)
            run()
            self.after(inputs, outputs)

        return watched


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def with_sessions(pipeline, **sessions):
    return pipeline.with_sessions(sessions)


def psnr_db(one, other):
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return np.inf if error == 0 else 10 * np.log10(4 / error)


def check_same_picture(event, expected):
    assert event.rep_ids.tolist() == expected.rep_ids.tolist()
    assert (event.prompt, event.seed, event.index) == (expected.prompt, expected.seed, 0)
    assert psnr_db(event.pixels, expected.pixels) >= MIN_PSNR_DB
    assert np.abs(event.picture.astype(int) - expected.picture).max() <= 1


def check_same_events(events, expected):
    """Bit for bit."""
    assert [type(event) for event in events] == [type(event) for event in expected]
    for event, other in zip(events, expected, strict=True):
        for name, value in vars(other).items():
            np.testing.assert_array_equal(
                getattr(event, name), value, err_msg=name, strict=isinstance(value, np.ndarray)
            )


def stepped_events(handle):
    """What a handle holds by now."""
    return list(handle._events)
