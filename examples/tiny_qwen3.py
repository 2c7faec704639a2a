"""Write a tiny Qwen3 decoder with random weights, as Hugging Face keeps one, to try `rf-export import-qwen3` with.

    python examples/tiny_qwen3.py qwen3

Its tokenizer is that of the reference checkpoint. Knows nothing of RF models.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rf_export.training.scenes import SceneConfig
from rf_export.training.tokens import build_tokenizer

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 56,
    "vocab_size": 160,
    "max_position_embeddings": 128,
    "rope_theta": 50_000,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
}


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Weights under the names of Hugging Face; norms differ from 1, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    size, ffn, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = {
        "self_attn.q_proj": (queries, size),
        "self_attn.k_proj": (keys, size),
        "self_attn.v_proj": (keys, size),
        "self_attn.o_proj": (size, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "input_layernorm": (size,),
        "post_attention_layernorm": (size,),
        "mlp.gate_proj": (ffn, size),
        "mlp.up_proj": (ffn, size),
        "mlp.down_proj": (size, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (config["vocab_size"], size), "norm": (size,)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
    named = {f"model.{name}.weight": shape for name, shape in shapes.items()}
    if not config["tie_word_embeddings"]:
        named["lm_head.weight"] = (config["vocab_size"], size)
    return {name: torch.randn(shape, generator=generator) * 0.2 + (len(shape) == 1) for name, shape in named.items()}


def write_model(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write `config.json`, `model.safetensors` and `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer.json").write_text(build_tokenizer(SceneConfig()).to_str(pretty=True))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/tiny_qwen3.py FOLDER")
    write_model(Path(sys.argv[1]), CONFIG, random_weights(CONFIG))
