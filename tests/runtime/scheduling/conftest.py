"""What the tests of the scheduler draw, and what each of it gets alone."""

import numpy as np
import pytest
from stepping import FEW

from runtime import GenerationOptions
from runtime.scheduling.prefixes import CacheMemory


@pytest.fixture(scope="session")
def prompts(words):
    """Of five, one, no and two words."""
    return [" ".join(words[:5]), words[5], "", " ".join(words[6:8])]


@pytest.fixture(scope="session")
def options(pipeline):
    """Ways to draw that differ in everything: sizes, steps, guidance, temperature, top-k, windows."""
    cell = pipeline.bundle.manifest.model.cell
    return [
        FEW,
        GenerationOptions(num_steps=1, temperature=0.5, top_k=5),
        GenerationOptions(num_steps=4, rep_guidance_scale=0.0, pix_guidance_scale=1.5),
        GenerationOptions(height=cell, width=2 * cell, num_steps=2, temperature=0),
        GenerationOptions(height=2 * cell, width=cell, num_steps=5, top_k=1),
        GenerationOptions(num_steps=4, window=3, guided=(0.2, 0.6)),
        GenerationOptions(times=(0, 0.7, 1), window=4, rep_guidance_scale=1, pix_guidance_scale=1),
    ]


@pytest.fixture(scope="session")
def alone(pipeline):
    """The events of a request that is drawn by itself."""
    known = {}

    def draw(prompt, seed, options):
        key = prompt, seed, options
        if key not in known:
            known[key] = list(pipeline.generate([prompt], seed=seed, options=options))
        return known[key]

    return draw


@pytest.fixture
def poison(monkeypatch):
    """All cache memory that is freed is NaN from then on, and so is what a new array is made of."""
    clear, grow = CacheMemory.clear, CacheMemory._grow

    def clear_and_poison(memory):
        clear(memory)
        memory._values.fill(np.nan)

    def grow_poisoned(memory, size):
        grow(memory, size)
        memory._values.fill(np.nan)

    monkeypatch.setattr(CacheMemory, "clear", clear_and_poison)
    monkeypatch.setattr(CacheMemory, "_grow", grow_poisoned)
