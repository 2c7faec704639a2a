"""Parity passes for an honest export, and for no faulty one: every fault here is one that an exporter can have."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from rf_export import graphs_classic, parity
from rf_export.checkpoint import load_checkpoint
from rf_export.export import ExportOptions, export
from rf_export.model import RFModel
from rf_export.parity import ParityReport, check_parity, compare
from runtime.backends import Arrays, Session, create_backend
from runtime.bundle import open_bundle
from runtime.cache import KVCache
from runtime.errors import RFError
from runtime.events import StepEvent, TokenEvent
from runtime.manifest import Manifest
from runtime.signature import GraphName, Precision

Fault = Callable[[RFModel], None]


@dataclasses.dataclass(frozen=True)
class Exported:
    """An honest export, ready to be compared with a model; the precision is the one with the looser tolerance."""

    model: RFModel
    manifest: Manifest
    sessions: Mapping[GraphName, Session]
    precision: Precision = "fp16"

    def compare(self, **changes: Any) -> ParityReport:
        """Compare, with some parts replaced by faulty ones."""
        exported = dataclasses.replace(self, **changes)
        return compare(exported.model, exported.sessions, exported.manifest, exported.precision)


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tiny_bundle: Path) -> Exported:
    manifest, backend = open_bundle(tiny_bundle).manifest, create_backend("ort")
    sessions = {
        entry.name: backend.open(tiny_bundle / entry.file, num_threads=1, compiled=False)
        for entry in manifest.graphs
        if entry.precision == "fp16" and entry.dialect == "classic"
    }
    return Exported(load_checkpoint(tiny_checkpoint), manifest, sessions)


class FaultySession:
    """A session that gets some inputs wrong."""

    def __init__(self, session: Session, wrong: Mapping[str, float]) -> None:
        self._session, self._wrong = session, wrong
        self.signature = session.signature

    def run(self, inputs: Arrays) -> dict[str, Any]:
        return self._session.run(self._spoilt(inputs))

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        return self._session.bind(self._spoilt(inputs), outputs)

    def _spoilt(self, inputs: Arrays) -> Arrays:
        assert self._wrong.keys() <= inputs.keys()
        return {**inputs, **{name: np.full_like(inputs[name], value) for name, value in self._wrong.items()}}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_honest_export_passes(exported: Exported, tiny_bundle: Path, precision: Precision) -> None:
    figures = check_parity(exported.model, tiny_bundle, precision)
    assert figures["passed"]
    assert figures["rep_tokens"] == 2 * 2 * 3  # prompts, rows, columns
    assert figures["rep_tokens_equal"] >= figures["rep_tokens"] - 1  # fp16 may round one over the border
    assert figures["rep_tokens_unexplained"] == 0
    assert figures["denoising_steps"] == 25
    assert figures["answer_tokens"] == 2 * 12  # greedy and sampled
    assert figures["answer_tokens_equal"] >= figures["answer_tokens"] - 1
    assert figures["answer_tokens_unexplained"] == 0


@pytest.mark.parametrize(
    ("graph", "wrong"),
    [("rep_decoder", {"guidance_scale": 1}), ("denoiser", {"guidance_scale": 1}), ("rep_decoder", {"top_k": 1}),
     ("rep_decoder", {"temperature": 2}), ("rep_decoder", {"gumbel": 0}), ("rep_decoder", {"grid_positions": 0}),
     ("text_decoder", {"temperature": 2}), ("text_decoder", {"gumbel": 0}), ("text_decoder", {"top_k": 1}),
     ("text_decoder", {"top_p": 1}), ("text_decoder", {"repetition_penalty": 1}), ("text_decoder", {"answer_ids": 61}),
     ("text_decoder", {"image_features": 0}), ("vision_encoder", {"pixels": 0})],
    ids=str,
)  # fmt: skip
def test_a_graph_that_ignores_an_input_fails(exported: Exported, graph: GraphName, wrong: Mapping[str, float]) -> None:
    faulty = FaultySession(exported.sessions[graph], wrong)
    assert not exported.compare(sessions={**exported.sessions, graph: faulty}).passed


@torch.no_grad()
def swap_experts(model: RFModel) -> None:
    experts = model.decoder_layers[1].experts
    experts["representation"], experts["pixel"] = experts["pixel"], experts["representation"]


@torch.no_grad()
def permute_heads(model: RFModel) -> None:
    weight, size = model.decoder_layers[1].out.weight, model.config.head_dim
    weight[: 2 * size] = weight[: 2 * size].roll(size, 0)


@torch.no_grad()
def transpose_output(model: RFModel) -> None:
    model.decoder_layers[0].out.weight.copy_(model.decoder_layers[0].out.weight.T.clone())


@torch.no_grad()
def transpose_time(model: RFModel) -> None:
    model.time.fc2.weight.copy_(model.time.fc2.weight.T.clone())


@torch.no_grad()
def swap_gate_and_up(model: RFModel) -> None:
    weight = model.decoder_layers[0].expert("understanding").ffn.gate_up.weight
    weight.copy_(weight.roll(weight.shape[1] // 2, 1))


@torch.no_grad()
def swap_rows_and_columns(model: RFModel) -> None:
    position = model.pixel_position
    position.rows, position.columns = position.columns, position.rows


@torch.no_grad()
def swap_rows_and_columns_of_the_encoder(model: RFModel) -> None:
    position = model.encoder.position
    position.rows, position.columns = position.columns, position.rows


@torch.no_grad()
def merge_patches_in_another_order(model: RFModel) -> None:
    weight = model.connector.fc1.weight
    weight.copy_(weight.reshape(2, 2, -1, weight.shape[1]).transpose(0, 1).reshape(weight.shape).clone())


@torch.no_grad()
def lose_a_bias(model: RFModel) -> None:
    assert model.time.fc1.bias is not None
    model.time.fc1.bias.add_(0.1)  # the graph has the zeros of a fresh model


@torch.no_grad()
def spoil_by_nan(model: RFModel) -> None:
    model.rep_head.weight[0, 0] = torch.nan


@pytest.mark.parametrize(
    "fault",
    [swap_experts, permute_heads, transpose_output, transpose_time, swap_gate_and_up, swap_rows_and_columns,
     swap_rows_and_columns_of_the_encoder, merge_patches_in_another_order, lose_a_bias, spoil_by_nan],
)  # fmt: skip
def test_weights_in_the_wrong_place_fail(exported: Exported, fault: Fault) -> None:
    model = copy.deepcopy(exported.model)
    fault(model)
    assert not exported.compare(model=model).passed


class LateRow(KVCache):
    """Writes the new tokens of one row a slot too late."""

    def __init__(self, *arguments: Any, dialect: Any) -> None:
        model, precision, num_rows, num_slots = arguments
        super().__init__(model, precision, num_rows, num_slots + 1, dialect=dialect)

    def append(self, new: np.ndarray[Any, Any], rows: Any = None) -> None:
        start = self.length
        before = self.values[:, 1, :, start].copy()
        super().append(new, rows)
        self.values[:, 1, :, start] = before
        self.values[:, 1, :, start + 1] = new[:, 1, :, 0]


class StaleSlot(KVCache):
    """Does not write the last token, though it counts it."""

    def append(self, new: np.ndarray[Any, Any], rows: Any = None) -> None:
        super().append(new if self.length + 1 < self.values.shape[3] else np.zeros_like(new), rows)


class SwappedKeysAndValues(KVCache):
    """Mixes up key and value of a layer."""

    def append(self, new: np.ndarray[Any, Any], rows: Any = None) -> None:
        super().append(new[[0, 1, 3, 2]], rows)


@pytest.mark.parametrize("cache", [LateRow, StaleSlot, SwappedKeysAndValues])
def test_a_faulty_cache_fails(exported: Exported, cache: type[KVCache], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "KVCache", cache)
    assert not exported.compare().passed


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_row_that_starts_one_slot_off_fails(exported: Exported, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = parity.prefill
    monkeypatch.setattr(parity, "prefill", lambda *arguments: honest(*arguments) + np.array([0, shift]))
    assert not exported.compare().passed


def test_a_last_token_that_never_enters_the_cache_fails(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = parity.draw_tokens

    def without_last_run(session: Session, plan: Any, cache: KVCache, *more: Any) -> Iterator[TokenEvent]:
        yield from honest(session, plan, cache, *more)
        cache.length -= 1

    monkeypatch.setattr(parity, "draw_tokens", without_last_run)
    assert not exported.compare().passed


def test_one_denoising_step_fewer_fails(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = parity.denoise

    def in_fewer_steps(*arguments: Any) -> Iterator[StepEvent]:
        *before, times, x_t = arguments
        return honest(*before, np.delete(times, len(times) - 2), x_t)

    monkeypatch.setattr(parity, "denoise", in_fewer_steps)
    report = exported.compare()
    assert report.denoising_steps == 24
    assert not report.passed


def test_a_last_step_that_is_not_taken_fails(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prediction is right, and the picture alone is not."""
    honest = parity.denoise

    def without_last_update(*arguments: Any) -> Iterator[StepEvent]:
        *before, last = honest(*arguments)
        yield from (*before, dataclasses.replace(last, x_next=before[-1].x_next))

    monkeypatch.setattr(parity, "denoise", without_last_update)
    report = exported.compare()
    assert report.x_pred_cosine > parity.TOLERANCES["fp16"].cosine
    assert not report.passed


@pytest.mark.parametrize(
    ("name", "value"),
    [("shift", 1.1), ("shift_base_patches", 25), ("rep_guidance_scale", 1.0), ("pix_guidance_scale", 1.0),
     ("temperature", 2.0), ("num_steps", 24), ("top_k", 1)],
)  # fmt: skip
def test_a_manifest_with_other_defaults_than_the_checkpoint_fails(exported: Exported, name: str, value: float) -> None:
    sampling = dataclasses.replace(exported.manifest.sampling, **{name: value})
    assert not exported.compare(manifest=dataclasses.replace(exported.manifest, sampling=sampling)).passed


def test_a_wrong_shift_of_the_times_fails(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = parity.timesteps

    def shifted_more(num_steps: int, num_patches: int, *, shift: float, shift_base_patches: int) -> Any:
        return honest(num_steps, num_patches, shift=1.1 * shift, shift_base_patches=shift_base_patches)

    monkeypatch.setattr(parity, "timesteps", shifted_more)
    assert not exported.compare().passed


def test_graphs_that_are_not_there_are_named(exported: Exported) -> None:
    with pytest.raises(RFError, match="no fp16 graphs for text_decoder, denoiser, vision_encoder; export it again"):
        exported.compare(sessions={"rep_decoder": exported.sessions["rep_decoder"]})


def refused(checkpoint: Path, out: Path) -> None:
    with pytest.raises(RFError, match=r"do not agree with eager PyTorch: .*No bundle was written"):
        export(checkpoint, out, ExportOptions(precisions=("fp32",)))
    assert list(out.parent.iterdir()) == []


def test_an_export_that_fails_parity_raises_and_leaves_nothing(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traces are those of the honest bundle, but for one square weight that is stored transposed."""

    def trace(_model: RFModel, graph: str, precision: str, *_: object) -> ir.Model:
        traced = ir.load(tiny_bundle / "graphs" / f"{graph}.{precision}.classic.onnx")
        if graph == "vision_encoder":  # has no layers of the decoder
            return traced
        weight = traced.graph.initializers["model.layers.0.out.weight"]
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy().T.copy(), name=weight.name)
        return traced

    monkeypatch.setattr("rf_export.export.trace", trace)
    refused(tiny_checkpoint, tmp_path / "bundle")


@pytest.mark.slow
def test_an_export_of_graphs_that_see_what_they_must_not_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_classic, "MASKED", 0.0)
    refused(tiny_checkpoint, tmp_path / "bundle")
