"""What a tokenizer loses of a text: by its normaliser, its pre-tokenizer, or its model. Knows nothing of prompts.

    text --normaliser--> text --pre-tokenizer--> pieces --model--> tokens

A BPE without `unk_token` skips what it does not know, a normaliser may delete characters, a pre-tokenizer may drop
delimiters, and none of them says so. Offsets of tokens cannot tell: behind a skipped character they are wrong, and a
token spans what was deleted within it. So each stage is judged by its content. Two probes read a text as the tokenizer
does, one up to the normaliser and one up to the pre-tokenizer, and their model knows every byte.

Other letters for the same text are no loss: case, the Unicode normal forms, replacements, blanks that are collapsed.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Span = tuple[int, int]
_BYTE_TOKENS: Final = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
_METASPACE: Final = "▁"  # what sentencepiece writes for a space
_MAX_CHARACTERS: Final = 300_000  # that are read again to judge one text: less than a second


class _Read(NamedTuple):
    """A character that reached a stage, or an added token, and the part of the text that it stands for."""

    text: str
    start: int
    end: int
    is_added: bool = False


class LostText:
    """Finds what a tokenizer loses of a text.

    Args:
        tokenizer: It must read special tokens as plain text.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._prefix = getattr(tokenizer.model, "continuing_subword_prefix", None) or ""
        self._suffix = getattr(tokenizer.model, "end_of_word_suffix", None) or ""
        self._added = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}
        self._has_byte_tokens = tokenizer.token_to_id("<0x00>") is not None
        self._normaliser = _probe(tokenizer, up_to_pre_tokenizer=False)
        self._pieces = _probe(tokenizer, up_to_pre_tokenizer=True)
        normal, pieces = ("Ġ" in _joined(_characters(each.encode("a a"))) for each in (self._normaliser, self._pieces))
        self._is_byte_level, self._normalises_to_bytes = pieces, normal  # letters stand for bytes, as in GPT-2

    def dropped(self, text: str) -> list[Span]:
        """The parts of a text that its normaliser or pre-tokenizer leaves out, in order; blanks are none."""
        kept, pieces = (_characters(each.encode(text)) for each in (self._normaliser, self._pieces))
        lost = self._deleted(text, kept)
        if not lost and _letters(pieces, self._is_byte_level) != _letters(kept, self._normalises_to_bytes):
            lost = _covered(text, kept) - _covered(text, pieces)
            lost = {index for index in lost or range(len(text)) if not text[index].isspace()}
        return list(_runs(lost))

    def is_read_whole(self, text: str, encoding: "Encoding") -> bool:
        """Whether the model's tokens spell all that the normaliser and the pre-tokenizer left of a text."""
        pieces = _characters(self._pieces.encode(text))
        return _letters(self._spelt(encoding), self._is_byte_level) == _letters(pieces, self._is_byte_level)

    def _spelt(self, encoding: "Encoding") -> list[_Read]:
        """The tokens of a text, without those that a template added, as they are spelt in its middle."""
        kept = [i for i, is_template in enumerate(encoding.special_tokens_mask) if not is_template]
        ids, word_ids = encoding.ids, encoding.word_ids  # each access makes a list
        words = [None, *(word_ids[i] for i in kept), None]
        found = []
        for before, index, word, after in zip(words, kept, words[1:], words[2:], strict=False):
            identity = ids[index]
            token = self._tokenizer.id_to_token(identity) or ""
            if identity in self._added:
                found.append(_Read(token, 0, 0, is_added=True))
            elif self._has_byte_tokens and token in _BYTE_TOKENS:
                found.append(_Read(_BYTE_TOKENS[token].decode("utf-8", "surrogateescape"), 0, 0))
            else:
                token = token.removeprefix(self._prefix) if before == word else token
                found.append(_Read(token.removesuffix(self._suffix) if after != word else token, 0, 0))
        return found

    def _deleted(self, text: str, kept: Sequence[_Read]) -> set[int]:
        """Where the normaliser deletes: what can be left out, or stripped of its accents, without a difference."""
        normal = _joined(kept)
        if _METASPACE not in text and _same_letters(text) == _same_letters(normal):
            return set()
        missing = set(range(len(text))) - _covered(text, kept)
        missing = {index for index in missing if not text[index].isspace()}
        everything = {index for run in _runs(missing) for index in _with_its_like(text, run)}
        lost = missing if self._is_normal_of(_left_out(text, everything), normal) else self._deleted_of(text, missing)
        for each in sorted(set(text)):
            base = _without_accents(each)
            if base not in ("", each) and self._is_normal_of(text.replace(each, base), normal):
                lost = lost | {index for index, other in enumerate(text) if other == each}
        return lost

    def _deleted_of(self, text: str, missing: set[int]) -> set[int]:
        """The characters of `missing` that are deleted; for the others something else is written, such as ” for ''."""
        normal = _joined(_characters(self._normaliser.encode(text)))
        lost: set[int] = set()
        budget = _MAX_CHARACTERS
        for start, end in _runs(missing):
            run = set(range(start, end))
            letters = sorted(set(text[start:end]))
            by_letter = [{i for i in run if text[i] == each} for each in letters] if len(letters) > 1 else []
            for group, left_out in ((run, _with_its_like(text, (start, end))), *zip(by_letter, by_letter, strict=True)):
                budget -= len(text)
                if budget < 0 or self._is_normal_of(_left_out(text, left_out), normal):
                    lost |= group
        return lost

    def _is_normal_of(self, text: str, normal: str) -> bool:
        return _without_blanks(_joined(_characters(self._normaliser.encode(text)))) == _without_blanks(normal)


def _probe(tokenizer: "Tokenizer", *, up_to_pre_tokenizer: bool) -> "Tokenizer":
    """A tokenizer with the same first stages whose model knows every byte."""
    from tokenizers import Tokenizer, models

    probe = Tokenizer(models.BPE({token: byte[0] for token, byte in _BYTE_TOKENS.items()}, [], byte_fallback=True))
    if tokenizer.normalizer is not None:
        probe.normalizer = tokenizer.normalizer
    if up_to_pre_tokenizer and tokenizer.pre_tokenizer is not None:
        probe.pre_tokenizer = tokenizer.pre_tokenizer
    added = tokenizer.get_added_tokens_decoder().values()
    probe.add_special_tokens([token for token in added if token.special])
    probe.add_tokens([token for token in added if not token.special])
    probe.encode_special_tokens = tokenizer.encode_special_tokens
    return probe


def _characters(encoding: "Encoding") -> list[_Read]:
    """The characters that a probe read."""
    found: list[_Read] = []
    pending = b""
    for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        byte = _BYTE_TOKENS.get(token)
        if byte is None:
            found.append(_Read(token, start, end, is_added=True))
            continue
        pending += byte
        if len(pending) == _num_bytes(pending[0]):
            found.append(_Read(pending.decode(), start, end))
            pending = b""
    assert not pending
    return found


def _num_bytes(first: int) -> int:
    """Bytes of a character in UTF-8, from its first one."""
    return 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


def _joined(read: Sequence[_Read]) -> str:
    return "".join(each.text for each in read)


def _letters(read: Sequence[_Read], is_byte_level: bool) -> str:
    """What was read, without blanks, in plain letters also where letters stand for bytes."""
    if is_byte_level:
        pieces = [each.text.encode() if each.is_added else b"".join(map(_bytes_of, each.text)) for each in read]
    else:
        pieces = [each.text.encode("utf-8", "surrogateescape") for each in read]
    return _without_blanks(b"".join(pieces).decode("utf-8", "backslashreplace"))


def _bytes_of(letter: str) -> bytes:
    return _BYTE_LETTERS.get(letter) or letter.encode("utf-8", "surrogateescape")


def spelt_bytes(token: str) -> str:
    """A token of a byte-level vocabulary in plain letters."""
    return b"".join(map(_bytes_of, token)).decode("utf-8", "backslashreplace")


def _covered(text: str, read: Sequence[_Read]) -> set[int]:
    """The characters of a text for which something was read; a blank stands for a blank only."""
    return {
        index
        for each in read
        for index in range(each.start, each.end)
        if (each.text not in (_METASPACE, "Ġ") and not each.text.isspace()) or each.text == text[index]
    }


def _runs(indices: set[int]) -> Iterator[Span]:
    """Neighbours as (first, one behind the last)."""
    start = end = -1
    for index in sorted(indices):
        if index != end:
            if end > start:
                yield start, end
            start = index
        end = index + 1
    if end > start:
        yield start, end


def _with_its_like(text: str, run: Span) -> set[int]:
    """A run; where it is one letter over and over, with those beside it: a normaliser may write one for all of them."""
    start, end = run
    if len(set(text[start:end])) == 1:
        while start and text[start - 1] == text[run[0]]:
            start -= 1
        while end < len(text) and text[end] == text[run[0]]:
            end += 1
    return set(range(start, end))


def _left_out(text: str, indices: set[int]) -> str:
    return "".join(each for index, each in enumerate(text) if index not in indices)


def _without_blanks(text: str) -> str:
    return "".join(text.split()).replace(_METASPACE, "")


def _same_letters(text: str) -> str:
    """The same for texts that differ in case, normal form and blanks only."""
    return _without_blanks(unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold()))


def _without_accents(character: str) -> str:
    parts = unicodedata.normalize("NFD", character)
    return "".join(each for each in parts if not unicodedata.category(each).startswith("M"))


def _byte_of_letters() -> dict[str, bytes]:
    """The bytes that the letters of a byte-level tokenizer stand for (GPT-2, `bytes_to_unicode`)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): bytes([byte]) for byte in plain}
    return letters | {chr(256 + number): bytes([byte]) for number, byte in enumerate(others)}


_BYTE_LETTERS: Final = _byte_of_letters()
