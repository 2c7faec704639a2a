"""Text is sampled as documented: in the module that is traced, in its graph, and in the eager loop alike."""

import warnings

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim

from rf_export import eager
from rf_export.eager import EagerQuestion
from rf_export.graphs import modules as graphs

LEVELS = np.linspace(-3, 3, 7, dtype=np.float32)  # few values, so that ties are common
INPUTS = ("logits", "answer_ids", "gumbel", "temperature", "top_k", "top_p", "repetition_penalty")


class Sampler(torch.nn.Module):
    """The end of `TextDecoder`, alone."""

    def forward(
        self,
        logits: Tensor,
        answer_ids: Tensor,
        gumbel: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        penalty: Tensor,
    ) -> Tensor:
        return graphs.sample_nucleus(graphs.penalise(logits, answer_ids, penalty), gumbel, temperature, top_k, top_p)


@pytest.fixture(scope="module")
def sampler() -> ort.InferenceSession:
    row, size, answer = Dim("batch", min=1), Dim("size", min=2, max=graphs.MAX_TOP_K), Dim("answer", min=1)
    free = ({0: row, 1: size}, {0: row, 1: answer}, {0: row, 1: size}, {0: row}, {0: row}, {0: row}, {0: row})
    whole = torch.ones(3, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Sampler().eval(),
            (
                torch.zeros(3, 5),
                torch.zeros(3, 2, dtype=torch.int64),
                torch.zeros(3, 5),
                torch.ones(3),
                whole,
                torch.ones(3),
                torch.ones(3),
            ),
            dynamo=True,
            input_names=INPUTS,
            opset_version=18,
            verbose=False,
            dynamic_shapes=free,
        )
    assert program is not None
    return ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])


@st.composite
def draws(draw: st.DrawFn) -> dict[str, NDArray[np.generic]]:
    rows, size = draw(st.integers(1, 3)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def each(values: list[float]) -> list[float]:
        return [draw(st.sampled_from(values)) for _ in range(rows)]

    logits = rng.choice(LEVELS, (rows, size)) if draw(st.booleans()) else rng.normal(size=(rows, size))
    return {
        "logits": logits.astype(np.float32),
        "answer_ids": rng.integers(0, size + 1, (rows, draw(st.integers(1, 4)))),
        "gumbel": rng.gumbel(size=(rows, size)).astype(np.float32),
        "temperature": np.array(each([0.25, 0.7, 1.0, 2.0]), np.float32),
        "top_k": np.maximum(np.array(each([1, 2, size // 2, size]), np.int64), 1),
        "top_p": np.array(each([1e-6, 0.3, 0.62, 0.9, 1.0]), np.float32),
        "repetition_penalty": np.array(each([0.5, 1.0, 1.3, 50.0]), np.float32),
    }


def reference(logits, answer_ids, gumbel, temperature, top_k, top_p, repetition_penalty) -> int:
    """One row: HF's order of the rules, in float64; all that tie with the last one that is kept are kept."""
    scores = logits.astype(np.float64)
    for token in set(answer_ids.tolist()) - {len(logits)}:
        scores[token] = scores[token] / repetition_penalty if scores[token] > 0 else scores[token] * repetition_penalty
    scores /= temperature
    best = np.sort(scores)[::-1][:top_k]
    shares = np.exp(best - best.max()) / np.exp(best - best.max()).sum()
    before = np.concatenate([[0], np.cumsum(shares)[:-1]])
    smallest = best[(before < top_p) | (top_p >= 1)][-1]
    kept = np.flatnonzero(scores >= smallest * (1 + np.sign(smallest) * -1e-6) - 1e-9)
    return int(max(kept, key=lambda token: (scores[token] + gumbel[token], -token)))


def near_a_border(logits, answer_ids, gumbel, temperature, top_k, top_p, repetition_penalty) -> bool:
    """Where float32 may round a share to the other side of top_p."""
    ids = set(answer_ids.tolist()) - {len(logits)}
    scores = (
        np.array(
            [
                (v / repetition_penalty if v > 0 else v * repetition_penalty) if i in ids else v
                for i, v in enumerate(logits)
            ]
        )
        / temperature
    )
    best = np.sort(scores)[::-1][:top_k]
    sums = np.cumsum(np.exp(best - best.max()) / np.exp(best - best.max()).sum())
    return bool(top_p < 1 and (np.abs(sums - top_p) < 1e-5).any())


@given(draws())
def test_the_next_token_is_drawn_from_the_nucleus_of_the_top_k(
    sampler: ort.InferenceSession, case: dict[str, NDArray[np.generic]]
) -> None:
    rows = [dict(zip(case, values, strict=True)) for values in zip(*case.values(), strict=True)]
    expected = [reference(**row) for row in rows]
    in_torch = Sampler()(*map(torch.from_numpy, case.values())).tolist()
    in_graph = sampler.run(None, case)[0].tolist()
    for row, wanted, *found in zip(rows, expected, in_torch, in_graph, strict=True):
        if near_a_border(**row):
            continue
        size = len(row["logits"])
        how = EagerQuestion(
            images=[],
            ids=torch.empty(0),
            max_tokens=1,
            temperature=float(row["temperature"]),
            top_k=int(row["top_k"]),
            top_p=float(row["top_p"]),
            repetition_penalty=float(row["repetition_penalty"]),
        )
        seen = [token for token in row["answer_ids"].tolist() if token < size]
        found.append(eager.sample_text(torch.from_numpy(row["logits"]), seen, torch.from_numpy(row["gumbel"]), how))
        assert found == [wanted] * 3


def one(logits: list[float], **changes: object) -> int:
    size = len(logits)
    case = {
        "logits": [logits],
        "answer_ids": [[size]],
        "gumbel": [[0.0] * size],
        "temperature": [1.0],
        "top_k": [size],
        "top_p": [1.0],
        "repetition_penalty": [1.0],
        **changes,
    }
    return int(Sampler()(*(torch.tensor(case[name]) for name in INPUTS))[0])


def test_noise_moves_the_choice_and_only_inside_the_nucleus() -> None:
    noise = [[0.0, 5.0, 9.0]]
    assert one([2.0, 1.0, 0.0]) == 0
    assert one([2.0, 1.0, 0.0], gumbel=noise) == 2
    assert one([2.0, 1.0, 0.0], gumbel=noise, top_k=[2]) == 1
    assert one([2.0, 1.0, 0.0], gumbel=noise, top_p=[0.8]) == 1  # shares are 0.67, 0.24 and 0.09
    assert one([2.0, 1.0, 0.0], gumbel=noise, top_p=[0.6]) == 0


def test_a_penalty_holds_back_what_was_said_whatever_the_sign() -> None:
    assert one([2.0, 1.5], answer_ids=[[0]], repetition_penalty=[2.0]) == 1
    assert one([-1.0, -1.5], answer_ids=[[0]], repetition_penalty=[2.0]) == 1
    assert one([2.0, 1.5], answer_ids=[[2]], repetition_penalty=[2.0]) == 0  # 2 is none


def test_the_nucleus_of_a_large_vocabulary_is_among_the_1024_most_likely() -> None:
    size = graphs.MAX_TOP_K + 100
    logits = torch.arange(size).float() * 1e-3
    noise = torch.zeros(1, size)
    noise[0, 99], noise[0, 100] = 1e6, 1e5  # just outside and just inside
    assert one(logits.tolist(), gumbel=noise.tolist(), top_k=[graphs.MAX_TOP_K]) == 100
