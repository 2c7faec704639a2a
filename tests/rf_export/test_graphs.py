"""The graphs sample as they say, have the inputs and outputs that their table names, and hold nothing of their host."""

import re
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim

from rf_export import eager
from rf_export.checkpoint import load_checkpoint
from rf_export.config import preset
from rf_export.graphs import modules as graphs
from rf_export.graphs.modules import sample
from rf_export.model import RFModel, model_spec
from rf_export.trace import trace
from runtime import signature
from runtime.backends import create_backend
from runtime.backends.host.stages import rows_of
from runtime.backends.interface import Session
from runtime.bundle.folder import open_bundle
from runtime.errors import RFError
from runtime.signature import (
    DIALECTS,
    GRAPHS,
    Dialect,
    GraphName,
    GraphSignature,
    ModelSpec,
    TensorSpec,
    Variant,
    kv_names,
)

ROOT = Path(__file__).parents[2]
LEVELS = np.linspace(-3, 3, 7, dtype=np.float32)  # few values, so that ties are common


def reference_sample(logits: NDArray[np.float32], gumbel: NDArray[np.float32], temperature: float, k: int) -> int:
    """Gumbel-max over all entries that are no smaller than the k-th largest."""
    scaled = logits / np.float32(temperature)
    kept = [i for i, value in enumerate(scaled) if np.sum(scaled > value) < k]
    return max(kept, key=lambda i: (scaled[i] + gumbel[i], -i))


@st.composite
def draws(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Logits and noise `[R, W, K]`, temperature and k `[R, 1, 1]`."""
    rows, size = draw(st.integers(1, 3)), draw(st.integers(2, 12))
    shape = (rows, draw(st.integers(1, 3)), size)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.choice(LEVELS, shape) if draw(st.booleans()) else rng.normal(size=shape)
    gumbel = rng.gumbel(size=shape).astype(np.float32)
    temperature = np.array([draw(st.sampled_from([0.25, 0.7, 1.0, 2.0])) for _ in range(rows)], np.float32)
    top_k = np.array([draw(st.sampled_from([1, 2, size // 2, size])) for _ in range(rows)], np.int64)
    return logits.astype(np.float32), gumbel, temperature[:, None, None], np.maximum(top_k, 1)[:, None, None]


class Sampler(torch.nn.Module):
    forward = staticmethod(sample)


SAMPLE_INPUTS = ("logits", "gumbel", "temperature", "top_k")


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    """`sample` alone as a graph, so that ties can be fed to it."""
    free, window, size = Dim("request", min=1), Dim("window", min=1), Dim("size", min=2, max=graphs.MAX_TOP_K)
    wide = {0: free, 1: window, 2: size}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Sampler().eval(),
            (*torch.zeros(2, 3, 2, 5), torch.ones(3, 1, 1), torch.ones(3, 1, 1, dtype=torch.int64)),
            dynamo=True,
            input_names=SAMPLE_INPUTS,
            opset_version=18,
            verbose=False,
            dynamic_shapes=(wide, wide, {0: free}, {0: free}),
        )
    assert program is not None
    return ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])


@given(draws())
def test_sampling_is_gumbel_max_over_the_top_k_of_each_row(
    sampler: ort.InferenceSession,
    case: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]],
) -> None:
    """In the module that is traced, in its graph on ONNX Runtime, and in the eager loop that verifies it."""
    logits, noise, temperatures, ks = case
    rows = [
        (logits[r, w], noise[r, w], float(temperatures[r, 0, 0]), int(ks[r, 0, 0]))
        for r, w in np.ndindex(noise.shape[:2])
    ]
    expected = [reference_sample(*row) for row in rows]
    assert sample(*map(torch.from_numpy, case)).flatten().tolist() == expected
    assert sampler.run(None, dict(zip(SAMPLE_INPUTS, case, strict=True)))[0].ravel().tolist() == expected
    for (row, gumbel, temperature, k), token in zip(rows, expected, strict=True):
        assert eager.sample(torch.from_numpy(row), torch.from_numpy(gumbel), temperature, k) == token


def test_ties_at_the_border_all_stay_in() -> None:
    logits, gumbel = torch.tensor([[[2.0, 1.0, 1.0, 1.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 0.0, 5.0, 9.0]]])
    assert sample(logits, gumbel, torch.ones(1, 1, 1), torch.tensor([[[2]]])).tolist() == [[3]]


def test_a_vocabulary_beyond_the_limit_of_k_is_drawn_from() -> None:
    size = graphs.MAX_TOP_K + 100
    logits, gumbel = torch.arange(size).float()[None, None], torch.zeros(1, 1, size)
    gumbel[0, 0, 99], gumbel[0, 0, 100] = 1e6, 1e5  # just outside and just inside the top k
    assert sample(logits, gumbel, torch.ones(1, 1, 1), torch.tensor([[[graphs.MAX_TOP_K]]])).tolist() == [[100]]


AXES = {
    "R": "request",
    "S": "sequence",
    "W": "window",
    "P": "cache",
    "F": "features",
    "A": "answer",
    "I": "images",
    "N": "tokens",
}


def documented(graph: str, dialect: Dialect, spec: ModelSpec) -> GraphSignature:
    """What the docstring of runtime/signature.py says of a graph, in fp16."""
    assert signature.__doc__ is not None
    text = re.search(rf"^{graph}\n(.*?)(?=^\w)", signature.__doc__, re.MULTILINE | re.DOTALL)
    assert text
    inputs, outputs = text[1].split("    out ")
    sizes = {"V": spec.vocab_size, "K": spec.rep_vocab_size, "H": spec.num_kv_heads, "D": spec.head_dim}
    axes: dict[str, str | int] = {**AXES, **sizes, "d": spec.hidden_size, "B": "row"}
    if graph == "text_decoder":
        axes["B"] = "batch"

    def tensors(part: str) -> tuple[TensorSpec, ...]:
        if dialect == "modern":  # "kv: classic [...], modern [...]"
            part = re.sub(r"kv:\s+classic \[[^]]*\], modern", "kv", part)
        part = re.sub(r"kv:\s+classic (\[[^]]*\]), modern \[[^]]*\]", r"kv \1", part)
        found = []
        for name, dtype, dims in re.findall(r"([\w.{}*]+)(?: and \.value)?\s+(int64|float32|kv)\s+\[([^]]*)\]", part):
            shape = tuple(int(dim) if dim.isdigit() else axes.get(dim, dim) for dim in dims.split(", "))
            kind = "float16" if dtype == "kv" else dtype
            stem = name.partition(".")[0]
            parts = range(2 * spec.num_layers) if "." in name else [None]
            names = [name if i is None else f"{stem}.{i // 2}.{('key', 'value')[i % 2]}" for i in parts]
            found += [TensorSpec(each, kind, shape) for each in names]
        if "x_pred the same" in part:
            found.append(TensorSpec("x_pred", *(getattr(found[-1], name) for name in ("dtype", "shape"))))
        return tuple(found)

    return GraphSignature(tensors(inputs), tensors(outputs))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_signature_is_what_its_docstring_says(graph: GraphName, dialect: Dialect) -> None:
    with torch.device("meta"):
        spec = model_spec(RFModel(preset("tiny")))
    assert documented(graph, dialect, spec) == GraphSignature.of(graph, spec, Variant("fp16", dialect))


class Short(torch.nn.Module):
    """Inputs and outputs of the denoiser around next to nothing, so that tracing is quick."""

    def __init__(self, model: RFModel, dialect: Dialect) -> None:
        super().__init__()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        t_next: Tensor,
        guidance_scale: Tensor,
        row_requests: Tensor,
        uncond_rows: Tensor,
        row_starts: Tensor,
        past_lengths: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return self.change(x_t * t[:, None, None, None]), x_t + 1

    def change(self, x: Tensor) -> Tensor:
        return 2 * x


class OneSize(Short):
    def change(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, 16, 24)


class Cropped(Short):
    def change(self, x: Tensor) -> Tensor:
        return x[:, :, :16]


class Branching(Short):
    """Traced with a large picture, it takes the branch of large ones for small ones too."""

    def change(self, x: Tensor) -> Tensor:
        return 2 * x if x.shape[2] > 8 else 3 * x


class BranchingOnRequests(Short):
    def change(self, x: Tensor) -> Tensor:
        return 2 * x if x.shape[0] < 3 else 3 * x


def trace_denoiser(module: type[Short], monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    monkeypatch.setitem(graphs.GRAPHS, "denoiser", module)
    with torch.device("meta"):
        model = RFModel(preset("tiny"))
    return trace(model, "denoiser", Variant(), model_spec(model))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (OneSize, r"expected output x_next float32 \[request, 3, height, width\], found .*\[2, 3, 16, 24\]"),
        (Cropped, r"expected output x_next float32 \[request, 3, height, width\], found .*, 3, \D+16.*, "),
        (Branching, "height of x_t has to be free from 8 to 32, and the traced code is right from 12 to 32 only"),
        (
            BranchingOnRequests,
            "request of x_t has to be free from 1 to inf, and the traced code is right from 0 to 2 only",
        ),
    ],
)
def test_a_dimension_that_is_less_free_than_it_has_to_be_is_refused(
    module: type[Short], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RFError, match=message):
        trace_denoiser(module, monkeypatch)


def test_dimensions_that_are_free_have_the_names_that_they_were_asked_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = trace_denoiser(Short, monkeypatch)
    assert [str(value.shape) for value in traced.graph.outputs] == ["[request,3,height,width]"] * 2


@pytest.fixture(scope="module")
def tiny_model(tiny_checkpoint: Path) -> RFModel:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def sessions(tiny_bundle: Path) -> dict[GraphName, Session]:
    bundle = open_bundle(tiny_bundle)
    backend = create_backend("ort")
    return {
        name: backend.open(bundle.file(bundle.graph(name, Variant("fp32")).file), num_threads=1, compiled=False)
        for name in GRAPHS
    }


SIZES = {
    "batch": (1, 3),
    "sequence": (1, 6),
    "cache": (1, 9),
    "features": (1, 5),
    "answer": (1, 4),
    "images": (1, 3),
    "request": (1, 3),
    "guided": (0, 3),
    "window": (1, 4),
    "patch_rows": (1, 4),
    "patch_columns": (1, 4),
}


@settings(max_examples=40)
@given(
    st.sampled_from(GRAPHS),
    st.fixed_dictionaries({name: st.integers(*ends) for name, ends in SIZES.items()}),
    st.data(),
)
def test_an_exported_graph_computes_what_its_module_does_at_every_size(
    tiny_model: RFModel,
    sessions: dict[GraphName, Session],
    graph: GraphName,
    sizes: dict[str, int],
    data: st.DataObject,
) -> None:
    """Also at sizes of 1: a branch between one and more is what the ranges of torch do not show."""
    sizes = {
        **sizes,
        "row": sizes["request"] + min(sizes["guided"], sizes["request"]),
        "height": 8 * sizes["patch_rows"],
        "width": 8 * sizes["patch_columns"],
    }
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    limits = {
        "input_ids": 61 + sizes["features"],
        "rep_ids": 41,
        "grid_positions": 4,
        "row_requests": 1,
        "uncond_rows": 1,
        "row_starts": sizes["cache"] + 1,
        "past_lengths": sizes["cache"] + 1,
        "top_k": 40,
        "answer_ids": 62,
    }
    inputs = {}
    for spec in sessions[graph].signature.inputs:
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
        inputs[spec.name] = (
            rng.integers(0, limits[spec.name], shape)
            if spec.name in limits
            else rng.normal(size=shape).astype(np.float32)
        )
    if "past_lengths" in inputs:
        inputs["row_starts"] = np.minimum(inputs["row_starts"], inputs["past_lengths"])  # no row starts in the future
    if "row_requests" in inputs:
        guided = rng.permutation(sizes["request"]) < sizes["row"] - sizes["request"]
        inputs["row_requests"], inputs["uncond_rows"] = rows_of(guided.tolist())
    for name in ("t", "t_next", "temperature", "top_k", "top_p", "repetition_penalty"):
        if name in inputs:
            inputs[name] = np.abs(inputs[name]) % 0.9 + 0.05 if name != "top_k" else inputs[name] + 1
    with torch.no_grad():
        expected = graphs.GRAPHS[graph](tiny_model, "classic")(*map(torch.from_numpy, inputs.values()))
    found = sessions[graph].run(inputs)
    for (name, array), tensor in zip(found.items(), [expected] if torch.is_tensor(expected) else expected, strict=True):
        if name not in ("next_rep_ids", "next_ids"):  # follows from the logits, and has tests of its own
            np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-3, atol=1e-3, err_msg=name)


def test_graph_files_hold_no_paths_of_the_exporting_host(tiny_bundle: Path) -> None:
    hosts = [str(path).encode() for path in (ROOT, Path.home(), tiny_bundle, Path(torch.__file__).parent)]
    files = [tiny_bundle / entry.file for entry in open_bundle(tiny_bundle).manifest.graphs]
    assert files
    for file in files:
        content = file.read_bytes()
        assert (
            b"past_lengths" in content or b"pixels" in content
        )  # readable names, so that a path would be readable too
        assert not re.search(rb"/(home|Users|tmp|usr|work)/|site-packages|\.py\b|[A-Z]:\\\\", content), file
        assert not any(host in content for host in hosts if len(host) > 5), file


def test_a_graph_for_old_parsers_has_no_empty_part_and_computes_the_same(tiny_model: RFModel, tmp_path: Path) -> None:
    spec, found = model_spec(tiny_model), []
    rng = np.random.default_rng(0)
    x_t = rng.normal(size=(2, 3, 16, 24)).astype(np.float32)
    past = rng.normal(size=(2 * spec.num_layers, 2, spec.num_kv_heads, 5, spec.head_dim)).astype(np.float32)
    for never_empty in (False, True):
        traced = trace(tiny_model, "denoiser", Variant(), spec, never_empty=never_empty)
        assert sum(node.op_type == "Min" for node in traced.graph) == never_empty * spec.num_layers
        ir.save(traced, tmp_path / "graph.onnx")
        session = create_backend("ort").open(tmp_path / "graph.onnx", num_threads=1, compiled=False)
        for guided in ([False, False], [True, False], [True, True]):
            row_requests, uncond_rows = rows_of(guided)
            inputs = {
                "x_t": x_t,
                **{name: np.full(2, value, np.float32) for name, value in (("t", 0.2), ("t_next", 0.4))},
                "guidance_scale": np.full(2, 3, np.float32),
                "row_requests": row_requests,
                "uncond_rows": uncond_rows,
                "row_starts": np.array([0, 1]),
                "past_lengths": np.array([5, 4]),
                **dict(zip(kv_names("past_key_values", spec.num_layers), past, strict=True)),
            }
            found.append(session.run(inputs)["x_next"])
    for plain, padded in zip(found[:3], found[3:], strict=True):
        np.testing.assert_array_equal(plain, padded)
