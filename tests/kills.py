"""Kills the commands at random moments, and looks at what is left: nothing half-written is accepted, nothing is lost.

    python tests/kills.py --kills 150                     all commands, 150 kills together; exports a tiny bundle first
    python tests/kills.py --kills 50 calibrate generate

One process imports the libraries and forks for every try. The try gets SIGKILL after a time drawn evenly from the time
that a whole run takes. After every kill the result is read as a user would read it, every byte of it; after every
tenth, and at the end, the command runs to its end on what is there. Traces of the export are replayed, as in
replayed_export.py, so that an export takes a second and most kills meet it while it writes.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PROMPTS = [
    f"a {colour} {name}" for colour in ("red", "blue", "green", "pink") for name in ("hat", "bell", "star", "tree")
]
STEPS = 6  # of the training


@dataclass
class Case:
    """A command: how it runs, and what a reader finds. `look` raises for what must not be, and names what is there."""

    name: str
    run: Callable[[], int]
    look: Callable[[], str]


@dataclass
class Tally:
    """What came of the tries of a command."""

    name: str
    seconds: float
    kills: int = 0
    found: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # corrupt and accepted, lost, or a next run that fails
    completed: int = 0


def _copy(bundle: Path, folder: Path, name: str) -> Path:
    return Path(shutil.copytree(bundle, folder / name / "bundle", ignore=shutil.ignore_patterns("engines")))


def _command(*arguments: object) -> int:
    from replayed_export import command

    return command([str(argument) for argument in arguments])


def _look_at_bundle(out: Path) -> str:
    """Which bundle is there, every byte checked; for a moment none is, but the old one beside."""
    from runtime.bundle.folder import open_bundle

    if not out.exists():
        (old,) = out.parent.glob(f"{out.name}.replaced-*")
        open_bundle(old, verify="hash")
        return "between two renames"
    return "+".join(sorted(open_bundle(out, verify="hash").manifest.verified)) or "not verified"


def _export(folder: Path, checkpoint: Path, bundle: Path) -> Case:
    from replayed_export import replay

    replay(bundle)
    out = _copy(bundle, folder, "export")
    arguments = ("export", checkpoint, "-o", out, "--precision", "fp32", "--force")
    return Case("export --force", lambda: _command(*arguments), lambda: _look_at_bundle(out))


def _calibrate(folder: Path, bundle: Path) -> Case:
    from calibration import workbench

    workbench._TURN_SECONDS = 0.001  # type: ignore[misc] # timing decides nothing here
    out = _copy(bundle, folder, "calibrate")
    prompts = out.with_name("prompts.txt")
    prompts.write_text("\n".join(PROMPTS))
    options = ("--force", "--min-cosine", 0.9, "--method", "minmax", "--no-smooth")

    def look() -> str:
        from calibration.recordings import load

        recorded = out.with_name("bundle.fp32.calibration.npz")
        if recorded.exists():
            load(recorded, {})
        report = out.with_name("bundle.calibration.html")
        assert not report.exists() or report.read_text().endswith("</html>\n")
        return _look_at_bundle(out)

    def work() -> int:
        if os.getpid() % 2:  # record anew, or go on from what was recorded
            out.with_name("bundle.fp32.calibration.npz").unlink(missing_ok=True)
        return _command("calibrate", out, "--prompts", prompts, *options)

    return Case("calibrate", work, look)


def _build(folder: Path, bundle: Path) -> Case:
    out = _copy(bundle, folder, "build")

    def look() -> str:
        from runtime.bundle.atomic import is_temporary
        from runtime.bundle.engine import ENGINE_NAME, open_engine
        from runtime.bundle.folder import check_files, open_bundle

        open_bundle(out, verify="hash")
        files = [file for file in out.glob(f"engines/*/{ENGINE_NAME}") if not is_temporary(file.parent)]
        for file in files:
            check_files(file.parent, open_engine(file.parent).record.files, "hash")
        old = list(out.glob(f"engines/*.replaced-*/{ENGINE_NAME}"))
        return f"{len(files)} engine" if files or not old else "between two renames"

    return Case("build-engine --force", lambda: _command("build-engine", out, "--force"), look)


def _generate(folder: Path, bundle: Path) -> Case:
    source = _copy(bundle, folder, "generate")
    out = source.with_name("picture.png")

    def look() -> str:
        from PIL import Image

        from runtime.pictures.png import read_parameters

        if not out.exists():
            return "no picture"
        with Image.open(out) as image:
            image.load()
        return f"a picture of {read_parameters(out)['num_steps']} steps"

    options = ("--engine", "none", "--threads", 1, "--steps", 12)
    return Case("generate", lambda: _command("generate", source, "a red car", "-o", out, *options), look)


def _train(folder: Path) -> Case:
    from rf_export.config import preset
    from rf_export.training import run
    from rf_export.training.trainer import TrainConfig

    run.SAVE_EVERY, run.SAMPLE_EVERY = 2, 10**9
    run.write_samples = lambda trainer: None  # type: ignore[assignment]
    out = folder / "train" / "run"
    config = TrainConfig(joint_steps=STEPS, describe_steps=0, batch_size=1, compile=False, questions_per_picture=0)

    def work() -> int:
        import torch

        torch.set_num_threads(1)
        if (out / "checkpoint").exists():  # the whole way again
            shutil.rmtree(out)
        run.run_training(config, preset("reference"), out, resume=out.exists() and (out / "run.json").exists())
        return 0

    def look() -> str:
        from safetensors import safe_open

        from rf_export.checkpoint import load_config, weight_files

        if (out / "run.json").exists():
            json.loads((out / "run.json").read_text())
        if (out / "checkpoint" / "config.json").exists():
            load_config(out / "checkpoint")
            (weights,) = weight_files(out / "checkpoint")
            with safe_open(weights, "np") as file:
                assert len(file.keys()) > 10
            return "a checkpoint"
        if not (out / "state.safetensors").exists():
            return "no state yet"
        with safe_open(out / "state.safetensors", "np") as file:
            return f"a state of step {file.metadata()['step']}"

    return Case("train --resume", work, look)


def fork(work: Callable[[], int], log: Path) -> int:
    """Start `work` in a child; returns its process number."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_case(case: Case, kills: int, rng: Random, log: Path) -> Tally:
    """Kill a command at random moments, and look after each."""
    for _ in range(2):  # the first one has to read everything from the disk
        started = time.monotonic()
        if ended(fork(case.run, log)):
            raise SystemExit(f"{case.name} fails without a kill:\n{log.read_text()[-3000:]}")
    tally = Tally(case.name, time.monotonic() - started)
    expected = case.look()
    for number in range(kills):
        child = fork(case.run, log)
        time.sleep(rng.uniform(0, tally.seconds))
        os.kill(child, signal.SIGKILL)
        if ended(child) == -signal.SIGKILL:
            tally.kills += 1
        _look(case, tally)
        if number % 10 == 9 or number == kills - 1:
            code = ended(fork(case.run, log))
            tally.completed += 1
            if code:
                tally.problems.append(f"the next run ended with {code}: {log.read_text()[-500:]}")
            if (found := case.look()) != expected:
                tally.problems.append(f"after a whole run there is {found}, and not {expected}")
    return tally


def _look(case: Case, tally: Tally) -> None:
    try:
        found = case.look()
    except Exception as error:
        tally.problems.append(f"{type(error).__name__}: {error}"[:300])
        return
    tally.found[found] = tally.found.get(found, 0) + 1


def _make_tiny(folder: Path) -> int:
    from exporting import make_tiny  # torch stays out of the process that counts

    make_tiny(folder)
    return 0


def table(tallies: list[Tally]) -> str:
    """For docs/robustness.md."""
    lines = [
        "| command | seconds of a run | kills | found after them | whole runs afterwards | problems |",
        "|---|---|---|---|---|---|",
    ]
    for each in tallies:
        found = ", ".join(f"{count} x {what}" for what, count in sorted(each.found.items()))
        lines.append(
            f"| {each.name} | {each.seconds:.1f} | {each.kills} | {found} | {each.completed} | {len(each.problems)} |"
        )
    return "\n".join(lines)


def run(folder: Path, checkpoint: Path, bundle: Path, kills: int, names: list[str], seed: int) -> list[Tally]:
    """Spread the kills over the commands, each in a folder with something that is not to be lost; the tallies."""
    import engines.ort  # noqa: F401 - what the children would import again

    makers = {
        "export": lambda: _export(folder, checkpoint, bundle),
        "calibrate": lambda: _calibrate(folder, bundle),
        "build-engine": lambda: _build(folder, bundle),
        "generate": lambda: _generate(folder, bundle),
        "train": lambda: _train(folder),
    }
    chosen = [makers[name]() for name in names or makers]
    return [kill_case(case, -(-kills // len(chosen)), Random(seed), folder / "log") for case in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help="export, calibrate, build-engine, generate, train")
    parser.add_argument("--kills", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", type=Path, nargs=2, metavar=("CHECKPOINT", "BUNDLE"), help="instead of an export")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.tiny is None:
            (folder / "tiny").mkdir()
            if code := ended(fork(lambda: _make_tiny(folder / "tiny"), folder / "log")):
                raise SystemExit(f"the export ended with {code}: {(folder / 'log').read_text()[-2000:]}")
            arguments.tiny = [folder / "tiny" / "checkpoint", folder / "tiny" / "bundle"]
        tallies = run(folder, *arguments.tiny, arguments.kills, arguments.commands, arguments.seed)
    print(table(tallies))
    problems = [f"{each.name}: {problem}" for each in tallies for problem in each.problems]
    print("\n".join(problems))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
