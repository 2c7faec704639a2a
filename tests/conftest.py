"""Where which tests live, and the fixtures that several folders share.

    tests/runtime, engines, calibration, verification, rf_export   mirror the packages: look under the module's name
    tests/cli           commands as users type them: outputs, refusals, exit codes
    tests/docs          commands, links and figures of the documents
    tests/examples      what made the committed checkpoints
    tests/robustness    damaged files, kills, full disks, long runs
    tests/emulation     a GPU and TensorRT for machines without one, after the real APIs in tests/tensorrt_api
    tests/fuzz/run.py, and kills, soak, mutations, mutants, false_alarms, lint_graphs of tests/: programs to run by hand

Other files without `test_` are helpers; a test imports them by their plain name, from its own folder or from tests/.
A bundle of the session is never changed: who has to, copies it to tmp_path. What is in one: tests/exporting.py.
"""

from pathlib import Path

import pytest
from exporting import REFERENCE, exported, save_tiny_checkpoint
from hypothesis import settings

from runtime import Pipeline

settings.register_profile("suite", deadline=None)  # on a busy machine a slow example is no failure
settings.load_profile("suite")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with seeded random weights."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, fp32 and fp16, verified."""
    return exported("tiny", tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def modern_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the modern dialect only, with a cache of free length."""
    return exported("modern", tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def fixed_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modern graphs in fp32 as TensorRT wants them: with a cache of 20 slots."""
    return exported("fixed", tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="session")
def reference_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed checkpoint in fp16, not verified."""
    return exported("reference", REFERENCE, tmp_path_factory)


@pytest.fixture(scope="session")
def reference_modern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the modern dialect, for TensorRT-RTX."""
    return exported("reference-modern", REFERENCE, tmp_path_factory)


@pytest.fixture(scope="session")
def readme_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed checkpoint as the quick start of the README exports it."""
    return exported("documents", REFERENCE, tmp_path_factory)


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
