"""Every fault of tests/mutations.py turns the verdict red, and the graph and the first bad tensor are named."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mutations import MUTATIONS, Mutation, is_named, run
from verifying import compare

from rf_export.checkpoint import load_checkpoint
from rf_export.eager_reference import EagerReference
from rf_export.model import RFModel
from verification import Remembering


@pytest.fixture(scope="module")
def memory(tiny_checkpoint: Path) -> Remembering:
    """Eager PyTorch, which draws every case once for all tests here."""
    return Remembering(EagerReference(load_checkpoint(tiny_checkpoint)))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_fault_turns_the_verdict_red(mutation: Mutation, memory: Remembering, tiny_bundle: Path, tmp_path: Path):
    outcome = run(mutation, tiny_bundle, tmp_path / "bundle", memory, compare)
    assert is_named(mutation, outcome), outcome.line()


@torch.no_grad()
def swap_experts(model: RFModel) -> None:
    experts = model.decoder_layers[1].experts
    experts["representation"], experts["pixel"] = experts["pixel"], experts["representation"]


@torch.no_grad()
def lose_a_bias(model: RFModel) -> None:
    assert model.time.fc1.bias is not None
    model.time.fc1.bias.add_(0.1)  # the graph has the zeros of a fresh model


@torch.no_grad()
def swap_rows_and_columns(model: RFModel) -> None:
    position = model.pixel_position
    position.rows, position.columns = position.columns, position.rows


@torch.no_grad()
def spoil_by_nan(model: RFModel) -> None:
    model.rep_head.weight[0, 0] = torch.nan


@pytest.mark.parametrize("fault", [swap_experts, lose_a_bias, swap_rows_and_columns, spoil_by_nan])
def test_graphs_of_another_model_fail(
    fault: Callable[[RFModel], None], tiny_checkpoint: Path, tiny_bundle: Path
) -> None:
    model = copy.deepcopy(load_checkpoint(tiny_checkpoint))
    fault(model)
    assert compare(model, tiny_bundle, "fp16", look_inside=False).verdict == "failed"
