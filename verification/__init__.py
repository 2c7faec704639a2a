"""Verification that can fail: graphs and engines of a bundle against a reference that draws by itself.

Knows nothing of torch: the reference comes from outside (`rf_export/eager_reference.py`), or is the bundle's own fp32
graphs, on a machine that has no checkpoint. Nothing is judged by eye: the same noise and the same tokens go into both
sides, and every step, every key and value, every token and every picture is compared.

    from verification import VerifyOptions, verify
    outcomes = verify("bundle", VerifyOptions(), reference)

Code map: cases (what is drawn) -> subject, graph_reference (who draws) -> traces (what comes out) -> compare, limits,
tally (figures and failures) -> bisect (where it begins) -> candidates, trial, verify, outcome (graphs and engines,
verdicts) -> rebuilds, report.
graphs/ looks inside of ONNX files, measures/ holds distances, shares and times, pages/ the HTML.
"""

from verification.candidates import NotRun, VerifyOptions
from verification.outcome import Outcome
from verification.traces import Remembering
from verification.verify import verify

__all__ = ["NotRun", "Outcome", "Remembering", "VerifyOptions", "verify"]
