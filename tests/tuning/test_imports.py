"""A bundle is tuned where it runs: without torch, and without what exports and calibrates."""

import subprocess
import sys

ABSENT = ("torch", "onnx", "onnx_ir", "matplotlib", "safetensors", "rf_export", "calibration", "engines")


def test_tuning_needs_none_of_what_exports() -> None:
    code = f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\nimport tuning, tuning.report"
    subprocess.run([sys.executable, "-c", code], check=True)
