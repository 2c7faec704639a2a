"""Calibration for INT8: recorded activations, ranges and Q/DQ graphs. Empty until INT8 lands; see CHANGELOG.md."""
