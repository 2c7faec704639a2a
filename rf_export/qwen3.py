"""A dense Qwen3 decoder from Hugging Face becomes an RF checkpoint to train on.

    q, k, v          -> one weight [in, q | k | v]          embeddings, output head -> text_embedding, text_head
    gate, up         -> one weight [in, gate | up]          tied ones become two equal tensors: here they are two
    norms, feed-forward of a layer -> all three experts     rope_theta, eps, q and k norms as they are

What Qwen3 has not (representation tokens, pixels, the vision encoder) starts from a seed, as a training from none does.
Tensors are read and written one shard at a time. Knows nothing of training.

Source: arXiv 2505.09388, and `modeling_qwen3.py` of transformers, whose logits the text side repeats.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from msgspec.structs import replace
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rf_export.checkpoint import INDEX_NAME, SHARD_BYTES, SINGLE_NAME, copy_tokenizer, rounded, weight_files
from rf_export.config import EXPERTS, ModelConfig, UnderstandingConfig, preset
from rf_export.model import RFModel
from runtime.bundle.atomic import write_folder
from runtime.bundle.strict_json import LFS_START, read_json, refuse_lfs_pointer
from runtime.errors import RFError
from runtime.events import Progress

DType: TypeAlias = Literal["source", "fp32", "fp16", "bf16"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DECODER = ("text_embedding", "text_head.", "layers.", "final_norms.")  # what Qwen3 has; all else is new
_SOURCES = {  # ours -> Qwen3's: stacked along the outputs, then transposed to [in, out]
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "attn_norm": ("input_layernorm",),
    "ffn_norm": ("post_attention_layernorm",),
    "ffn.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn.down": ("mlp.down_proj",),
}


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """How to import.

    Attributes:
        parts: Preset that the new parts take their shape from: tokens, patches, sizes of pictures, vision encoder.
        seed: Of the new parts.
        dtype: Of the weights that are written; "source" keeps that of the embeddings.
        understanding: Ids around a question; None for a model that is to draw only.
        force: Replace a checkpoint that is there.
    """

    parts: str = "qwen3-0.6b"
    seed: int = 0
    dtype: DType = "source"
    understanding: UnderstandingConfig | None = None
    force: bool = False


def import_qwen3(
    folder: Path, out: Path, options: ImportOptions | None = None, on_progress: Progress | None = None
) -> ModelConfig:
    """Write an RF checkpoint that continues a text like the Qwen3 model in a folder.

    Args:
        folder: From Hugging Face: `config.json`, `model.safetensors` or shards with an index, `tokenizer.json`.
        out: The checkpoint to be.
        options: Shape and seed of the new parts, dtype.
        on_progress: Told before every tensor.

    Returns:
        The shape of the checkpoint.

    Raises:
        RFError: Another architecture or variant, tensors that are missing or do not fit, a folder that may not be
            replaced, a full disk.
        ValueError: Options that do not fit.
    """
    options = options or ImportOptions()
    content = _read_config(folder)
    config = _rf_config(content, folder, options)
    with ExitStack() as stack:
        source = _Source(folder, stack)
        is_tied = content.get("tie_word_embeddings", False) is True
        source.check(config, is_tied=is_tied)
        dtype = source.dtype if options.dtype == "source" else _DTYPES[options.dtype]
        new_parts = _new_parts(config, options.seed)

        def tensor(name: str) -> Tensor:
            found = new_parts[name] if name in new_parts else source.tensor(name, is_tied=is_tied)
            cast = rounded(name, found, dtype, "Choose --dtype fp32 or bf16.").clone().contiguous()
            if not torch.isfinite(cast).all():
                raise RFError(f"{name} holds numbers that are not finite; take a sound copy of the model")
            return cast

        with write_folder(out, replaceable=_is_checkpoint, force=options.force, what="checkpoint") as partial:
            copy_tokenizer(folder, partial / "tokenizer.json", config.vocab_size)
            _write_shards(partial, _shapes(config), dtype, tensor, on_progress or (lambda what, done, total: None))
            (partial / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`, of a variant that is the same model as ours."""
    if not (folder / "config.json").is_file():
        raise RFError(f"{folder} has no config.json; expected a Qwen3 model as Hugging Face has it")
    content = read_json(folder / "config.json")
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind != "qwen3":
        raise RFError(f'{folder} has the model_type {kind!r}; only dense Qwen3 decoders ("qwen3") can be imported')
    rope = _rope(content, folder)
    layers = content.get("layer_types") or []
    variants = {
        f"is a {content.get('architectures')}": content.get("architectures") not in (None, ["Qwen3ForCausalLM"]),
        "has biases in its attention": content.get("attention_bias", False) is not False,
        "attends in a sliding window": content.get("use_sliding_window", False) is not False
        or any(kind != "full_attention" for kind in layers),
        f"scales its rotary positions ({rope})": rope.get("rope_type", rope.get("type", "default")) != "default",
        "turns a part of each head only": rope.get("partial_rotary_factor", 1) != 1,
        f"has the activation {content.get('hidden_act')!r}": content.get("hidden_act", "silu") != "silu",
        "is quantised": "quantization_config" in content,
    }
    for what, is_so in variants.items():
        if is_so:
            raise RFError(f"{folder} {what}, which an RF decoder does not; expected a plain Qwen3ForCausalLM")
    return dict(content)


def _rope(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the config says of rotary positions, by the key of transformers 5 or by that of 4."""
    rope = content.get("rope_parameters") or content.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise RFError(f"{folder}/config.json: its rotary positions must be an object, found {rope!r}; copy it again")
    return rope


def _rf_config(content: Mapping[str, Any], folder: Path, options: ImportOptions) -> ModelConfig:
    rope = _rope(content, folder)
    shape = preset(options.parts)
    try:
        values = {
            "hidden_size": content["hidden_size"],
            "num_layers": content["num_hidden_layers"],
            "num_heads": content["num_attention_heads"],
            "num_kv_heads": content.get("num_key_value_heads", content["num_attention_heads"]),
            "head_dim": content.get("head_dim", 128),  # Qwen3Config's own, whatever the hidden size
            "ffn_sizes": dict.fromkeys(EXPERTS, content["intermediate_size"]),
            "vocab_size": content["vocab_size"],
            "max_positions": content["max_position_embeddings"],
            "rope_theta": float(rope.get("rope_theta", content.get("rope_theta", 10_000.0))),
            "norm_eps": float(content.get("rms_norm_eps", 1e-6)),
        }
        config = replace(shape, **values, understanding=None)
    except KeyError as error:
        raise RFError(f"{folder}/config.json lacks {error}; copy the model again") from None
    except (ValueError, TypeError) as error:
        raise RFError(f"{folder}/config.json does not describe a Qwen3 decoder: {error}") from None
    return replace(config, understanding=options.understanding)


class _Source:
    """The tensors of a Qwen3 folder, mapped into memory and not read before they are needed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}
        for path in weight_files(folder):
            with path.open("rb") as stream:
                refuse_lfs_pointer(path, stream.read(len(LFS_START)))
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise RFError(f"{path} cannot be read as safetensors ({error}); copy it again") from None
            names = file.keys()
            if twice := self._files.keys() & names:
                raise RFError(f"{path} has tensors that another shard has too ({_some(twice)}); copy them again")
            self._files |= dict.fromkeys(names, file)

    @property
    def dtype(self) -> torch.dtype:
        """That of the embeddings."""
        row: Tensor = self._files["model.embed_tokens.weight"].get_slice("model.embed_tokens.weight")[:1]
        return row.dtype

    def check(self, config: ModelConfig, *, is_tied: bool) -> None:
        """Refuse a model that lacks tensors, or has others or of another shape."""
        expected = _expected(config)
        found = set(self._files)
        if is_tied:
            expected.pop("lm_head.weight")
            found.discard("lm_head.weight")
            if "lm_head.weight" in self._files:
                head, embedding = self._read("lm_head.weight"), self._read("model.embed_tokens.weight")
                if not torch.equal(head, embedding):
                    raise RFError(f"{self._folder} has tied embeddings by its config.json, but another lm_head.weight")
        problems = [f"lacks {_some(expected.keys() - found)}"] if expected.keys() - found else []
        problems += [f"has {_some(found - expected.keys())} besides"] if found - expected.keys() else []
        if not problems:
            shapes = {name: tuple(self._files[name].get_slice(name).get_shape()) for name in expected}
            wrong = [f"{name} {shapes[name]} for {size}" for name, size in expected.items() if shapes[name] != size]
            problems += [f"has {_some(wrong)}"] if wrong else []
        if problems:
            raise RFError(f"{self._folder} {' and '.join(problems)}; expected the tensors of its config.json")
        kinds = {self._files[name].get_slice(name).get_dtype() for name in expected} - {"F32", "F16", "BF16"}
        if kinds:
            raise RFError(f"{self._folder} has weights in {_some(kinds)}; expected F32, F16 or BF16")

    def tensor(self, name: str, *, is_tied: bool) -> Tensor:
        """A tensor of the RF decoder."""
        if name == "text_embedding":
            return self._read("model.embed_tokens.weight")
        if name == "text_head.weight":
            return self._read("model.embed_tokens.weight" if is_tied else "lm_head.weight").T
        if name.startswith("final_norms."):
            return self._read("model.norm.weight")
        prefix, part = _split(name)
        stacked = torch.cat([self._read(f"{prefix}.{each}.weight") for each in _SOURCES[part]])
        return stacked.T if stacked.ndim == 2 else stacked

    def _read(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def _split(name: str) -> tuple[str, str]:
    """`layers.3.experts.pixel.ffn.down.weight` -> `model.layers.3`, `ffn.down`."""
    _, number, *rest = name.removesuffix(".weight").split(".")
    part = ".".join(rest[2:] if rest[0] == "experts" else rest)
    return f"model.layers.{number}", part


def _expected(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a Qwen3 model with its own output head."""
    size, ffn, head = config.hidden_size, config.ffn_sizes["understanding"], config.head_dim
    width, narrow = config.num_heads * head, config.num_kv_heads * head
    layer = {
        "self_attn.q_proj": (width, size),
        "self_attn.k_proj": (narrow, size),
        "self_attn.v_proj": (narrow, size),
        "self_attn.o_proj": (size, width),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "input_layernorm": (size,),
        "post_attention_layernorm": (size,),
        "mlp.gate_proj": (ffn, size),
        "mlp.up_proj": (ffn, size),
        "mlp.down_proj": (size, ffn),
    }
    vocabulary = (config.vocab_size, size)
    outer = {"model.embed_tokens.weight": vocabulary, "lm_head.weight": vocabulary, "model.norm.weight": (size,)}
    inner = {
        f"model.layers.{number}.{name}.weight": shape
        for number in range(config.num_layers)
        for name, shape in layer.items()
    }
    return {**outer, **inner}


def _new_parts(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """The tensors that Qwen3 has not, from a model whose decoder is as small as can be."""
    small = replace(
        config,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        vocab_size=1,
        ffn_sizes=dict.fromkeys(EXPERTS, 1),
        understanding=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = RFModel(small).state_dict()
    return {name: value for name, value in state.items() if not name.startswith(_DECODER)}


def _shapes(config: ModelConfig) -> dict[str, int]:
    """The names of a checkpoint's tensors, with the numbers that each holds."""
    with torch.device("meta"):
        return {name: value.numel() for name, value in RFModel(config).state_dict().items()}


def _write_shards(
    folder: Path, sizes: dict[str, int], dtype: torch.dtype, tensor: Callable[[str], Tensor], report: Progress
) -> None:
    """Write tensors, of which no more than a shard is in memory."""
    shards = list(_shards(sizes, SHARD_BYTES // dtype.itemsize))
    single = [SINGLE_NAME]
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    done = 0
    for file, shard in zip(names if len(shards) > 1 else single, shards, strict=True):
        tensors = {}
        for name in shard:
            report(name, done, len(sizes))
            tensors[name] = tensor(name)
            done += 1
        try:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
    report("checkpoint", done, len(sizes))
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values()) * dtype.itemsize}, "weight_map": weight_map}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=1))


def _shards(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Names in groups of at most `limit` numbers; a larger tensor is a group of its own."""
    shard: list[str] = []
    used = 0
    for name, size in sizes.items():
        if shard and used + size > limit:
            yield shard
            shard, used = [], 0
        shard.append(name)
        used += size
    yield shard


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() and bool(list(folder.glob("*.safetensors")))


def _some(names: Iterable[str], limit: int = 3) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:limit]) + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")
