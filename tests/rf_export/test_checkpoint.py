"""A checkpoint comes back as it was saved, or a message says what is wrong with it."""

import functools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from rf_export import checkpoint as checkpoints
from rf_export.checkpoint import INDEX_NAME, checkpoint_sha256, load_checkpoint, save_checkpoint, split_shards
from rf_export.config import preset
from rf_export.model import RFModel
from runtime.errors import RFError
from runtime.text.tokenizer import PromptTokenizer

SHARD_LIMIT = 20_000  # bytes; the largest tensor of the tiny model is larger


@pytest.fixture(scope="module")
def model() -> RFModel:
    torch.manual_seed(0)
    return RFModel(preset("tiny")).eval()


@pytest.fixture
def folder(model: RFModel, tmp_path: Path) -> Path:
    save_checkpoint(model, "{}", tmp_path, torch.float32)
    return tmp_path


@pytest.fixture
def shards(model: RFModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checkpoints, "split_shards", lambda tensors: split_shards(tensors, SHARD_LIMIT))
    save_checkpoint(model, "{}", tmp_path, torch.float32)
    return tmp_path


def assert_equal_weights(loaded: RFModel, model: RFModel) -> None:
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def test_a_checkpoint_comes_back_as_it_was(model: RFModel, folder: Path) -> None:
    loaded = load_checkpoint(folder)
    assert loaded.config == model.config
    assert not loaded.training
    assert_equal_weights(loaded, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once_and_loaded_in_fp32(model: RFModel, tmp_path: Path, dtype: torch.dtype) -> None:
    save_checkpoint(model, "{}", tmp_path, dtype)
    for name, tensor in load_checkpoint(tmp_path).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].to(dtype).float()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_type_of_the_model_is_kept_where_none_is_named(tmp_path: Path, dtype: torch.dtype) -> None:
    model = RFModel(preset("tiny")).to(dtype)
    with torch.no_grad():
        model.text_head.weight[0, 0] = 1e5 if dtype != torch.float16 else 6e4
        model.text_head.weight[0, 1] = 1e-8 if dtype != torch.float16 else 6e-8
    save_checkpoint(model, "{}", tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert saved[name].dtype == tensor.dtype == dtype
        assert torch.equal(saved[name], tensor), name


def _set(place: str, value: float, part: object = ...) -> Callable[[RFModel], None]:
    def change(model: RFModel) -> None:
        model.get_parameter(place).data[part] = value  # type: ignore[index]

    return change


@pytest.mark.parametrize(
    ("change", "dtype", "message"),
    [
        (_set("text_head.weight", 1e5, (3, 4)), torch.float16, r"1 values of text_head.weight .* 1e\+05, .*become inf"),
        (_set("pixel_in.bias", -7e4, 0), torch.float16, r"1 values of pixel_in.bias .* -7e\+04, .* become -inf"),
        (_set("text_head.weight", 3.4e38, (0, 0)), torch.bfloat16, r"text_head.weight .*bfloat16, .* become inf"),
        (_set("text_head.weight", 1e-8), torch.float16, r"values of text_head.weight .* 1e-08, .* become 0"),
        (_set("text_head.weight", 2e-8, 5), torch.float16, r"67 values of text_head.weight .* 2e-08, .* become 0"),
        (_set("text_head.weight", 2.5e-8, (slice(None), 7)), torch.float16, r"32 values .* 2.5e-08, .* become 0"),
        (_set("pixel_in.bias", 1e-8), torch.float16, r"values of pixel_in.bias .* 1e-08, .* become 0"),
    ],
)
def test_what_a_smaller_type_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, change: Callable[[RFModel], None], dtype: torch.dtype, message: str
) -> None:
    model = RFModel(preset("tiny"))
    change(model)
    with pytest.raises(RFError, match=message):
        save_checkpoint(model, "{}", tmp_path / "out", dtype)
    assert not (tmp_path / "out").exists()
    save_checkpoint(model, "{}", tmp_path / "out")
    assert_equal_weights(load_checkpoint(tmp_path / "out"), model)


def test_a_value_that_is_less_than_a_rounding_error_of_its_row_may_become_0(tmp_path: Path) -> None:
    model = RFModel(preset("tiny"))
    _set("text_head.weight", 1e-8, (0, 0))(model)
    save_checkpoint(model, "{}", tmp_path, torch.float16)
    assert load_checkpoint(tmp_path).text_head.weight[0, 0] == 0


def test_two_sets_of_weights_are_refused_and_never_guessed(model: RFModel, shards: Path) -> None:
    save_file({"text_head.weight": torch.zeros(2)}, shards / "model.safetensors")
    for read in (load_checkpoint, checkpoint_sha256):
        with pytest.raises(RFError, match="only one of them can be meant"):
            read(shards)
    (shards / "model.safetensors").unlink()
    assert_equal_weights(load_checkpoint(shards), model)


def test_tensors_in_other_shards_than_the_index_says_are_refused(shards: Path) -> None:
    index = json.loads((shards / INDEX_NAME).read_text())
    names = sorted(index["weight_map"])
    for first in names[:3]:
        second = next(name for name in names if index["weight_map"][name] != index["weight_map"][first])
        places = {**index["weight_map"], first: index["weight_map"][second], second: index["weight_map"][first]}
        (shards / INDEX_NAME).write_text(json.dumps({"weight_map": places}))
        with pytest.raises(RFError, match=f"holds other tensors than .*index.json says .*{first}"):
            load_checkpoint(shards)


def test_a_tensor_that_two_shards_have_is_refused(shards: Path) -> None:
    first, second, *_ = sorted(shards.glob("model-*"))
    save_file({**load_file(first), **load_file(second)}, second)
    with pytest.raises(RFError, match="another shard has too"):
        load_checkpoint(shards)


def test_a_name_that_a_header_has_twice_is_refused(folder: Path) -> None:
    """The library would take one of them."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size].decode().rstrip(), content[8 + size :]
    tensors = json.loads(header)
    places = {name: entry for name, entry in tensors.items() if name != "__metadata__"}
    for name in sorted(places)[:3]:
        again = f"{header[:-1]},{json.dumps(name)}:{json.dumps(places[name])}}}".encode()
        file.write_bytes(len(again).to_bytes(8, "little") + again + data)
        with pytest.raises(RFError, match=f"the key '{name}' is there twice"):
            load_checkpoint(folder)


def test_a_tokenizer_that_says_something_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = qwen_tokenizer().to_str()
    for text in (
        tokenizer.replace('"vocab":{', '"vocab":{"red":0,"red":1,'),
        tokenizer.replace('"version":', '"version":"1.0","version":'),
        tokenizer[:-1] + ',"model":{}}',
    ):
        assert text != tokenizer
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(RFError, match="is there twice"):
            checkpoints.copy_tokenizer(folder, tmp_path / "copy.json", 10_000)


def test_the_files_of_a_checkpoint_have_the_modes_of_a_plain_open_and_keep_those_that_they_had(
    model: RFModel, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        save_checkpoint(model, "{}", tmp_path)
        files = sorted(tmp_path.iterdir())
        assert {file.name: file.stat().st_mode & 0o777 for file in files} == {file.name: 0o644 for file in files}
        for number, file in enumerate(files):
            file.chmod(0o640 + number)
        save_checkpoint(model, "{}", tmp_path)
        assert [file.stat().st_mode & 0o777 for file in files] == [0o640 + number for number in range(len(files))]
    finally:
        os.umask(before)


def test_shards_come_back_as_they_were(model: RFModel, shards: Path) -> None:
    files = sorted(shards.glob("model-*.safetensors"))
    assert len(files) > 2
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= SHARD_LIMIT
    assert not (shards / "model.safetensors").exists()
    assert_equal_weights(load_checkpoint(shards), model)


def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards / "model-00002-of-{:05}.safetensors".format(len(list(shards.glob("model-*"))))).unlink()
    with pytest.raises(RFError, match=r"lacks model-00002-of-.*expected safetensors weights"):
        load_checkpoint(shards)


def test_every_kind_of_wrong_tensor_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_head.weight"]
    tensors["lora.weight"] = torch.zeros(2)
    tensors["pixel_out.bias"] = torch.zeros(3)
    tensors["pixel_in.bias"] = tensors["pixel_in.bias"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(RFError, match="do not fit its config") as caught:
        load_checkpoint(folder)
    for part in (
        "1 missing (text_head.weight)",
        "1 unexpected (lora.weight)",
        "1 misshapen (pixel_out.bias [3] instead of [48])",
        "1 of a wrong dtype (pixel_in.bias torch.int8)",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_a_truncated_file_is_refused(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    with pytest.raises(RFError, match=r"model\.safetensors cannot be read as safetensors .*copy it again"):
        load_checkpoint(folder)


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RFError, match=r"has no config\.json; expected a folder written by rf-export train"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", 7, None])
def test_an_index_cannot_point_outside_the_folder(folder: Path, tmp_path: Path, name: object) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "config.json").write_bytes((folder / "config.json").read_bytes())
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")  # whole, so that only its place is wrong
    (inside / INDEX_NAME).write_text(json.dumps({"weight_map": {"text_embedding": name}}))
    with pytest.raises(RFError, match=r"lacks \.\./outside|lacks /etc|lacks sub/model|lacks 7|lacks None"):
        load_checkpoint(inside)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": ["b"]}}']
)
def test_a_damaged_index_is_refused(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / INDEX_NAME).write_text(text)
    with pytest.raises(RFError, match=r"is damaged|lacks|do not fit its config"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": 4}, "unknown 'num_experts'"),
        ({"sampling": {"steps": 4}}, "unknown 'sampling.steps'"),
        ({"encoder": {"hidden_size": 24}}, "'encoder.num_layers', 'encoder.num_heads', 'encoder.ffn_size' are missing"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 32.5}, "hidden_size"),
        ({"num_layers": None}, "num_layers"),
        ({"ffn_sizes": 48}, "ffn_sizes"),
        ({"ffn_sizes": {"understanding": 48, "representation": "64", "pixel": 80}}, "ffn_sizes"),
        ({"encoder": 5}, "encoder"),
        ({"num_kv_heads": 0}, "num_kv_heads"),
        ({"sampling": {"num_steps": "25"}}, "num_steps"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused(folder: Path, changes: dict[str, object], words: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(RFError, match=f"does not describe an RF model: .*{words}"):
        load_checkpoint(folder)


def test_a_pickle_beside_the_weights_is_never_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n.")
    load_checkpoint(folder)
    before = checkpoint_sha256(folder)
    (folder / "pytorch_model.bin").unlink()
    assert checkpoint_sha256(folder) == before


def test_the_hash_covers_config_weights_and_tokenizer(folder: Path) -> None:
    hashes = {checkpoint_sha256(folder)}
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        hashes.add(checkpoint_sha256(folder))
    assert len(hashes) == 4


def test_saving_over_shards_leaves_one_set_of_weights(shards: Path) -> None:
    """A stale index would win over the new file."""
    torch.manual_seed(1)
    other = RFModel(preset("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "split_shards", split_shards)  # one file this time
        save_checkpoint(other, "{}", shards, torch.float32)
    assert_equal_weights(load_checkpoint(shards), other)
    assert sorted(path.name for path in shards.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_saving_shards_over_one_file_leaves_one_set_of_weights(
    model: RFModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "split_shards", lambda tensors: split_shards(tensors, SHARD_LIMIT))
    save_checkpoint(model, "{}", folder, torch.float32)
    assert not (folder / "model.safetensors").exists()
    assert_equal_weights(load_checkpoint(folder), model)


def test_a_full_disk_is_told(model: RFModel, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RFError, match=r"model\.safetensors was not written.*Make room"):
            save_checkpoint(model, "{}", tmp_path / "out", torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(RFError, match=r"no config\.json"):
        load_checkpoint(tmp_path / "out")


def test_an_index_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / INDEX_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RFError, match=r"index\.json is damaged .*copy the checkpoint again"):
        load_checkpoint(folder)


def places(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Where a config has values, down to the parts of its parts."""
    return [
        place
        for key, value in content.items()
        for place in ([(key,)] + [(key, *rest) for rest in (places(value) if isinstance(value, dict) else [])])
    ]


CONFIG = preset("tiny").to_dict()


@pytest.mark.parametrize("place", places(CONFIG), ids=".".join)
def test_no_wrong_value_anywhere_in_a_config_is_taken_for_a_model(folder: Path, place: tuple[str, ...]) -> None:
    """A value of another type, or out of range, is refused with its name, and never crashes or passes."""
    number = isinstance(functools.reduce(dict.__getitem__, place, CONFIG), float)
    positive = place[-1] not in ("rep_guidance_scale", "pix_guidance_scale", "temperature")
    wrong = [None, "x", True, [], {"x": 1}, math.nan, math.inf]
    if place != ("model_type",):
        wrong += [10**400] if number else [2.5]
        wrong += [-1] if place[-1] == "start_id" else [0, -1] if positive else []
    if functools.reduce(dict.__getitem__, place, CONFIG) is None:  # it may be left out
        wrong.remove(None)
    for value in wrong:
        config = json.loads(json.dumps(CONFIG))
        functools.reduce(dict.__getitem__, place[:-1], config)[place[-1]] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(RFError, match="does not describe an RF model") as caught:
            load_checkpoint(folder)
        assert place[-1].removeprefix("default_") in str(caught.value), caught.value
        assert len(str(caught.value)) < 1000


def test_a_tokenizer_file_like_those_of_qwen_is_used_as_it_is(model: RFModel, tmp_path: Path) -> None:
    """NFC, a Unicode split, bytes, and special tokens above the vocabulary: the parts of Qwen's tokenizer.json."""
    qwen = qwen_tokenizer()
    text = qwen.to_str(pretty=True)
    save_checkpoint(model, text, tmp_path / "checkpoint", torch.float32)
    checkpoints.copy_tokenizer(tmp_path / "checkpoint", tmp_path / "tokenizer.json", qwen.get_vocab_size())
    assert (tmp_path / "tokenizer.json").read_text() == text
    prompts = PromptTokenizer(tmp_path / "tokenizer.json", qwen.get_vocab_size())
    for prompt in ("a red car", "two  blue fish,\nleft of 1234 cups!", "Ein Fu\u00df, \u732b, \N{TIGER FACE}", "I'm"):
        ids = prompts.encode(prompt, 200)
        assert ids == qwen.encode(prompt).ids
        assert qwen.decode(ids) == prompt
    assert prompts.encode("cafe\u0301", 9) == prompts.encode("caf\u00e9", 9)
    spelt = prompts.encode("<|im_start|>", 20)
    assert qwen.token_to_id("<|im_start|>") not in spelt and qwen.decode(spelt) == "<|im_start|>"
    with pytest.raises(RFError, match=r"makes ids up to .* and the model knows"):
        PromptTokenizer(tmp_path / "tokenizer.json", qwen.get_vocab_size() - 1)


def qwen_tokenizer() -> Tokenizer:
    pattern = (  # of Qwen2 and Qwen3
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["a red car and a blue car", "two red cars left of a cup"] * 4, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return tokenizer
