"""An imported Qwen3 decoder continues a text as the original does; what is no such decoder is refused by name."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.tiny_qwen3 import CONFIG, random_weights, write_model
from rf_export import qwen3
from rf_export.checkpoint import INDEX_NAME, load_checkpoint
from rf_export.config import EXPERTS, Expert, UnderstandingConfig, preset
from rf_export.model import RFModel, Segment
from rf_export.qwen3 import ImportOptions, import_qwen3
from runtime.errors import RFError

IDS = [5, 17, 3, 99, 159, 0, 42, 5, 61]
TINY = ImportOptions(parts="tiny")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_model(tmp_path / "qwen3", CONFIG, random_weights(CONFIG))
    return tmp_path / "qwen3"


def qwen3_logits(config: dict[str, Any], weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Qwen3 written once more, one position and one head at a time, after `modeling_qwen3.py`: `[S, V]`."""
    head, eps = config["head_dim"], config["rms_norm_eps"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def norm(x: Tensor, name: str) -> Tensor:
        return weights[f"{name}.weight"] * x * torch.rsqrt(x.square().mean() + eps)

    def turn(x: Tensor, position: int) -> Tensor:
        turned = x.clone()
        for i in range(head // 2):
            angle = position / config["rope_theta"] ** (2 * i / head)
            first, second = x[i], x[i + head // 2]
            turned[i] = first * math.cos(angle) - second * math.sin(angle)
            turned[i + head // 2] = second * math.cos(angle) + first * math.sin(angle)
        return turned

    hidden = [weights["model.embed_tokens.weight"][token] for token in ids]
    for number in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{number}"
        queries, keys, values = [], [], []
        for position, x in enumerate(hidden):
            x = norm(x, f"{prefix}.input_layernorm")
            q, k, v = ((weights[f"{prefix}.self_attn.{part}_proj.weight"] @ x).split(head) for part in "qkv")
            queries.append([turn(norm(each, f"{prefix}.self_attn.q_norm"), position) for each in q])
            keys.append([turn(norm(each, f"{prefix}.self_attn.k_norm"), position) for each in k])
            values.append(v)
        for position in range(len(ids)):
            mixed = []
            for n in range(heads):
                group = n // (heads // kv_heads)
                scores = [queries[position][n] @ keys[j][group] / math.sqrt(head) for j in range(position + 1)]
                shares = torch.stack(scores).softmax(0)
                mixed.append(sum(share * values[j][group] for j, share in enumerate(shares)))
            x = hidden[position] + weights[f"{prefix}.self_attn.o_proj.weight"] @ torch.cat(mixed)
            y = norm(x, f"{prefix}.post_attention_layernorm")
            gate, up = (weights[f"{prefix}.mlp.{part}_proj.weight"] @ y for part in ("gate", "up"))
            hidden[position] = x + weights[f"{prefix}.mlp.down_proj.weight"] @ (gate * gate.sigmoid() * up)
    name = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return torch.stack([weights[name] @ norm(x, "model.norm") for x in hidden])


@torch.no_grad()
def rf_logits(model: RFModel, ids: list[int], expert: Expert = "understanding") -> Tensor:
    hidden = model.text_embedding[torch.tensor([ids])]
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    (last,), _ = model.run([Segment(expert, hidden, torch.arange(len(ids))[None])], mask)
    logits: Tensor = model.text_head(last)[0]
    return logits


@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("is_tied", [False, True])
def test_every_expert_of_an_imported_decoder_has_the_logits_of_qwen3(
    tmp_path: Path, is_tied: bool, expert: Expert
) -> None:
    config = {**CONFIG, "tie_word_embeddings": is_tied}
    weights = random_weights(config)
    write_model(tmp_path / "qwen3", config, weights)
    import_qwen3(tmp_path / "qwen3", tmp_path / "out", TINY)
    logits = rf_logits(load_checkpoint(tmp_path / "out"), IDS, expert)
    torch.testing.assert_close(logits, qwen3_logits(config, weights, IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_logits_are_those_of_transformers(tmp_path: Path, is_tied: bool) -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = {**CONFIG, "tie_word_embeddings": is_tied}
    write_model(tmp_path / "qwen3", config, random_weights(config))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "qwen3", dtype=torch.float32).eval()
    import_qwen3(tmp_path / "qwen3", tmp_path / "out", TINY)
    with torch.no_grad():
        expected = theirs(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(rf_logits(load_checkpoint(tmp_path / "out"), IDS), expected, rtol=1e-4, atol=1e-4)


def test_a_model_in_shards_becomes_shards(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_qwen3(source, tmp_path / "one", TINY)
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names, places = sorted(weights), {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        save_file({name: weights[name] for name in names[number::3]}, source / file)
        places |= dict.fromkeys(names[number::3], file)
    (source / INDEX_NAME).write_text(json.dumps({"weight_map": places}))
    monkeypatch.setattr(qwen3, "SHARD_BYTES", 20_000)
    import_qwen3(source, tmp_path / "many", TINY)
    written = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(written) > 3
    one, many = (load_checkpoint(tmp_path / name).state_dict() for name in ("one", "many"))
    assert all(torch.equal(many[name], tensor) for name, tensor in one.items())


def test_new_parts_come_from_the_seed_and_all_else_from_the_model(source: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        import_qwen3(source, tmp_path / name, ImportOptions(parts="tiny", seed=seed))
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    changed = {name.split(".")[0] for name in a if not torch.equal(a[name], c[name])}
    assert changed == {
        "rep_embedding",
        "rep_head",
        "pixel_in",
        "pixel_out",
        "time",
        "encoder",
        "connector",
        "quantiser",
    }


def test_shape_tokenizer_and_ids_of_questions_are_taken_over(source: Path, tmp_path: Path) -> None:
    understanding = UnderstandingConfig(start_id=2, stop_ids=(3, 4))
    import_qwen3(source, tmp_path / "out", ImportOptions(parts="tiny", understanding=understanding))
    config = load_checkpoint(tmp_path / "out").config
    assert config.understanding == understanding
    assert (config.rope_theta, config.norm_eps, config.head_dim) == (50_000, 1e-5, 12)
    assert config.encoder == preset("tiny").encoder
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("dtype", "expected"), [("source", "bf16"), ("fp32", "fp32"), ("fp16", "fp16")])
def test_weights_are_written_in_the_type_that_is_asked_for(tmp_path: Path, dtype: qwen3.DType, expected: str) -> None:
    halves = {name: tensor.bfloat16() for name, tensor in random_weights(CONFIG).items()}
    write_model(tmp_path / "qwen3", CONFIG, halves)
    import_qwen3(tmp_path / "qwen3", tmp_path / "out", ImportOptions(parts="tiny", dtype=dtype))
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "out/model.safetensors").values()}
    assert kinds == {qwen3._DTYPES[expected]}


@pytest.mark.parametrize(
    ("value", "dtype", "would"),
    [(1e5, "fp16", "inf"), (1e-8, "fp16", "0"), (-3e-9, "fp16", "-0"), (3.4e38, "bf16", "inf")],
)
def test_a_type_that_would_lose_a_weight_is_refused(
    source: Path, tmp_path: Path, value: float, dtype: qwen3.DType, would: str
) -> None:
    weights = torch.eye(32, 48)
    weights[3, 3] = value
    _resave(source, "model.layers.1.self_attn.o_proj.weight", weights)
    with pytest.raises(RFError, match=rf" do not fit .*would become {would}\. Choose --dtype fp32"):
        import_qwen3(source, tmp_path / "out", ImportOptions(parts="tiny", dtype=dtype))
    assert not (tmp_path / "out").exists()
    import_qwen3(source, tmp_path / "out", ImportOptions(parts="tiny", dtype="fp32"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"model_type": "qwen3_moe"}, "only dense Qwen3"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "Qwen3ForSequenceClassification"),
        ({"attention_bias": True}, "biases in its attention"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "scales its rotary positions .*yarn"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6}}, "scales its rotary positions .*linear"),
        ({"rope_parameters": [1]}, "must be an object"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"quantization_config": {}}, "quantised"),
        ({"num_key_value_heads": 3}, "not a multiple of num_kv_heads 3"),
        ({"hidden_size": "32"}, "hidden_size must be"),
        ({"intermediate_size": 64}, r"mlp.down_proj.weight \(32, 56\) for \(32, 64\)"),
        ({"num_hidden_layers": 3}, r"lacks model.layers.2.* and 8 more"),
        ({"num_hidden_layers": 1}, r"has model.layers.1.* besides"),
        ({"tie_word_embeddings": True}, "tied embeddings by its config.json, but another"),
    ],
)
def test_what_an_rf_decoder_cannot_be_is_refused_by_name(
    source: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (source / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    with pytest.raises(RFError, match=message):
        import_qwen3(source, tmp_path / "out", TINY)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda source: (source / "config.json").unlink(), "has no config.json"),
        (lambda source: (source / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda source: (source / "model.safetensors").unlink(), "lacks model.safetensors"),
        (lambda source: (source / "model.safetensors").write_bytes(b"short"), "cannot be read as safetensors"),
        (lambda source: _resave(source, "model.norm.weight", None), "lacks model.norm.weight"),
        (lambda source: _resave(source, "q_proj.bias", torch.zeros(2)), "has q_proj.bias besides"),
        (lambda source: _resave(source, "model.norm.weight", torch.full((32,), math.inf)), "not finite"),
        (lambda source: _resave(source, "model.norm.weight", torch.ones(32, dtype=torch.int8)), "weights in I8"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    source: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(source)
    with pytest.raises(RFError, match=message):
        import_qwen3(source, tmp_path / "out", TINY)
    assert not (tmp_path / "out").exists()


def _resave(source: Path, name: str, tensor: Tensor | None) -> None:
    weights = load_file(source / "model.safetensors")
    if tensor is None:
        del weights[name]
    else:
        weights[name] = tensor
    save_file(weights, source / "model.safetensors")


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    config = {**CONFIG, "vocab_size": 20}
    write_model(tmp_path / "qwen3", config, random_weights(config))
    with pytest.raises(RFError, match=r"makes ids up to .* the model knows 20"):
        import_qwen3(tmp_path / "qwen3", tmp_path / "out", TINY)
    assert not (tmp_path / "out").exists()


def test_an_existing_checkpoint_is_replaced_by_force_only(source: Path, tmp_path: Path) -> None:
    import_qwen3(source, tmp_path / "out", TINY)
    with pytest.raises(RFError, match="--force"):
        import_qwen3(source, tmp_path / "out", TINY)
    import_qwen3(source, tmp_path / "out", ImportOptions(parts="tiny", force=True))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("dear")
    with pytest.raises(RFError, match="is not a checkpoint"):
        import_qwen3(source, tmp_path / "other", ImportOptions(parts="tiny", force=True))


def test_a_shard_holds_all_that_fits_exactly() -> None:
    assert list(qwen3._shards({"a": 2, "b": 3, "c": 1}, 5)) == [["a", "b"], ["c"]]
    assert list(qwen3._shards({"a": 9, "b": 1}, 5)) == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("names", "said"), [("cab", "a, b, c"), ("dcab", "a, b, c and 1 more"), ("edcab", "a, b, c and 2 more")]
)
def test_three_names_are_told_and_others_are_counted(names: str, said: str) -> None:
    assert qwen3._some(names) == said
