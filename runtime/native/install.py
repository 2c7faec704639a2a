"""Compiles librf_runtime from the sources that this package carries and installs it in this environment.

    pip install 'rf-export[native]'     # CMake, Ninja and scikit-build-core
    python -m runtime.native.install    # needs a C++ compiler as well, and no network

It becomes the distribution rf-export-native, which `runtime.native.library` finds, and which pip uninstalls.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent


def main() -> int:
    """Install it; the exit code of pip. Raises SystemExit with a sentence on what is missing."""
    for module, remedy in (("scikit_build_core", "pip install 'rf-export[native]'"), ("pip", "python -m ensurepip")):
        if importlib.util.find_spec(module) is None:
            raise SystemExit(f"{module} is missing. Run: {remedy}")
    options = ("--no-deps", "--no-build-isolation", "--force-reinstall", "--disable-pip-version-check")
    return subprocess.run([sys.executable, "-m", "pip", "install", *options, str(SOURCES)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
