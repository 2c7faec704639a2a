"""Checkpoints: HF-like folders of `config.json`, `model.safetensors` (or shards with an index) and `tokenizer.json`.

Safetensors only: no pickle is ever read. Every name, shape and dtype is checked. Knows nothing of graphs.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rf_export.config import ModelConfig
from rf_export.model import RFModel
from runtime.bundle.atomic import write_file, write_text
from runtime.bundle.folder import describe_file
from runtime.bundle.strict_json import LFS_START, parse_json, read_json, read_limited, refuse_lfs_pointer
from runtime.errors import RFError
from runtime.text.tokenizer import MAX_TOKENIZER_BYTES, PromptTokenizer

SHARD_BYTES = 2_000_000_000
MAX_HEADER_BYTES = 16 << 20  # more than 100,000 tensors
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


_REMEDY = "Keep the model's own type (dtype=None), or scale the model."


def save_checkpoint(model: RFModel, tokenizer_json: str, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint folder, sharded above 2 GB; replaces the weights that are there.

    Args:
        model: Its config and weights.
        tokenizer_json: The content of its `tokenizer.json`.
        folder: Is made if it is not there.
        dtype: Of the weights in the file; None keeps what they are.

    Raises:
        RFError: `dtype` cannot hold a weight, and nothing was written; or the disk is full.
    """
    tensors = {
        name: (tensor.detach() if dtype is None else rounded(name, tensor.detach(), dtype, _REMEDY)).contiguous()
        for name, tensor in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    shards = split_shards(tensors)
    names = (
        [SINGLE_NAME]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        with write_file(folder / name) as partial:
            try:
                save_file(shard, partial, metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(str(error)) from error
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(folder / INDEX_NAME, json.dumps(index, indent=1))
        names.append(INDEX_NAME)
    for stale in {*folder.glob("model-*.safetensors"), folder / SINGLE_NAME, folder / INDEX_NAME}:
        if stale.name not in names:
            stale.unlink(missing_ok=True)
    write_text(folder / "tokenizer.json", tokenizer_json)
    write_text(folder / "config.json", json.dumps(model.config.to_dict(), indent=2) + "\n")  # no checkpoint without


def rounded(name: str, tensor: torch.Tensor, dtype: torch.dtype, remedy: str) -> torch.Tensor:
    """A tensor in another type; raises RFError, which ends in `remedy`, where more than the last digits is lost.

    A value that becomes 0 is lost where it counts: where it is more than a rounding error of the largest in its row or
    in its column, so that no small but living channel dies.
    """
    rounded = tensor.to(dtype)
    sizes = tensor.abs().reshape(len(tensor) if tensor.dim() > 1 else 1, -1)
    largest = sizes.amax(1, keepdim=True)
    if tensor.dim() > 1:
        largest = torch.minimum(largest, sizes.amax(0, keepdim=True))
    vanished = (rounded == 0) & (sizes > torch.finfo(dtype).eps * largest).reshape(tensor.shape)
    lost = tensor[(rounded.isinf() & tensor.isfinite()) | vanished]
    if lost.numel():
        value = float(lost.flatten()[0])
        raise RFError(
            f"{lost.numel()} values of {name} do not fit {dtype}, such as {value:.3g}, which would become "
            f"{float(lost.flatten()[0].to(dtype)):.3g}. {remedy}"
        )
    return rounded


def split_shards(tensors: dict[str, torch.Tensor], limit: int = SHARD_BYTES) -> list[dict[str, torch.Tensor]]:
    """Cut a state into shards of at most `limit` bytes each (a larger tensor gets its own)."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    return shards


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json`; raises RFError with the reason if this is no checkpoint of ours."""
    if not folder.is_dir():
        raise RFError(f"{folder} is not a folder; expected a checkpoint with config.json and model.safetensors")
    if not (folder / "config.json").exists():
        raise RFError(f"{folder} has no config.json; expected a folder written by rf-export train")
    return ModelConfig.from_dict(
        read_json(folder / "config.json"), f"{folder}/config.json does not describe an RF model"
    )


def load_checkpoint(folder: Path) -> RFModel:
    """Load a checkpoint in fp32, in evaluation mode.

    Raises:
        RFError: not a checkpoint, a damaged file, or weights that do not fit `config.json`: the message lists missing,
            unexpected and misshapen names.
    """
    config = load_config(folder)
    with torch.device("meta"):
        model = RFModel(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tensors: dict[str, torch.Tensor] = {}
    for file, names in _weight_map(folder).items():
        shard = _read_shard(file)
        twice = tensors.keys() & shard.keys()
        if twice:
            raise RFError(f"{file} has tensors that another shard has too ({_some(sorted(twice))}); copy them again")
        if names is not None and names != shard.keys():
            other = _some(sorted(names ^ shard.keys()))
            raise RFError(f"{file} holds other tensors than {INDEX_NAME} says ({other}); copy them all again")
        tensors |= shard
    problems = _differences(expected, tensors)
    if problems:
        raise RFError(f"the weights in {folder} do not fit its config.json: {problems}")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order; raises RFError if one is missing or which ones is not sure."""
    return list(_weight_map(folder))


def _weight_map(folder: Path) -> dict[Path, set[str] | None]:
    """The tensors of every file as the index tells them; None where there is none."""
    files: dict[str, set[str] | None] = {SINGLE_NAME: None}
    if (folder / INDEX_NAME).exists():
        try:
            places = read_json(folder / INDEX_NAME)["weight_map"]
            files = {
                name: {tensor for tensor in places if places[tensor] == name} for name in sorted(set(places.values()))
            }
        except (RFError, KeyError, TypeError, AttributeError) as error:
            raise RFError(f"{folder}/{INDEX_NAME} is damaged ({error!r}); copy the checkpoint again") from None
        if SINGLE_NAME not in files and (folder / SINGLE_NAME).exists():
            raise RFError(
                f"{folder} has {SINGLE_NAME}, and {INDEX_NAME} names other weights: only one of them can be meant. "
                "Move the older one away"
            )
    for name in files:
        # os.path.isfile is False for names that no file can have, where Path.is_file raises.
        if Path(str(name)).name != name or not os.path.isfile(folder / name):  # noqa: PTH113
            raise RFError(f"{folder} lacks {name}; expected safetensors weights there (pickle files are never read)")
    return {folder / name: tensors for name, tensors in files.items()}


def _refuse_pointer(file: Path) -> None:
    """Refuse what git-lfs leaves in place of a file that it has not fetched; raises RFError."""
    with file.open("rb") as stream:
        refuse_lfs_pointer(file, stream.read(len(LFS_START)))


def _read_shard(file: Path) -> dict[str, torch.Tensor]:
    _refuse_pointer(file)
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        header = stream.read(min(header_bytes, MAX_HEADER_BYTES))
    if header_bytes > MAX_HEADER_BYTES:
        raise RFError(
            f"{file} cannot be read as safetensors (a header of {header_bytes} bytes, at most {MAX_HEADER_BYTES} are "
            "read); it may be damaged, copy it again"
        )
    try:
        parse_json(header, "its header")  # the library takes a name that is there twice
        with safe_open(file, framework="pt") as shard:
            return {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # the library raises its own kinds, and torch others for dtypes that it lacks
        raise RFError(f"{file} cannot be read as safetensors ({error}); it may be truncated, copy it again") from None


def _differences(expected: dict[str, torch.Size], found: dict[str, torch.Tensor]) -> str:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shared = [name for name in expected if name in found]
    misshapen = [
        f"{name} {list(found[name].shape)} instead of {list(expected[name])}"
        for name in shared
        if found[name].shape != expected[name]
    ]
    wrong_dtype = [f"{name} {found[name].dtype}" for name in shared if found[name].dtype not in DTYPES]
    groups = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen, "of a wrong dtype": wrong_dtype}
    return "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in groups.items() if names)


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def checkpoint_sha256(folder: Path) -> str:
    """One hash over the config, the weights and the tokenizer, in that order."""
    digest = hashlib.sha256()
    for file in [folder / "config.json", *weight_files(folder), folder / "tokenizer.json"]:
        digest.update(bytes.fromhex(describe_file(file).sha256))
    return digest.hexdigest()


def open_tokenizer(folder: Path, config: ModelConfig) -> PromptTokenizer:
    """The tokenizer of a checkpoint, as the runtime opens that of a bundle; raises RFError if it is not the model's."""
    how = config.understanding
    control_ids = () if how is None else (how.start_id, *how.stop_ids)
    return PromptTokenizer(folder / "tokenizer.json", config.vocab_size, "Add the model's own.", control_ids)


def copy_tokenizer(folder: Path, target: Path, vocab_size: int) -> None:
    """Copy `tokenizer.json`; raises RFError if there is none, it is none, or it makes ids that the model lacks."""
    source = folder / "tokenizer.json"
    if not source.is_file():
        raise RFError(f"{folder} has no tokenizer.json (Hugging Face tokenizers format); add the model's own")
    content = read_limited(source, MAX_TOKENIZER_BYTES)
    try:
        parse_json(content, str(source))  # the library takes a word that is there twice
    except RFError as error:
        raise RFError(f"{error} Add the model's own.") from error
    PromptTokenizer(source, vocab_size, remedy="Add the model's own.")
    shutil.copyfile(source, target)
