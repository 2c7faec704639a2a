"""What a search knows survives being killed at any byte, and belongs to that search alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import RFError
from tuning.cache import Cache
from tuning.drawings import Drawn
from tuning.judging import Mark

SEARCH = {"checkpoint": "abc", "prompts": "def", "scorer": "the checker"}


def picture(index):
    return Drawn(np.full((2, 3, 3), index, np.uint8), np.array([index, 7]))


def fill(cache, first=0):
    for index in range(first, 4):
        cache.add_originals({index: (picture(index), 0.5 * index)})
    cache.add_marks("6 steps", {0: Mark(1.0, 20.25, 0.5), 1: Mark(None, 99.0, 1.0)})


def test_a_search_goes_on_with_all_that_was_known(tmp_path):
    path = tmp_path / "cache.jsonl"
    with Cache(path, SEARCH, resume=False) as cache:
        fill(cache)
    with Cache(path, SEARCH, resume=True) as again:
        assert again.marks == cache.marks
        assert list(again.originals) == [0, 1, 2, 3]
        for index, (drawn, score) in again.originals.items():
            assert np.array_equal(drawn.picture, picture(index).picture)
            assert np.array_equal(drawn.rep_ids, picture(index).rep_ids)
            assert score == 0.5 * index


@given(data=st.data())
@settings(max_examples=60)
def test_nothing_but_a_line_is_lost_wherever_it_is_cut_off(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "cache.jsonl"
    with Cache(path, SEARCH, resume=False) as whole:
        fill(whole)
    content = path.read_bytes()
    end = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:end])
    num_lines = content[:end].count(b"\n")
    with Cache(path, SEARCH, resume=True) as cache:
        assert len(cache.originals) + len(cache.marks) == max(0, num_lines - 1)
        fill(cache, first=len(cache.originals))
        cache.finish()
    with Cache(path, SEARCH, resume=True) as again:
        assert again.marks == whole.marks
        assert list(again.originals) == [0, 1, 2, 3]


def test_an_interrupted_search_is_not_overwritten_unawares(tmp_path):
    path = tmp_path / "cache.jsonl"
    with Cache(path, SEARCH, resume=False) as cache:
        fill(cache)
    before = path.read_bytes()
    with pytest.raises(RFError, match=r"has an interrupted search\. Go on with --resume, or delete it"):
        Cache(path, SEARCH, resume=False)
    assert path.read_bytes() == before
    with Cache(path, SEARCH, resume=True) as cache:
        cache.finish()
    with Cache(path, SEARCH, resume=False) as cache:
        assert not cache.originals


def test_another_search_is_not_gone_on_with(tmp_path):
    path = tmp_path / "cache.jsonl"
    with Cache(path, SEARCH, resume=False) as cache:
        fill(cache)
    with pytest.raises(RFError, match="other values of: prompts, scorer"):
        Cache(path, {**SEARCH, "prompts": "x", "scorer": "y"}, resume=True)


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"{}\n",
        b"[1]\n",
        b'{"format": "rf-export-tuning", "format_version": 2}\n',
        b"years of work",
        b"\xff\n",
    ],
)
@pytest.mark.parametrize("resume", [True, False])
def test_a_file_of_something_else_is_left_alone(tmp_path, content, resume):
    path = tmp_path / "cache.jsonl"
    path.write_bytes(content)
    with pytest.raises(RFError, match="is no file of a search for a plan, or is damaged"):
        Cache(path, SEARCH, resume=resume)
    assert path.read_bytes() == content


def test_a_line_that_is_damaged_is_found(tmp_path):
    path = tmp_path / "cache.jsonl"
    with Cache(path, SEARCH, resume=False) as cache:
        fill(cache)
    path.write_bytes(path.read_bytes().replace(b'"pixels": "eJ', b'"pixels": "xx', 1))
    with pytest.raises(RFError, match="damaged"):
        Cache(path, SEARCH, resume=True)
