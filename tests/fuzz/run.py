"""Feeds damaged and hostile inputs to every reader, and prints a table of what came of it.

    python tests/fuzz/run.py --minutes 5                every target, five minutes each
    python tests/fuzz/run.py --minutes 1 png manifest
    python tests/fuzz/run.py png --input FILE           one input again, with its traceback

Coverage-guided where atheris is installed (pip install atheris; CPython 3.11 and 3.12 on Linux); otherwise inputs that
made a reader say something new are changed further. Faults: an exception that is no RFError, an input that takes more
than --seconds-per-input, memory beyond the target's share, a change that nobody finds. Every one is kept as a file in
--faults; the exit code is 1 where there was one.
"""

import argparse
import contextlib
import faulthandler
import json
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
sys.set_int_max_str_digits(4300)
MAX_INPUT_BYTES = 4 << 20


class Session:
    """One target in this process: reads inputs and counts what comes of them."""

    def __init__(self, name: str, folder: Path, report: Path, seconds_per_input: float) -> None:
        from fuzz.targets import TARGETS

        self.target, self.report, self.limit = TARGETS[name], report, seconds_per_input
        self.current = folder / "current-input"
        (folder / "scratch").mkdir()
        self.read, self.seeds = self.target.make(folder / "scratch")
        self.tried = self.accepted = 0
        self.refusals: dict[str, int] = {}
        self.faults: dict[str, str] = {}
        self.slowest = 0.0
        self._written = 0.0
        for seed in self.seeds:
            self.read(seed)  # honest inputs are accepted
        self.memory_mib = 0

    def feed(self, data: bytes) -> bool:
        """Read an input; returns whether the reader said something new."""
        from runtime.errors import RFError

        self.current.write_bytes(data)
        faulthandler.dump_traceback_later(self.limit, exit=True, file=sys.__stderr__)
        before_mib = start_of_peak()
        started, known = time.perf_counter(), len(self.refusals) + len(self.faults)
        try:
            self.read(data)
            self.accepted += 1
        except RFError as error:
            kind = normalised(str(error))
            self.refusals[kind] = self.refusals.get(kind, 0) + 1
            if len(str(error)) > 3000:
                self._fault(f"a message of {len(str(error)) // 1000},000 characters: {kind[:60]}", data)
        except BaseException as error:  # a panic of Rust is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self._fault(place(error), data)
        faulthandler.cancel_dump_traceback_later()
        self.slowest = max(self.slowest, time.perf_counter() - started)
        self.tried += 1
        taken = peak_mib() - before_mib
        self.memory_mib = max(self.memory_mib, taken)
        if taken > self.target.memory_mib and not any("memory" in each for each in self.faults):
            self._fault(f"memory: {taken} MiB", data)
        if time.monotonic() - self._written > 0.5:
            self.write()
        return len(self.refusals) + len(self.faults) > known

    def _fault(self, what: str, data: bytes) -> None:
        if what not in self.faults:
            path = self.report.with_name(f"{self.target.name}-{len(self.faults)}.bin")
            path.write_bytes(data)
            self.faults[what] = str(path)

    def write(self) -> None:
        """Leave the counts for the process that prints them; this one may be killed at any time."""
        self._written = time.monotonic()
        content = {
            "target": self.target.name,
            "tried": self.tried,
            "accepted": self.accepted,
            "refusals": self.refusals,
            "faults": self.faults,
            "slowest_ms": round(1000 * self.slowest, 1),
            "memory_mib": self.memory_mib,
        }
        partial = self.report.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(self.report)


def start_of_peak() -> int:
    """Forget the peak of before, which is the changes' own; returns what is resident now, in MiB."""
    with contextlib.suppress(OSError):  # where that is not allowed the peak is that of the process
        Path("/proc/self/clear_refs").write_text("5")
    return status_mib("VmRSS:")


def peak_mib() -> int:
    """The most that was resident since `start_of_peak`."""
    return status_mib("VmHWM:")


def status_mib(name: str) -> int:
    """A line of the system's report on this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(name))


def normalised(message: str) -> str:
    """The message without what changes from input to input."""
    message = message[:400]
    message = re.sub(r"'[^']*'|\"[^\"]*\"|\[.*\]|\{.*\}|\(.*\)", "*", message)
    return re.sub(r"\S*/\S*|[-+]?\d[\d.e+-]*|0x[0-9a-f]+", "*", message)[:120]


def place(error: BaseException) -> str:
    """Where an exception comes from, in our code, to tell faults apart."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
    own = [frame for frame in frames if "tests/fuzz" not in frame.filename] or frames
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {where}: {normalised(str(error))}"


def fuzz_with_atheris(session: Session, seconds: float, corpus: Path) -> None:
    """Let libFuzzer choose: half of the changes know the format, half are its own. Does not return."""
    import atheris

    for number, seed in enumerate(session.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        return session.target.change(data or rng.choice(session.seeds), rng)[:max_size]

    options = [
        f"-max_total_time={int(seconds)}",
        f"-max_len={MAX_INPUT_BYTES}",
        "-rss_limit_mb=0",
        "-timeout=600",
        "-verbosity=0",
        "-print_final_stats=0",
        f"-artifact_prefix={corpus}/",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], lambda data: session.feed(data) and None, custom_mutator=change)
    atheris.Fuzz()


def fuzz_alone(session: Session, seconds: float, seed: int) -> None:
    """Change seeds, and changed inputs that made the reader say something new."""
    rng, inputs = Random(seed), list(session.seeds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = session.target.change(rng.choice(inputs), rng)[:MAX_INPUT_BYTES]
        if session.feed(data) and len(inputs) < 500:
            inputs.append(data)


def work(arguments: argparse.Namespace) -> None:
    """The process of one target."""
    with contextlib.suppress(ImportError):
        if not arguments.without_coverage:
            import atheris
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of small files a second
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        coverage = "atheris" in sys.modules
        with contextlib.ExitStack() as stack:
            if coverage:
                import atheris

                include = ["runtime", "calibration", "rf_export", "engines", "PIL"]
                stack.enter_context(atheris.instrument_imports(include=include))
            session = Session(arguments.targets[0], folder, arguments.report, arguments.seconds_per_input)
            if arguments.input:
                session.read(arguments.input.read_bytes())
                return
        if coverage:
            fuzz_with_atheris(session, arguments.minutes * 60, folder / "corpus")
        fuzz_alone(session, arguments.minutes * 60, arguments.seed)
        session.write()


def run_target(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fuzz one target in a process of its own; returns its counts."""
    report = arguments.faults / f"{name}.json"
    report.unlink(missing_ok=True)
    options = ["--minutes", str(arguments.minutes), "--seconds-per-input", str(arguments.seconds_per_input)]
    options += ["--seed", str(arguments.seed), "--report", str(report)]
    options += ["--without-coverage"] if arguments.without_coverage else []
    command = [sys.executable, __file__, name, "--worker", *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if not report.exists():
        raise SystemExit(f"{name} did not start:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(report.read_text())
    result["coverage"] = "atheris" in done.stderr or "INFO: Instrumenting" in done.stderr or "cov:" in done.stderr
    if done.returncode not in (0, 77) or "Timeout (" in done.stderr:
        (arguments.faults / f"{name}.stderr").write_text(done.stderr)
        result["faults"][f"the process ended with {done.returncode}"] = str(arguments.faults / f"{name}.stderr")
    return result


def table(results: list[dict[str, Any]]) -> str:
    """For docs/robustness.md."""
    lines = [
        "| target | inputs | accepted | kinds of refusal | faults | slowest, ms | memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        lines.append(
            f"| {row['target']} | {row['tried']:,} | {row['accepted']:,} | {len(row['refusals'])} | "
            f"{len(row['faults'])} | {row['slowest_ms']:.0f} | {row['memory_mib']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--minutes", type=float, default=1.0, help="per target")
    parser.add_argument("--seconds-per-input", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-coverage", action="store_true", help="even where atheris is installed")
    parser.add_argument("--faults", type=Path, default=Path(tempfile.gettempdir()) / "rf-export-faults")
    parser.add_argument("--input", type=Path, help="read this input once and let it show its traceback")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.faults.mkdir(parents=True, exist_ok=True)
    if arguments.worker or arguments.input:
        arguments.report = arguments.report or arguments.faults / "one.json"
        work(arguments)
        return
    from fuzz.targets import TARGETS

    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
    results = [run_target(name, arguments) for name in arguments.targets or TARGETS]
    print(table(results))
    faults = [f"{row['target']}: {what} ({where})" for row in results for what, where in row["faults"].items()]
    print("\n".join(["", *faults]) if faults else "")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
