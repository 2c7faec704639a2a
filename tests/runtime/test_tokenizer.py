"""Prompts become ids, or a message that names what is wrong with them."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from runtime.errors import RFError
from runtime.tokenizer import PromptTokenizer

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


def test_without_an_unknown_token_the_tokenizer_is_trusted(tmp_path):
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert PromptTokenizer(tmp_path / "tokenizer.json", 2).encode("abz", 10) == [0, 1]
