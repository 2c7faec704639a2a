"""Recorded inputs are what other tools read."""

import numpy as np
import pytest

from verification.polygraphy import inputs_json

RUNS = [
    {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "ids": np.array([[1, -1]], np.int64)},
    {"x": np.full((2, 3), np.inf, np.float16), "ids": np.zeros((0, 2), np.int64)},
    {"x": np.ones((2, 3, 4), np.float32)[:, :, ::2], "ids": np.array(3)},
]


@pytest.mark.parametrize("runs", [RUNS[:1], RUNS, []])
def test_polygraphy_reads_what_was_recorded(runs):
    polygraphy = pytest.importorskip("polygraphy.json", reason="pip install polygraphy")
    read = polygraphy.from_json(inputs_json(runs))
    assert len(read) == len(runs)
    for found, run in zip(read, runs, strict=True):
        assert list(found) == list(run)
        for name, array in run.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
