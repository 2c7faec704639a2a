"""Draws and answers thousands of times in one process, and shows that memory, files and threads stay as they were.

    python tests/soak.py BUNDLE --pictures 1000 --questions 1000 --steps 4

Every tenth drawing and answer is given up half way, every tenth prompt is refused, every twentieth picture comes from a
scheduler that lives for a moment; every picture is written to one PNG file. The first and the last picture and answer
have to be the same to the last bit.

Memory: resident bytes, sampled 40 times. The first quarter is left out, since pools of the libraries grow to their
size; then the slope of a line through the samples (Theil and Sen: the median of the slopes of all pairs, so that single
jumps do not count) has to be below half of the float32 pixels of one picture per round: whoever keeps one array of a
drawing, the smallest that there is, leaks twice that.
"""

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
NUM_SAMPLES = 40


def resident_bytes() -> int:
    """What this process has in memory now, of its own: mapped weights do not count."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def sample() -> dict[str, int]:
    """Memory, open files and threads."""
    gc.collect()
    files, tasks = (len(list(Path("/proc/self", name).iterdir())) for name in ("fd", "task"))
    return {"resident": resident_bytes(), "files": files, "threads": threading.active_count(), "system_threads": tasks}


def slope(values: list[int], rounds: list[int]) -> float:
    """Bytes per round: the median of the slopes of all pairs (Theil 1950, Sen 1968)."""
    pairs = itertools.combinations(zip(rounds, values, strict=True), 2)
    return statistics.median((second[1] - first[1]) / (second[0] - first[0]) for first, second in pairs)


def repeat(work: Any, count: int) -> tuple[list[dict[str, int]], list[int]]:
    """Call `work` with 0, 1, ...; the samples on the way, and after how many rounds they were taken."""
    every = max(1, count // NUM_SAMPLES)
    samples, rounds = [], []
    for number in range(count):
        work(number)
        if (number + 1) % every == 0 and number >= count // 4:
            samples.append(sample())
            rounds.append(number)
    return samples, rounds


def soak(bundle: Path, precision: Any, pictures: int, questions: int, steps: int) -> dict[str, Any]:
    """All figures."""
    from runtime import GenerationOptions, Pipeline, RFError, Scheduler, save_png
    from runtime.options import AnswerOptions

    pipeline = Pipeline.load(bundle, precision, num_threads=1)
    options = GenerationOptions(num_steps=steps)
    prompt = "a red car"
    first = pipeline.draw(prompt, seed=1, options=options)
    limit = first.size * 4 / 2  # half of its float32 pixels
    counts = {"drawn": 0, "given_up": 0, "refused": 0, "scheduled": 0, "answered": 0, "answers_given_up": 0}

    with tempfile.TemporaryDirectory() as folder:

        def draw(number: int) -> None:
            if number % 10 == 3:
                events = pipeline.generate([prompt], seed=number, options=options)
                list(itertools.islice(events, number % 7 + 1))
                events.close()
                counts["given_up"] += 1
            elif number % 10 == 6:
                try:
                    pipeline.draw("zebra", seed=number)
                except RFError:
                    counts["refused"] += 1
            elif number % 20 == 9:
                with Scheduler(pipeline, max_batch=2) as scheduler:
                    handles = [scheduler.submit(prompt, seed=number + i, options=options) for i in range(3)]
                    handles[1].cancel()
                    handles[0].result(timeout_s=600)
                counts["scheduled"] += 1
            else:
                picture = pipeline.draw(prompt, seed=number, options=options)
                save_png(Path(folder) / "picture.png", picture, {"prompt": prompt, "seed": number})
                counts["drawn"] += 1

        started = time.monotonic()
        drawing = repeat(draw, pictures)
        seconds = {"pictures": time.monotonic() - started}

    few = AnswerOptions(max_tokens=8)
    answer = pipeline.understand(first, options=few)

    def ask(number: int) -> None:
        conversation = pipeline.converse()
        conversation.show(first)
        events = conversation.ask(seed=number, options=few)
        if number % 10 == 3:
            next(events)
            events.close()
            counts["answers_given_up"] += 1
        else:
            list(events)
            counts["answered"] += 1

    started = time.monotonic()
    asking = repeat(ask, questions)
    seconds["questions"] = time.monotonic() - started
    is_same = bool((pipeline.draw(prompt, seed=1, options=options) == first).all())
    is_same &= pipeline.understand(first, options=few) == answer
    return {
        "counts": counts,
        "seconds": seconds,
        "same_to_the_last_bit": is_same,
        "limit_bytes_per_round": limit,
        "pictures": summary(*drawing),
        "questions": summary(*asking),
    }


def summary(samples: list[dict[str, int]], rounds: list[int]) -> dict[str, Any]:
    """The slope of memory, and the ranges of everything."""
    ranges = {name: [min(each[name] for each in samples), max(each[name] for each in samples)] for name in samples[0]}
    growth = slope([each["resident"] for each in samples], rounds)
    return {"bytes_per_round": round(growth, 1), "rounds": rounds[-1] + 1, **ranges}


def problems(result: dict[str, Any]) -> list[str]:
    """What is wrong, in words."""
    found = [] if result["same_to_the_last_bit"] else ["the last picture or answer differs from the first"]
    for what in ("pictures", "questions"):
        row = result[what]
        if row["bytes_per_round"] > result["limit_bytes_per_round"]:
            found.append(f"{what}: memory grows by {row['bytes_per_round']} bytes each")
        found += [
            f"{what}: {row[name][0]} to {row[name][1]} {name}"
            for name in ("files", "threads", "system_threads")
            if row[name][0] != row[name][1]
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    result = soak(**vars(arguments))
    print(json.dumps(result, indent=1))
    print("\n".join(problems(result)), file=sys.stderr)
    sys.exit(bool(problems(result)))


if __name__ == "__main__":
    main()
