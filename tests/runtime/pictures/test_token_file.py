"""Tokens survive a file, and a file that holds none, others or too many is refused in a sentence."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import RFError
from runtime.pictures.png import save_png
from runtime.pictures.token_file import RepGrid, read_grid, stored_grid

GRID = RepGrid(
    checkpoint="ab" * 32, height=16, width=24, prompt="a red car", seed=7, rep_ids=np.arange(6).reshape(2, 3)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
        lambda shape: st.lists(
            st.lists(st.integers(0, 2**31 - 1), min_size=shape[1], max_size=shape[1]),
            min_size=shape[0],
            max_size=shape[0],
        )
    ),
    st.text(max_size=20),
    st.integers(0, 2**64 - 1),
)
def test_every_grid_comes_back_from_json_and_from_a_png_file(rows, prompt, seed):
    grid = RepGrid(checkpoint="c", height=8 * len(rows), width=8, prompt=prompt, seed=seed, rep_ids=np.array(rows))
    with tempfile.TemporaryDirectory() as folder:
        path, png = Path(folder) / "grid.json", Path(folder) / "a.png"
        path.write_text(json.dumps(grid.to_dict()))
        save_png(png, np.zeros((2, 2, 3), np.uint8), {"tokens": grid.to_dict()})
        for again in (read_grid(path), read_grid(png)):
            assert again.to_dict() == grid.to_dict()


@given(st.sampled_from(sorted(GRID.to_dict())), JSON)
def test_any_other_value_of_any_key_is_read_or_refused_and_never_crashes(key, value):
    try:
        RepGrid.from_dict({**GRID.to_dict(), key: value}, "grid.json")
    except RFError as error:
        assert str(error).startswith("grid.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no file of the format 'rf-export-tokens', found \"other\""),
        ({"format_version": 2}, "format version 2, and this rf-export reads 1. Install a newer"),
        ({"rows": 3}, "'rep_ids' must be 3 lists of 3"),
        ({"rep_ids": [[0, 1, 2], [3, 4]]}, "'rep_ids' must be 2 lists of 3"),
        (
            {"rep_ids": [[0, 1, 2], [3, 4, True]]},
            r"'rep_ids\[1\]\[2\]' must be a whole number >= 0 and below 2.*, found true",
        ),
        ({"rep_ids": [[0, 1, 2], [3, 4, -1]]}, "whole number >= 0 and below .*, found -1"),
        ({"rep_ids": [[0, 1, 2], [3, 4, 1.0]]}, "whole number >= 0 and below .*, found 1.0"),
        ({"seed": 2**64}, "'seed' must be below"),
        ({"colour": "red"}, "unknown 'colour'"),
    ],
)
def test_what_is_wrong_with_a_document_is_told(change, message):
    with pytest.raises(RFError, match=message):
        RepGrid.from_dict({**GRID.to_dict(), **change}, "grid.json")
    with pytest.raises(RFError, match="'rep_ids' is missing"):
        RepGrid.from_dict({k: v for k, v in GRID.to_dict().items() if k != "rep_ids"}, "grid.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "0" * 64}, "tokens of another model"),
        ({"height": 17}, "draws no 17 x 24 pixels"),
        ({"height": 24}, "24 x 24 pixels have 3 x 3 tokens, found 2 x 3"),
        ({"rep_ids": np.full((2, 3), 40)}, "must be 0 to 39, found 40"),
    ],
)
def test_tokens_that_do_not_fit_the_model_are_refused(pipeline, change, message):
    manifest = pipeline.bundle.manifest
    fitting = dataclasses.replace(GRID, checkpoint=manifest.checkpoint["sha256"])
    fitting.require_fit(manifest, "grid.json")
    with pytest.raises(RFError, match=message):
        dataclasses.replace(fitting, **change).require_fit(manifest, "grid.json")


def test_files_without_tokens_are_refused(tmp_path):
    picture = np.zeros((2, 2, 3), np.uint8)
    save_png(tmp_path / "foreign.png", picture, {"prompt": "a red car"})
    save_png(tmp_path / "sheet.png", picture, {"pictures": [{}, {}]})
    (tmp_path / "text.json").write_text("a red car")
    (tmp_path / "list.json").write_text("[{}, {}]")
    for name, message in (
        ("foreign.png", "holds no tokens"),
        ("sheet.png", "sheet of several"),
        ("text.json", "not valid JSON"),
        ("list.json", "tokens of 2 pictures"),
        ("missing.json", "does not exist"),
    ):
        with pytest.raises(RFError, match=message):
            read_grid(tmp_path / name)
    assert stored_grid(tmp_path / "foreign.png") is None
    assert stored_grid(tmp_path / "text.json") is None
