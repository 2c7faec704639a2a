"""Prompts become ids, or a message that names what is wrong with them."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from runtime.errors import RFError
from runtime.text.tokenizer import PromptTokenizer

WORDS = ["[UNK]", "a", "red", "car", "and", "blue", "fish", "."]


def save(path, unknown="[UNK]", words=WORDS):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


@pytest.fixture
def tokenizer(tmp_path):
    return PromptTokenizer(save(tmp_path / "tokenizer.json"), len(WORDS))


def test_words_become_ids(tokenizer):
    assert tokenizer.encode("A red car.", 10) == [1, 2, 3, 7]


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_an_empty_prompt_has_no_tokens(tokenizer, prompt):
    assert tokenizer.encode(prompt, 0) == []


def test_unknown_words_are_named_once_and_whole(tokenizer):
    with pytest.raises(RFError, match=r"does not know 'Zebra', 'dog-like', 'fish5' in the prompt 'a red Zebra"):
        tokenizer.encode("a red Zebra, dog-like fish5 Zebra", 20)


def test_a_sign_that_is_unknown_is_named_and_not_the_word_before_it(tokenizer):
    with pytest.raises(RFError, match=r"does not know '\?' in the prompt 'a red fish\?'"):
        tokenizer.encode("a red fish?", 20)


def test_ids_become_words(tokenizer):
    assert tokenizer.decode(tokenizer.encode("A red car", 9)) == "a red car"
    assert tokenizer.decode([]) == ""


def test_a_long_prompt_is_refused_with_the_limit(tokenizer):
    assert len(tokenizer.encode("a car " * 3, 6)) == 6
    with pytest.raises(RFError, match=r"The prompt has 7 tokens and the model takes 6 .* Shorten it"):
        tokenizer.encode("a car " * 3 + "a", 6)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(RFError, match="makes ids up to 7, and the model knows 7"):
        PromptTokenizer(save(tmp_path / "tokenizer.json"), 7)


@pytest.mark.parametrize("text", ["", "{}", json.dumps({"model": {"type": "New"}})])
def test_a_damaged_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(RFError, match="is not a tokenizer"):
        PromptTokenizer(tmp_path / "tokenizer.json", 10)


def test_padding_and_truncation_in_the_file_are_ignored(tmp_path):
    tokenizer = Tokenizer.from_file(str(save(tmp_path / "tokenizer.json")))
    tokenizer.enable_padding(length=5)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = PromptTokenizer(tmp_path / "tokenizer.json", len(WORDS))
    assert loaded.encode("a red car", 10) == [1, 2, 3]


def test_the_nearest_words_are_named(tokenizer):
    with pytest.raises(
        RFError, match=r"does not know 'Cra', 'fihs', 'qqq' in .* for 'Cra' 'car', for 'fihs' 'fish'\. "
    ):
        tokenizer.encode("a Cra, fihs qqq", 20)


@pytest.mark.parametrize(
    ("what", "message"),
    [("prompt", r"takes 2 for this size of picture\."), ("question", r"takes 2\."), ("text", r"takes 2\.")],
)
def test_a_text_is_called_what_it_is(tokenizer, what, message):
    with pytest.raises(RFError, match=f"The {what} has 3 tokens and the model {message}"):
        tokenizer.encode("a red car", 2, what)
    with pytest.raises(RFError, match=f"does not know 'b' in the {what} 'b'"):
        tokenizer.encode("b", 2, what)
    with pytest.raises(RFError, match=f"A {what} must be a text, got int"):
        tokenizer.encode(1, 2, what)


def test_a_vocabulary_is_words_pieces_and_control_tokens(tmp_path):
    def vocabulary(model, *special):
        tokenizer = Tokenizer(model)
        tokenizer.add_special_tokens(list(special))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return PromptTokenizer(tmp_path / "tokenizer.json", 20).vocabulary

    def numbered(*tokens):
        return {token: index for index, token in enumerate(tokens)}

    words = models.WordLevel(numbered("[UNK]", "[PAD]", "red", "a"), unk_token="[UNK]")
    assert vocabulary(words, "[END]") == (["red", "a"], [], ["[UNK]", "[PAD]", "[END]"])
    pieces = models.WordPiece(numbered("[UNK]", "red", "##s"), unk_token="[UNK]")
    assert vocabulary(pieces) == (["red"], ["s"], ["[UNK]"])
    assert vocabulary(models.BPE(numbered("s", "\u0120red", "\u0120", "\u0120\u00c3\u00a9"), [])) == (
        ["red", " ", "\u00e9"],
        ["s"],
        [],
    )
    assert vocabulary(models.BPE(numbered("red", "s</w>"), [], end_of_word_suffix="</w>")) == (["s"], ["red"], [])
    unigram = models.Unigram([("<unk>", 0.0), ("<0x00>", 0.0), ("\u2581red", 0.0), ("s", 0.0)], unk_id=0)
    assert vocabulary(unigram) == (["red"], ["s"], ["<unk>", "<0x00>"])
