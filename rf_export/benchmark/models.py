"""The models that benchmarks measure: the committed checkpoint, and larger shapes with random weights.

Knows nothing of measuring. Speed does not depend on the weights. Works without onnx, as far as no bundle is wanted.
"""

from pathlib import Path

import torch
from msgspec.structs import asdict

from rf_export.config import preset
from rf_export.model import RFModel, model_spec
from runtime.bundle.manifest import FileEntry, Manifest, SamplingDefaults, TokenizerEntry
from runtime.signature import ModelSpec

REFERENCE = Path(__file__).parents[2] / "examples" / "reference" / "checkpoint"


def prepare_checkpoint(name: str, work: Path, dtype: torch.dtype) -> Path:
    """The checkpoint of a preset, made with random weights in `work` if it is not there."""
    from rf_export.checkpoint import save_checkpoint
    from rf_export.training.scenes import SceneConfig
    from rf_export.training.tokens import build_tokenizer

    if name == "reference":
        return REFERENCE
    checkpoint = work / name / "checkpoint"
    if not (checkpoint / "tokenizer.json").exists():  # written last
        save_checkpoint(random_model(name), build_tokenizer(SceneConfig()).to_str(), checkpoint, dtype)
    return checkpoint


def load_model(name: str, work: Path, dtype: torch.dtype) -> tuple[RFModel, str]:
    """The model in fp32, on the CPU; and "trained", "random", or why its weights are not those of any bundle."""
    try:
        from rf_export.checkpoint import load_checkpoint

        checkpoint = prepare_checkpoint(name, work, dtype)
    except ModuleNotFoundError as error:  # safetensors, tokenizers
        return random_model(name), f"random, of no checkpoint: {error.name} is not installed"
    return load_checkpoint(checkpoint), "trained" if name == "reference" else "random"


def random_model(name: str) -> RFModel:
    """A preset with seeded random weights."""
    torch.manual_seed(0)
    return RFModel(preset(name)).eval()


def preset_spec(name: str) -> ModelSpec:
    """The shape of a preset, without its weights."""
    with torch.device("meta"):
        return model_spec(RFModel(preset(name)))


def manifest_of(model: RFModel) -> Manifest:
    """A manifest without graphs: what a workload is made from where nothing was exported."""
    spec, sampling = model_spec(model), asdict(model.config.sampling)
    return Manifest(
        created_by={},
        checkpoint={},
        model=spec,
        sampling=SamplingDefaults(**{**sampling, "top_k": min(sampling["top_k"], spec.max_top_k)}),
        tokenizer=TokenizerEntry(file="tokenizer.json"),
        graphs=(),
        files={"tokenizer.json": FileEntry(sha256="", size=0)},
        verified={},
    )
