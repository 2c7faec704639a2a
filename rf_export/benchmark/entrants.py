"""Who takes turns: contenders in this process, or with more than one thread each in a process of its own.

After a run the threads of a pool go on looking for work for a while, so that whoever comes next in the same process, or
at once in another one, seems slow. With one thread nobody has a pool. Knows nothing of what becomes of the figures.
"""

import contextlib
import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch

from rf_export.benchmark.baseline import Spelling
from rf_export.benchmark.contenders import Contender, reading_runs
from rf_export.benchmark.selection import (
    LAYOUTS,
    baseline_spellings,
    choose_baselines,
    drawing_runs,
    plain_baseline,
    reason,
)
from rf_export.benchmark.task import BenchOptions, BenchTask, open_task, our_candidates, rival_candidates
from runtime.errors import RFError
from verification.limits import LIMITS
from verification.measures.metrics import cosine, psnr_db
from verification.measures.timing import Seconds, timed

_REST_SECONDS: Final = (0.02, 2.0)  # how often to look whether all threads sleep, and at most


class Entrant(Protocol):
    """A contender, wherever it runs."""

    @property
    def name(self) -> str:
        """In the tables."""

    def prepare(self) -> None:
        """Fill its caches."""

    def agreement(self) -> dict[str, Any]:
        """What it does against the independent eager loops; fills its caches too."""

    def turn(self, stage: str) -> int | Seconds:
        """Some steps of a stage: how many, or what each took."""


@dataclass(frozen=True)
class Local:
    """In this process."""

    contender: Contender
    task: BenchTask

    @property
    def name(self) -> str:
        """See `Entrant`."""
        return self.contender.name

    def prepare(self) -> None:
        """See `Entrant`."""
        self.contender.prepare()

    def agreement(self) -> dict[str, Any]:
        """Of tokens, the picture after the trial's steps, and words after the same history.

        Only fp32 has to agree: what fewer bits may change is judged where a bundle is made, by pictures, not here.
        """
        contender, task = self.contender, self.task
        drawn = contender.prepare()
        ids = drawn[contender.tokens]
        pixels = contender.pixels.denoise(task.work.num_trial_steps)
        words = np.array(contender.readers["next_word"].words(task.read.words))
        firsts = contender.readers["first_word"].first_word(), contender.readers["second_question"].second_question()
        result = {
            "tokens_equal": int((ids == task.drawn.rep_ids.numpy()).sum()),
            "tokens": len(ids),
            "psnr_db": psnr_db(pixels, task.drawn.pixels.numpy()),
            "words_equal": int((words == task.read.words).sum()),
            "words": len(words),
            "first_words_equal": firsts == (task.read.words[0], task.read.second_word),
            "features_cosine": cosine(contender.readers["encode_image"].encode(), task.read.features),
        }
        right = (
            result["tokens_equal"] == len(ids)
            and result["words_equal"] == len(words)
            and result["first_words_equal"]
            and result["psnr_db"] >= LIMITS["fp32"].psnr_db
        )
        return {**result, "passed": bool(right) or not contender.name.endswith("fp32")}

    def turn(self, stage: str) -> int:
        """See `Entrant`."""
        return {**drawing_runs(self.contender, self.task.work), **reading_runs(self.contender.readers)}[stage]()


class Remote:
    """In a process of its own, which ends with this one, or with `close`."""

    def __init__(self, name: str, task: BenchTask, num_threads: int, *, plain: bool) -> None:
        """Waits until it is ready; raises RFError where it fails."""
        self.name = name
        spawn = multiprocessing.get_context("spawn")  # a fork would have this one's pools and none of their threads
        self._pipe, theirs = spawn.Pipe()
        arguments = theirs, task.opened.path, task.checkpoint, task.options, task.left_out, name, num_threads, plain
        self._process = spawn.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.trials: dict[str, Any] = self._answer()

    def prepare(self) -> None:
        """See `Entrant`."""
        self._ask("prepare")

    def agreement(self) -> dict[str, Any]:
        """See `Entrant`."""
        result: dict[str, Any] = self._ask("agreement")
        return result

    def turn(self, stage: str) -> Seconds:
        """See `Entrant`; after a run that does not count. It returns when the threads of the process sleep."""
        wall, cpu = self._ask("turn", stage)
        return wall, cpu

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=5)
        self._process.kill()

    def _ask(self, *what: str) -> Any:
        self._pipe.send(what)
        return self._answer()

    def _answer(self) -> Any:
        try:
            failed, result = self._pipe.recv()
        except (EOFError, ConnectionError):
            failed, result = True, "it ended"
        if failed:
            raise RFError(f"The process of {self.name} failed: {result}. Measure with --threads 1.")
        return result


def _serve(
    pipe: Connection, bundle: Path, checkpoint: Path, options: BenchOptions, left_out: dict[str, str], *who: Any
) -> None:
    """The other process: makes one contender, and does what it is told until the pipe is closed."""
    try:
        name, num_threads, plain = who
        torch.set_num_threads(num_threads)
        task = replace(open_task(bundle, checkpoint, options), left_out=left_out)
        (entrant,), trials = _in_this_process(task, num_threads, lambda what: None, plain=plain, only=name)
        pipe.send((False, trials))
        while True:
            what, *arguments = pipe.recv()
            if what == "turn":
                entrant.turn(*arguments)
            run = functools.partial(getattr(entrant, what), *arguments)
            result = timed(run) if what == "turn" else run()
            _rest()
            pipe.send((False, result))
    except EOFError:  # the end
        return
    except Exception as error:
        pipe.send((True, reason(error)))


def _rest() -> None:
    """Wait until the threads of this process sleep, so that whoever is next has the processors."""
    step, most = _REST_SECONDS
    started = time.monotonic()
    while time.monotonic() - started < most:
        used = time.process_time()
        time.sleep(step)
        if time.process_time() - used < step / 10:
            return


@contextlib.contextmanager
def entrants(
    task: BenchTask, num_threads: int, report: Callable[[str], None], *, plain: bool = False
) -> Iterator[tuple[list[Entrant], dict[str, Any]]]:
    """All that compete, and the trials of the baselines. Who fails, of others than ours, is left out.

    Args:
        task: What they do.
        num_threads: Of each. PyTorch in this process has as many already.
        report: Told what is done.
        plain: Only ours, and eager PyTorch without a trial.

    Raises:
        RFError: One of ours cannot be loaded.
    """
    if num_threads == 1:
        yield _in_this_process(task, num_threads, report, plain=plain)
        return
    ours = our_candidates(task, num_threads)
    rivals = () if plain else rival_candidates(task, num_threads)
    families = dict.fromkeys(each.family for each in ([Spelling()] if plain else _spellings(task)))
    found: list[Entrant] = []
    trials: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for name in (*ours, *rivals, *families):
            report(f"a process for {name}")
            try:
                entrant = Remote(name, task, num_threads, plain=plain)
            except RFError as error:
                if name in ours:
                    raise
                task.left_out[name] = str(error)
                continue
            stack.callback(entrant.close)
            found.append(entrant)
            trials |= entrant.trials
        yield found, trials


def _in_this_process(
    task: BenchTask, num_threads: int, report: Callable[[str], None], *, plain: bool, only: str | None = None
) -> tuple[list[Entrant], dict[str, Any]]:
    """All of them, or one."""
    ours = our_candidates(task, num_threads)
    rivals = {} if plain else rival_candidates(task, num_threads)
    contenders: list[Contender] = []
    for name, make in {**ours, **rivals}.items():
        if only in (None, name):
            report(f"loading {name}")
            try:
                contenders.append(make())
            except Exception as error:
                if name in ours or only is not None:
                    raise
                task.left_out[name] = reason(error)
    trials: dict[str, Any] = {}
    if not plain:
        spellings = [each for each in _spellings(task) if only in (None, each.family)]
        baselines, trials = choose_baselines(task.model, task.work, task.questions, spellings, report)
        contenders += baselines
    elif only in (None, Spelling().family):
        contenders.append(plain_baseline(task.model, task.work, task.questions))
    if not contenders:
        raise RFError("; ".join(each["error"] for each in trials.values()))
    return [Local(each, task) for each in contenders], trials


def _spellings(task: BenchTask) -> list[Spelling]:
    lean = "eager weights as [out, in]" in task.left_out
    layouts = LAYOUTS[:1] if lean else LAYOUTS
    return list(baseline_spellings(compiled="torch.compile" not in task.left_out, layouts=layouts))
