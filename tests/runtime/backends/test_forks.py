"""A child that inherited a pipeline ends as it should, and is told that the pipeline is its parent's."""

import gc
import os
import subprocess
import sys
import textwrap
import weakref

import pytest

from runtime import RFError
from runtime.backends.host.forks import ProcessBound

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PROGRAM = """
import multiprocessing, os, signal, sys, threading, time, warnings
from runtime import GenerationOptions, Pipeline, RFError, Scheduler

warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads, which is what is tested
FEW = GenerationOptions(num_steps=2)

def load():
    return Pipeline.load({bundle!r}, num_threads=2, engine="none")

def end_of_child(child):
    '''Fork; the exit code of the child, or "hangs".'''
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"

def refused(use):
    try:
        use()
    except RFError as error:
        assert "forked" in str(error) and "Load the pipeline here" in str(error), error
        return
    raise AssertionError("it was not refused")

parent = os.getpid()
pipeline = load()
expected = pipeline.draw("", options=FEW)
{body}
if os.getpid() == parent:
    assert (pipeline.draw("", options=FEW) == expected).all(), "the parent goes on"
    print("done")
"""


def run(bundle, body):
    program = PROGRAM.format(bundle=str(bundle), body=textwrap.dedent(body))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
    return done


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(7)", 7),
        ("os._exit(3)", 3),
        ("pass", 0),
        ("raise ValueError('of the child')", 1),
        ("globals().clear(); import gc, sys; gc.collect(); sys.exit(5)", 5),
        ("threading.Thread(target=time.sleep, args=(0.1,)).start()", 0),
    ],
)
def test_a_child_ends_with_its_own_code(tiny_bundle, body, code):
    run(
        tiny_bundle,
        f"""
        def child():
            {body}
        assert (found := end_of_child(child)) == {code}, found
        """,
    )


def test_a_child_of_a_child_ends_too(tiny_bundle):
    run(
        tiny_bundle,
        """
        def child():
            own = load()
            def grandchild():
                refused(lambda: own.draw("", options=FEW))
                refused(lambda: pipeline.draw("", options=FEW))
                sys.exit(4)
            assert end_of_child(grandchild) == 4
            assert (own.draw("", options=FEW) == expected).all()
            sys.exit(6)
        assert (found := end_of_child(child)) == 6, found
        """,
    )


def test_processes_of_multiprocessing_end(tiny_bundle):
    run(
        tiny_bundle,
        """
        def work(queue):
            refused(lambda: pipeline.draw("", options=FEW))
            queue.put((load().draw("", options=FEW) == expected).all())
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        processes = [context.Process(target=work, args=(queue,)) for _ in range(2)]
        for each in processes:
            each.start()
        assert all(queue.get(timeout=60) for _ in processes)
        for each in processes:
            each.join(60)
        assert [each.exitcode for each in processes] == [0, 0]
        """,
    )


def test_everything_that_was_inherited_is_refused(tiny_bundle):
    run(
        tiny_bundle,
        """
        half = pipeline.generate([""], options=FEW)
        next(half)
        talk = pipeline.converse()
        run = pipeline.sessions["vision_encoder"]
        def child():
            refused(lambda: next(half))
            refused(lambda: pipeline.draw("", options=FEW))
            refused(lambda: next(pipeline.generate([""])))
            refused(lambda: run.run({"pixels": __import__("numpy").zeros((1, 3, 16, 16), "float32")}))
            with Scheduler(pipeline) as own:
                refused(lambda: own.submit("", options=FEW).result())
        assert (found := end_of_child(child)) == 0, found
        assert len(list(half)) > 1
        """,
    )


@pytest.mark.parametrize(
    "ending", ["sys.exit(2)", "scheduler.close(); sys.exit(2)", "scheduler.close('cancel'); sys.exit(2)"]
)
def test_a_scheduler_at_work_stays_with_the_parent(tiny_bundle, ending):
    run(
        tiny_bundle,
        f"""
        scheduler = Scheduler(pipeline, num_workers=2)
        handles = [scheduler.submit("", seed=seed, options=GenerationOptions(num_steps=50)) for seed in range(4)]
        def child():
            refused(lambda: scheduler.submit("", options=FEW))
            refused(handles[0].result)
            refused(lambda: list(handles[1]))
            refused(handles[2].cancel)
            {ending}
        for _ in range(3):
            assert (found := end_of_child(child)) == 2, found
        assert all(handle.result(timeout_s=120).picture.any() for handle in handles)
        scheduler.close()
        """,
    )


def test_a_fork_while_the_scheduler_holds_its_lock(tiny_bundle):
    run(
        tiny_bundle,
        """
        scheduler = Scheduler(pipeline)
        with scheduler._dispatcher._changed:
            pid_found = end_of_child(lambda: sys.exit(9))
        assert pid_found == 9, pid_found
        scheduler.close()
        """,
    )


def test_what_leaves_a_block_in_the_child_does_not_wait(tiny_bundle):
    run(
        tiny_bundle,
        """
        with Scheduler(pipeline) as scheduler:
            handle = scheduler.submit("", options=GenerationOptions(num_steps=50))
            pid = os.fork()
            if pid == 0:
                sys.exit(8)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 8
            assert handle.result(timeout_s=120).picture.any()
        """,
    )


def test_without_a_fork_nothing_is_kept():
    """Objects go as they always did; only a child keeps them."""

    class Bound(ProcessBound):
        pass

    each = Bound()
    each.require_own_process()
    reference = weakref.ref(each)
    del each
    gc.collect()
    assert reference() is None


def test_a_device_of_the_parent_is_refused():
    """What the GPU backends ask before every use."""
    each = ProcessBound()
    each.inherited = True
    with pytest.raises(RFError, match="forked from the one that loaded"):
        each.require_own_process()
