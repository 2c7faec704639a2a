"""The models and bundles that the test session shares. Knows which there are; tests/conftest.py hands them out.

Exporting takes a minute, calibrating half of one. RF_EXPORT_TEST_BUNDLES=FOLDER keeps what was exported there for the
next session, as long as the code that exports is the same, or as RF_EXPORT_TEST_BUNDLES_KEY is.
"""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from calibration import CalibrationConfig, GateLimits, calibrate, workbench
from engines import EngineConfig, build
from rf_export.checkpoint import save_checkpoint
from rf_export.config import preset
from rf_export.export import ExportOptions, export
from rf_export.model import RFModel
from rf_export.training.scenes import SceneConfig
from rf_export.training.tokens import build_tokenizer

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "examples/reference/checkpoint"
OPTIONS = {
    "tiny": ExportOptions(),
    "modern": ExportOptions(dialects=("modern",)),
    "fixed": ExportOptions(targets=("tensorrt-rtx",), dialects=("modern",), precisions=("fp32",), cache_slots=20),
    "reference": ExportOptions(precisions=("fp16",), verify=False),
    "reference-modern": ExportOptions(
        precisions=("fp16",), dialects=("modern",), targets=("tensorrt-rtx",), verify=False
    ),
    "documents": ExportOptions(),
}

CALIBRATION_PROMPTS = [
    "a red car",
    "a blue fish",
    "two green trees",
    "a pink cat left of a blue house",
    "three red hearts",
    "a key",
    "a purple cup",
    "four yellow stars",
]
# The tiny model gains nothing from INT8, so that speed has to be forced here.
CALIBRATION = CalibrationConfig(
    min_prompts=4, num_rounds=1, force=True, limits=GateLimits(cosine=0.99, answer_tokens=0.5)
)


def save_tiny_checkpoint(folder: Path) -> Path:
    """A model with seeded random weights."""
    torch.manual_seed(0)
    save_checkpoint(RFModel(preset("tiny")), build_tokenizer(SceneConfig()).to_str(pretty=True), folder, torch.float32)
    return folder


def make_tiny(folder: Path) -> tuple[Path, Path]:
    """That checkpoint and its bundle; takes a minute."""
    checkpoint, bundle = save_tiny_checkpoint(folder / "checkpoint"), folder / "bundle"
    export(checkpoint, bundle, OPTIONS["tiny"])
    return checkpoint, bundle


def exported(name: str, factory: pytest.TempPathFactory, checkpoint: Path = REFERENCE) -> Path:
    """The bundle of that name, exported once for all workers of a session, or for several sessions."""
    kept = Path(os.environ.get("RF_EXPORT_TEST_BUNDLES", _shared(factory) / "bundles"))
    contract = [ROOT / "runtime" / name for name in ("signature.py", "bundle/manifest.py", "bundle/folder.py")]
    producers = sorted([*ROOT.glob("rf_export/*.py"), *ROOT.glob("rf_export/graphs/*.py")])
    producers.append(ROOT / "verification/texts.py")
    content = b"".join(path.read_bytes() for path in [*producers, *contract, REFERENCE / "plan.json", Path(__file__)])
    key = os.environ.get("RF_EXPORT_TEST_BUNDLES_KEY") or hashlib.sha256(content).hexdigest()[:16]
    folder = kept / f"{name}-{key}"
    kept.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            export(checkpoint, folder, OPTIONS[name])
    return folder


def calibrated(factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """A copy of the bundle with an engine, then INT8 graphs, made once for all workers of a session."""
    folder = _shared(factory) / "calibrated"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            bundle = shutil.copytree(tiny_bundle, partial / "bundle", ignore=shutil.ignore_patterns("engines"))
            build(bundle, EngineConfig(num_threads=1))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(workbench, "_TURN_SECONDS", 0.001)
                calibrate(bundle, CALIBRATION_PROMPTS, CALIBRATION)
            partial.rename(folder)
    return folder / "bundle"


def _shared(factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a session share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
