"""Fixtures that several test files share: one tiny random model, exported once per test session.

Exporting takes a minute. RF_EXPORT_TEST_BUNDLES=FOLDER keeps what was exported there for the next session, as long as
the code that exports is the same.
"""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from rf_export.checkpoint import save_checkpoint
from rf_export.config import preset
from rf_export.export import ExportOptions, export
from rf_export.model import RFModel
from rf_export.training.scenes import SceneConfig
from rf_export.training.tokens import build_tokenizer
from runtime import Pipeline

settings.register_profile("suite", deadline=None)  # on a busy machine a slow example is no failure
settings.load_profile("suite")


ROOT = Path(__file__).parent.parent


def exported(checkpoint: Path, name: str, options: ExportOptions, factory: pytest.TempPathFactory) -> Path:
    """A bundle of the checkpoint, from an earlier session where RF_EXPORT_TEST_BUNDLES has one."""
    kept = os.environ.get("RF_EXPORT_TEST_BUNDLES")
    if not kept:
        folder = factory.mktemp(name) / "bundle"
    else:
        contract = [ROOT / "runtime" / name for name in ("signature.py", "bundle/manifest.py", "bundle/folder.py")]
        sources = [
            *sorted([*ROOT.glob("rf_export/*.py"), *ROOT.glob("rf_export/graphs/*.py")]),
            *contract,
            Path(__file__),
        ]
        content = b"".join(path.read_bytes() for path in sources)
        folder = Path(kept) / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        export(checkpoint, folder, options)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with seeded random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_checkpoint(RFModel(preset("tiny")), build_tokenizer(SceneConfig()).to_str(pretty=True), folder, torch.float32)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, fp32 and fp16, verified; tests that change it take a copy."""
    return exported(tiny_checkpoint, "tiny", ExportOptions(), tmp_path_factory)


@pytest.fixture(scope="session")
def modern_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the modern dialect only, with a cache of free length."""
    return exported(tiny_checkpoint, "modern", ExportOptions(dialects=("modern",)), tmp_path_factory)


@pytest.fixture(scope="session")
def fixed_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modern graphs in fp32 as TensorRT wants them: with a cache of 20 slots."""
    options = ExportOptions(targets=("tensorrt-rtx",), dialects=("modern",), precisions=("fp32",), cache_slots=20)
    return exported(tiny_checkpoint, "fixed", options, tmp_path_factory)


@pytest.fixture(scope="session")
def reference_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed checkpoint in fp16, not verified; tests that change its files take a copy."""
    options = ExportOptions(precisions=("fp16",), verify=False)
    return exported(ROOT / "examples/reference/checkpoint", "reference", options, tmp_path_factory)


@pytest.fixture(scope="session")
def pipeline(tiny_bundle: Path) -> Pipeline:
    """The tiny bundle's ONNX graphs, loaded; it keeps nothing of a drawing."""
    return Pipeline.load(tiny_bundle, num_threads=1, engine="none")


@pytest.fixture(scope="session")
def words(pipeline: Pipeline) -> list[str]:
    """Single tokens of the bundle's vocabulary, whatever it is."""
    tokenizer = pipeline.model.tokenizer._tokenizer
    found = [word for word in sorted(tokenizer.get_vocab()) if word.isalpha() and len(tokenizer.encode(word).ids) == 1]
    assert len(found) >= 6
    return found
