"""The scheduler's own threads: many callers at once, closing, and wrong requests."""

import gc
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from stepping import FEW, Watched, check_same_events, check_same_picture, wait_until, with_sessions

from runtime import GenerationOptions, Pipeline, RFError, Scheduler
from runtime.scheduling.dispatch import Dispatcher

# Threads


@pytest.mark.parametrize(("num_workers", "num_pixel_batches"), [(1, None), (2, None), (2, 1), (3, 2)])
def test_many_threads_submit_and_read_at_the_same_time(
    pipeline, prompts, options, alone, num_workers, num_pixel_batches
):
    found = {}

    def ask(scheduler, seed):
        for index in range(4):
            prompt, each = prompts[(seed + index) % 4], options[(seed * index) % 5]
            handle = scheduler.submit(prompt, seed=seed, options=each, when_full="wait")
            if (seed + index) % 4 == 3:
                handle.cancel()
            else:
                found[prompt, seed, each] = list(handle)

    settings = {"max_batch": 3, "max_queue": 2, "num_workers": num_workers, "num_pixel_batches": num_pixel_batches}
    with Scheduler(pipeline, **settings) as scheduler:
        threads = [threading.Thread(target=ask, args=(scheduler, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert len(found) >= 12
    for key, events in found.items():
        check_same_picture(events[-1], alone(*key)[-1])


def test_two_workers_run_both_stages_at_the_same_time(pipeline, prompts):
    """As the two streams of a GPU: each stage waits inside its run for the other one."""
    both = threading.Barrier(2)
    meet = threading.Event()

    def wait(inputs):
        if meet.is_set():
            both.wait(timeout=10)
            meet.clear()

    sessions = {name: Watched(pipeline.sessions[name], wait) for name in ("rep_decoder", "denoiser")}
    long = GenerationOptions(num_steps=200)
    with Scheduler(with_sessions(pipeline, **sessions), num_workers=2, num_pixel_batches=1) as scheduler:
        first = scheduler.submit(prompts[0], options=long, reports="picture")
        wait_until(lambda: first.status == "pixels")
        meet.set()
        assert scheduler.submit(prompts[1], options=FEW).result(timeout_s=20).picture.any()
        first.cancel()


def test_there_is_a_worker_for_every_core_that_the_runs_leave_free(pipeline, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    for num_threads, expected in ((1, 6), (4, 1), (8, 1), (2, 3), (None, 1)):
        given = Pipeline(replace(pipeline.model, num_threads=num_threads))
        with Scheduler(given) as scheduler:
            assert len(scheduler._workers) == expected
    with Scheduler(pipeline, max_batch=2) as scheduler:
        assert len(scheduler._workers) == 2


def test_events_of_one_request_are_shared_by_its_readers(pipeline, prompts, alone):
    with Scheduler(pipeline) as scheduler:
        handle = scheduler.submit(prompts[0], seed=1, options=FEW)
        found = []
        readers = [threading.Thread(target=lambda: found.extend(handle)) for _ in range(3)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert len(found) == len(alone(prompts[0], 1, FEW))
        assert handle.result().rep_ids.tolist() == alone(prompts[0], 1, FEW)[-1].rep_ids.tolist()


def test_only_the_picture_is_reported_where_that_is_wanted(pipeline, prompts, alone):
    with Scheduler(pipeline) as scheduler:
        (event,) = scheduler.submit(prompts[0], seed=1, options=FEW, reports="picture")
    check_same_events([event], alone(prompts[0], 1, FEW)[-1:])


def test_waiting_for_a_result_may_end_early(pipeline, prompts):
    held = threading.Event()
    watched = Watched(pipeline.sessions["denoiser"], lambda inputs: held.wait())
    with Scheduler(with_sessions(pipeline, denoiser=watched)) as scheduler:
        handle = scheduler.submit(prompts[0], options=FEW)
        with pytest.raises(TimeoutError, match=r"not finished in 0\.01 s"):
            handle.result(timeout_s=0.01)
        held.set()
        assert handle.result(timeout_s=10).picture.any()


# The end


def test_leaving_the_block_finishes_what_was_submitted(pipeline, prompts):
    with Scheduler(pipeline, max_batch=1) as scheduler:
        handles = [scheduler.submit(prompt, options=FEW) for prompt in prompts]
    assert [handle.status for handle in handles] == ["done"] * 4
    with pytest.raises(RFError, match="The scheduler is closed and takes no more requests"):
        scheduler.submit(prompts[0])


def test_an_error_in_the_block_cancels_what_was_submitted(pipeline, prompts):
    with pytest.raises(KeyError), Scheduler(pipeline, max_batch=1) as scheduler:
        handles = [scheduler.submit(prompt, options=GenerationOptions(num_steps=1000)) for prompt in prompts]
        raise KeyError
    assert [handle.status for handle in handles] == ["cancelled"] * 4
    assert not any(worker.is_alive() for worker in scheduler._workers)


def test_closing_wakes_those_who_wait_for_a_place(pipeline, prompts):
    held = threading.Event()
    watched = Watched(pipeline.sessions["rep_decoder"], lambda inputs: held.wait())
    scheduler = Scheduler(with_sessions(pipeline, rep_decoder=watched), max_batch=1, max_queue=1)
    first = scheduler.submit(prompts[0])
    wait_until(lambda: first.status == "tokens")
    scheduler.submit(prompts[0])
    errors = []

    def submit():
        try:
            scheduler.submit(prompts[0], when_full="wait")
        except RFError as error:
            errors.append(str(error))

    waiting = threading.Thread(target=submit)
    waiting.start()
    closing = threading.Thread(target=scheduler.close, args=("cancel",))
    closing.start()
    waiting.join(timeout=10)
    assert errors == ["The scheduler is closed and takes no more requests. Make a new one."]
    held.set()
    closing.join(timeout=10)
    assert not closing.is_alive()


def test_a_scheduler_that_is_dropped_ends_its_threads(pipeline, prompts):
    scheduler = Scheduler(pipeline, num_workers=2)
    handle = scheduler.submit(prompts[0], options=GenerationOptions(num_steps=1000))
    workers = scheduler._workers
    del scheduler
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)
    assert handle.status == "cancelled"


def test_python_ends_while_a_scheduler_is_at_work(tiny_bundle):
    code = (
        "from runtime import GenerationOptions, Pipeline, Scheduler\n"
        f"pipeline = Pipeline.load({str(tiny_bundle)!r}, num_threads=1, engine='none')\n"
        "scheduler = Scheduler(pipeline, num_workers=2)\n"
        "handles = [scheduler.submit('', options=GenerationOptions(num_steps=1000)) for _ in range(8)]\n"
        "next(iter(handles[0]))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_a_worker_leaves_nobody_waiting(pipeline, prompts, monkeypatch):
    monkeypatch.setattr(Dispatcher, "_spread", lambda self: 1 / 0)
    scheduler = Scheduler(pipeline)
    with pytest.raises((ZeroDivisionError, RFError)):
        scheduler.submit(prompts[0]).result(timeout_s=10)
    with pytest.raises(RFError, match="is closed"):
        scheduler.submit(prompts[0])
    scheduler.close()


@pytest.mark.parametrize("name", ["max_batch", "max_queue", "num_workers", "num_pixel_batches"])
def test_a_scheduler_for_nobody_is_refused(pipeline, name):
    with pytest.raises(RFError, match=f"{name} must be >= 1, got 0"):
        Scheduler(pipeline, **{name: 0})


def test_a_wrong_request_is_refused_by_the_call(pipeline, prompts):
    with Scheduler(pipeline) as scheduler:
        with pytest.raises(RFError, match="Give one prompt as a text, and submit several one by one; got list"):
            scheduler.submit(prompts)
        with pytest.raises(RFError, match="does not know 'xqzzy'"):
            scheduler.submit("xqzzy")
        with pytest.raises(RFError, match="seed must be 0 to"):
            scheduler.submit(prompts[0], seed=-1)
        for rep_ids in ([1, 2], [[1, 2], [3]], np.zeros((1, 6), int), 7, "abc"):
            with pytest.raises(RFError, match=r"rep_ids must be whole numbers of shape \(1, 6\)"):
                scheduler.submit(prompts[0], rep_ids=rep_ids)
