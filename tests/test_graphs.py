"""The graphs sample as they say, have the inputs and outputs that their table names, and hold nothing of their host."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from rf_export import graphs
from rf_export.config import preset
from rf_export.graphs import sample
from rf_export.model import RFModel
from rf_export.trace import model_spec, trace
from runtime.bundle import open_bundle
from runtime.errors import RFError
from runtime.signature import DIALECTS, GRAPHS, Dialect, GraphName, GraphSignature, TensorSpec

ROOT = Path(__file__).parent.parent
LEVELS = np.linspace(-3, 3, 7, dtype=np.float32)  # few values, so that ties are common


def reference_sample(logits: NDArray[np.float32], gumbel: NDArray[np.float32], temperature: float, k: int) -> int:
    """Gumbel-max over all entries that are no smaller than the k-th largest."""
    scaled = logits / np.float32(temperature)
    kept = [i for i, value in enumerate(scaled) if np.sum(scaled > value) < k]
    return max(kept, key=lambda i: (scaled[i] + gumbel[i], -i))


@st.composite
def draws(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    rows, size = draw(st.integers(1, 3)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.choice(LEVELS, (rows, size)) if draw(st.booleans()) else rng.normal(size=(rows, size))
    gumbel = rng.gumbel(size=(rows, size)).astype(np.float32)
    temperature = np.array([draw(st.sampled_from([0.25, 0.7, 1.0, 2.0])) for _ in range(rows)], np.float32)
    top_k = np.array([draw(st.sampled_from([1, 2, size // 2, size])) for _ in range(rows)], np.int64)
    return logits.astype(np.float32), gumbel, temperature, np.maximum(top_k, 1)


@given(draws())
def test_sampling_is_gumbel_max_over_the_top_k_of_each_row(
    case: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]],
) -> None:
    drawn = sample(*map(torch.from_numpy, case))
    assert drawn.tolist() == [reference_sample(*row) for row in zip(*case, strict=True)]


def test_ties_at_the_border_all_stay_in() -> None:
    logits, gumbel = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 5.0, 9.0]])
    assert sample(logits, gumbel, torch.ones(1), torch.tensor([2])).tolist() == [3]


def test_a_vocabulary_beyond_the_limit_of_k_is_drawn_from() -> None:
    size = graphs.MAX_TOP_K + 100
    logits, gumbel = torch.arange(size).float()[None], torch.zeros(1, size)
    gumbel[0, 99], gumbel[0, 100] = 1e6, 1e5  # just outside and just inside the top k
    assert sample(logits, gumbel, torch.ones(1), torch.tensor([graphs.MAX_TOP_K])).tolist() == [100]


def table_signature(graph: str, dialect: Dialect, num_layers: int, sizes: dict[str, int]) -> GraphSignature:
    """What the table in the docstring of `rf_export.graphs` says of a graph, in fp16."""
    assert graphs.__doc__ is not None
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in graphs.__doc__.splitlines() if "|" in line
    ]
    current, sides = "", ([], [])  # type: tuple[str, tuple[list[TensorSpec], list[TensorSpec]]]
    for name, *cells in rows[2:]:
        current = name or current
        if current == graph:
            for side, names, shape in zip(sides, cells[::2], cells[1::2], strict=True):
                names, _, only = names.partition(".value, ")
                if only not in ("", dialect):
                    continue
                names += ".value" if only else ""
                side += tensors(names, side[0] if shape == "as x_t" and side else shape, num_layers, sizes, sides[0])
    return GraphSignature(*map(tuple, sides))


def tensors(
    names: str, shape: object, num_layers: int, sizes: dict[str, int], inputs: list[TensorSpec]
) -> list[TensorSpec]:
    if not names:
        return []
    if names.endswith(".{i}.key, .value"):
        stem = names.removesuffix(".{i}.key, .value")
        parts = [f"{stem}.{i}.{part}" for i in range(num_layers) for part in ("key", "value")]
    else:
        parts = names.split(", ")
    if isinstance(shape, TensorSpec) or shape == "as x_t":
        return [TensorSpec(part, inputs[0].dtype, inputs[0].shape) for part in parts]
    found = re.fullmatch(r"\[(.*)\] (\w+)", str(shape))
    assert found, shape
    dims = tuple(int(dim) if dim.isdigit() else sizes.get(dim, dim) for dim in found[1].split(", "))
    return [TensorSpec(part, "float16" if found[2] == "kv" else found[2], dims) for part in parts]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_table_of_the_module_is_the_signature(graph: GraphName, dialect: Dialect) -> None:
    with torch.device("meta"):
        spec = model_spec(RFModel(preset("tiny")))
    sizes = {"V": spec.vocab_size, "K": spec.rep_vocab_size, "H": spec.num_kv_heads, "D": spec.head_dim}
    assert table_signature(graph, dialect, spec.num_layers, sizes) == GraphSignature.of(graph, spec, "fp16", dialect)


class OneSizeDenoiser(graphs.Denoiser):
    """A denoiser that was written for one size of picture."""

    def forward(self, x_t: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x_next, x_pred = super().forward(x_t, *inputs)  # type: ignore[arg-type]
        return x_next.reshape(2, 3, 16, 24), x_pred


def test_a_dimension_that_was_baked_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graphs.GRAPHS, "denoiser", OneSizeDenoiser)
    model = RFModel(preset("tiny"))
    with pytest.raises((RFError, RuntimeError)):
        trace(model, "denoiser", "fp32", model_spec(model))


def test_graph_files_hold_no_paths_of_the_exporting_host(tiny_bundle: Path) -> None:
    hosts = [str(path).encode() for path in (ROOT, Path.home(), tiny_bundle, Path(torch.__file__).parent)]
    files = [tiny_bundle / entry.file for entry in open_bundle(tiny_bundle).manifest.graphs]
    assert files
    for file in files:
        content = file.read_bytes()
        assert b"past_length" in content  # readable names, so that a path would be readable too
        assert not re.search(rb"/(home|Users|tmp|usr|work)/|site-packages|\.py\b|[A-Z]:\\\\", content), file
        assert not any(host in content for host in hosts if len(host) > 5), file
