"""Tokenizers of the kinds that hosts in other languages read by themselves, and texts that such readers get wrong.

Knows nothing of who reads them.
"""

from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from runtime.errors import RFError
from runtime.text.tokenizer import PromptTokenizer

SPLITS = {
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
CORPUS = [
    "a red car and two blue fish, don't stop",
    "l'été à Paris — 1234 fois",
    "Über Größe 12345",
    "日本語の車",
    "x\n\n  y",
]
PARTS = [
    *(
        "a",
        "red",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "'s",
        "'LL",
        "'ſ",
        "don't",
        "é",
        "e\u0301",
        "ﬁ",
        "한",
        "\u1112\u1161\u11ab",
    ),
    *(
        "1",
        "23",
        "4567",
        "٣",
        "½",
        "Ⅷ",
        "!",
        "?!\n",
        "...",
        "—",
        "🚗",
        "👨‍👩‍👧",
        "車",
        "ä",
        "\u00a0",
        "\u3000",
        "_",
        "<think>",
    ),
    *("\u0301", "\u0323\u0301", "İ", "ß", "Σ", "<", "think>", "\u2028", "\u0085", "\u200d", "Å", "क्षि"),
]


def byte_level(split: str, prefix: bool = False) -> Tokenizer:
    """A BPE over bytes with the pattern of GPT-2, Qwen or Llama 3, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    if split == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    else:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLITS[split]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


def texts(count: int) -> Iterator[str]:
    """The sentences, and others of parts of all scripts."""
    rng = Random(4)
    yield from CORPUS
    for _ in range(count):
        yield "".join(rng.choice(PARTS) for _ in range(rng.choice((1, 2, 5, 20, 60))))


def word_level() -> Tokenizer:
    """A vocabulary of whole words, in small letters."""
    vocabulary = {"[UNK]": 0, "a": 1, "red": 2, "é": 3, "!": 4, "23": 5, "ä": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    return tokenizer


def known_texts(count: int) -> Iterator[str]:
    """Texts of its words."""
    rng, words = Random(3), ["a", "red", "É", "!", "23", "Ä", " ", "\n", "\u00a0"]
    for _ in range(count):
        yield " ".join(rng.choice(words) for _ in range(rng.choice((1, 3, 9))))


def other_kinds() -> Iterator[Tokenizer]:
    """Of models that no such host reads."""
    for model in (models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"), models.Unigram([("a", -1.0)])):
        yield Tokenizer(model)


def compare_readings(python: PromptTokenizer, every: Iterable[str], found: Iterable[list[Any]]) -> tuple[int, int]:
    """Compare what a host read of texts with the Python runtime's reading; how many both read, and both refused.

    Args:
        python: Reads the same file.
        every: Texts.
        found: For each its ids and the text that they become again, or one sentence.
    """
    read = refused = 0
    for text, host in zip(every, found, strict=True):
        try:
            ids = python.encode(text, 1 << 20, "text")
        except RFError as error:
            assert len(host) == 1, (text, str(error), host)
            refused += 1
            continue
        assert host == [ids, python.decode(ids)], text
        read += 1
    return read, refused
