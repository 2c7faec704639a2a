"""Importing the runtime loads no heavy library, and the runtime needs no torch."""

import os
import pkgutil
import subprocess
import sys

import pytest

import runtime


def python(code):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


MODULES = [item.name for item in pkgutil.walk_packages(runtime.__path__, "runtime.")]
HEAVY = ["torch", "onnx", "onnxruntime", "tokenizers", "PIL", "tensorrt"]


def test_importing_the_runtime_is_quick():
    """CPU time, bounded loosely, since test machines are busy; an idle one takes a few milliseconds."""
    code = "import time; t = time.process_time(); import runtime; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.15


@pytest.mark.parametrize(
    "module",
    ["runtime", *(name for name in MODULES if not name.startswith("runtime.backends.") or not name.endswith(".ort"))],
)
def test_every_module_imports_without_heavy_libraries(module):
    python(f"import sys\nfor name in {HEAVY}: sys.modules[name] = None\nimport {module}")


def test_every_public_name_exists():
    for name in runtime.__all__:
        assert getattr(runtime, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = runtime.nothing


def test_a_missing_library_is_told_with_the_command_that_installs_it():
    out = python(
        "import sys\nsys.modules['onnxruntime'] = None\n"
        "from runtime.backends import create_backend\n"
        "try: create_backend('ort')\nexcept Exception as error: print(type(error).__name__, error)"
    )
    assert "RFError" in out
    assert "pip install 'rf-export[ort]'" in out


def test_an_unknown_backend_is_told_with_those_there_are():
    from runtime.backends import create_backend

    with pytest.raises(runtime.RFError, match=r"no backend 'cuda'\. Choose one of: ort"):
        create_backend("cuda")
