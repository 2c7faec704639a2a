"""A conversation about pictures: texts and images in any order, questions, answers, and the way back.

Knows nothing of libraries that run graphs. What was read stays in a row of keys and values of its own, so a further
question reads its own words alone: no image is encoded twice, and no prompt is read twice. Nothing is shared between
two conversations but the loaded graphs.

The tokens of a conversation are a list; the row holds the keys and values of its first ones. What was said and not yet
read is read together with the next question. One question, as the model was trained on:

    [features of the images][start_id][words of the question][words of the answer][one of stop_ids]
"""

import functools
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime import noise
from runtime.bundle.manifest import UnderstandingDefaults
from runtime.errors import RFError
from runtime.events import AnswerEvent, WordEvent
from runtime.loading import LoadedModel
from runtime.options import AnswerOptions, AnswerPlan
from runtime.pictures.load import Picture, load_pixels
from runtime.plans import plan_answer
from runtime.understanding.answers import answer

History: TypeAlias = Literal["keep", "forget"]


class Conversation:
    """One conversation; belongs to one thread at a time, as a generator does. See `Pipeline.converse`."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._plan = functools.partial(plan_answer, manifest=loaded.manifest)
        self._plan(AnswerOptions())  # refuses a model that answers no questions
        assert loaded.manifest.understanding is not None
        self._format: UnderstandingDefaults = loaded.manifest.understanding
        self._row = loaded.text_row()
        self._ids: list[int] = []  # V + f for image token f of `_features`
        self._features: list[npt.NDArray[Any]] = []  # [d] each; kept so that the way back can go anywhere
        self._is_answering = False

    @property
    def length(self) -> int:
        """Tokens so far, images included: a place to `rewind` to."""
        return len(self._ids)

    @property
    def num_read(self) -> int:
        """Tokens whose keys and values are kept; the others are read with the next question."""
        return self._row.length

    def show(self, *pictures: Picture, height: int | None = None, width: int | None = None) -> None:
        """Add pictures, each fitted into `height` x `width` pixels, or into the model's default size.

        Raises:
            RFError: A file is no picture, or the model reads no pictures of this size.
        """
        self._refuse_while_answering()
        model = self._loaded.manifest.model
        size = model.size_or_default(height, width)
        try:
            model.rep_grid(*size)
        except ValueError as error:
            raise RFError(f"This model reads no pictures of {size[0]} x {size[1]} pixels: {error}.") from error
        pixels = [load_pixels(picture, *size) for picture in pictures]
        rows = [row for each in pixels for row in self._encode(each)]
        self._require_room(len(rows))
        first = model.vocab_size + len(self._features)
        self._ids += range(first, first + len(rows))
        self._features += rows

    def say(self, text: str) -> None:
        """Add a text that is no question; raises RFError for one that the model cannot read whole."""
        self._refuse_while_answering()
        ids = self._loaded.tokenizer.encode(text, self._loaded.manifest.model.max_positions, "text")
        self._require_room(len(ids))
        self._ids += ids

    def ask(
        self,
        question: str = "",
        *,
        seed: int = 0,
        options: AnswerOptions | None = None,
        history: History = "keep",
        token_ids: Sequence[int] | None = None,
    ) -> Generator[WordEvent | AnswerEvent, None, None]:
        """Ask, and report each token of the answer; an empty question asks for a caption.

        Everything is checked by the call; the work begins with the first `next`. An answer that is given up, by closing
        the generator or by an error, leaves the conversation as it was before the question.

        Args:
            question: Its words.
            seed: Of the noise that tokens are drawn with; a greedy answer has none.
            options: How to answer.
            history: "keep" lets the conversation go on after the answer; "forget" leaves it as it was before the
                question, its images read, for the next one about the same: what a model needs that was trained on
                single questions.
            token_ids: An answer to go on with instead of the tokens that are drawn, which the events still tell: to
                compare two models after the same history.

        Returns:
            A generator of a `WordEvent` per token and an `AnswerEvent` at the end.

        Raises:
            RFError: Words or options that the model cannot take, or no room for them.
        """
        self._refuse_while_answering()
        if not 0 <= seed <= noise.MAX_SEED:
            raise RFError(f"seed must be 0 to 2**64 - 1, got {seed}.")
        plan = self._plan(options or AnswerOptions())
        if token_ids is not None:
            if not token_ids or not 0 <= min(token_ids) <= max(token_ids) < self._loaded.manifest.model.vocab_size:
                raise RFError("token_ids must be at least one id that the model knows.")
            plan = replace(plan, max_tokens=len(token_ids))
        words = self._loaded.tokenizer.encode(question, self._loaded.manifest.model.max_positions, "question")
        self._require_room(1 + len(words) + plan.max_tokens - 1)
        asked = [self._format.start_id, *words]
        return self._answer(question, asked, plan, seed, history, token_ids, len(self._ids))

    def rewind(self, length: int) -> None:
        """Go back to when the conversation had `length` tokens.

        Raises:
            RFError: It never had, or an answer is being given.
        """
        self._refuse_while_answering()
        if not 0 <= length <= len(self._ids):
            raise RFError(f"A conversation of {len(self._ids)} tokens cannot be rewound to {length}.")
        self._rewind(length)

    def _rewind(self, length: int) -> None:
        del self._ids[length:]
        vocabulary = self._loaded.manifest.model.vocab_size
        num_features = sum(each >= vocabulary for each in self._ids)
        del self._features[num_features:]
        self._row.rewind(min(self._row.length, length))

    def _answer(
        self,
        question: str,
        asked: list[int],
        plan: AnswerPlan,
        seed: int,
        history: History,
        forced: Sequence[int] | None,
        base: int,
    ) -> Generator[WordEvent | AnswerEvent, None, None]:
        self._refuse_while_answering()
        if base != len(self._ids):
            raise RFError("The conversation went on since this question was asked. Ask it again.")
        self._is_answering = True
        self._ids += asked
        drawn: list[int] = []
        is_complete = False
        try:
            prompt, features = self._unread()
            fill_noise = functools.partial(_fill_gumbel, seed)
            shown = ""
            stop_ids = self._format.stop_ids
            for step in answer(self._row, prompt, features, plan, fill_noise, stop_ids=stop_ids, forced=forced):
                drawn.append(step.token_id if forced is None else forced[step.step])
                text = self._loaded.tokenizer.decode(self._words(drawn))
                new = text.removeprefix(shown) if text.startswith(shown) and not text.endswith("\ufffd") else ""
                shown += new
                if not np.isfinite(step.logits).all():
                    raise RFError(
                        f"The numbers overflowed in {self._loaded.variant.precision}: the answer means nothing. "
                        "Use precision fp32.",
                        "overflow",
                    )
                yield WordEvent(step.step, plan.max_tokens, step.token_id, new, step.logits)
            self._ids += drawn
            is_complete = True
        finally:
            self._is_answering = False
            if not is_complete or history == "forget":
                self._rewind(base)
        reason: Literal["stop", "length"] = "stop" if drawn[-1] in self._format.stop_ids else "length"
        yield AnswerEvent(question, self._loaded.tokenizer.decode(self._words(drawn)), drawn, seed, reason)

    def _unread(self) -> tuple[list[int], npt.NDArray[Any]]:
        """The ids that are still to be read, with image tokens counted from 0, and the features of these."""
        vocabulary = self._loaded.manifest.model.vocab_size
        prompt, features = [], []
        for token in self._ids[self._row.length :]:
            if token >= vocabulary:
                features.append(self._features[token - vocabulary])
                token = vocabulary + len(features) - 1
            prompt.append(token)
        return prompt, np.array(features)

    def _words(self, drawn: list[int]) -> list[int]:
        return [token for token in drawn if token not in self._format.stop_ids]

    def _encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """[N, d] the tokens of an image."""
        outputs = self._loaded.sessions["vision_encoder"].run({"pixels": pixels[None]})
        features: npt.NDArray[Any] = outputs["image_features"][0]
        if not np.isfinite(features).all():
            raise RFError(
                f"The numbers overflowed in {self._loaded.variant.precision}. Use precision fp32.", "overflow"
            )
        return features

    def _require_room(self, num_tokens: int) -> None:
        self._row.reserve(len(self._ids) - self._row.length + num_tokens)

    def _refuse_while_answering(self) -> None:
        if self._is_answering:
            raise RFError("An answer is being given. Read it to its end, or close it, before going on.", "busy")


def _fill_gumbel(seed: int, step: int, out: npt.NDArray[np.float32]) -> None:
    out[:] = noise.gumbel(seed, step, len(out), noise.TEXT_STAGE)
