"""Edits do what their grammar says, and nothing outside their region."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.commands.token_edits import Copy, Edit, Fill, Redraw, Region, Span, choose_tokens, draw_rep_ids, parse_edit
from runtime.errors import RFError
from runtime.options import GenerationOptions
from runtime.pictures.token_file import RepGrid

PLAIN = GenerationOptions()
SPANS = st.builds(lambda start, length: Span(start, start + length), st.integers(0, 9), st.integers(1, 9)) | st.builds(
    Span, st.integers(0, 9), st.none()
)
REGIONS = st.builds(Region, SPANS, SPANS)
SOURCES = (
    st.builds(Fill, st.integers(0, 10**6))
    | st.builds(Redraw, st.none() | st.integers(0, 2**64 - 1))
    | st.builds(lambda region: Copy(None, region), REGIONS)
)


@given(st.builds(Edit, REGIONS, SOURCES))
def test_what_an_edit_says_is_read_again_as_the_same_edit(edit):
    assert parse_edit(str(edit)) == edit


@given(st.text(max_size=20) | st.from_regex(r"[0-9:,=@red w]{0,16}", fullmatch=True))
def test_any_text_is_an_edit_or_refused(text):
    try:
        assert isinstance(parse_edit(text), Edit)
    except RFError as error:
        assert repr(text) in str(error) or "seed" in str(error)


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("2,0=7", Edit(Region(Span(2, 3), Span(0, 1)), Fill(7))),
        (" 1:3 , : = 0,0 ", Edit(Region(Span(1, 3), Span(0, None)), Copy(None, Region(Span(0, 1), Span(0, 1))))),
        (":2,1:=redraw", Edit(Region(Span(0, 2), Span(1, None)), Redraw(None))),
        ("0,0=redraw:5", Edit(Region(Span(0, 1), Span(0, 1)), Redraw(5))),
    ],
)
def test_the_grammar(text, edit):
    assert parse_edit(text) == edit


def test_files_may_have_any_name():
    assert parse_edit("0,0=a@b.png").source.path.name == "a@b.png"
    assert parse_edit("0,0=a@b.png@1:2,:").source == Copy(
        parse_edit("0,0=a@b.png").source.path, Region(Span(1, 2), Span(0, None))
    )
    assert parse_edit("0,0=./7").source.path.name == "7"


@pytest.mark.parametrize(
    "text", ["", "7", "0,0", "0,0=", "0=7", "=7", "0,0,0=7", "-1,0=7", "0:1:2,0=7", "a,b=7", "٣,0=7"]
)
def test_what_is_no_edit_is_refused_with_the_grammar(text):
    with pytest.raises(RFError, match=f"{re.escape(repr(text))} is not understood. Write ROWS,COLUMNS=SOURCE"):
        parse_edit(text)


@pytest.fixture
def base(pipeline):
    return RepGrid(
        checkpoint=pipeline.bundle.manifest.checkpoint["sha256"],
        height=16,
        width=24,
        prompt="a red car",
        seed=7,
        rep_ids=np.array([[0, 1, 2], [3, 4, 5]]),
    )


def edited(pipeline, base, *texts, prompts=("a red car",), seed=7):
    ids = choose_tokens(pipeline, prompts, seed=seed, options=PLAIN, base=base, edits=[parse_edit(t) for t in texts])
    return ids.reshape(-1, 2, 3).tolist()


def test_fills_and_copies(pipeline, base):
    assert edited(pipeline, base, "0,:=9") == [[[9, 9, 9], [3, 4, 5]]]
    assert edited(pipeline, base, "0,:=1,:", "1,:=0,:") == [[[3, 4, 5], [0, 1, 2]]]  # swapped
    assert edited(pipeline, base, ":,1:=0,0") == [[[0, 0, 0], [3, 0, 0]]]
    assert edited(pipeline, base, ":,:=9", "1,2=8") == [[[9, 9, 9], [9, 9, 8]]]  # the last one wins


def test_tokens_of_another_picture(pipeline, base, tmp_path):
    other = dataclasses.replace(base, rep_ids=base.rep_ids + 10)
    (tmp_path / "other.json").write_text(json.dumps(other.to_dict()))
    assert edited(pipeline, base, f":,0={tmp_path}/other.json") == [[[10, 1, 2], [13, 4, 5]]]
    assert edited(pipeline, base, f"0,:={tmp_path}/other.json@1,:") == [[[13, 14, 15], [3, 4, 5]]]
    foreign = dataclasses.replace(base, checkpoint="0" * 64)
    (tmp_path / "foreign.json").write_text(json.dumps(foreign.to_dict()))
    with pytest.raises(RFError, match="another model"):
        edited(pipeline, base, f":,0={tmp_path}/foreign.json")


def test_what_is_drawn_again_changes_only_its_region_and_depends_on_its_seed(pipeline, base):
    (first,), (again,), (other,) = (edited(pipeline, base, f"0:2,1:=redraw:{seed}") for seed in (5, 5, 6))
    assert first == again != other
    assert [row[0] for row in first] == [0, 3]
    assert edited(pipeline, base, "0:2,1:=redraw:8") == edited(pipeline, base, "0:2,1:=redraw")  # seed 7 + 1


def test_a_region_drawn_again_with_its_own_seed_is_what_it_was(pipeline):
    drawn = draw_rep_ids(pipeline, ["a red car"], seed=3)
    assert edited(pipeline, None, "1,:=redraw:3", seed=3) == drawn.reshape(-1, 2, 3).tolist()
    assert choose_tokens(pipeline, ["a red car"], seed=3, options=PLAIN, base=None, edits=[]) is None


def test_each_prompt_has_its_own_tokens_without_given_ones(pipeline):
    prompts = ["a red car", "two blue fish"]
    drawn = draw_rep_ids(pipeline, prompts, seed=3).reshape(-1, 2, 3)
    found = np.array(edited(pipeline, None, "0,0=39", prompts=prompts, seed=3))
    assert (found[:, 0, 0] == 39).all()
    drawn[:, 0, 0] = 39
    assert (found == drawn).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:3,0=7", "region 0:3,0:1 is not inside a grid of 2 rows and 3 columns"),
        ("0,2:2=7", "region 0:1,2:2 is not inside"),
        ("0,3:=redraw", "region 0:1,3: is not inside"),
        ("0,0=40", "a code that does not exist: they are 0 to 39"),
        ("0:2,0=0,0:2", "copies 1 x 2 tokens to a region of 2 x 1"),
        ("0,0=2,0", "region 2:3,0:1 is not inside"),
        ("0,0=missing.json", "does not exist"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused_before_anything_is_drawn(pipeline, monkeypatch, text, message):
    monkeypatch.setattr("runtime.commands.token_edits.draw_rep_ids", None)
    with pytest.raises(RFError, match=message):
        edited(pipeline, None, text)


def test_given_tokens_that_do_not_fit_are_refused(pipeline, base):
    with pytest.raises(RFError, match="another model"):
        edited(pipeline, dataclasses.replace(base, checkpoint="0" * 64))
    with pytest.raises(RFError, match="those of 16 x 24 pixels"):
        choose_tokens(pipeline, [""], seed=0, options=GenerationOptions(height=24), base=base, edits=[])
