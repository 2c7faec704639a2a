"""Train with and without representation tokens, and compare at equal steps and at equal CPU seconds.

    python docs/replicate.py RUNS                  # print the commands
    python docs/replicate.py RUNS --run            # and run them, one after the other; resumes where it was stopped

For every number of objects and every seed, both models train for the same number of joint steps. A step without tokens
is cheaper: the model without them then goes on until it has cost as much as the one with them. Both ends are scored,
drawing and reading. Needs the `export` extra; on one core, a run of 4,000 steps takes almost two hours.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

OBJECTS = (4, 8, 16)  # how complex the scenes are
SEEDS = (0, 1, 2)
SNAPSHOT_EVERY = 1000  # joint steps; TrainConfig's


def train_command(run: Path, num_objects: int, seed: int, steps: int, *, with_rep: bool) -> list[str]:
    """Start the run, or take it up again."""
    command = [
        "rf-export",
        "train",
        str(run),
        "--steps",
        str(steps),
        "--objects",
        str(num_objects),
        "--seed",
        str(seed),
        "--threads",
        "1",
    ]
    return command + ([] if with_rep else ["--without-rep"]) + (["--resume"] if (run / "run.json").exists() else [])


def score_commands(checkpoint: Path, num_objects: int, *, with_rep: bool) -> list[list[str]]:
    """Score drawing and reading, as JSON on stdout."""
    command = ["rf-export", "eval", str(checkpoint), "--objects", str(num_objects), "--threads", "1", "--json"]
    drawing = [*command, "--num-prompts", "200"] + ([] if with_rep else ["--without-rep"])
    return [drawing, [*command, "--understanding", "--num-prompts", "500"]]


def steps_for_equal_seconds(with_log: Path, without_log: Path) -> int:
    """Joint steps, a multiple of the snapshots', after which the run without tokens has cost what the other cost.

    Reads the CPU seconds of both runs' logs; the first joint steps, in which compilation happens, count for both.
    """
    budget = read_costs(with_log)[-1]
    costs = read_costs(without_log)
    half = len(costs) // 2
    per_step = (costs[-1] - costs[half]) / (len(costs) - 1 - half)
    extra = max(0.0, budget - costs[-1]) / per_step
    return round((len(costs) + extra) / SNAPSHOT_EVERY) * SNAPSHOT_EVERY


def read_costs(log: Path) -> list[float]:
    """CPU seconds since the start, after every joint step."""
    rows = {row["step"]: row for row in map(json.loads, log.read_text().splitlines())}
    return [rows[step]["cpu_seconds"] for step in sorted(rows) if rows[step]["phase"] == "joint"]


def compare(runs: Path, num_objects: int, seed: int, steps: int, *, execute: bool) -> None:
    """Both models of one setting: train, score at equal steps, go on to equal seconds, score again."""
    names = {True: runs / f"with-{num_objects}-{seed}", False: runs / f"without-{num_objects}-{seed}"}
    for with_rep, run in names.items():
        do(train_command(run, num_objects, seed, steps, with_rep=with_rep), None, execute=execute)
        score(run, num_objects, steps, with_rep=with_rep, execute=execute)
    more = steps_for_equal_seconds(names[True] / "log.jsonl", names[False] / "log.jsonl") if execute else 2 * steps
    do(train_command(names[False], num_objects, seed, more, with_rep=False), None, execute=execute)
    score(names[False], num_objects, more, with_rep=False, execute=execute)


def score(run: Path, num_objects: int, steps: int, *, with_rep: bool, execute: bool) -> None:
    """Score a run's snapshot into two JSON files beside it."""
    commands = score_commands(run / f"snapshot-{steps:06}", num_objects, with_rep=with_rep)
    for what, command in zip(("drawing", "reading"), commands, strict=True):
        do(command, run / f"{what}-{steps:06}.json", execute=execute)


def do(command: list[str], output: Path | None, *, execute: bool) -> None:
    """Print a command; run it unless its output is there."""
    print(shlex.join(command) + (f" > {output}" if output else ""), flush=True)
    if not execute or (output is not None and output.exists()):
        return
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE if output else None)
    if output is not None:
        output.write_bytes(result.stdout)


def main(arguments: list[str]) -> None:
    """Every setting in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--run", action="store_true", help="run the commands instead of printing them only")
    parser.add_argument("--steps", type=int, default=4000, help="joint steps of both models, a multiple of 1,000")
    options = parser.parse_args(arguments)
    if options.steps < SNAPSHOT_EVERY or options.steps % SNAPSHOT_EVERY:
        parser.error(f"--steps must be a multiple of {SNAPSHOT_EVERY}: snapshots are scored")
    for num_objects in OBJECTS:
        for seed in SEEDS:
            compare(options.runs, num_objects, seed, options.steps, execute=options.run)


if __name__ == "__main__":
    main(sys.argv[1:])
