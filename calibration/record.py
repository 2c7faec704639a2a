"""Records what every layer is fed, pass by pass, and keeps it on the disk, so that a recording goes on where it ended.

Knows nothing of what becomes of it.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from calibration import recordings as cache
from calibration.job import CalibrationJob
from calibration.layers import find_layers
from calibration.statistics import Recorded, missing_coverage
from calibration.trajectory import GUIDED, Recording, draw_recorded, graph_file, plan_passes, steps_of
from runtime.errors import RFError
from runtime.signature import GRAPHS, GraphName, Variant

_log = logging.getLogger(__name__)

SAVE_EVERY: Final = 8  # prompts


def record(
    job: CalibrationJob, prompts: Sequence[tuple[str, int]], pictures: Sequence[Path], cache_path: Path
) -> Recorded:
    """Draw the prompts, each with its seed, with all layers tapped; goes on from the cache, and leaves it there.

    Raises:
        RFError: The cache is damaged or of something else, and was named by the config; a graph was not fed at every
            step.
    """
    layers = {name: find_layers(ir.load(graph_file(job.base, name)).graph) for name in GRAPHS}
    num_steps = steps_of(job.base, prompts[0][0])
    num_tokens = num_steps["rep_decoder"]
    recording = Recording(layers, {**num_steps, "rep_decoder": num_tokens + 1})  # and the run that fills the cache
    key = _key(job, prompts, pictures)
    done = _resume(job, recording, cache_path, key)
    passes = plan_passes(layers, _num_rows(4 * num_tokens), job.config.memory_mib)
    for number in range(done.passes, len(passes)):
        first = done.prompts if number == done.passes else 0
        seen = [] if first else pictures
        for count in draw_recorded(job, recording, passes[number], prompts[first:], seen):
            job.report("recording", number * len(prompts) + first + count, len(passes) * len(prompts))
            if (first + count) % SAVE_EVERY == 0 and first + count < len(prompts):
                cache.save(cache_path, key, recording.recorded, cache.Reached(number, first + count))
        cache.save(cache_path, key, recording.recorded, cache.Reached(number + 1, 0))
    lacking = missing_coverage(recording.recorded, GUIDED)
    if lacking:
        raise RFError(f"The recording does not cover the model: {lacking}. Delete {cache_path} and calibrate again.")
    return recording.recorded


def _num_rows(num_patches: int) -> dict[GraphName, int]:
    """Rows that a run of each graph feeds to a layer, about."""
    return {"vision_encoder": num_patches, "text_decoder": 64, "rep_decoder": 2, "denoiser": 2 * num_patches}


def _key(job: CalibrationJob, prompts: Sequence[tuple[str, int]], pictures: Iterable[Path]) -> dict[str, Any]:
    """What a recording depends on: another one is not gone on with."""
    manifest = job.base.bundle.manifest
    model = manifest.model
    return {
        "graphs": [job.base.bundle.graph_sha256(name, Variant(job.config.base)) for name in GRAPHS],
        "tokenizer": manifest.files[manifest.tokenizer.file].sha256,
        "defaults of sampling": {
            **manifest.sampling.to_dict(),
            "height": model.default_height,
            "width": model.default_width,
        },
        "prompts or seeds": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "pictures": [hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures],
        "memory limits": job.config.memory_mib,
    }


def _resume(job: CalibrationJob, recording: Recording, cache_path: Path, key: dict[str, Any]) -> cache.Reached:
    """Take over what a cache holds; one that nobody named is replaced where it is of something else."""
    if not cache_path.exists():
        return cache.Reached()
    try:
        recording.recorded, reached = cache.load(cache_path, key)
    except RFError as error:
        if job.config.cache_path is not None:
            raise
        _log.warning("Recording anew: %s", error)
        return cache.Reached()
    return reached
