"""What is demanded of each precision is what the page on verification says."""

import re
from pathlib import Path

from verification.limits import _INT8_OTHER_SIZES, LIMITS

PAGE = Path(__file__).parents[2] / "docs/verification.md"


def test_the_limits_are_those_of_the_page():
    row = r"^\| ((?:fp|int)[^|]*) \| ([0-9.][^|]*) \| ([^|]*) \| ([^|]*%[^|]*) \| ([^|]*dB[^|]*) \|$"
    told = {}
    for names, *cells in re.findall(row, PAGE.read_text(), re.MULTILINE):
        told |= {name: [re.findall(r"[0-9.]+", cell) for cell in cells] for name in names.split(", ")}
    assert set(told) == set(LIMITS)
    for name, limits in LIMITS.items():
        for place, of in enumerate((limits, _INT8_OTHER_SIZES)):
            if place and not name.startswith("int8"):
                continue
            cosine, cache, norm, psnr = (float(cell[place]) for cell in told[name])
            assert (cosine, cache, norm / 100, psnr) == (of.cosine, of.cache_cosine, of.norm, of.psnr_db)
