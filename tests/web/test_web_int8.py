"""INT8 in the browser: other kernels than Python's, so as good and not equal."""

import numpy as np
import pytest
from browsing import array, require_browser

from runtime import GenerationOptions, Pipeline

require_browser()

PROMPTS = ("a red car", "two blue fish", "a green cat", "three red hearts")
LEAST_EQUAL = 0.75  # of the tokens: the weights are random, so many codes are nearly as likely as the one drawn
MOST_WORSE_DB = 1.0


@pytest.fixture(scope="module")
def both(calibrated_bundle, site, web):
    """The Python runtime's graphs in fp32 and INT8; the browser has INT8 under that name."""
    web("open", "int8", site.add("int8", calibrated_bundle), {"open": {"precision": "int8", "allowUnverified": True}})
    options = {"num_threads": 1, "engine": "none", "allow_unverified": True}
    return {precision: Pipeline.load(calibrated_bundle, precision, **options) for precision in ("fp32", "int8")}


def decibels(one, other):
    return 10 * np.log10(255**2 / np.square(one.astype(float) - other).mean())


def test_int8_is_as_near_to_fp32_as_pythons(both, web):
    options, equal, drawn, ours, theirs = GenerationOptions(num_steps=4), 0, 0, [], []
    for seed, prompt in enumerate(PROMPTS):
        python = [*both["int8"].generate([prompt], seed=seed, options=options, previews=False)][-1]
        tokens = python.rep_ids[None]
        exact = [*both["fp32"].generate([prompt], seed=seed, options=options, previews=False, rep_ids=tokens)][-1]
        request = {"prompt": prompt, "seed": seed, "numSteps": 4}
        free, forced = web("draw", "int8", [request, {**request, "repIds": python.rep_ids.tolist()}])
        equal += sum(np.array(free["repIds"]) == python.rep_ids)
        drawn += python.rep_ids.size
        rgb = array(forced["rgba"], np.uint8).reshape(*exact.picture.shape[:2], 4)[..., :3]
        ours.append(decibels(rgb, exact.picture))
        theirs.append(decibels(python.picture, exact.picture))
    print(f"{equal} of {drawn} tokens equal; to fp32 {np.mean(ours):.1f} dB, Python {np.mean(theirs):.1f} dB")
    assert equal >= LEAST_EQUAL * drawn
    assert np.mean(ours) > np.mean(theirs) - MOST_WORSE_DB
