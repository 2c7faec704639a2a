"""The online quantiser: what its update, its balanced assignment and its start promise, against plain NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rf_export.config import preset
from rf_export.vision import ImageEncoder, Quantiser, pooled_features

ROUNDING = 1e-5  # fp32 sums of a few hundred terms against float64

seeds = st.integers(0, 2**31 - 1)


def unit(seed: int, num: int, size: int) -> Tensor:
    """Unit-norm features `[num, size]`."""
    return F.normalize(torch.randn(num, size, generator=torch.Generator().manual_seed(seed)), dim=-1)


def quantiser(seed: int, num_prototypes: int, size: int) -> Quantiser:
    made = Quantiser(num_prototypes, size)
    made.prototypes.copy_(unit(seed + 1, num_prototypes, size))
    return made


def normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def reference_update(prototypes: np.ndarray, features: np.ndarray, ids: np.ndarray, momentum: float) -> np.ndarray:
    """The paper's update, one prototype after the other."""
    result = prototypes.copy()
    for code in range(len(prototypes)):
        members = features[ids == code]
        if len(members):
            mean = normalised(members.mean(0))
            result[code] = normalised(momentum * prototypes[code] + (1 - momentum) * mean)
    return result


def reference_shares(prototypes: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Softmax over prototypes, then over samples: `[n, K]`, whose arg-max per row is the token id."""
    scores = np.exp(features @ prototypes.T / 0.5)
    shares = scores / scores.sum(1, keepdims=True)
    return shares / shares.sum(0, keepdims=True)


@settings(max_examples=50)
@given(seeds, st.integers(2, 24), st.integers(1, 60), st.integers(2, 16), st.sampled_from([0.0, 0.5, 0.99, 0.9999]))
def test_an_unassigned_prototype_keeps_its_value_bit_for_bit(
    seed: int, num_prototypes: int, num: int, size: int, momentum: float
) -> None:
    codes, features = quantiser(seed, num_prototypes, size), unit(seed, num, size)
    codes.prototypes *= 0.75  # not of unit length, so that normalising the unused ones would show too
    before = codes.prototypes.clone()
    ids = torch.randint(num_prototypes // 2, (num,), generator=torch.Generator().manual_seed(seed))
    codes.update(features, ids, momentum)
    unused = torch.ones(num_prototypes, dtype=torch.bool)
    unused[ids] = False
    assert unused.any()
    assert torch.equal(codes.prototypes[unused], before[unused])
    assert torch.isfinite(codes.prototypes).all()


@settings(max_examples=50)
@given(seeds, st.integers(1, 24), st.integers(1, 60), st.integers(2, 16), st.sampled_from([0.0, 0.5, 0.9, 0.9999]))
def test_an_update_is_the_normalised_mean_with_momentum_and_stays_of_unit_length(
    seed: int, num_prototypes: int, num: int, size: int, momentum: float
) -> None:
    codes, features = quantiser(seed, num_prototypes, size), unit(seed, num, size)
    ids = torch.randint(num_prototypes, (num,), generator=torch.Generator().manual_seed(seed))
    expected = reference_update(codes.prototypes.double().numpy(), features.double().numpy(), ids.numpy(), momentum)
    codes.update(features, ids, momentum)
    sums = torch.zeros(num_prototypes, size).index_add_(0, ids, features).norm(dim=-1)
    clear = (sums > 0.01).numpy() | (torch.bincount(ids, minlength=num_prototypes) == 0).numpy()  # no cancelled mean
    np.testing.assert_allclose(codes.prototypes.numpy()[clear], expected[clear], atol=100 * ROUNDING)
    np.testing.assert_allclose(codes.prototypes.norm(dim=-1).numpy(), 1, atol=ROUNDING)


def test_the_size_of_a_cluster_does_not_change_how_far_its_prototype_moves() -> None:
    """Momentum applies to the normalised mean: ten equal features pull as one does."""
    codes = [quantiser(0, 4, 8) for _ in range(2)]
    feature = unit(5, 1, 8)
    codes[0].update(feature, torch.tensor([2]), momentum=0.9)
    codes[1].update(feature.repeat(10, 1), torch.full((10,), 2), momentum=0.9)
    torch.testing.assert_close(codes[0].prototypes, codes[1].prototypes)


@settings(max_examples=50)
@given(seeds, st.integers(1, 24), st.integers(1, 60), st.integers(2, 16))
def test_assignment_is_the_nearest_prototype(seed: int, num_prototypes: int, num: int, size: int) -> None:
    codes, features = quantiser(seed, num_prototypes, size), unit(seed, num, size)
    cosines = features.double().numpy() @ codes.prototypes.double().numpy().T
    chosen = cosines[np.arange(num), codes.assign(features).numpy()]
    np.testing.assert_allclose(chosen, cosines.max(1), atol=ROUNDING)  # not the ids: two may tie up to rounding


@settings(max_examples=50)
@given(seeds, st.integers(1, 24), st.integers(1, 60), st.integers(2, 16))
def test_balanced_assignment_is_a_softmax_over_prototypes_and_then_over_samples(
    seed: int, num_prototypes: int, num: int, size: int
) -> None:
    codes, features = quantiser(seed, num_prototypes, size), unit(seed, num, size)
    shares = reference_shares(codes.prototypes.double().numpy(), features.double().numpy())
    chosen = shares[np.arange(num), codes.assign_balanced(features).numpy()]
    np.testing.assert_allclose(chosen, shares.max(1), rtol=ROUNDING)


def test_balance_spreads_a_skewed_batch_over_more_codes() -> None:
    """Most features lie around one prototype: nearest would collapse onto a few codes."""
    codes = quantiser(0, 32, 16)
    features = F.normalize(codes.prototypes[3] + 0.15 * torch.randn(256, 16, generator=torch.manual_seed(0)), dim=-1)
    nearest, balanced = codes.assign(features).unique(), codes.assign_balanced(features).unique()
    assert len(nearest) <= 2
    assert len(balanced) >= 24


def clustered(seed: int, num_clusters: int, noise: float, num: int) -> Tensor:
    """Features around as many centres; `noise` 0 repeats each exactly, as pictures with a plain ground do."""
    centres, generator = unit(seed, num_clusters, 24), torch.Generator().manual_seed(seed)
    spread = noise * torch.randn(num, 24, generator=generator)
    return F.normalize(centres[torch.arange(num) % num_clusters] + spread, dim=-1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("num_clusters", "noise", "num_prototypes"),
    [(16, 0.02, 16), (8, 0.05, 16), (40, 0.05, 40), (4, 0.01, 40), (20, 0.0, 12), (20, 0.0, 20)],
)
def test_no_prototype_starts_dead_on_clustered_features(
    num_clusters: int, noise: float, num_prototypes: int, seed: int
) -> None:
    features = clustered(seed, num_clusters, noise, 320)
    codes = Quantiser(num_prototypes, 24)
    codes.initialise(features, torch.Generator().manual_seed(seed))
    assert len(codes.assign(features).unique()) == num_prototypes
    np.testing.assert_allclose(codes.prototypes.norm(dim=-1).numpy(), 1, atol=ROUNDING)


def test_the_start_brings_prototypes_closer_to_the_features() -> None:
    features = clustered(1, 12, 0.2, 600)
    cosines = []
    for num_iterations in (0, 1, 20):
        codes = Quantiser(12, 24)
        codes.initialise(features, torch.Generator().manual_seed(1), num_iterations)
        cosines.append(float((features @ codes.prototypes.T).max(1).values.mean()))
    assert cosines[0] + 0.05 < cosines[1] < cosines[2]


def test_the_start_is_decided_by_its_generator() -> None:
    features = clustered(2, 16, 0.2, 200)
    made = [Quantiser(16, 24) for _ in range(3)]
    for codes, seed in zip(made, (7, 7, 8), strict=True):
        codes.initialise(features, torch.Generator().manual_seed(seed))
    assert torch.equal(made[0].prototypes, made[1].prototypes)
    assert not torch.equal(made[0].prototypes, made[2].prototypes)


def test_too_few_features_to_start_are_refused_with_both_numbers() -> None:
    codes = Quantiser(16, 24)
    before = codes.prototypes.clone()
    with pytest.raises(ValueError, match="at least 16 features to place the prototypes, got 15"):
        codes.initialise(unit(0, 15, 24), torch.Generator())
    assert torch.equal(codes.prototypes, before)
    codes.initialise(unit(0, 16, 24), torch.Generator())  # exactly enough


@settings(max_examples=30)
@given(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(2, 9))
def test_pooled_features_are_the_mean_of_two_by_two_patches_at_unit_length(
    seed: int, batch: int, rows: int, columns: int, size: int
) -> None:
    features = torch.randn(batch, 4 * rows * columns, size, generator=torch.Generator().manual_seed(seed))
    pooled = pooled_features(features, 2 * rows, 2 * columns)
    assert pooled.shape == (batch, rows * columns, size)
    patches = features.double().numpy()
    for b in range(batch):
        for row in range(rows):
            for column in range(columns):
                corner = 2 * row * 2 * columns + 2 * column  # raster order over 2 * columns patches a row
                four = [corner, corner + 1, corner + 2 * columns, corner + 2 * columns + 1]
                expected = normalised(patches[b, four].mean(0))
                found = pooled[b, row * columns + column].numpy()
                np.testing.assert_allclose(found, expected, atol=1e-4)


def test_every_token_stands_for_its_own_cell_of_the_picture() -> None:
    """The raster order of pooled features is that of the pixels, also where a picture is not square."""
    encoder = ImageEncoder(preset("tiny"))
    for layer in encoder.layers:  # no mixing: what a patch says is then about its own pixels
        torch.nn.init.zeros_(layer.out.weight)
    plain = torch.zeros(1, 3, 16, 24)
    for row, column in ((0, 0), (1, 0), (1, 2)):
        changed = plain.clone()
        changed[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
        with torch.no_grad():
            before, after = (pooled_features(encoder(pixels), 4, 6) for pixels in (plain, changed))
        moved = (before - after).abs().amax((0, 2)) > 1e-6
        assert moved.nonzero().flatten().tolist() == [row * 3 + column]
