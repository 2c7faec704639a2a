"""A small manifest that is right, for tests that spoil it. Knows nothing of what is spoilt."""

from runtime.bundle.manifest import (
    FileEntry,
    GraphEntry,
    Manifest,
    SamplingDefaults,
    TokenizerEntry,
    UnderstandingDefaults,
)
from runtime.signature import GRAPHS, GraphSignature, ModelSpec, Variant


def sample_model(**changes):
    """A small shape, or one with these changes."""
    shape = {
        "patch_size": 4,
        "hidden_size": 32,
        "num_layers": 2,
        "num_kv_heads": 2,
        "head_dim": 8,
        "vocab_size": 61,
        "rep_vocab_size": 40,
        "rep_start_id": 40,
        "max_grid": 4,
        "max_positions": 128,
        "default_height": 16,
        "default_width": 24,
        "num_parameters": 1000,
        "num_heads": 4,
        "ffn_size": 80,
    }
    return ModelSpec(**(shape | changes))


MODEL = sample_model()
SAMPLING = SamplingDefaults(
    num_steps=25,
    rep_guidance_scale=2.0,
    pix_guidance_scale=3.0,
    temperature=1.0,
    top_k=10,
    shift=1.0,
    shift_base_patches=24,
)


def sample_manifest(precision="fp32"):
    weights = f"graphs/weights/{precision}.bin"
    graphs = tuple(
        GraphEntry(
            name=name,
            precision=precision,
            dialect="classic",
            opset=20,
            file=f"graphs/{name}.{precision}.classic.onnx",
            weights=(weights,),
            inputs=GraphSignature.of(name, MODEL, Variant(precision)).inputs,
            outputs=GraphSignature.of(name, MODEL, Variant(precision)).outputs,
        )
        for name in GRAPHS
    )
    names = [graph.file for graph in graphs] + [weights, "tokenizer.json"]
    return Manifest(
        created_by={"rf_export": "0.1.0"},
        checkpoint={"name": "tiny", "sha256": "0" * 64},
        model=MODEL,
        sampling=SAMPLING,
        tokenizer=TokenizerEntry(file="tokenizer.json"),
        graphs=graphs,
        files={name: FileEntry(sha256=f"{i:064x}", size=i) for i, name in enumerate(names)},
        verified={"fp32": {"logits_cosine": 1.0}},
        understanding=UnderstandingDefaults(start_id=2, stop_ids=(3, 4), max_tokens=8) if precision == "fp32" else None,
    )
