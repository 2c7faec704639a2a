"""Draws small faults of the product's code, one at a time, and tells which of them the tests do not notice.

    python tests/mutants.py --num 300 --seed 0
    python tests/mutants.py --num 40 --only runtime/pictures --only engines

A mutant is one edit of one expression: a comparison inverted or shifted by one, a condition inverted, `and` for `or`, a
constant one off, another sign, `break` for `continue`, a result that is not returned. It is applied to a copy of the
tree; the working tree is only read. What runs are the test files near the module (`nearest`), as far as `--seconds`
allows, until the first fails. docs/robustness.md tells how to read the table, and what it cannot tell.
"""

import argparse
import ast
import hashlib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("runtime", "engines", "calibration", "tuning", "verification", "rf_export")
PATIENCE = 4  # a run that takes that many times as long as without the fault, and a minute, hangs
MOST_FILES = 12  # of tests for one fault

# Faults that change nothing which a caller could see: "FILE: BEFORE -> AFTER", and why.
EQUIVALENT: dict[str, str] = {}

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
    start: int
    end: int
    kind: str
    before: str
    after: str

    @property
    def name(self) -> str:
        """What the list of equivalent ones calls it; lines may move."""
        return f"{self.file}: {self.before} -> {self.after}"

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
        self.found.append(Mutant(self.file, node.lineno, start, end, kind, before, after))  # type: ignore[attr-defined]

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


def draw(only: list[str], num: int, seed: int) -> list[Mutant]:
    """`num` faults, none two of one line. A larger `num` has those of a smaller one among them."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    names = [path for path in files if not only or path.relative_to(ROOT).as_posix().startswith(tuple(only))]
    found = [mutant for path in names for mutant in mutants_of(path)]
    random.Random(seed).shuffle(found)
    lines: dict[tuple[str, int], Mutant] = {}
    for mutant in found:
        lines.setdefault((mutant.file, mutant.line), mutant)
    return list(lines.values())[:num]


# Which tests


def _imported(path: Path) -> Iterator[str]:
    """Names of modules and of what is taken from them; which of both, `from a import b` does not tell."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _origins() -> dict[str, str]:
    """Which module a name of a package comes from: `runtime.Pipeline` from `runtime.pipeline`."""
    origins = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            name = ".".join(path.parent.relative_to(ROOT).parts)
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    origins.update({f"{name}.{alias.name}": node.module for alias in node.names})
    return origins


class Nearest:
    """Knows which test files are near a module."""

    def __init__(self) -> None:
        origins = _origins()

        def imports(path: Path) -> set[str]:
            names = set(_imported(path))
            return names | {origins[name] for name in names if name in origins}

        self.tests = {path: imports(path) for path in sorted((ROOT / "tests").rglob("test_*.py"))}
        product = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
        self.product = {_module(path): imports(path) for path in product if path.name != "__init__.py"}

    def __call__(self, file: str) -> list[Path]:
        """Nearest first: what imports the module, its mirror, what imports what imports it, its package's."""
        module = _module(ROOT / file)
        users = {name for name, names in self.product.items() if module in names}
        folder = (ROOT / "tests" / file).parent
        tiers = (
            lambda path, names: module in names and path.parent == folder,
            lambda path, names: module in names,
            lambda path, names: path.parent == folder,
            lambda path, names: bool(users & names),
            lambda path, names: folder in path.parents or path.parent in folder.parents,
            lambda path, names: ROOT / "tests" / Path(file).parts[0] in path.parents,
        )
        ordered = [path for tier in tiers for path, names in self.tests.items() if tier(path, names)]
        return list(dict.fromkeys(ordered))[:MOST_FILES]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Running


class Tree:
    """A copy of the repository, in which faults are planted, with bundles of its own."""

    def __init__(self, folder: Path, bundles: Path) -> None:
        self.folder, self.bundles = folder, bundles
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

    def run(self, tests: list[Path], limit_s: float, bundles: Path) -> tuple[int | None, str]:
        """Exit code of pytest, or None where time was up; and the end of what it says."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # two faults of one size and second are not to be taken for one another
            "RF_EXPORT_TEST_BUNDLES": str(bundles),
            "OMP_NUM_THREADS": "1",
        }
        names = [path.relative_to(ROOT).as_posix() for path in tests]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore::ResourceWarning",
        ]
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            process = subprocess.Popen(
                [*command, *names], cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                code: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            log.seek(0)
            return code, log.read()[-3000:]

    def try_mutant(self, mutant: Mutant, tests: list[Path], limit_s: float) -> tuple[str, str]:
        """What became of a fault, and what the tests said last."""
        path = self.folder / mutant.file
        sound = path.read_bytes()
        own = self.folder.parent / f"{self.folder.name}-bundles"
        shutil.copytree(self.bundles, own, ignore=shutil.ignore_patterns(".*"))
        try:
            path.write_bytes(mutant.apply(sound))
            code, said = self.run(tests, limit_s, own)
        finally:
            path.write_bytes(sound)
            shutil.rmtree(own)
        if code is None:
            return "killed by time", ""
        failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return ("survived", "") if code == 0 else ("killed", failed[-1] if failed else said.strip()[-200:])


class Campaign:
    """The file of results: what was tried, and how long tests take without a fault."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"baseline": {}, "mutants": {}}

    def save(self) -> None:
        written = self.path.with_suffix(".new")
        written.write_text(json.dumps(self.known, indent=1))
        written.replace(self.path)

    def seconds(self, test: Path, tree: Tree) -> float | None:
        """How long a test file takes without a fault, or None where it fails."""
        sources = b"".join(path.read_bytes() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
        key, name = hashlib.sha256(sources + test.read_bytes()).hexdigest()[:16], test.relative_to(ROOT).as_posix()
        baseline = self.known["baseline"]
        if baseline.get(name, {}).get("key") != key:
            before, taken, said = None, 0.0, ""
            while before != (before := sorted(tree.bundles.iterdir())):  # once more after an export
                started = time.monotonic()
                code, said = tree.run([test], 1800, tree.bundles)
                taken = round(time.monotonic() - started, 1)
            passed = code in (0, 5)  # 5: all of it is slow
            baseline[name] = {"key": key, "seconds": taken if passed else None, "said": "" if passed else said}
            print(f"  {name}: {f'{taken} s' if passed else 'FAILS without a fault'}", flush=True)
            self.save()
        return baseline[name]["seconds"]  # type: ignore[no-any-return]

    def choose(self, tests: list[Path], budget_s: float, tree: Tree) -> tuple[list[Path], float]:
        """The nearest tests that the budget allows, at least one; and how long they take."""
        chosen: list[Path] = []
        total = 0.0
        for test in tests:
            seconds = self.seconds(test, tree)
            if seconds is None:
                continue
            if chosen and total + seconds > budget_s:
                break
            chosen.append(test)
            total += seconds
        return chosen, total

    def result(self, mutant: Mutant, again: bool) -> dict[str, Any] | None:
        """What is known of a fault, as long as its file is the same."""
        key = f"{mutant.file}:{mutant.line} {mutant.before} -> {mutant.after}"
        known = self.known["mutants"].get(key)
        if mutant.name in EQUIVALENT:
            return {"status": "equivalent"}
        if known is None or known["source"] != _digest(mutant.file) or (again and known["status"] == "survived"):
            return None
        return known  # type: ignore[no-any-return]

    def note(self, mutant: Mutant, **values: Any) -> None:
        key = f"{mutant.file}:{mutant.line} {mutant.before} -> {mutant.after}"
        self.known["mutants"][key] = {"source": _digest(mutant.file), "kind": mutant.kind, **values}
        self.save()


def _digest(file: str) -> str:
    return hashlib.sha256((ROOT / file).read_bytes()).hexdigest()[:16]


def run(mutants: list[Mutant], campaign: Campaign, *, seconds: float, jobs: int, again: bool, work: Path) -> None:
    """Try what is not known yet."""
    nearest, bundles = Nearest(), campaign.path.with_suffix(".bundles")
    bundles.mkdir(parents=True, exist_ok=True)
    trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
    spare = Tree(work / "sound", bundles)  # for times without a fault
    for index in range(jobs):
        trees.put(Tree(work / str(index), bundles))

    def attempt(mutant: Mutant, tests: list[Path], taken: float) -> None:
        tree = trees.get()
        try:
            status, by = tree.try_mutant(mutant, tests, PATIENCE * taken + 60)
        finally:
            trees.put(tree)
        campaign.note(mutant, status=status, by=by, tests=[path.name for path in tests])
        print(f"{status:14} {mutant.file}:{mutant.line}  {mutant.kind}: {mutant.before} -> {mutant.after}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        tried = []
        for mutant in mutants:
            if campaign.result(mutant, again) is None:
                tests, taken = campaign.choose(nearest(mutant.file), seconds, spare)
                tried.append(pool.submit(attempt, mutant, tests, taken))
                if jobs == 1:
                    tried[-1].result()
        for each in tried:
            each.result()


def table(mutants: list[Mutant], campaign: Campaign) -> list[str]:
    """Lines of Markdown for each package; equivalent ones do not count."""
    states = ("killed", "killed by time", "survived", "equivalent")
    heads = ("package", "mutants", *states, "killed of those that count")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for package in (*PACKAGES, "all"):
        found = [campaign.result(each, False) for each in mutants if package in ("all", each.file.split("/")[0])]
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
    parser.add_argument("--seconds", type=float, default=120, help="of tests per fault, nearest first (120)")
    parser.add_argument("--jobs", type=int, default=1, help="faults at the same time, each in a copy of its own (1)")
    parser.add_argument("--again", action="store_true", help="try those again that survived")
    parser.add_argument("--list", action="store_true", help="print what would be tried, and end")
    parser.add_argument("--results", type=Path, default=ROOT / ".mutants.json", help="is continued where it ended")
    arguments = parser.parse_args()
    mutants = draw(arguments.only, arguments.num, arguments.seed)
    if arguments.list:
        print("\n".join(f"{each.file}:{each.line}  {each.kind}: {each.before} -> {each.after}" for each in mutants))
        return
    campaign = Campaign(arguments.results.resolve())
    with tempfile.TemporaryDirectory(prefix="mutants-") as work:
        run(mutants, campaign, seconds=arguments.seconds, jobs=arguments.jobs, again=arguments.again, work=Path(work))
    print("\n".join(table(mutants, campaign)))
    for mutant in mutants:
        if (campaign.result(mutant, False) or {}).get("status") == "survived":
            print(f"{mutant.file}:{mutant.line}: {mutant.kind}: {mutant.before} -> {mutant.after}")


if __name__ == "__main__":
    main()
