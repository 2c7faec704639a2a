"""Which tests run a line of the product, and how long they take. Knows nothing of faults.

A plugin of pytest for tests/mutants.py: `pytest -p covering` with COVERING=FOLDER writes FOLDER/coverage.* (contexts in
it are tests, and fixtures that several tests share) and FOLDER/tests.json. Processes that tests start are counted too.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coverage
import pytest

_SETTINGS = """[run]
data_file = {folder}/coverage
source = {sources}
context = ${{COVERING_CONTEXT}}
parallel = True
disable_warnings = no-data-collected, module-not-measured, module-not-imported, couldnt-parse, already-imported
"""


def write_settings(folder: Path, root: Path, packages: tuple[str, ...]) -> None:
    """Writes how coverage counts in processes that tests start."""
    sources = ",".join(str(root / package) for package in packages)
    (folder / "settings").write_text(_SETTINGS.format(folder=folder, sources=sources))


class Covering:
    """Switches the context of coverage with each test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ["COVERING_CONTEXT"] = ""
        self.coverage = coverage.Coverage(config_file=str(folder / "settings"))
        self.contexts = [""]
        self.tests: dict[str, dict[str, Any]] = {}
        self.fixtures: dict[str, float] = {}
        self.coverage.start()
        os.environ["COVERAGE_PROCESS_START"] = str(
            folder / "settings"
        )  # where coverage is installed, processes read it

    @contextmanager
    def counted_for(self, context: str) -> Iterator[None]:
        self.contexts.append(context)
        os.environ["COVERING_CONTEXT"] = context
        self.coverage.switch_context(context)
        try:
            yield
        finally:
            self.contexts.pop()
            os.environ["COVERING_CONTEXT"] = self.contexts[-1]
            self.coverage.switch_context(self.contexts[-1])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        shared = [
            _name(fixture)
            for fixtures in item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
            for fixture in fixtures[-1:]
            if fixture.scope != "function"
        ]
        self.tests[item.nodeid] = {"fixtures": shared, "seconds": 0.0, "passed": True}
        with self.counted_for(item.nodeid):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        if fixturedef.scope == "function":
            return (yield)
        begin = time.perf_counter()
        with self.counted_for(_name(fixturedef)):
            result = yield
        self.fixtures[_name(fixturedef)] = round(time.perf_counter() - begin, 2)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        known = self.tests[report.nodeid]
        known["seconds"] = round(known["seconds"] + report.duration, 2)
        known["passed"] = known["passed"] and report.outcome == "passed"

    def pytest_unconfigure(self) -> None:
        self.coverage.stop()
        self.coverage.save()
        noted = {"root": str(Path.cwd()), "tests": self.tests, "fixtures": self.fixtures}
        (self.folder / "tests.json").write_text(json.dumps(noted, indent=1))


class Lines:
    """What was counted, in the folders of one folder."""

    def __init__(self, folder: Path) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self.fixtures: dict[str, float] = {}
        self._counted: list[tuple[str, coverage.CoverageData]] = []
        for file in sorted(folder.glob("*/tests.json")):
            noted = json.loads(file.read_text())
            self.tests |= noted["tests"]
            self.fixtures |= noted["fixtures"]
            counted = coverage.CoverageData(str(file.parent / "all"))
            if not (file.parent / "all").exists():
                for part in file.parent.glob("coverage.*"):
                    data = coverage.CoverageData(str(part))
                    data.read()
                    counted.update(data)
            counted.read()
            self._counted.append((noted["root"], counted))

    def contexts(self, file: str, ranges: list[tuple[int, int]]) -> set[str]:
        """The tests and shared fixtures that run some of these lines, which are told by the first and the last."""
        return {
            context
            for root, counted in self._counted
            for line, contexts in counted.contexts_by_lineno(f"{root}/{file}").items()
            if any(first <= line <= last for first, last in ranges)
            for context in contexts
        }


def _name(fixture: Any) -> str:
    return f"fixture {fixture.baseid}::{fixture.argname}"


def pytest_configure(config: pytest.Config) -> None:
    """Begins to count."""
    config.pluginmanager.register(Covering(Path(os.environ["COVERING"])))
