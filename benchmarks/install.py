"""The disk that every kind of environment takes, and how long `make demo` runs.

    python benchmarks/install.py --output benchmarks/results/install.json

Makes each environment anew in a temporary folder; then, unless told --no-demo, runs `make demo` in a fresh clone.
Times of the set-up are not recorded: they are those of a network. Knows nothing of what is installed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rf_export.benchmark.environment import describe_machine, describe_state

ROOT = Path(__file__).parent.parent
EXTRAS = ("ort", "quantize", "export", "tensorrt-rtx", "export,ort,tensorrt-rtx,dev")  # the last: `make setup`


def mib(folder: Path) -> int:
    """What a folder takes on the disk, as `du` counts it."""
    blocks = {(entry.st_dev, entry.st_ino): entry.st_blocks for entry in map(os.lstat, folder.rglob("*"))}
    return round(sum(blocks.values()) * 512 / 2**20)


def environment_mib(extra: str, folder: Path) -> int:
    """Disk of a fresh environment with one extra."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin/python"), "-m", "pip", "install", "-q", f"{ROOT}[{extra}]"], check=True)
    return mib(folder)


def run_demo(clone: Path, torch_index: str) -> dict[str, Any]:
    """`make demo` in a fresh clone, as a reader runs it: seconds after the set-up, and disk."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    make = ["make", f"PYTHON={sys.executable}", *([f"TORCH_INDEX={torch_index}"] if torch_index else [])]
    subprocess.run([*make, "setup"], cwd=clone, check=True)
    start = time.monotonic()
    subprocess.run([*make, "demo"], cwd=clone, check=True)
    return {"seconds": round(time.monotonic() - start), "results_mib": mib(clone / "demo")}


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--no-demo", action="store_true", help="Only the environments.")
    parser.add_argument("--torch-index", default="", help="Where pip looks for torch too.")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"command": "python benchmarks/install.py", "machine": describe_machine()}
    with tempfile.TemporaryDirectory() as folder:
        result["environments_mib"] = {extra: environment_mib(extra, Path(folder) / extra) for extra in EXTRAS}
        if not arguments.no_demo:
            result["state"] = {"begin": describe_state()}
            result["demo"] = run_demo(Path(folder) / "clone", arguments.torch_index)
            result["state"]["end"] = describe_state()
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
