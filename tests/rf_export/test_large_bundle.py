"""A bundle of several gigabytes, in the shape of Qwen3-0.6B: exports, is verified, loads and draws.

Needs about 16 GiB of memory, 12 GiB of disk and some minutes: run with `make test-slow`.
"""

import math
from pathlib import Path

import pytest
import torch

from rf_export.checkpoint import INDEX_NAME, save_checkpoint
from rf_export.config import preset
from rf_export.export import ExportOptions, export
from rf_export.model import RFModel
from rf_export.training.scenes import SceneConfig
from rf_export.training.tokens import build_tokenizer
from runtime import GenerationOptions, PictureEvent, Pipeline
from verification.graphs.weights import ALIGNMENT

NOT_IN_GRAPHS = ("quantiser.",)  # of training


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_bundle_beyond_two_gigabytes_exports_loads_and_draws(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = RFModel(preset("qwen3-0.6b"))
    num_bytes = sum(
        math.ceil(4 * tensor.numel() / ALIGNMENT) * ALIGNMENT
        for name, tensor in model.state_dict().items()
        if not name.startswith(NOT_IN_GRAPHS)
    )
    save_checkpoint(model, build_tokenizer(SceneConfig()).to_str(), tmp_path / "checkpoint", torch.float16)
    assert (tmp_path / "checkpoint" / INDEX_NAME).is_file()  # sharded
    del model
    manifest = export(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(precisions=("fp32",)))
    weights = tmp_path / "bundle" / "graphs" / "weights" / "fp32.bin"
    assert 2**31 < weights.stat().st_size <= num_bytes  # every parameter once
    assert manifest.verified["fp32"]["verdict"] == "passed"
    pipeline = Pipeline.load(tmp_path / "bundle", verify="size")
    options = GenerationOptions(height=64, width=64, num_steps=1)
    *_, last = pipeline.generate([""], options=options)
    assert isinstance(last, PictureEvent)
    assert last.picture.shape == (64, 64, 3)
