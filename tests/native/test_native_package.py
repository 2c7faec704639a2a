"""What pip installs carries the sources of the native host, and one command compiles them into the environment."""

import subprocess
import sys

import pytest
from building import ROOT, require_compiler, run

from runtime.native import install

DRAW = """
import sys
from pathlib import Path
from runtime import Pipeline
from runtime.native.binding import NativePipeline
from runtime.native.library import find_library

assert Path(sys.prefix) in find_library().parents
bundle = sys.argv[1]
python = Pipeline.load(bundle, num_threads=1, engine="none")
with NativePipeline.load(bundle, num_threads=1, engine="none") as native:
    assert (native.draw("a red car", seed=7) == python.draw("a red car", seed=7)).all()
"""


@pytest.mark.parametrize(
    ("missing", "remedy"), [("scikit_build_core", "pip install 'rf-export"), ("pip", "python -m ensurepip")]
)
def test_what_is_missing_is_told(missing, remedy, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else name)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: pytest.fail("pip was run"))
    with pytest.raises(SystemExit, match=f"^{missing} is missing. Run: {remedy}"):
        install.main()


@pytest.mark.slow
def test_a_wheel_with_the_extra_draws_after_one_command(tiny_bundle, tmp_path):
    """Needs a network for packages."""
    require_compiler()
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", f"rf-export[native] @ {wheel.as_uri()}", cwd=tmp_path)
    run(python, "-m", "runtime.native.install", cwd=tmp_path)
    run(python, "-c", DRAW, tiny_bundle, cwd=tmp_path)
