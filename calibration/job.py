"""What the steps of one calibration share. Knows nothing of the steps."""

from dataclasses import dataclass
from pathlib import Path

from calibration.config import CalibrationConfig
from runtime.backends.interface import Backend
from runtime.bundle.folder import Bundle
from runtime.events import Progress
from runtime.loading import LoadedModel, open_tokenizer
from runtime.pipeline import Pipeline
from runtime.signature import GRAPHS, Precision, Variant


@dataclass(frozen=True)
class CalibrationJob:
    """A calibration under way.

    Attributes:
        base: The graphs that it starts from.
        folder: The bundle to be; until it is one, candidates and graphs with taps are written there too.
        backend: What runs both.
        config: How.
        report: Told before every step.
    """

    base: Pipeline
    folder: Path
    backend: Backend
    config: CalibrationConfig
    report: Progress


def load_pipeline(bundle: Bundle, precision: Precision, backend: Backend, config: CalibrationConfig) -> Pipeline:
    """The plain graphs of a bundle whose manifest need not be on the disk."""
    variant = Variant(precision)
    sessions = {
        name: backend.open(
            bundle.file(bundle.graph(name, variant).file), num_threads=config.num_threads, compiled=False
        )
        for name in GRAPHS
    }
    return Pipeline(
        LoadedModel(
            bundle=bundle,
            variant=variant,
            sessions=sessions,
            num_threads=config.num_threads,
            tokenizer=open_tokenizer(bundle),
        )
    )
