"""A drawing is silent: nothing is written below the user's home, no name is looked up, no socket is opened."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import runtime.backends
from runtime.backends.host import telemetry

PROGRAM = """
import os, sys
{first}
from runtime import GenerationOptions, Pipeline
pipeline = Pipeline.load({bundle!r}, num_threads=1, engine="none")
pipeline.draw("", options=GenerationOptions(num_steps=2))
print(len(os.listdir("/proc/self/task")))
"""
HAS_TELEMETRY = tuple(map(int, importlib.metadata.version("onnxruntime").split(".")[:2])) >= (1, 32)


def run(bundle, home, first="", before=(), **variables):
    """Draw in a process of its own with an empty home; the number of its threads at the end."""
    home.mkdir(exist_ok=True)
    # nothing else of the environment: the library is silent by itself where CI, TF_BUILD, GITHUB_ACTIONS ... are set
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    env = {**kept, "HOME": str(home), "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **variables}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    program = PROGRAM.format(first=first, bundle=str(bundle))
    done = subprocess.run(
        [*before, sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_drawing_writes_nothing_below_home_and_starts_no_thread(tiny_bundle, tmp_path):
    assert run(tiny_bundle, tmp_path / "home") == 1
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    "first", ["import runtime.backends.host.ort", "from engines.ort import OrtBuilder", "import cli"]
)
def test_whatever_of_the_product_comes_first_the_library_is_silent(tiny_bundle, tmp_path, first):
    assert run(tiny_bundle, tmp_path / "home", first) == 1
    assert files(tmp_path / "home") == []


@pytest.mark.skipif(not HAS_TELEMETRY, reason="telemetry came with onnxruntime 1.32")
@pytest.mark.parametrize("value", ["0", "false"])
def test_who_allows_it_gets_it(tiny_bundle, tmp_path, value):
    """Also the proof that the tests above would notice it."""
    assert run(tiny_bundle, tmp_path / "home", **{telemetry.VARIABLE: value}) > 1
    assert "deviceid" in files(tmp_path / "home")


@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
def test_who_forbids_it_in_another_way_is_heard(tiny_bundle, tmp_path, value):
    assert run(tiny_bundle, tmp_path / "home", **{telemetry.VARIABLE: value}) == 1
    assert files(tmp_path / "home") == []


def strace_works():
    command = ["strace", "-f", "-e", "trace=network", "-o", os.devnull, "true"]
    return (
        shutil.which("strace") is not None and not subprocess.run(command, capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not strace_works(), reason="needs strace and the right to trace (apt install strace)")
def test_a_drawing_opens_no_socket_and_no_file_for_writing(tiny_bundle, tmp_path):
    trace = tmp_path / "trace"
    calls = "trace=network,open,openat,creat,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat"
    run(
        tiny_bundle,
        tmp_path / "home",
        before=["strace", "-f", "-qq", "-e", calls, "-o", trace],
        PYTHONDONTWRITEBYTECODE="1",
    )
    lines = trace.read_text(errors="replace").splitlines()
    assert any("manifest.json" in line for line in lines), "it was traced"
    network = re.compile(r"^\d+ +(socket|connect|sendto|sendmsg|sendmmsg|bind)\(")
    assert [line for line in lines if network.match(line)] == []
    changing = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|^\d+ +(creat|rename\w*|mkdir\w*|unlink\w*)\(")
    harmless = re.compile(r'"/dev/(null|tty)"|"/proc/self/|"/dev/shm/')
    assert [line for line in lines if changing.search(line) and not harmless.search(line)] == []


def library(calls):
    found = types.ModuleType("onnxruntime")
    found.disable_telemetry_events = lambda: calls.append("disabled")
    return found


@pytest.mark.parametrize(("value", "calls"), [(None, ["disabled"]), ("1", ["disabled"]), ("0", []), ("false", [])])
def test_a_library_that_was_imported_before_is_told_to_be_silent(monkeypatch, value, calls):
    called: list[str] = []
    monkeypatch.setitem(sys.modules, "onnxruntime", library(called))
    monkeypatch.setenv(telemetry.VARIABLE, "x")  # so that it is put back
    monkeypatch.delenv(telemetry.VARIABLE) if value is None else monkeypatch.setenv(telemetry.VARIABLE, value)
    telemetry.switch_off()
    assert called == calls
    assert os.environ[telemetry.VARIABLE] == ("1" if value is None else value)


def test_an_older_library_has_nothing_to_switch_off(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    telemetry.switch_off()
    monkeypatch.delitem(sys.modules, "onnxruntime")
    telemetry.switch_off()


def test_the_library_is_imported_only_below_what_switches_it_off():
    """Python imports a package before its modules: that is what makes the order certain."""
    root = Path(runtime.__file__).parents[1]
    packages = ("runtime", "engines", "calibration", "tuning", "verification", "rf_export")
    importing = re.compile(r"^\s*(import|from) onnxruntime|import_module\(.onnxruntime", re.MULTILINE)
    found = [
        path.relative_to(root).as_posix()
        for package in packages
        for path in (root / package).rglob("*.py")
        if importing.search(path.read_text())
    ]
    assert sorted(found) == ["runtime/backends/cuda/ort.py", "runtime/backends/host/ort.py"]
    assert telemetry.is_off()
