"""Text that a tokenizer would lose is refused, whatever the tokenizer is made of; other spellings of it are not."""

import contextlib
import json
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from runtime.errors import RFError
from runtime.text.tokenizer import PromptTokenizer, _listed

WORDS = ("a", "red", "car", "blue", "fish", ".")
MERGES = [("r", "e"), ("re", "d"), ("c", "a"), ("ca", "r")]
LETTERS = [*"abcdefhilrsu.", "re", "red", "ca", "car"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def numbered(tokens):
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def bpe(tokens=LETTERS, merges=MERGES, **options):
    return Tokenizer(models.BPE(numbered(tokens), merges, **options))


def split_at_blanks(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def word_level():
    return split_at_blanks(Tokenizer(models.WordLevel(numbered(("[UNK]", *WORDS)), unk_token="[UNK]")))


def word_level_without_unknown():
    return split_at_blanks(Tokenizer(models.WordLevel(numbered(WORDS), unk_token="[UNK]")))


def word_pieces():
    tokens = ("[UNK]", *WORDS, *(f"##{letter}" for letter in "abcdefhilrsu."))
    tokenizer = split_at_blanks(Tokenizer(models.WordPiece(numbered(tokens), unk_token="[UNK]")))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def bpe_without_unknown():
    return split_at_blanks(bpe())


def bpe_of_whole_texts():
    return bpe()  # no pre-tokenizer: it drops the blanks too


def bpe_with_unknown():
    return split_at_blanks(bpe(["<unk>", *LETTERS], unk_token="<unk>", fuse_unk=True))


def bpe_with_suffix():
    tokens = [*"abcdefhilrsu.", *(f"{letter}</w>" for letter in "abcdefhilrsu."), "re", "red</w>"]
    tokenizer = split_at_blanks(bpe(tokens, [("r", "e"), ("re", "d</w>")], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def bpe_with_prefix():
    tokens = [*"abcdefhilrsu.", *(f"##{letter}" for letter in "abcdefhilrsu."), "re"]
    tokenizer = split_at_blanks(bpe(tokens, [("r", "##e")], continuing_subword_prefix="##"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def bpe_of_bytes(letters=None):
    tokenizer = bpe([*(letters or sorted(pre_tokenizers.ByteLevel.alphabet())), "re", "red"], MERGES[:2])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def bpe_of_some_bytes():
    return bpe_of_bytes("abcdefhilrsu.Ġ")


def bpe_with_byte_fallback(tokens=BYTES):
    tokenizer = bpe([*tokens, *LETTERS, "▁"], byte_fallback=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def bpe_with_some_bytes_to_fall_back_to():
    return bpe_with_byte_fallback(BYTES[:128])


def unigram(byte_fallback=False):
    tokens = [("<unk>", 0.0), *((byte, -9.0) for byte in BYTES if byte_fallback), ("▁", -3.0), ("▁red", -1.0)]
    tokens += [(letter, -2.0) for letter in "abcdefhilrsu."]
    tokenizer = Tokenizer(models.Unigram(tokens, unk_id=0, byte_fallback=byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def unigram_with_byte_fallback():
    return unigram(byte_fallback=True)


KINDS = (
    word_level,
    word_level_without_unknown,
    word_pieces,
    bpe_without_unknown,
    bpe_of_whole_texts,
    bpe_with_unknown,
    bpe_with_suffix,
    bpe_with_prefix,
    bpe_of_bytes,
    bpe_of_some_bytes,
    bpe_with_byte_fallback,
    bpe_with_some_bytes_to_fall_back_to,
    unigram,
    unigram_with_byte_fallback,
)
FOLDS = {
    "nothing": None,
    "lower case": normalizers.Lowercase(),
    "NFC": normalizers.NFC(),
    "NFD": normalizers.NFD(),
    "NFKC and lower case": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
    "strip": normalizers.Strip(),
    "one blank": normalizers.Replace(Regex(r"\s+"), " "),
}
LOSSES = {
    "digits": normalizers.Replace(Regex(r"\d"), ""),
    "digits become blanks": normalizers.Replace(Regex(r"\d+"), " "),
    "a word": normalizers.Replace("fish", ""),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "as BERT does": normalizers.BertNormalizer(),
    "as NMT does": normalizers.Nmt(),
}
NORMALISERS = {**FOLDS, **LOSSES}


def opened(tokenizer, folder):
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    return PromptTokenizer(folder / "tokenizer.json", 600)


def with_normaliser(tokenizer, normaliser):
    own = tokenizer.normalizer
    if normaliser is not None:
        tokenizer.normalizer = normaliser if own is None else normalizers.Sequence([normaliser, own])
    return tokenizer


def letters(text):
    """What is the same in all spellings of a text."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(folded.split())


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        (make, name): opened(with_normaliser(make(), normaliser), folder)
        for make in KINDS
        for name, normaliser in NORMALISERS.items()
    }


texts = st.lists(
    st.sampled_from(
        [*WORDS, "Red", "caf\u00e9", "cafe\u0301", "zebra", "5", "fish5", "\u200b", "日", "🚗", "<0x41>", "[UNK]"]
    )
    | st.text("aredcfishé!0\u0301ｶﾞ\u1100\u1161\x07▁Ġ <>", max_size=6)
    | st.text(max_size=4),
    max_size=6,
).map(" ".join)


def check_that_all_is_read(tokenizer, text):
    try:
        ids = tokenizer.encode(text, 500)
    except RFError as error:
        assert "\n" not in str(error)
        return
    assert bool(ids) == bool(text.strip())
    if "▁" not in text:  # which is how many tokenizers write a blank
        assert letters(tokenizer.decode(ids)) == letters(text)


@settings(max_examples=400, deadline=None)
@given(text=texts, make=st.sampled_from(KINDS), normaliser=st.sampled_from(sorted(NORMALISERS)))
def test_what_is_read_is_the_whole_text(tokenizers, text, make, normaliser):
    check_that_all_is_read(tokenizers[make, normaliser], text)


@pytest.mark.parametrize("text", ["red caf\u00e9", "az r", "zab ab", "\u200b", "<0x41>", "a▁b", "▁", "\x1c", "a\tred"])
def test_all_of_an_odd_text_is_read(tokenizers, text):
    for tokenizer in tokenizers.values():
        check_that_all_is_read(tokenizer, text)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("text", ["a red car .", "  a  red   car ", "red"])
def test_words_of_the_vocabulary_are_read(make, fold, text, tmp_path):
    assert opened(with_normaliser(make(), FOLDS[fold]), tmp_path).encode(text, 50)


@pytest.mark.parametrize("text", ["A RED Car", "Ａ ｒｅｄ ｃａｒ"])
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_another_spelling_of_known_words_is_read(make, text, tmp_path):
    tokenizer = opened(with_normaliser(make(), FOLDS["NFKC and lower case"]), tmp_path)
    assert tokenizer.encode(text, 50) == tokenizer.encode("a red car", 50)


@pytest.mark.parametrize(
    "make", [each for each in KINDS if "byte" not in each.__name__], ids=lambda make: make.__name__
)
@pytest.mark.parametrize(
    ("text", "part"),
    [("a red zzz", "'zzz'"), ("a red zzz, zzz", "'zzz'"), ("a 日本", "'日本'"), ("red \x07", r"'\\x07'")],
)
def test_an_unknown_word_is_named(make, text, part, tmp_path):
    with pytest.raises(RFError, match=f"does not know {part}"):
        opened(make(), tmp_path).encode(text, 50)


@pytest.mark.parametrize(
    ("make", "part"), [(bpe_of_some_bytes, "é"), (bpe_with_some_bytes_to_fall_back_to, "é"), (bpe_of_some_bytes, "🚗")]
)
def test_a_character_of_which_bytes_are_missing_is_named(make, part, tmp_path):
    with pytest.raises(RFError, match=f"does not know '{part}'"):
        opened(make(), tmp_path).encode(f"a red {part}", 50)


@pytest.mark.parametrize("make", [bpe_of_bytes, bpe_with_byte_fallback, unigram_with_byte_fallback])
@pytest.mark.parametrize("text", ["café", "日本 🚗", "a\u200bred", "\u0001", "Ġ", "a\u00a0red"])
def test_a_tokenizer_that_knows_every_byte_reads_every_text(make, text, tmp_path):
    assert opened(make(), tmp_path).encode(text, 50)


@pytest.mark.parametrize(
    ("normaliser", "text", "part"),
    [
        (LOSSES["digits"], "a red car5", "'5'"),
        (LOSSES["digits"], "5 red 66", "'5', '66'"),
        (LOSSES["digits become blanks"], "a 5 red car", "'5'"),
        (LOSSES["a word"], "a red fish", "'fish'"),
        (LOSSES["accents"], "a réd cár", "'é', 'á'"),
        (LOSSES["accents"], "a re\u0301d car", "'\u0301'"),
        (LOSSES["as BERT does"], "a\u200b red", r"'\\u200b'"),
        (LOSSES["as BERT does"], "a réd", "'é'"),
        (LOSSES["as NMT does"], "a\x07 red", r"'\\x07'"),
        (normalizers.Sequence([normalizers.Replace("''", '"'), LOSSES["digits"]]), "a ''5 red", "'5'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [bpe_without_unknown, bpe_of_bytes, unigram_with_byte_fallback])
def test_what_a_normaliser_deletes_is_named(make, normaliser, text, part, tmp_path):
    with pytest.raises(RFError, match=f"leaves out {part} of the prompt"):
        opened(with_normaliser(make(), normaliser), tmp_path).encode(text, 50)


@pytest.mark.parametrize(
    ("normaliser", "text"),
    [
        (normalizers.Replace("''", '"'), "a ''red'' car"),
        (normalizers.Replace(Regex("x+"), "a"), "xxx red x"),
        (normalizers.Replace("é", "ee"), "caféé"),
        (normalizers.Replace("…", "..."), "a red…"),
        (normalizers.NFC(), "cafe\u0301 \u1112\u1161\u11ab"),
        (normalizers.NFKC(), "ｶﾞ ① ﬁ"),
        (normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("''", '"')]), "ｶﾞ ''e\u0301''"),
    ],
    ids=str,
)
def test_what_a_normaliser_replaces_is_no_loss(normaliser, text, tmp_path):
    assert opened(with_normaliser(bpe_of_bytes(), normaliser), tmp_path).encode(text, 100)


@pytest.mark.parametrize(
    ("pre_tokenizer", "text", "part"),
    [
        (pre_tokenizers.Split(Regex("[!-]"), "removed"), "a-red!", "'-', '!'"),
        (pre_tokenizers.CharDelimiterSplit(","), "a,red", "','"),
        (pre_tokenizers.Punctuation("removed"), "a red (car)", r"'\(', '\)'"),
        (pre_tokenizers.Split(Regex("red|blue"), "removed"), "a red car", "'red'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [bpe_of_bytes, bpe_with_byte_fallback, unigram_with_byte_fallback])
def test_a_delimiter_that_is_dropped_is_named(make, pre_tokenizer, text, part, tmp_path):
    tokenizer = make()
    own = [tokenizer.pre_tokenizer] if tokenizer.pre_tokenizer is not None else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizer, *own])
    with pytest.raises(RFError, match=f"leaves out {part} of the prompt"):
        opened(tokenizer, tmp_path).encode(text, 50)


def test_a_template_without_the_text_is_refused(tmp_path):
    tokenizer = bpe_without_unknown()
    tokenizer.post_processor = processors.TemplateProcessing(single="a", special_tokens=[("a", 0)])
    with pytest.raises(RFError, match="the prompt 'red car'"):
        opened(tokenizer, tmp_path).encode("red car", 50)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_the_template_stays(make, tmp_path):
    tokenizer = make()
    tokenizer.add_special_tokens(["[BOS]", "[EOS]"])
    start, end = (tokenizer.token_to_id(each) for each in ("[BOS]", "[EOS]"))
    plain = opened(tokenizer, tmp_path).encode("a red", 50)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", start), ("[EOS]", end)]
    )
    assert opened(tokenizer, tmp_path).encode("a red", 50) == [start, *plain, end]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("text", ["[EOS]", "a red [EOS] car", "a[EOS]", "[EOS][EOS] a", "[eos]"])
def test_a_special_token_in_a_text_never_becomes_one(make, text, tmp_path):
    tokenizer = with_normaliser(make(), FOLDS["nothing"])
    tokenizer.add_special_tokens([AddedToken("[EOS]", special=True, normalized=False)])
    end = tokenizer.token_to_id("[EOS]")
    assert end in tokenizer.encode("a [EOS]").ids
    prompts = opened(tokenizer, tmp_path)
    try:
        ids = prompts.encode(text, 50)
    except RFError as error:
        assert "os]" in str(error).lower()
    else:
        assert end not in ids
        assert letters(prompts.decode(ids)) == letters(text)


@pytest.mark.parametrize("token", ["[EOS]", "<s>", "[UNK]", "<|end|>"])
def test_a_control_token_that_is_a_word_of_the_vocabulary_is_refused(token, tmp_path):
    words = numbered(("[UNK]", *WORDS, token))
    tokenizer = split_at_blanks(Tokenizer(models.WordLevel(words, unk_token="[UNK]")))
    with pytest.raises(RFError, match=r"(is a control token|does not know) ?" if token == "[UNK]" else "control token"):
        opened(tokenizer, tmp_path).encode(f"a red {token}", 50)


def test_an_end_of_texts_that_pairs_can_spell_is_refused_by_its_id(tmp_path):
    tokenizer = split_at_blanks(bpe([*LETTERS, "<", ">", "<a", "<a>"], [("<", "a"), ("<a", ">")]))
    plain = opened(tokenizer, tmp_path)
    end = tokenizer.token_to_id("<a>")
    assert plain.encode("<a>", 9) == [end]
    with pytest.raises(RFError, match="'<a>' in the prompt 'red <a>' is a control token"):
        PromptTokenizer(tmp_path / "tokenizer.json", 600, control_ids=[end]).encode("red <a>", 9)


def test_the_name_of_a_byte_is_no_byte(tmp_path):
    with pytest.raises(RFError, match="'<0x41>' in the prompt 'a <0x41>' is a control token"):
        opened(unigram_with_byte_fallback(), tmp_path).encode("a <0x41>", 50)


@pytest.mark.parametrize("text", ["café <tool> a", "<tool>", "a<tool>red"])
def test_added_tokens_that_are_words_are_read(text, tmp_path):
    tokenizer = bpe_of_bytes()
    tokenizer.add_tokens(["<tool>", "café"])
    assert tokenizer.token_to_id("<tool>") in opened(tokenizer, tmp_path).encode(text, 50)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_one_prompt_has_one_encoding(make, tmp_path):
    content = json.loads(make().to_str())
    if content["model"]["type"] == "BPE":
        content["model"]["dropout"] = 0.5
    content["model"] |= {"alpha": 0.5, "nbest_size": 8} if content["model"]["type"] == "Unigram" else {}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=9)
    loaded = opened(tokenizer, tmp_path)
    assert {tuple(loaded.encode("a red car", 50)) for _ in range(100)} == {
        tuple(opened(make(), tmp_path).encode("a red car", 50))
    }


@pytest.mark.parametrize("text", ["é" * 10_000, "5" * 10_000, "a5" * 5_000, "''5" * 3_000])
def test_long_texts_are_judged_quickly(text, tmp_path):
    tokenizer = with_normaliser(
        bpe_of_bytes(), normalizers.Sequence([normalizers.Replace("''", '"'), LOSSES["digits"]])
    )
    loaded = opened(tokenizer, tmp_path)
    started = time.process_time()
    with contextlib.suppress(RFError):
        loaded.encode(text, 100_000)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(("num", "more"), [(8, ""), (9, " and 1 more"), (11, " and 3 more")])
def test_eight_unknown_parts_are_named_and_others_are_counted(num, more):
    assert _listed([f"w{n}" for n in range(num)] * 2) == ", ".join(f"'w{n}'" for n in range(8)) + more
