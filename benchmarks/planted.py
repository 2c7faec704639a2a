"""Does `rf-export bench --compare` see a planted slowdown, and is it quiet on two runs of one build?

    python benchmarks/planted.py reference --clock cpu

Measures three times as `bench --repeat` does, one after the other: as it is, as it is again, and with graphs that take
10% longer (every run of a session is followed by a loop that spins for a tenth of its time). Compares the first with
the second, which has to be quiet, and with the third, where the slowdown has to be found.
Writes `benchmarks/results/planted-<name>-<cpu>.json`; exit code 1 if either verdict is wrong.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from cpu import HERE, prepare

from rf_export.benchmark import task
from rf_export.benchmark.compare import compare, verdict_line
from rf_export.benchmark.environment import describe_machine, file_label
from rf_export.benchmark.repeats import time_again
from runtime.backends.interface import Session
from runtime.pipeline import Pipeline

SHARE = 0.1
MIN_EFFECT = 0.03


class SlowSession:
    """A session whose runs take longer."""

    def __init__(self, session: Session) -> None:
        self._session, self.signature = session, session.signature

    def run(self, inputs: Any) -> Any:
        """Run, and spin."""
        return slowed(lambda: self._session.run(inputs))()

    def bind(self, inputs: Any, outputs: Any) -> Callable[[], None]:
        """Runs that spin."""
        return slowed(self._session.bind(inputs, outputs))


def slowed(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same function, with a loop that spins after it, by the thread's own time: what others take is not in it."""

    def slow_run() -> Any:
        started = time.thread_time()
        result = run()
        end = time.thread_time() + SHARE * (time.thread_time() - started)
        while time.thread_time() < end:
            pass
        return result

    return slow_run


class SlowPipeline(Pipeline):
    """A pipeline of slow sessions."""

    @classmethod
    def load(cls, *arguments: Any, **options: Any) -> "SlowPipeline":
        """See `Pipeline.load`."""
        pipeline = super().load(*arguments, **options)
        return pipeline.with_sessions({name: SlowSession(each) for name, each in pipeline.sessions.items()})


@click.command(help=__doc__)
@click.argument("name", metavar="PRESET")
@click.option("--repeat", "repeats", type=click.IntRange(3), default=8, show_default=True, help="Processes of each.")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=HERE / "work", help="For bundles; kept between runs.")
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results")
@click.option("--child", is_flag=True, hidden=True, help="Measure once, and print it.")
@click.option("--slow", is_flag=True, hidden=True)
def main(name: str, repeats: int, clock: str, work: Path, results: Path, child: bool, slow: bool) -> None:
    """Measure three results and compare."""
    checkpoint, bundle = prepare(name, work)
    if child:
        if slow:
            task.Pipeline = SlowPipeline
        click.echo(json.dumps(time_again(bundle, checkpoint, task.BenchOptions())))
        return
    command = [sys.executable, __file__, name, "--work", str(work), "--child"]
    measured = []
    for i, words in enumerate(([], [], ["--slow"])):
        printed = [
            subprocess.run([*command, *words], check=True, stdout=subprocess.PIPE).stdout for _ in range(repeats)
        ]
        measured.append({"repeats": [json.loads(each) for each in printed]})
        click.echo(f"result {i + 1} of 3 is there", err=True)
    result = judge(name, clock, measured)
    path = results / f"planted-{name}-{file_label(result['machine']['cpu'])}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(f"{result['same_build']['verdict']}\n{result['planted']['verdict']}\n-> {path}")
    sys.exit(0 if result["right"] else 1)


def judge(name: str, clock: Any, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Both comparisons, and whether they are right."""
    result: dict[str, Any] = {
        "preset": name,
        "clock": clock,
        "share": SHARE,
        "min_effect": MIN_EFFECT,
        "machine": describe_machine(),
        "processes": len(measured[0]["repeats"]),
    }
    for label, later in (("same_build", measured[1]), ("planted", measured[2])):
        changes = compare(measured[0], later, min_effect=MIN_EFFECT, clock=clock)
        result[label] = {"verdict": verdict_line(changes, MIN_EFFECT), "changes": [vars(each) for each in changes]}
    wrong = [each for each in result["same_build"]["changes"] if each["verdict"] == "slower"]
    planted = result["planted"]["changes"]
    found = [each for each in planted if each["verdict"] == "slower"]
    return {**result, "found": len(found), "planted_rows": len(planted), "right": bool(found) and not wrong}


if __name__ == "__main__":
    main()
