"""Prompts to token ids and back, with a Hugging Face `tokenizer.json`. Knows nothing of models and pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.bundle.strict_json import read_limited
from runtime.errors import RFError

if TYPE_CHECKING:
    from tokenizers import Encoding

MAX_TOKENIZER_BYTES: Final = 64 << 20  # twice the largest vocabularies that are in use (256,000 words)
MAX_PROMPT_CHARACTERS: Final = 100_000
_NAMED: Final = 8  # unknown words in a message


class PromptTokenizer:
    """Encodes prompts, and refuses what the model could only misread.

    Args:
        path: A `tokenizer.json`.
        vocab_size: Number of ids that the model knows.
        remedy: What to do where the file is none, for the message.

    Raises:
        RFError: The file is no tokenizer, or it makes ids that the model does not know.
    """

    def __init__(self, path: Path, vocab_size: int, *, remedy: str = "Export the bundle again.") -> None:
        from tokenizers import Tokenizer

        content = read_limited(path, MAX_TOKENIZER_BYTES)
        with _refusing(f"{path} is not a tokenizer", remedy):
            self._tokenizer = Tokenizer.from_buffer(content)
        self._vocab_size = vocab_size
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
            RFError: The prompt is too long or no valid text, or has words that the tokenizer does not know.
        """
        if not isinstance(prompt, str):
            raise RFError(f"A prompt must be a text, got {type(prompt).__name__}.")
        if not prompt.strip():
            return []
        if len(prompt) > MAX_PROMPT_CHARACTERS:  # the library would take gigabytes to find that out
            raise RFError(
                f"The prompt has {len(prompt)} characters, and at most {MAX_PROMPT_CHARACTERS} are read. "
                f"Shorten it: {_shortened(prompt)!r}"
            )
        with _refusing(f"The prompt {_shortened(prompt)!r} cannot be read", "Write it in valid Unicode."):
            prompt.encode()  # half of a pair of surrogates is no character
            encoding = self._tokenizer.encode(prompt)
        self._refuse_unknown(prompt, encoding)
        if max(encoding.ids, default=0) >= self._vocab_size:
            raise RFError(
                f"The tokenizer makes id {max(encoding.ids)}, and the model knows {self._vocab_size}. "
                "The tokenizer is not the model's: export the bundle again with the right one."
            )
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
        found = list(dict.fromkeys(_words_at(prompt, of_words) or parts))
        names = ", ".join(map(repr, found[:_NAMED]))
        names += f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise RFError(
            f"The model does not know {names} in the prompt {_shortened(prompt)!r}. Use words of its vocabulary."
        )


@contextmanager
def _refusing(what: str, remedy: str) -> Iterator[None]:
    """Turns what the library raises into an RFError: bare Exceptions, and panics that are no Exceptions at all."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise RFError(f"{what}: {error}. {remedy}") from error


def _words_at(prompt: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The whole words around tokens: a piece of a word says little to its writer. Every character is looked at once."""
    words, seen = [], 0
    for start, end in spans:
        if end <= seen:  # another piece of the word
            continue
        while start > seen and not prompt[start - 1].isspace():
            start -= 1
        while end < len(prompt) and not prompt[end].isspace():
            end += 1
        words.append(prompt[start:end].strip(" \t\n,.;:!?\"'()") or prompt[start:end])
        seen = end
    return words


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= 80 else prompt[:77] + "..."
