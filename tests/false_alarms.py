"""Does verification stay green where nothing is wrong? Random models of any shape are exported and verified in full.

    python tests/false_alarms.py --shapes 50 --seeds 1 > alarms.jsonl     a line per bundle; all must pass

Every bundle is traced for itself: an fp16 trace has constants that come from the weights, so one trace cannot serve
several models.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from rf_export.checkpoint import load_checkpoint, save_checkpoint
from rf_export.config import EXPERTS, EncoderConfig, ModelConfig, SamplingConfig, preset
from rf_export.eager_reference import EagerReference
from rf_export.export import ExportOptions, export
from rf_export.model import RFModel
from rf_export.training.scenes import SceneConfig
from rf_export.training.tokens import build_tokenizer
from verification import Outcome, VerifyOptions, verify


def random_config(rng: np.random.Generator) -> ModelConfig:
    """A small model of any shape."""
    kv_heads, head_dim = int(rng.integers(1, 4)), 2 * int(rng.integers(2, 9))
    max_grid = int(rng.integers(3, 7))
    patch = int(rng.integers(2, 7))
    rows, columns = rng.integers(1, max_grid + 1, 2).tolist()
    heads = int(rng.integers(1, 4))
    rep_vocabulary = int(rng.integers(8, 300))
    return preset("tiny").replace(
        hidden_size=8 * int(rng.integers(2, 9)),
        num_layers=int(rng.integers(1, 5)),
        num_heads=kv_heads * int(rng.integers(1, 4)),
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_sizes={expert: 8 * int(rng.integers(2, 13)) for expert in EXPERTS},
        vocab_size=int(rng.integers(67, 200)),
        rep_vocab_size=rep_vocabulary,
        patch_size=patch,
        max_grid=max_grid,
        default_height=2 * patch * rows,
        default_width=2 * patch * columns,
        encoder=EncoderConfig(
            hidden_size=heads * 8,
            num_layers=int(rng.integers(1, 4)),
            num_heads=heads,
            ffn_size=8 * int(rng.integers(2, 9)),
        ),
        sampling=SamplingConfig(
            num_steps=int(rng.integers(1, 26)),
            rep_guidance_scale=float(rng.uniform(0, 4)),
            pix_guidance_scale=float(rng.uniform(0, 4)),
            temperature=float(rng.uniform(0.5, 1.5)),
            top_k=int(rng.integers(1, 50)),
            shift=float(rng.uniform(0.5, 3)),
            shift_base_patches=int(rng.integers(1, 99)),
        ),
    )


def random_model(config: ModelConfig, seed: int) -> RFModel:
    """Random weights; norms and biases too, which a fresh model has at 1 and 0."""
    torch.manual_seed(seed)
    model = RFModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def check(config: ModelConfig, seed: int, folder: Path) -> dict[str, Any]:
    """Export and verify one model; what came of it."""
    started = time.perf_counter()
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    tokenizer = build_tokenizer(SceneConfig()).to_str(pretty=True)
    save_checkpoint(random_model(config, seed), tokenizer, checkpoint, torch.float32)
    export(checkpoint, bundle, ExportOptions(verify=False))
    exported = time.perf_counter()
    options = VerifyOptions(seed=seed, num_threads=1, record=False)
    outcomes = verify(bundle, options, EagerReference(load_checkpoint(checkpoint)))
    found = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
    return {
        "seed": seed,
        "shape": {
            name: getattr(config, name)
            for name in (
                "hidden_size",
                "num_layers",
                "num_heads",
                "num_kv_heads",
                "head_dim",
                "patch_size",
                "max_grid",
                "default_height",
                "default_width",
                "rep_vocab_size",
            )
        },
        "seconds": [round(exported - started, 1), round(time.perf_counter() - exported, 1)],
        "passed": all(outcome.verdict == "passed" for outcome in found),
        "verdicts": {outcome.candidate.label: outcome.line() for outcome in found},
    }


def run(shapes: int, seeds: int, first: int = 0) -> tuple[int, int]:
    """Check all; returns how many passed, of how many."""
    torch.set_num_threads(1)
    passed = 0
    for shape in range(first, first + shapes):
        config = random_config(np.random.default_rng(shape))
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                result = check(config, 1000 * shape + seed, Path(folder))
            passed += result["passed"]
            print(json.dumps({"shape_number": shape, **result}), flush=True)
    return passed, shapes * seeds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    passed, count = run(arguments.shapes, arguments.seeds, arguments.first)
    print(f"{passed} of {count} honest bundles passed", file=sys.stderr)
    sys.exit(passed != count)


if __name__ == "__main__":
    main()
