"""Prompts to token ids and back, with a Hugging Face `tokenizer.json`. Knows nothing of models and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import RFError

if TYPE_CHECKING:
    from tokenizers import Encoding


class PromptTokenizer:
    """Encodes prompts, and refuses what the model could only misread.

    Args:
        path: A `tokenizer.json`.
        vocab_size: Number of ids that the model knows.

    Raises:
        RFError: The file is no tokenizer, or it makes ids that the model does not know.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise RFError(f"{path} is not a tokenizer: {error}. Export the bundle again.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if max(ids.values(), default=0) >= vocab_size:
            raise RFError(
                f"{path} makes ids up to {max(ids.values())}, and the model knows {vocab_size}. "
                "The tokenizer is not the model's: export the bundle again with the right one."
            )
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self._unknown_id = None if unknown is None else ids.get(unknown)

    def encode(self, prompt: str, max_tokens: int) -> list[int]:
        """The token ids of a prompt; none for an empty one.

        Args:
            prompt: The text.
            max_tokens: The most that the model has positions for.

        Raises:
            RFError: The prompt is too long, or has words that the tokenizer does not know.
        """
        if not prompt.strip():
            return []
        encoding = self._tokenizer.encode(prompt)
        self._refuse_unknown(prompt, encoding)
        if len(encoding.ids) > max_tokens:
            raise RFError(
                f"The prompt has {len(encoding.ids)} tokens and the model takes {max_tokens} for this size "
                f"of picture. Shorten it: {_shortened(prompt)!r}"
            )
        return list(encoding.ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids. One that ends within a character ends with the sign of the unknown."""
        return str(self._tokenizer.decode(list(ids)))

    def _refuse_unknown(self, prompt: str, encoding: "Encoding") -> None:
        if self._unknown_id is None or self._unknown_id not in encoding.ids:
            return
        tokens = zip(encoding.ids, encoding.offsets, strict=True)
        spans = [span for token, span in tokens if token == self._unknown_id]
        parts = [prompt[start:end] for start, end in spans]
        # The word before a sign may be known, so signs are named where there is nothing else to name.
        of_words = [span for span, part in zip(spans, parts, strict=True) if any(map(str.isalnum, part))]
        words = [_word_at(prompt, *span) for span in of_words] or parts
        names = ", ".join(repr(word) for word in dict.fromkeys(words))
        raise RFError(
            f"The model does not know {names} in the prompt {_shortened(prompt)!r}. Use words of its vocabulary."
        )


def _word_at(prompt: str, start: int, end: int) -> str:
    """The whole word around a token: a piece of a word says little to its writer."""
    while start > 0 and not prompt[start - 1].isspace():
        start -= 1
    while end < len(prompt) and not prompt[end].isspace():
        end += 1
    return prompt[start:end].strip(" \t\n,.;:!?\"'()") or prompt[start:end]


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= 80 else prompt[:77] + "..."
