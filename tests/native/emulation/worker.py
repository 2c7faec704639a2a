"""Draws and answers on a machine with an emulated GPU, beside the same library on the CPU; see test_native_gpu.py.

    python worker.py CHECK LIBRARY ONNXRUNTIME BUNDLE [key=value ...]

Each check is a process of its own: the drivers and libraries of a process are opened once. `cpu` and `gpu` are given to
a check opened; the GPU's memory cannot be touched but by copies and kernels, so that a mistake of it ends the process.
"""

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from runtime import AnswerOptions, GenerationOptions, RFError
from runtime.errors import DrawingCancelledError
from runtime.events import TokenEvent
from runtime.native.binding import NativePipeline

PROMPTS = ["a red car", "", "two blue fish", "three green cats and a house"]
MOST = {"difference": 0.0}  # of numbers; tokens and texts are always equal
Open = Callable[..., NativePipeline]


class Gpu:
    """What the emulated driver saw."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._driver.emulated_live.restype = ctypes.c_size_t

    @property
    def live(self) -> int:
        """Bytes that are allocated."""
        return int(self._driver.emulated_live())

    def forget(self) -> None:
        """Count copies from now on."""
        self._driver.emulated_forget()

    def copies(self, kind: str, at_least: int = 0) -> tuple[int, int]:
        """How many copies there were of at least so many bytes, and their bytes; kind: u(p), d(own), c(opy there)."""
        count, num_bytes = ctypes.c_size_t(), ctypes.c_size_t()
        self._driver.emulated_count(
            ctypes.c_char(kind.encode()), ctypes.c_size_t(at_least), ctypes.byref(count), ctypes.byref(num_bytes)
        )
        return count.value, num_bytes.value


def same(a: Any, b: Any) -> None:
    """Events, pictures and answers are equal bit for bit, or as near as the check says."""
    assert type(a) is type(b)
    for name, value in vars(a).items():
        other = getattr(b, name)
        if not isinstance(value, np.ndarray):
            assert value == other, (type(a).__name__, name, value, other)
        elif value.dtype == np.float32:
            assert np.abs(value - other).max() <= MOST["difference"], (type(a).__name__, name)
        else:
            assert np.abs(value.astype(np.int64) - other).max() <= (name == "picture" and MOST["difference"] > 0)


def plans() -> list[dict[str, Any]]:
    """Options over all that changes what is run."""
    steps = (
        {"num_steps": 3},
        {"times": (0.0, 0.3, 1.0), "guided": (0.0, 0.2)},
        {"num_steps": 2, "rep_guidance_scale": 1.0, "pix_guidance_scale": 1.0, "height": 8, "width": 32},
        {"num_steps": 2, "temperature": 0.0},
    )
    return [{**each, "window": window} for each, window in product(steps, (1, 3))]


def draws(cpu: NativePipeline, gpu: NativePipeline, **_: str) -> None:
    """One prompt and several, with and without events."""
    for number, more in enumerate(plans()):
        options = GenerationOptions(**more)
        for prompts in ([PROMPTS[number % 4]], PROMPTS[:3]):
            seed = (0, 2**64 - 3)[number % 2]
            found = gpu.draw_all(prompts, seed=seed, options=options)
            for a, b in zip(cpu.draw_all(prompts, seed=seed, options=options), found, strict=True):
                same(a, b)
    forced = np.where(np.arange(found[0].rep_ids.size) % 2, -1, (found[0].rep_ids + 1) % 40)[None]
    options = GenerationOptions(num_steps=2, temperature=0.0, window=2)
    both = (each.draw_all(PROMPTS[:1], options=options, rep_ids=forced) for each in (cpu, gpu))
    for a, b in zip(*both, strict=True):
        same(a, b)


def tuned(cpu: NativePipeline, gpu: NativePipeline, **_: str) -> None:
    """The plan of few passes that a bundle brings."""
    options = GenerationOptions(plan="tuned")
    both = (each.draw_all(PROMPTS[:2], options=options) for each in (cpu, gpu))
    for a, b in zip(*both, strict=True):
        same(a, b)


def events(cpu: NativePipeline, gpu: NativePipeline, **_: str) -> None:
    """Previews and logits are those of the CPU, and giving up at any of them leaves nothing behind."""
    for window in (1, 3):
        options = GenerationOptions(num_steps=3, window=window)
        both = (list(each.generate(PROMPTS[:2], seed=1, options=options)) for each in (cpu, gpu))
        for a, b in zip(*both, strict=True):
            same(a, b)
    before, total = Gpu().live, 6 + 3
    for stop in range(total):
        seen: list[Any] = []
        try:
            gpu.draw_all(
                PROMPTS[:1],
                options=options,
                on_event=lambda event, s=seen, stop=stop: s.append(event) or len(s) <= stop,
            )
        except DrawingCancelledError:
            assert len(seen) == stop + 1
        assert Gpu().live == before


def answers(cpu: NativePipeline, gpu: NativePipeline, words: str, **_: str) -> None:
    """Conversations: pictures, texts, questions, and the way back."""
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (24, 24, 3), np.uint8) for _ in range(2)]
    options = (
        AnswerOptions(max_tokens=6),
        AnswerOptions(max_tokens=5, temperature=1.0, top_k=5, top_p=0.8),
        AnswerOptions(max_tokens=7, temperature=0.7, repetition_penalty=1.4),
    )
    for option in options:
        with contextlib.closing(cpu.converse()) as one, contextlib.closing(gpu.converse()) as other:
            converse(one, other, pictures, words, option)


def converse(one: Any, other: Any, pictures: list[Any], words: str, option: AnswerOptions) -> None:
    """The same conversation twice."""

    def both(call: Callable[[Any], Any]) -> None:
        a, b = call(one), call(other)
        if a is not None:
            same(a, b)
        assert (one.length, one.num_read) == (other.length, other.num_read)

    for history in ("keep", "forget"):
        picture = pictures[history == "forget"]
        both(lambda each, picture=picture: each.show(picture, height=24, width=24))
        for question in ("", words):
            both(lambda each, q=question, h=history: each.ask(q, seed=7, options=option, history=h))
    both(lambda each: each.rewind(3))
    both(lambda each: each.say(words))
    both(lambda each: each.show(pictures[1], height=24, width=24))
    both(lambda each: each.ask(words, seed=2**64 - 1, options=option))


def threads(cpu: NativePipeline, gpu: NativePipeline, **_: str) -> None:
    """Several threads share the pipeline, and the one stream of the GPU."""
    options, found = GenerationOptions(num_steps=2, window=2), {}

    def draw(seed: int) -> None:
        found[seed] = gpu.draw_all(PROMPTS[:2], seed=seed, options=options)

    workers = [threading.Thread(target=draw, args=(seed,)) for seed in range(6)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    for seed in range(6):
        for a, b in zip(cpu.draw_all(PROMPTS[:2], seed=seed, options=options), found[seed], strict=True):
            same(a, b)


def copies(gpu: NativePipeline, **_: str) -> None:
    """Between steps nothing of the size of the cache or the picture crosses, and nothing but what an event shows."""
    driver, model = Gpu(), gpu.info()["model"]
    height, width = model["default_height"], model["default_width"]
    picture = 3 * height * width * 4
    num_tokens = height * width // (2 * model["patch_size"]) ** 2
    cache = 2 * model["num_layers"] * 2 * model["num_kv_heads"] * model["head_dim"] * 4 * (num_tokens + 1)
    noise = model["rep_vocab_size"] * 4 + 256
    counted = {}
    for num_steps in (2, 12):
        driver.forget()
        gpu.draw_all(PROMPTS[:1], options=GenerationOptions(num_steps=num_steps))
        # The noise of the picture goes up, and the picture comes down.
        assert driver.copies("u", min(picture, cache)) == driver.copies("d", min(picture, cache)) == (1, picture)
        counted[num_steps] = {kind: driver.copies(kind) for kind in "ud"}
    (up, up_bytes), (up_more, up_bytes_more) = counted[2]["u"], counted[12]["u"]
    assert up_more - up == 10  # two times a step
    assert up_bytes_more - up_bytes <= 10 * 2 * 256
    assert counted[2]["d"] == counted[12]["d"]
    # A token: its noise, ids and positions go up, and its id comes down.
    assert counted[2]["d"][0] <= num_tokens + 2 + 1
    assert up_bytes - picture <= (num_tokens + 2) * (noise + 8 * 256) + 16 * noise + model["vocab_size"] * 8
    seen: list[Any] = []
    driver.forget()
    gpu.draw_all(PROMPTS[:1], options=GenerationOptions(num_steps=4), on_event=lambda event: seen.append(event) or True)
    assert driver.copies("d", picture) == (2 * 4 + 1, (2 * 4 + 1) * picture)  # two previews a step
    assert sum(isinstance(each, TokenEvent) for each in seen) == num_tokens


def sentence(open_gpu: Open, status: str, says: str, count: str = "1", **_: str) -> None:
    """Opening, or drawing so many pictures, fails in one sentence."""
    try:
        open_gpu().draw_all(["a red car"] * int(count))
    except (RFError, MemoryError) as error:
        assert getattr(error, "kind", "memory") == status, error
        assert says in str(error), error
    else:
        raise AssertionError("that was not refused")


def main(check: str, library: str, onnxruntime: str, bundle: str, *values: str) -> None:
    """Open what the check takes, and run it."""
    given = dict(each.split("=", 1) for each in values)
    common = {
        "precision": given.pop("precision", "fp32"),
        "dialect": given.pop("dialect", "classic"),
        "num_threads": 1,
        "allow_unverified": True,
        "verify": given.pop("verify", "auto"),
        "library": Path(library),
    }
    names = ("provider", "provider_library", "backend", "backend_library", "engine")
    options = {key: given.pop(key) for key in names if key in given}
    options["onnxruntime"] = given.pop("tensorrt", onnxruntime)
    MOST["difference"] = float(given.pop("difference", "0"))
    if "prompt" in given:
        PROMPTS[:] = [given.pop("prompt")] * len(PROMPTS)

    def open_gpu() -> NativePipeline:
        return NativePipeline.load(bundle, **{**common, **options})

    if check == "sentence":
        return sentence(open_gpu, **given)
    cpu = NativePipeline.load(bundle, engine="none", onnxruntime=onnxruntime, **common)
    live = Gpu().live
    with open_gpu() as gpu:
        globals()[check](cpu=cpu, gpu=gpu, **given)
    assert Gpu().live == live
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
