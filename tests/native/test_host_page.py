"""The numbers on docs/host.md are those of the runtime: a host that has them has its noise right."""

import re
from pathlib import Path

import numpy as np

from runtime import noise
from runtime.schedule import timesteps

PAGE = (Path(__file__).parents[2] / "docs/host.md").read_text()


def row(name):
    (values,) = re.findall(rf"^\| {re.escape(name)} \| (.+) \|$", PAGE, re.MULTILINE)
    return values.split(", ")


def test_the_numbers_on_the_page():
    raw = np.random.Philox(key=np.array([7, 1 << 32], np.uint64)).random_raw(2)
    assert row("raw, seed 7, stage 1, step 0") == [hex(int(each)) for each in raw]
    for name, values in {
        "Gumbel, seed 0, stage 0, step 0": noise.gumbel(0, 0, 3),
        "Gumbel, seed 2^64 - 1, stage 0, step 5": noise.gumbel(2**64 - 1, 5, 3),
        "Gumbel, seed 7, stage 2, step 1": noise.gumbel(7, 1, 2, noise.TEXT_STAGE),
        "normal, seed 7": noise.normal(7, (4,)),
        "times, 4 steps, 144 patches, shift 2, base 64": timesteps(4, 144, shift=2.0, shift_base_patches=64),
    }.items():
        assert np.allclose([float(each) for each in row(name)], values, rtol=1e-6), name
