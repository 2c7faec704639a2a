"""Draws small faults of the product's code, one at a time, and tells which of them the tests do not notice.

    python tests/mutants.py --num 300 --seed 0
    python tests/mutants.py --num 40 --only runtime/pictures --only engines

A mutant is one edit of one expression: a comparison inverted or shifted by one, a condition inverted, `and` for `or`, a
constant one off, another sign, `break` for `continue`, a result that is not returned. It is applied to a copy of the
tree; the working tree is only read. What runs are the tests that run its line, the nearest and shortest first, as far
as `--seconds` allows, until the first fails; which those are, one run of the whole suite counts. docs/robustness.md
tells how to read the table, and what it cannot tell.
"""

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from covering import Lines, write_settings

ROOT = Path(__file__).parent.parent
PACKAGES = ("runtime", "engines", "calibration", "tuning", "verification", "rf_export")
PATIENCE = 4  # a run that takes that many times as long as without the fault, and a minute, hangs
MOST_TESTS = 200  # for one fault
FIRST_TESTS = 15  # that are asked before the others
EXPORT_S = 90  # that a bundle takes, where the fault is in what makes bundles
_WITH_PROCESSES = ("tests/cli/", "tests/docs/", "tests/robustness/")  # of their own, which take long to start
_EXPORTING = ("_bundle", "::reference_modern")  # fixtures

# Faults that change nothing which a caller could see: "FILE: LINE: BEFORE -> AFTER", and why.
EQUIVALENT: dict[str, str] = {
    "calibration/histogram.py: inner[0], inner[-1] = 0, cumulated[-1]: 1 -> (0)": (
        "the last edge has all counts by itself, and the first bin is replaced by the second"
    ),
    "calibration/histogram.py: cumulated = self.num_zeros + np.concatenate([[0], np.cumsum(: 0 -> (1)": (
        "it moves the first bin alone, which is replaced by the second"
    ),
    "calibration/quantise.py: node.replace_input_with(1, back.outputs[0]): 0 -> (-1)": "the node has one output",
    "runtime/backends/host/text.py: self._cache = self._new_cache(session.signature.cache_slots : 1 -> (2)": (
        "a cache that grows begins with one slot or two"
    ),
    "verification/compare.py: for request, (ours, right) in enumerate(zip(found, expected,: True -> False": (
        "both sides draw the requests of one case"
    ),
    'rf_export/training/trainer.py: partial.write_text(json.dumps(content, indent=1) + "\\n"): 1 -> (2)': (
        "spaces in a file for people"
    ),
    "rf_export/training/scenes.py: size: int = 0: 0 -> (-1)": "a size that is always given before it is read",
    "verification/polygraphy.py: np.save(file, array, allow_pickle=False): False -> True": "no array holds objects",
    'runtime/pictures/notes.py: pixels = re.sub(rb"(infe\\x02.{7})Exif", rb"\\1none", content,: 8 -> (9)': (
        "a file has one"
    ),
    "engines/build.py: session = backend.open(compiled, num_threads=config.num_thre: True -> False": (
        "a graph that is optimised already is optimised once more"
    ),
}

_INVERSE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_SHIFTED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_OTHER_SIGN: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


@dataclass(frozen=True)
class Mutant:
    """One edit: the bytes `start` to `end` of a file become `after`."""

    file: str
    line: int
    last_line: int
    is_of_import: bool  # whether it runs once, with its module
    start: int
    end: int
    kind: str
    before: str
    after: str
    text: str  # of its first line

    @property
    def name(self) -> str:
        """What the list of equivalent ones calls it; lines may move."""
        return f"{self.file}: {self.text[:60]}: {self.before} -> {self.after}"

    @property
    def key(self) -> str:
        """What the results call it."""
        return f"{self.file}:{self.line} {self.before} -> {self.after}"

    def apply(self, source: bytes) -> bytes:
        """The file with the fault."""
        return source[: self.start] + self.after.encode() + source[self.end :]


class _Finder(ast.NodeVisitor):
    """Collects the mutants of a file."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutant] = []
        self.depth = 0  # of functions

    def add(self, node: ast.AST, kind: str, after: str) -> None:
        start = self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        before = " ".join(self.source[start:end].decode().split())
        text = self.source.splitlines()[node.lineno - 1].decode().strip()  # type: ignore[attr-defined]
        lines = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        self.found.append(Mutant(self.file, *lines, not self.depth, start, end, kind, before, after, text))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, (ast.JoinedStr, ast.Assert)):  # what messages say; what the code itself guarantees
            return
        super().visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.depth += 1
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self.depth -= 1

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:  # not the decorators
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Compare(self, node: ast.Compare) -> None:
        self.generic_visit(node)
        for index, operator in enumerate(node.ops):
            for kind, table in (("comparison inverted", _INVERSE), ("comparison shifted", _SHIFTED)):
                if type(operator) in table:
                    changed = [*node.ops[:index], table[type(operator)](), *node.ops[index + 1 :]]
                    self.add(node, kind, f"({ast.unparse(ast.Compare(node.left, changed, node.comparators))})")

    def _condition(self, test: ast.expr) -> None:
        if not isinstance(test, ast.Compare):  # these are inverted anyway
            plain = test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else None
            after = plain if plain is not None else ast.UnaryOp(ast.Not(), test)
            self.add(test, "condition inverted", f"({ast.unparse(after)})")

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self._condition(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._condition(test)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.generic_visit(node)
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.add(node, "and/or swapped", f"({ast.unparse(ast.BoolOp(other, node.values))})")

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.generic_visit(node)
        union = isinstance(node.op, ast.BitOr) and not self.depth  # of types
        if type(node.op) in _OTHER_SIGN and not union:
            other = _OTHER_SIGN[type(node.op)]()
            self.add(node, "another sign", f"({ast.unparse(ast.BinOp(node.left, other, node.right))})")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if type(node.op) in _OTHER_SIGN:
            other = _OTHER_SIGN[type(node.op)]()
            self.add(node, "another sign", ast.unparse(ast.AugAssign(node.target, other, node.value)))

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add(node, "constant", str(not node.value))
        elif isinstance(node.value, (int, float)):
            for step in (1, -1):
                self.add(node, "constant", f"({node.value + step!r})")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.add(node, "continue/break", "break")

    def visit_Break(self, node: ast.Break) -> None:
        self.add(node, "continue/break", "continue")

    def visit_Return(self, node: ast.Return) -> None:
        self.generic_visit(node)
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.add(node, "result dropped", "return None")


def mutants_of(path: Path) -> list[Mutant]:
    """All faults of a file, in its order."""
    source = path.read_bytes()
    finder = _Finder(path.relative_to(ROOT).as_posix(), source)
    finder.visit(ast.parse(source))
    return sorted(finder.found, key=lambda each: (each.start, each.end, each.after))


def draw(only: list[str], exclude: list[str], num: int, seed: int) -> list[Mutant]:
    """`num` faults, none two of one line. A larger `num` has those of a smaller one among them."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

    def counts(path: Path) -> bool:
        name = path.relative_to(ROOT).as_posix()
        return (not only or name.startswith(tuple(only))) and not name.startswith(tuple(exclude))

    found = [mutant for path in filter(counts, files) for mutant in mutants_of(path)]
    random.Random(seed).shuffle(found)
    lines: dict[tuple[str, int], Mutant] = {}
    for mutant in found:
        lines.setdefault((mutant.file, mutant.line), mutant)
    return list(lines.values())[:num]


# Which tests


class Choice:
    """Knows which tests to ask about a fault."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    def __call__(self, mutant: Mutant, budget_s: float, distrusted: list[str]) -> "Asked":
        """Tests that run its line, the nearest and shortest first, and one for a fault that an export may notice."""
        lines = self.lines
        contexts = lines.contexts(mutant.file, [(mutant.line, mutant.last_line)])
        if mutant.is_of_import:
            contexts = lines.contexts(mutant.file, _bodies(ROOT / mutant.file)) or contexts
        exports = {context for context in contexts if context in lines.fixtures and context.endswith(_EXPORTING)}
        trusted = {name: test for name, test in lines.tests.items() if test["passed"] and name not in distrusted}
        folder = f"tests/{Path(mutant.file).parent.as_posix()}/"
        counts: dict[str, int] = {}

        def rank(name: str) -> tuple[int, int, float]:
            """Near ones first; and of those with many examples, a few of each first."""
            file = name.split("::")[0]
            distance = 0 if Path(mutant.file).stem in file else 1 if file.startswith(folder) else 2
            distance += 2 * file.startswith(_WITH_PROCESSES)
            group = name.split("[")[0]
            counts[group] = counts.get(group, 0) + 1
            return distance, counts[group] // 4, trusted[name]["seconds"]

        direct = contexts - exports
        found = [name for name, test in trusted.items() if name in direct or direct.intersection(test["fixtures"])]
        chosen: list[str] = []
        total = 0.0
        for name in sorted(sorted(found, key=lambda name: (trusted[name]["seconds"], name)), key=rank):
            seconds = trusted[name]["seconds"]
            if len(chosen) < MOST_TESTS and (not chosen or total + seconds <= budget_s):
                chosen.append(name)
                total += seconds
        through = [name for name, test in trusted.items() if exports.intersection(test["fixtures"])]
        last = min(through, key=lambda name: (trusted[name]["seconds"], name), default=None)
        longest = max((trusted[name]["seconds"] for name in chosen), default=0)
        return Asked(chosen, last if mutant.file.startswith("rf_export/") else None, total, longest)


@dataclass(frozen=True)
class Asked:
    """Which tests are asked about one fault."""

    tests: list[str]
    with_export: str | None  # is asked last, and makes the bundle with the fault
    seconds: float
    longest: float


def _bodies(path: Path) -> list[tuple[int, int]]:
    """First and last lines of what functions hold."""
    functions = (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.FunctionDef))
    return [(node.body[0].lineno, node.end_lineno or 0) for node in functions]


# Running


_SERVER = multiprocessing.get_context("forkserver")  # has imported what takes seconds, and nothing of the product
_IMPORTED = (
    "pytest",
    "hypothesis.strategies",
    "numpy",
    "PIL.Image",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "tokenizers",
    "torch",
)


def _pytest(arguments: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
    """Runs pytest in this process, which is a new one."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    sys.dont_write_bytecode = True
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    with log.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = int(pytest.main(arguments))
    sys.stdout.flush()
    os._exit(code)  # whatever the tests left behind


class Tree:
    """A copy of the repository, in which faults are planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    def run(self, arguments: list[str], limit_s: float, bundles: Path, **more: str) -> tuple[int | None, str]:
        """Exit code of pytest, or None where time was up; and the end of what it says."""
        environment = {
            "PYTHONPATH": f"{self.folder}{os.pathsep}{self.folder / 'tests'}",
            "PYTHONDONTWRITEBYTECODE": "1",  # two faults of one size and second are not to be taken for one another
            "RF_EXPORT_TEST_BUNDLES": str(bundles),
            "RF_EXPORT_TEST_BUNDLES_KEY": "kept",
            **more,
        }
        options = ["-q", "-p", "no:cacheprovider", "--tb=line", "--show-capture=no", "--hypothesis-seed=0"]
        options += ["-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        log = self.folder.parent / f"{self.folder.name}.log"
        process = _SERVER.Process(target=_pytest, args=([*options, *arguments], self.folder, environment, log))
        process.start()
        process.join(limit_s)
        code = process.exitcode
        if code is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        return code, log.read_text(errors="replace")

    def _ask(
        self, tests: list[str], limit_s: float, limit_each_s: float, bundles: Path, **more: str
    ) -> tuple[Any, str]:
        code: int | None = 0
        said = ""
        while tests:
            code, said = self.run(["-x", f"--timeout={limit_each_s:.0f}", *tests], limit_s, bundles, **more)
            lost = set(re.findall(r"^ERROR: not found: .*?(tests/.*)$", said, re.MULTILINE))
            if code != 4 or not lost:
                break
            code, tests = 0, [test for test in tests if test not in lost]  # the fault took the example away
        return 0 if code == 5 else code, said

    def try_mutant(self, mutant: Mutant, asked: Asked, bundles: Path) -> tuple[str, str]:
        """What became of a fault, and the test that noticed it."""
        path = self.folder / mutant.file
        sound = path.read_bytes()
        own = self.folder.parent / f"{self.folder.name}-bundles"
        shutil.copytree(bundles, own, ignore=shutil.ignore_patterns(".*"))
        limits = PATIENCE * asked.seconds + 60, PATIENCE * asked.longest + 20
        try:
            path.write_bytes(mutant.apply(sound))
            code, said = self._ask(asked.tests[:FIRST_TESTS], *limits, own)  # they notice most faults
            if code == 0:
                code, said = self._ask(asked.tests[FIRST_TESTS:], *limits, own)
            if code == 0 and asked.with_export:
                limits = PATIENCE * EXPORT_S, PATIENCE * EXPORT_S
                code, said = self._ask([asked.with_export], *limits, own, RF_EXPORT_TEST_BUNDLES_KEY="fault")
        finally:
            path.write_bytes(sound)
            shutil.rmtree(own)
        if code == 0:
            return "survived", ""
        if code is None:
            return "killed by time", ""
        failed = re.findall(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", said, re.MULTILINE)
        return "killed", failed[0] if failed else " ".join(said.split())[-200:]


class Campaign:
    """The file of results, and what stays beside it: which tests run which lines, and bundles of the sound tree."""

    def __init__(self, path: Path) -> None:
        self.path, self.bundles, self.lines = path, path.with_suffix(".bundles"), path.with_suffix(".lines")
        self.known: dict[str, Any] = (
            json.loads(path.read_text()) if path.exists() else {"distrusted": [], "mutants": {}}
        )

    def save(self) -> None:
        written = self.path.with_suffix(".new")
        written.write_text(json.dumps(self.known, indent=1))
        written.replace(self.path)

    def count(self, tree: Tree) -> Lines:
        """Run the whole suite once, folder after folder, and note what runs; goes on where it was stopped."""
        self.bundles.mkdir(parents=True, exist_ok=True)
        for folder in sorted(path for path in (ROOT / "tests").iterdir() if [*path.rglob("test_*.py")]):
            own = self.lines / folder.name
            if not (own / "tests.json").exists():
                shutil.rmtree(own, ignore_errors=True)
                own.mkdir(parents=True)
                write_settings(own, tree.folder, PACKAGES)
                print(f"counting the lines that {folder.relative_to(ROOT)} runs", flush=True)
                tree.run(["-p", "covering", f"tests/{folder.name}"], 3 * 3600, self.bundles, COVERING=str(own))
        return Lines(self.lines)

    def result(self, mutant: Mutant, again: bool = False) -> dict[str, Any] | None:
        """What is known of a fault, as long as its file is the same."""
        if mutant.name in EQUIVALENT:
            return {"status": "equivalent"}
        known = self.known["mutants"].get(mutant.key)
        if known is None or known["source"] != _digest(mutant.file) or (again and known["status"] == "survived"):
            return None
        return known  # type: ignore[no-any-return]

    def note(self, mutant: Mutant, **values: Any) -> None:
        self.known["mutants"][mutant.key] = {"source": _digest(mutant.file), "kind": mutant.kind, **values}
        self.save()

    def distrust(self, mutants: list[Mutant], tree: Tree) -> list[Mutant]:
        """Run what noticed faults without any; forget what failing ones noticed, and return those faults."""
        killers = {(self.result(mutant) or {}).get("by", "") for mutant in mutants}
        killers = {name for name in killers if name.startswith("tests/")}
        _, said = tree.run(sorted(killers), 3600, self.bundles) if killers else (0, "")
        failed = killers.intersection(re.findall(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", said, re.MULTILINE))
        self.known["distrusted"] += sorted(failed)
        return [mutant for mutant in mutants if (self.result(mutant) or {}).get("by") in failed]


def _digest(file: str) -> str:
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()[:16]


def run(mutants: list[Mutant], campaign: Campaign, *, seconds: float, jobs: int, again: bool, work: Path) -> None:
    """Try what is not known yet."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    _SERVER.set_forkserver_preload([*_IMPORTED])
    spare = Tree(work / "sound")
    choice = Choice(campaign.count(spare))
    trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
    for index in range(jobs):
        trees.put(Tree(work / str(index)))

    def attempt(mutant: Mutant) -> None:
        asked = choice(mutant, seconds, campaign.known["distrusted"])
        tree = trees.get()
        try:
            status, by = tree.try_mutant(mutant, asked, campaign.bundles)
        finally:
            trees.put(tree)
        is_run = asked.tests or asked.with_export
        campaign.note(mutant, status=status, by=by if is_run else "no test runs it", num_tests=len(asked.tests))
        print(f"{status:14} {mutant.file}:{mutant.line}  {mutant.kind}: {mutant.before} -> {mutant.after}", flush=True)

    left = [mutant for mutant in mutants if campaign.result(mutant, again) is None]
    while left:
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(attempt, mutant) for mutant in left]:
                done.result()
        left = campaign.distrust(left, spare)


def table(mutants: list[Mutant], campaign: Campaign) -> list[str]:
    """Lines of Markdown for each package; equivalent ones do not count."""
    states = ("killed", "killed by time", "survived", "equivalent")
    heads = ("package", "mutants", *states, "killed of those that count")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for package in (*PACKAGES, "all"):
        found = [campaign.result(each) for each in mutants if package in ("all", each.file.split("/")[0])]
        counts = [sum(each is not None and each["status"] == state for each in found) for state in states]
        if total := sum(counts):
            share = f"{100 * (counts[0] + counts[1]) / max(total - counts[3], 1):.0f}%"
            lines.append(f"| {package} | {total} | {' | '.join(map(str, counts))} | {share} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=300, help="how many faults to draw (300)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (0)")
    parser.add_argument("--only", action="append", default=[], help="files whose path begins so; may be repeated")
    parser.add_argument("--exclude", action="append", default=[], help="files whose path begins so; may be repeated")
    parser.add_argument("--seconds", type=float, default=60, help="of tests per fault, nearest first (60)")
    parser.add_argument("--jobs", type=int, default=1, help="faults at the same time, each in a copy of its own (1)")
    parser.add_argument("--again", action="store_true", help="try those again that survived")
    parser.add_argument("--list", action="store_true", help="print what would be tried, and end")
    parser.add_argument("--results", type=Path, default=ROOT / ".mutants.json", help="is continued where it ended")
    arguments = parser.parse_args()
    mutants = draw(arguments.only, arguments.exclude, arguments.num, arguments.seed)
    if arguments.list:
        print("\n".join(f"{each.file}:{each.line}  {each.kind}: {each.before} -> {each.after}" for each in mutants))
        return
    campaign = Campaign(arguments.results.resolve())
    with tempfile.TemporaryDirectory(prefix="mutants-") as work:
        run(mutants, campaign, seconds=arguments.seconds, jobs=arguments.jobs, again=arguments.again, work=Path(work))
    print("\n".join(table(mutants, campaign)))
    for mutant in mutants:
        if (campaign.result(mutant) or {}).get("status") == "survived":
            print(f"{mutant.file}:{mutant.line}: {mutant.kind}: {mutant.before} -> {mutant.after}")


if __name__ == "__main__":
    main()
