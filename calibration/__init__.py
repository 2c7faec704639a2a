"""INT8 that is measured before it is shipped: a bundle gets graphs with Q/DQ pairs, or keeps what it has.

    prompts -> record what the graphs are fed (trajectory) -> ranges -> candidates per group of layers, timed and
    compared (decide) -> int8 graphs -> quality gate against fp32 (gate) -> bundle, decision table, HTML report

No torch, and nothing of the export: a bundle is calibrated where it runs. See `calibration.calibrate`.
"""

from calibration.calibrate import CalibrationResult, calibrate
from calibration.config import CalibrationConfig, GateLimits
from calibration.examples import find_pictures
from calibration.exchange import export_inputs
from runtime.text.prompts import read_prompts

__all__ = [
    "CalibrationConfig",
    "CalibrationResult",
    "GateLimits",
    "calibrate",
    "export_inputs",
    "find_pictures",
    "read_prompts",
]
