"""Prompts to token ids and back, with a Hugging Face `tokenizer.json`. Knows nothing of models and pictures."""

import contextlib
import difflib
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from runtime.bundle.strict_json import read_limited
from runtime.errors import RFError
from runtime.text.lost_text import LostText, spelt_bytes

if TYPE_CHECKING:
    from tokenizers import Encoding

MAX_TOKENIZER_BYTES: Final = 64 << 20  # twice the largest vocabularies that are in use (256,000 words)
MAX_PROMPT_CHARACTERS: Final = 100_000
TextKind: TypeAlias = Literal["prompt", "question", "text"]
_NAMED: Final = 8  # parts in a message
_MOST_WORDS: Final = 2000  # of a text that are looked at one by one
_MOST_COMPARED: Final = 20_000  # words of a vocabulary that an unknown one is compared with
_LONGEST_WORD: Final = 40  # characters of a word that is compared
_SIGNS: Final = " \t\n,.;:!?\"'()"
_BRACKETS: Final = re.compile(r"\[[^\[\]\s]+\]|<[^<>\s]+>")  # [PAD], <s>, <|end|>
_UNKNOWN_ID: Final = re.compile(rb'(?<!\\)"unk_id"\s*:\s*(\d+)')
_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")


class Vocabulary(NamedTuple):
    """The tokens of a tokenizer as texts, in the order of their ids."""

    words: list[str]  # what begins a word: all that a text can be made of, where words are whole
    pieces: list[str]  # what goes on with a word
    control: list[str]  # what a template or the model alone writes


class PromptTokenizer:
    """Encodes prompts, and refuses what the model could only misread.

    Args:
        path: A `tokenizer.json`.
        vocab_size: Number of ids that the model knows.
        remedy: What to do about a file that is no tokenizer, or another model's.
        control_ids: Ids that stand for a place and not for a text, besides those that the tokenizer itself calls so.

    Raises:
        RFError: The file is no tokenizer, or it makes ids that the model does not know.
    """

    def __init__(
        self, path: Path, vocab_size: int, remedy: str = "Export the bundle again.", control_ids: Collection[int] = ()
    ) -> None:
        from tokenizers import Tokenizer

        content = read_limited(path, MAX_TOKENIZER_BYTES)
        with _refusing(f"{path} is not a tokenizer", remedy):
            self._tokenizer = Tokenizer.from_buffer(content)
        self._vocab_size = vocab_size
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # as plain text: only a template writes them
        for option in ("dropout", "alpha", "nbest_size"):  # of training: other tokens for the same text each time
            if getattr(self._tokenizer.model, option, None) is not None:
                setattr(self._tokenizer.model, option, None)
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if max(ids.values(), default=0) >= vocab_size:
            raise RFError(
                f"{path} makes ids up to {max(ids.values())}, and the model knows {vocab_size}. "
                f"The tokenizer is not the model's. {remedy}"
            )
        self._unknown_id = ids.get(getattr(self._tokenizer.model, "unk_token", None) or "")
        if type(self._tokenizer.model).__name__ == "Unigram" and (match := _UNKNOWN_ID.search(content)):
            self._unknown_id = int(match[1])  # the library keeps it to itself
        self._control_ids = self._find_control_ids(ids, control_ids)
        with _refusing(f"{path} is not a tokenizer", remedy):
            self._lost = LostText(self._tokenizer)

    def encode(self, prompt: str, max_tokens: int, what: TextKind = "prompt") -> list[int]:
        """The token ids of a prompt; none for an empty one.

        Args:
            prompt: The text.
            max_tokens: The most that the model has positions for.
            what: What the text is called in a message.

        Raises:
            RFError: The prompt is too long or no valid text, has words that the tokenizer does not know, has parts that
                the tokenizer leaves out, or spells a control token.
        """
        if not isinstance(prompt, str):
            raise RFError(f"A {what} must be a text, got {type(prompt).__name__}.")
        if not prompt.strip():
            return []
        if len(prompt) > MAX_PROMPT_CHARACTERS:  # the library would take gigabytes to find that out
            raise RFError(
                f"The {what} has {len(prompt)} characters, and at most {MAX_PROMPT_CHARACTERS} are read. "
                f"Shorten it: {_shortened(prompt)!r}"
            )
        shown = f"the {what} {_shortened(prompt)!r}"
        with _refusing(f"T{shown[1:]} cannot be read", "Write it in valid Unicode."):
            prompt.encode()  # half of a pair of surrogates is no character
        try:
            with _refusing(f"T{shown[1:]} cannot be read", "Use words of its vocabulary."):
                encoding = self._tokenizer.encode(prompt)
        except RFError:  # such as a word level without its token for unknown words
            self._refuse_words(prompt, shown)
            raise
        self._refuse_unknown(prompt, encoding, shown)
        if max(encoding.ids, default=0) >= self._vocab_size:
            raise RFError(
                f"The tokenizer makes id {max(encoding.ids)}, and the model knows {self._vocab_size}. "
                "The tokenizer is not the model's: export the bundle again with the right one."
            )
        if len(encoding.ids) > max_tokens:
            place = " for this size of picture" if what == "prompt" else ""
            raise RFError(
                f"The {what} has {len(encoding.ids)} tokens and the model takes {max_tokens}{place}. "
                f"Shorten it: {_shortened(prompt)!r}"
            )
        self._refuse_lost(prompt, encoding, shown)
        return list(encoding.ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids. One that ends within a character ends with the sign of the unknown."""
        return str(self._tokenizer.decode(list(ids)))

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The words that a prompt may have, or is made of."""
        model = self._tokenizer.model
        prefix = getattr(model, "continuing_subword_prefix", None)
        suffix = getattr(model, "end_of_word_suffix", None)
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        mark = next((each for each in ("Ġ", "▁") if any(token.startswith(each) for token in ids)), None)
        vocabulary = Vocabulary([], [], [])
        for token, index in sorted(ids.items(), key=lambda item: item[1]):
            if index in self._control_ids or _BYTE_TOKEN.fullmatch(token):
                vocabulary.control.append(token)
            elif prefix:
                is_piece = token.startswith(prefix)
                (vocabulary.pieces if is_piece else vocabulary.words).append(token.removeprefix(prefix))
            elif suffix:
                is_word = token.endswith(suffix)
                (vocabulary.words if is_word else vocabulary.pieces).append(token.removesuffix(suffix))
            elif mark:
                text = spelt_bytes(token) if mark == "Ġ" else token.replace(mark, " ")
                (vocabulary.words if token.startswith(mark) else vocabulary.pieces).append(text.strip() or text)
            else:
                vocabulary.words.append(token)
        return vocabulary

    def _find_control_ids(self, ids: Mapping[str, int], more: Collection[int]) -> set[int]:
        """What stands for a place in a template, or for what is unknown; in a vocabulary of words also by its look."""
        added = self._tokenizer.get_added_tokens_decoder()
        known = {index for index, token in added.items() if token.special}
        known |= set() if self._unknown_id is None else {self._unknown_id}
        if type(self._tokenizer.model).__name__ == "BPE":  # texts such as [i] and <br> are plain tokens of it
            ids = {token: index for token, index in ids.items() if index in more}
        return known | {index for token, index in ids.items() if index not in added and _looks_like_control(token)}

    def _refuse_lost(self, prompt: str, encoding: "Encoding", shown: str) -> None:
        """Refuse a text of which a part would not reach the model, or would reach it as something else."""
        tokens = zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
        text = [(token, prompt[slice(*span)].strip()) for token, span, is_template in tokens if not is_template]
        names = {token: self._tokenizer.id_to_token(token) for token, _ in text}
        is_byte = {token for token, name in names.items() if name and _BYTE_TOKEN.fullmatch(name)}
        control = [
            part for token, part in text if token in self._control_ids or (token in is_byte and part == names[token])
        ]
        if control:
            raise RFError(
                f"{_listed(control)} in {shown} is a control token of the model and no text. "
                "Leave it out, or write it otherwise."
            )
        with _refusing(f"T{shown[1:]} cannot be read", "Use words of its vocabulary."):
            dropped = [prompt[slice(*span)] for span in self._lost.dropped(prompt)]
            is_whole = bool(text) and self._lost.is_read_whole(prompt, encoding)
        if dropped:
            raise RFError(
                f"The model's tokenizer leaves out {_listed(dropped)} of {shown}, so the model would read another "
                "text. Write it without, or with words of its vocabulary."
            )
        if not is_whole:
            self._refuse_words(prompt, shown)
            raise RFError(f"The model cannot read all of {shown}. Use words of its vocabulary.")

    def _refuse_unknown(self, prompt: str, encoding: "Encoding", shown: str) -> None:
        if self._unknown_id is None or self._unknown_id not in encoding.ids:
            return
        tokens = zip(encoding.ids, encoding.offsets, strict=True)
        spans = [span for token, span in tokens if token == self._unknown_id]
        parts = [prompt[start:end] for start, end in spans]
        # The word before a sign may be known, so signs are named where there is nothing else to name.
        of_words = [span for span, part in zip(spans, parts, strict=True) if any(map(str.isalnum, part))]
        raise self._unknown(_words_at(prompt, of_words) or parts, shown)

    def _refuse_words(self, prompt: str, shown: str) -> None:
        """Refuse the words of a text that the model cannot read whole, each on its own."""
        found = []
        for word in list(dict.fromkeys(prompt.split()))[:_MOST_WORDS]:
            if self._can_read(word):
                continue
            core = word.strip(_SIGNS)
            signs = [sign for sign in dict.fromkeys(word) if not self._can_read(sign)]
            found += [core] if core and not self._can_read(core) else signs if core else [word]
        if found:
            raise self._unknown(found, shown)

    def _can_read(self, text: str) -> bool:
        try:
            with _refusing("", ""):
                encoding = self._tokenizer.encode(text, add_special_tokens=False)
                return self._unknown_id not in encoding.ids and self._lost.is_read_whole(text, encoding)
        except RFError:
            return False

    def _unknown(self, parts: Sequence[str], shown: str) -> RFError:
        parts = list(dict.fromkeys(parts))
        near = {part: self._nearest(part) for part in parts[:_NAMED]}
        hints = [f"for {part!r} {' or '.join(map(repr, words))}" for part, words in near.items() if words]
        nearest = f": {', '.join(hints)}" if hints else ""
        told = f"The model does not know {_listed(parts)} in {shown}. Use words of its vocabulary{nearest}."
        return RFError(f"{told} All of them: rf-export inspect BUNDLE --vocabulary", elsewhere=told)

    def _nearest(self, part: str) -> list[str]:
        normaliser = self._tokenizer.normalizer
        word = part
        with contextlib.suppress(RFError), _refusing("", ""):
            word = part if normaliser is None else normaliser.normalize_str(part)
        if not any(map(str.isalnum, word)) or len(word) > _LONGEST_WORD:
            return []
        words = (each for each in self.vocabulary.words if abs(len(each) - len(word)) <= 2 + len(word) // 4)
        likely = [each for each in words if len(each) > 1][:_MOST_COMPARED]
        return difflib.get_close_matches(word, likely, n=2, cutoff=0.65)


@contextlib.contextmanager
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
        words.append(prompt[start:end].strip(_SIGNS) or prompt[start:end])
        seen = end
    return words


def _looks_like_control(token: str) -> bool:
    return _BRACKETS.fullmatch(token) is not None and _BYTE_TOKEN.fullmatch(token) is None


def _listed(parts: Sequence[str]) -> str:
    different = list(dict.fromkeys(parts))
    more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
    return ", ".join(repr(_shortened(part)) for part in different[:_NAMED]) + more


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= 80 else prompt[:77] + "..."
