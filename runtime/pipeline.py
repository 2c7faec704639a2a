"""Texts in, pictures out: loads a bundle and runs its stages.

Knows nothing of libraries that run graphs, and nothing of how graphs are made.
"""

import functools
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from runtime import noise
from runtime.backends import Backend, Session, create_backend
from runtime.bundle import Bundle, Verify, open_bundle
from runtime.cache import KVCache
from runtime.engine import Engine, find_engine, open_engine, use_engine
from runtime.errors import RFError
from runtime.events import Event, PictureEvent, to_picture
from runtime.options import DrawingPlan, GenerationOptions, plan_drawing
from runtime.schedule import timesteps
from runtime.signature import GRAPHS, Dialect, GraphName, Precision, check_signature
from runtime.stages import denoise, draw_tokens, prefill
from runtime.tokenizer import PromptTokenizer


class Pipeline:
    """A loaded bundle.

    Threads: a pipeline holds no state of a request. Every `generate` has its own cache and buffers, so that
    several threads may draw with one pipeline at the same time, and a drawing that was given up leaves
    nothing behind. One generator belongs to one thread at a time, as any generator.

    Attributes:
        bundle: The bundle.
        precision: The precision that runs.
        dialect: The dialect of the graphs that run.
        engine: The engine in use, or None for the ONNX graphs.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        engine: Engine | None,
        sessions: dict[GraphName, Session],
        dialect: Dialect = "classic",
    ) -> None:
        self.bundle = bundle
        self.precision: Precision = precision
        self.dialect: Dialect = dialect
        self.engine = engine
        self._sessions = sessions
        manifest = bundle.manifest
        self._tokenizer = PromptTokenizer(bundle.file(manifest.tokenizer), manifest.model.vocab_size)

    @classmethod
    def load(
        cls,
        path: str | Path,
        precision: Precision = "fp32",
        backend: str = "ort",
        num_threads: int | None = None,
        engine: Literal["auto", "none"] | Path = "auto",
        verify: Verify = "auto",
        dialect: Dialect = "classic",
    ) -> Self:
        """Load a bundle.

        Args:
            path: The bundle.
            precision: The graphs to run.
            backend: What runs them.
            num_threads: Threads per run; None leaves it to the backend.
            engine: "auto" takes the bundle's engine where one fits and the ONNX graphs otherwise; "none"
                takes the ONNX graphs; a path takes that engine or refuses.
            verify: How the files that are read are checked, as in `Bundle.verify`.
            dialect: The graphs to run; engines are built from the classic ones.

        Raises:
            RFError: Says what is missing, damaged or does not fit.
        """
        bundle = open_bundle(path)
        runner = create_backend(backend)
        if dialect != "classic" and engine == "auto":
            engine = "none"
        chosen = _choose_engine(bundle, precision, runner, engine, verify)
        if chosen and dialect != "classic":
            raise RFError(f"The engine {chosen.path} was built from classic graphs, and {dialect} was asked for.")
        entries = {name: bundle.graph(name, precision, dialect) for name in GRAPHS}
        needed = [] if chosen else [file for entry in entries.values() for file in entry.files]
        bundle.verify([*needed, bundle.manifest.tokenizer], verify)
        sessions: dict[GraphName, Session] = {}
        for name, entry in entries.items():
            file = chosen.file(name) if chosen else bundle.file(entry.file)
            sessions[name] = runner.open(file, num_threads=num_threads, compiled=chosen is not None)
            check_signature(entry.signature, sessions[name].signature, str(file))
        return cls(bundle, precision, chosen, sessions, dialect)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        options: GenerationOptions | None = None,
        rep_ids: npt.ArrayLike | None = None,  # [R, N]
    ) -> Generator[Event, None, None]:
        """Draw a picture for every prompt, all of them together, and report each step.

        Everything is checked by the call; the work begins with the first `next`. Closing the generator, or
        dropping it, cancels the drawing after the step that runs.

        Args:
            prompts: One text per picture; an empty one draws without a text.
            seed: Prompt i uses seed + i, and looks the same alone with that seed, up to rounding.
            options: How to draw.
            rep_ids: Representation tokens to use instead of drawing them: to edit a picture's, or to compare.

        Returns:
            A generator of N `TokenEvent`s, `num_steps` `StepEvent`s and a `PictureEvent` per prompt.

        Raises:
            RFError: A prompt or an option that the model cannot take. The generator raises it too, where
                the numbers overflow.
        """
        if isinstance(prompts, str) or not prompts:
            raise RFError('Give the prompts as a list of at least one text: generate(["a red car"]).')
        if not 0 <= seed <= noise.MAX_SEED - len(prompts) + 1:
            raise RFError(f"seed must be 0 to 2**64 - {len(prompts)} for {len(prompts)} prompts, got {seed}.")
        plan = plan_drawing(options or GenerationOptions(), self.bundle.manifest)
        ids = [self._tokenizer.encode(prompt, self._max_prompt_tokens(plan)) for prompt in prompts]
        forced = None if rep_ids is None else self._check_rep_ids(rep_ids, (len(prompts), plan.num_rep_tokens))
        return self._draw(tuple(prompts), ids, seed, plan, forced)

    def draw(self, prompt: str, *, seed: int = 0, options: GenerationOptions | None = None) -> npt.NDArray[np.uint8]:
        """Draw one picture: [height, width, 3], red, green and blue from 0 to 255; see `generate`."""
        *_, last = self.generate([prompt], seed=seed, options=options)
        assert isinstance(last, PictureEvent)
        return last.picture

    def _draw(
        self,
        prompts: tuple[str, ...],
        ids: list[list[int]],
        seed: int,
        plan: DrawingPlan,
        forced: npt.NDArray[np.int64] | None,
    ) -> Generator[Event, None, None]:
        model, sampling = self.bundle.manifest.model, self.bundle.manifest.sampling
        seeds = [seed + index for index in range(len(prompts))]
        num_slots = self._fixed_slots or max(map(len, ids)) + plan.num_rep_tokens + 1
        cache = KVCache(model, self.precision, 2 * len(prompts), num_slots, self.dialect)
        row_starts = prefill(self._sessions["text_decoder"], ids, cache)

        tokens = []
        fill = functools.partial(_fill_gumbel, seeds)
        decoder = self._sessions["rep_decoder"]
        for event in draw_tokens(decoder, plan, cache, row_starts, model.rep_start_id, fill, forced):
            tokens.append(event.rep_ids)
            yield event

        num_patches = 4 * plan.num_rep_tokens
        times = timesteps(
            plan.num_steps,
            num_patches,
            shift=sampling.shift,
            shift_base_patches=sampling.shift_base_patches,
        )
        pixels = np.stack([noise.normal(each, (3, plan.height, plan.width)) for each in seeds])
        yield from denoise(self._sessions["denoiser"], plan, cache, row_starts, times, pixels)

        if not np.isfinite(pixels).all():
            raise RFError(
                f"The numbers overflowed in {self.precision}: the picture is not finite. "
                "Use precision fp32, or a smaller guidance scale."
            )
        rep_ids = np.stack(tokens, axis=1) if forced is None else forced  # [R, N]
        for index, prompt in enumerate(prompts):
            picture = to_picture(pixels[index])
            yield PictureEvent(index, prompt, seeds[index], picture, pixels[index].copy(), rep_ids[index].copy())

    @property
    def _fixed_slots(self) -> int | None:
        return self._sessions["rep_decoder"].signature.cache_slots

    def _max_prompt_tokens(self, plan: DrawingPlan) -> int:
        """Tokens that a prompt may have; raises RFError where the picture alone is too large for the cache."""
        # Positions: the text, the start token, N tokens, and one that all pixel patches share.
        positions = self.bundle.manifest.model.max_positions - plan.num_rep_tokens - 2
        if self._fixed_slots is None:
            return positions
        if self._fixed_slots <= plan.num_rep_tokens:
            raise RFError(
                f"These graphs have {self._fixed_slots} cache slots, and a picture of {plan.height} x {plan.width} "
                f"takes {plan.num_rep_tokens + 1}. Draw a smaller one, or export with more --cache-slots."
            )
        return min(positions, self._fixed_slots - plan.num_rep_tokens - 1)

    def _check_rep_ids(self, rep_ids: npt.ArrayLike, shape: tuple[int, int]) -> npt.NDArray[np.int64]:
        values, limit = np.array(rep_ids), self.bundle.manifest.model.rep_vocab_size
        if values.shape != shape or values.dtype.kind not in "iu":
            raise RFError(f"rep_ids must be whole numbers of shape {shape}, got {values.dtype} {values.shape}.")
        if values.min() < 0 or values.max() >= limit:
            raise RFError(f"rep_ids must be 0 to {limit - 1}, got {values.min()} to {values.max()}.")
        return values.astype(np.int64)


def _fill_gumbel(seeds: list[int], step: int, out: npt.NDArray[np.float32]) -> None:
    for row, seed in enumerate(seeds):
        out[row] = noise.gumbel(seed, step, out.shape[1])


def _choose_engine(
    bundle: Bundle, precision: Precision, backend: Backend, choice: str | Path, verify: Verify
) -> Engine | None:
    if choice == "none":
        return None
    if choice == "auto":
        return find_engine(bundle, precision, backend.target(), verify)
    engine = open_engine(Path(choice))
    use_engine(engine, bundle, precision, backend.target(), verify)
    return engine
