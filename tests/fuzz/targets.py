"""What is fuzzed: every reader of a file or text that this project did not write a moment ago.

A target is made in an empty folder, has honest inputs, and reads one input. It raises RFError for what it refuses; any
other exception, an answer after more than seconds, and memory beyond the target's share are faults.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

from fuzz import mutate
from runtime.errors import RFError
from runtime.signature import Variant

ROOT = Path(__file__).parent.parent.parent
WORDS = ("[UNK]", "[BOS]", "[EOS]", "a", "red", "car", "two", "blue", "fish", ".")


class Read(Protocol):
    """Reads one input; raises RFError for what it refuses."""

    def __call__(self, data: bytes) -> object: ...


@dataclass(frozen=True)
class Target:
    """One reader. `memory_mib` is the most that it may take for one input."""

    name: str
    what: str
    make: Callable[[Path], tuple[Read, list[bytes]]]
    change: mutate.Mutate
    memory_mib: int = 400


def write_filler_bundle(folder: Path) -> bytes:
    """A bundle whose graphs are filler, with an engine; returns its manifest."""
    from manifests import sample_manifest

    from engines.build import engine_label
    from runtime.backends.interface import Target as Device
    from runtime.bundle.engine import EngineGraph, EngineRecord
    from runtime.bundle.folder import Bundle, describe_file, write_manifest
    from runtime.signature import GRAPHS

    manifest = sample_manifest()
    for index, name in enumerate(manifest.files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([index]) * (100 + index))
    manifest = manifest.replace(files={name: describe_file(folder / name) for name in manifest.files})
    write_manifest(folder, manifest)
    bundle, device = Bundle(folder, manifest), Device("ort", "1.0 abc", "x86-64 avx")
    engine = folder / "engines" / engine_label(device, Variant("fp32"))
    engine.mkdir(parents=True)
    for name in GRAPHS:
        (engine / f"{name}.onnx").write_bytes(name.encode() * 9)
    EngineRecord(
        target=device,
        precision="fp32",
        dialect="classic",
        bundle_id=manifest.bundle_id,
        graphs={
            name: EngineGraph(file=f"{name}.onnx", source_sha256=bundle.graph_sha256(name, Variant("fp32")))
            for name in GRAPHS
        },
        files={f"{name}.onnx": describe_file(engine / f"{name}.onnx") for name in GRAPHS},
        build={"seconds": 1.5, "options": {"weights": "fixed"}},
        verified={"largest_relative_error": {"denoiser": 0.1}},
    ).write(engine)
    return (folder / "manifest.json").read_bytes()


def _describe(folder: Path) -> str:
    from runtime.commands.inspection import describe_bundle, format_description

    description = describe_bundle(folder, verify="hash")
    json.dumps(description)
    return format_description(description)


def _manifest(folder: Path) -> tuple[Read, list[bytes]]:
    seed = write_filler_bundle(folder)

    def read(data: bytes) -> object:
        (folder / "manifest.json").write_bytes(data)
        return _describe(folder)

    return read, [seed]


def _engine(folder: Path) -> tuple[Read, list[bytes]]:
    from runtime.bundle.engine import check_engine, find_engine, open_engine
    from runtime.bundle.folder import open_bundle

    write_filler_bundle(folder)
    bundle = open_bundle(folder)
    (file,) = folder.glob("engines/*/engine.json")
    seed = file.read_bytes()
    device = open_engine(file.parent).record.target

    def read(data: bytes) -> object:
        file.write_bytes(data)
        _describe(folder)
        find_engine(bundle, Variant("fp32"), device, "hash")
        engine = open_engine(file.parent)
        check_engine(engine, bundle, Variant("fp32"), device, "hash")
        return engine

    return read, [seed]


def _flipped(folder: Path) -> tuple[Read, list[bytes]]:
    """The input says which byte of which file is changed, to what; the fault would be that nobody finds it."""
    write_filler_bundle(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    def read(data: bytes) -> object:
        if len(data) < 12:
            return _describe(folder)
        number = int.from_bytes(data[:12], "little")
        file = files[number % len(files)]
        before = file.read_bytes()
        at, bit = (number >> 16) % len(before), (number >> 64) % 8
        content = bytearray(before)
        content[at] ^= 1 << bit
        file.write_bytes(content)
        try:
            _describe(folder)  # inspect --verify
            is_same = file.suffix == ".json" and _loads(content) == _loads(before)
            assert is_same, f"nobody found a flipped bit in {file.name}, byte {at}"
        finally:
            file.write_bytes(before)
        return None

    return read, [b""]


def _loads(data: bytes | bytearray) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def random_number(_data: bytes, rng: Random) -> bytes:
    """An input of `flipped-byte`."""
    return rng.randbytes(12)


def _checkpoint(folder: Path, name: str) -> tuple[Read, list[bytes]]:
    import torch

    from rf_export.checkpoint import load_checkpoint, save_checkpoint
    from rf_export.config import preset
    from rf_export.model import RFModel

    torch.manual_seed(0)
    torch.set_num_threads(1)
    save_checkpoint(RFModel(preset("tiny")), "{}", folder, torch.float16)
    if name.endswith("index.json"):
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "pt") as file:
            weight_map = dict.fromkeys(file.keys(), "model.safetensors")
        (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    seed = (folder / name).read_bytes()

    def read(data: bytes) -> object:
        (folder / name).unlink()  # a mapped file must not change
        (folder / name).write_bytes(data)
        return load_checkpoint(folder)

    return read, [seed]


def _run(folder: Path) -> tuple[Read, list[bytes]]:
    from rf_export.config import preset
    from rf_export.training.run import _claim
    from rf_export.training.trainer import TrainConfig, Trainer

    trainer = Trainer(TrainConfig(joint_steps=1, describe_steps=0, compile=False), preset("reference"), folder, None)
    seed = json.dumps(trainer.recipe()).encode()

    def read(data: bytes) -> object:
        (folder / "run.json").write_bytes(data)
        return _claim(folder, trainer, resume=True)

    return read, [seed]


def _log(folder: Path) -> tuple[Read, list[bytes]]:
    from rf_export.training.curves import read_log

    row = {
        "step": 1,
        "num_steps": 9,
        "phase": "joint",
        "lm": 1.5,
        "rep": None,
        "fm": 0.5,
        "codes_used": 0.1,
        "cpu_seconds": 2.0,
    }
    seed = "\n".join(json.dumps({**row, "step": step}) for step in range(3)).encode()

    def read(data: bytes) -> object:
        (folder / "log.jsonl").write_bytes(data)
        return read_log(folder)

    return read, [seed]


def tokenizers_of_every_kind() -> list[bytes]:
    """Small tokenizers of the kinds that models have."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    word_level = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    word_level.normalizer = normalizers.Lowercase()
    word_level.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = {letter: i for i, letter in enumerate("abcdefgĠ")}
    bpe = Tokenizer(models.BPE({**letters, "ab": 8}, [("a", "b")]))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex("x+"), "a")])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{L}+|\s+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single="c $A d", special_tokens=[("c", 2), ("d", 3)])
    bpe.add_special_tokens(["ab"])
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)], unk_id=0, byte_fallback=False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    return [each.to_str().encode() for each in (word_level, bpe, unigram, pieces)]


def _tokenizer(folder: Path) -> tuple[Read, list[bytes]]:
    from runtime.text.tokenizer import PromptTokenizer

    def read(data: bytes) -> object:
        (folder / "tokenizer.json").write_bytes(data)
        tokenizer = PromptTokenizer(folder / "tokenizer.json", 67)
        for prompt in ("", "a", "ab", "A ab\u0301 ab"):
            try:
                ids = tokenizer.encode(prompt, 60)
                assert len(ids) <= 60
                assert all(0 <= each < 67 for each in ids)
                tokenizer.decode(ids)
            except RFError:
                pass
        return tokenizer.decode(range(67))

    seeds = tokenizers_of_every_kind()
    reference = ROOT / "examples/reference/checkpoint/tokenizer.json"
    return read, [*seeds, *([reference.read_bytes()] if reference.is_file() else [])]


def _prompt(folder: Path) -> tuple[Read, list[bytes]]:
    from runtime.text.tokenizer import PromptTokenizer

    tokenizers = []
    for number, content in enumerate(tokenizers_of_every_kind()):
        (folder / f"{number}.json").write_bytes(content)
        tokenizers.append(PromptTokenizer(folder / f"{number}.json", 20))

    def read(data: bytes) -> object:
        try:
            prompt = data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            prompt = data.decode("utf-8", "surrogateescape")  # as Python reads the arguments of a command
        errors = []
        for tokenizer in tokenizers:
            try:
                ids = tokenizer.encode(prompt, 50)
                assert len(ids) <= 50
                assert all(0 <= each < 20 for each in ids)
                tokenizer.decode(ids)
            except RFError as error:
                errors.append(error)
        if len(errors) == len(tokenizers):
            raise errors[0]
        return None

    return read, [b"a red car", "a  RED\u2003car".encode(), b"two blue fish"]


def _prompts_file(folder: Path) -> tuple[Read, list[bytes]]:
    from calibration.config import CalibrationConfig
    from calibration.examples import split_prompts
    from runtime.text.prompts import read_prompts

    def read(data: bytes) -> object:
        (folder / "prompts.txt").write_bytes(data)
        return split_prompts(read_prompts(folder / "prompts.txt"), CalibrationConfig(min_prompts=2))

    return read, [b"# comment\na red car\n\ntwo blue fish\nthree cats\n"]


def _parameters(folder: Path) -> tuple[Read, list[bytes]]:
    import numpy as np

    from runtime.pictures.png import read_parameters, save_png

    file = folder / "picture.png"
    save_png(file, np.zeros((4, 6, 3), np.uint8), {"prompt": "a red car", "seed": 7})
    seed = file.read_bytes()

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return json.dumps(read_parameters(file))

    return read, [seed]


def pictures_of_every_kind() -> list[bytes]:
    """Small pictures of the kinds that are read."""
    import numpy as np
    from PIL import Image, features

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 13, 4), np.uint8), "RGBA")
    grey = Image.fromarray(rng.integers(0, 65536, (9, 13), np.uint16))
    chosen = [
        ("PNG", image),
        ("PNG", image.convert("P")),
        ("PNG", grey),
        ("JPEG", image.convert("RGB")),
        ("JPEG", image.convert("CMYK")),
        ("GIF", image.convert("P")),
        ("BMP", image.convert("RGB")),
        ("TIFF", image),
        ("TIFF", grey.convert("F")),
        ("PPM", image.convert("RGB")),
        ("ICO", image),
        ("TGA", image.convert("RGB")),
    ]
    for kind, feature in (("WEBP", "webp"), ("AVIF", "avif"), ("JPEG2000", "jpg_2000")):
        if features.check(feature):
            chosen.append((kind, image.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = []
    for kind, each in chosen:
        file = io.BytesIO()
        each.save(file, kind, **({"exif": exif} if kind in ("PNG", "JPEG") else {}))
        contents.append(file.getvalue())
    return contents


def _picture(folder: Path) -> tuple[Read, list[bytes]]:
    import numpy as np

    from runtime.pictures.load import load_pixels

    def read(data: bytes) -> object:
        pixels = load_pixels(data, 16, 24)
        assert pixels.shape == (3, 16, 24)
        assert np.abs(pixels).max() <= 1
        return pixels

    return read, pictures_of_every_kind()


def change_picture(data: bytes, rng: Random) -> bytes:
    """By chunk where it is a PNG."""
    return mutate.change_png(data, rng) if data[:4] == b"\x89PNG" else mutate.change_bytes(data, rng)


CACHE_KEY: Final = {"graphs": ["a", "b"], "prompts or seeds": "c", "memory limits": 1024}


def _cache(folder: Path) -> tuple[Read, list[bytes]]:
    import numpy as np

    from calibration import recordings as cache
    from calibration.statistics import Activations, coverage_table, missing_coverage

    activations = Activations(4, 3)
    for step in range(3):
        activations.add(step, 0, np.ones((2, 4), np.float32), "x")
    file = folder / "cache.npz"
    recorded = {"denoiser": {"w": activations}, "rep_decoder": {"v": activations}}
    cache.save(file, CACHE_KEY, recorded, cache.Reached(1, 2))
    seed = file.read_bytes()

    def read(data: bytes) -> object:
        file.write_bytes(data)
        recorded, progress = cache.load(file, CACHE_KEY)
        missing_coverage(recorded, ["denoiser"])
        if recorded:
            coverage_table({name: layers for name, layers in recorded.items() if layers})
        return range(progress.passes, progress.prompts)

    return read, [seed]


def _request(folder: Path) -> tuple[Read, list[bytes]]:
    from manifests import sample_manifest

    from runtime.options import AnswerOptions, GenerationOptions
    from runtime.plans import plan_answer
    from runtime.request import check_requests
    from runtime.text.tokenizer import PromptTokenizer

    manifest = sample_manifest()
    (folder / "tokenizer.json").write_bytes(tokenizers_of_every_kind()[0])
    tokenizer = PromptTokenizer(folder / "tokenizer.json", 61)

    def read(data: bytes) -> object:
        content = _loads(data)
        if not isinstance(content, dict):
            return None
        numbers = {name: value for name, value in content.items() if type(value) in (int, float) and name != "seed"}
        whole = {"height", "width", "num_steps", "top_k", "max_tokens"}
        numbers = {name: value for name, value in numbers.items() if name not in whole or type(value) is int}
        names = {"height", "width", "num_steps", "top_k", "temperature", "rep_guidance_scale", "pix_guidance_scale"}
        options = GenerationOptions(**{name: value for name, value in numbers.items() if name in names})
        more = {"max_tokens", "temperature", "top_k", "top_p", "repetition_penalty"}
        plan_answer(AnswerOptions(**{name: value for name, value in numbers.items() if name in more}), manifest)
        prompts, seed = content.get("prompts", ["a"]), content.get("seed", 0)
        if not isinstance(prompts, list) or type(seed) is not int:
            return None
        for request in check_requests(prompts, seed, options, content.get("rep_ids"), manifest, tokenizer):
            request.first_pixels()
        return None

    seed: dict[str, Any] = {
        "prompts": ["a red car"],
        "seed": 7,
        "height": 16,
        "width": 24,
        "num_steps": 4,
        "top_k": 5,
        "temperature": 1.0,
        "rep_guidance_scale": 2.0,
        "pix_guidance_scale": 3.0,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "max_tokens": 5,
    }
    return read, [json.dumps(seed).encode(), json.dumps({**seed, "rep_ids": [[1, 2, 3, 4, 5, 6]]}).encode()]


TARGETS: Final = {
    target.name: target
    for target in (
        Target("manifest", "manifest.json: inspect", _manifest, mutate.change_json),
        Target("engine", "engine.json: inspect, find and open", _engine, mutate.change_json),
        Target("flipped-byte", "any bit of any file of a bundle and its engine", _flipped, random_number),
        Target("tokenizer", "tokenizer.json: load, encode, decode", _tokenizer, mutate.change_json),
        Target("prompt", "a prompt, four kinds of tokenizers", _prompt, mutate.change_text),
        Target("prompts-file", "the prompts of a calibration", _prompts_file, mutate.change_text),
        Target("request", "options, seeds and given tokens of a drawing", _request, mutate.change_json),
        Target("png", "how a picture was made, from its PNG", _parameters, mutate.change_png),
        Target("picture", "a picture of any kind", _picture, change_picture, memory_mib=1200),
        Target("cache", "the cache of a calibration (.npz)", _cache, mutate.change_npz),
        Target(
            "config",
            "config.json of a checkpoint",
            lambda folder: _checkpoint(folder, "config.json"),
            mutate.change_json,
        ),
        Target(
            "safetensors",
            "weights of a checkpoint",
            lambda folder: _checkpoint(folder, "model.safetensors"),
            mutate.change_safetensors,
        ),
        Target(
            "index",
            "the index of shards",
            lambda folder: _checkpoint(folder, "model.safetensors.index.json"),
            mutate.change_json,
        ),
        Target("run", "run.json of a training", _run, mutate.change_json),
        Target("log", "log.jsonl of a training", _log, mutate.change_lines),
    )
}


def fingerprint(data: bytes) -> str:
    """A name for an input."""
    return hashlib.sha256(data).hexdigest()[:12]
