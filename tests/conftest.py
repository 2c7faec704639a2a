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
from typing import Any

import pytest
from hypothesis import settings

from runtime import Pipeline

settings.register_profile("suite", deadline=None)  # on a busy machine a slow example is no failure
settings.load_profile("suite")


def _exported(*arguments: Any) -> Path:
    from exporting import exported  # imports torch, which takes seconds, and which many tests do without

    return exported(*arguments)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with seeded random weights."""
    from exporting import save_tiny_checkpoint

    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, fp32 and fp16, verified."""
    return _exported("tiny", tmp_path_factory, tiny_checkpoint)


@pytest.fixture(scope="session")
def calibrated_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with an engine for fp32, and INT8 graphs."""
    from exporting import calibrated

    return calibrated(tmp_path_factory, tiny_bundle)


@pytest.fixture(scope="session")
def modern_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the modern dialect only, with a cache of free length."""
    return _exported("modern", tmp_path_factory, tiny_checkpoint)


@pytest.fixture(scope="session")
def fixed_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modern graphs in fp32 as TensorRT wants them: with a cache of 20 slots."""
    return _exported("fixed", tmp_path_factory, tiny_checkpoint)


@pytest.fixture(scope="session")
def reference_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed checkpoint in fp16, not verified."""
    return _exported("reference", tmp_path_factory)


@pytest.fixture(scope="session")
def reference_modern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the modern dialect, for TensorRT-RTX."""
    return _exported("reference-modern", tmp_path_factory)


@pytest.fixture(scope="session")
def readme_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed checkpoint as the quick start of the README exports it."""
    return _exported("documents", tmp_path_factory)


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
