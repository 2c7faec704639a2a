"""The committed checkpoint, compiled, answers token for token as eager PyTorch does, on scenes never trained on."""

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from rf_export.checkpoint import load_checkpoint
from rf_export.eager import EagerQuestion
from rf_export.eager import answer as eager_answer
from rf_export.model import RFModel, model_spec
from rf_export.trace import trace
from rf_export.training.scenes import SceneConfig, make_scene
from rf_export.training.tokens import to_pixels
from runtime.backends import create_backend
from runtime.bundle import open_bundle
from runtime.conversation import Conversation, Loaded
from runtime.tokenizer import PromptTokenizer

CHECKPOINT = Path(__file__).parent.parent / "examples/reference/checkpoint"
FIRST = 50_000_000  # number of the first scene: training has seen those below one million


@pytest.fixture(scope="module")
def model() -> RFModel:
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def loaded(model: RFModel, reference_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The two graphs of understanding in fp32, and what the bundle says of the model."""
    folder, backend, sessions = tmp_path_factory.mktemp("fp32"), create_backend("ort"), {}
    for name in ("vision_encoder", "text_decoder"):
        ir.save(trace(model, name, "fp32", model_spec(model)), folder / f"{name}.onnx")
        sessions[name] = backend.open(folder / f"{name}.onnx", num_threads=1, compiled=False)
    bundle = open_bundle(reference_bundle)
    tokenizer = PromptTokenizer(bundle.file("tokenizer.json"), bundle.manifest.model.vocab_size)
    return Loaded(sessions=sessions, manifest=bundle.manifest, tokenizer=tokenizer, precision="fp32", dialect="classic")


def check_captions(model: RFModel, loaded: Loaded, num_scenes: int) -> int:
    """Compare the captions of scenes with eager PyTorch's; returns how many are right to the word."""
    understanding, right = loaded.manifest.understanding, 0
    assert understanding is not None
    config = SceneConfig()
    for number in range(FIRST, FIRST + num_scenes):
        scene = make_scene(0, number, config)
        conversation = Conversation(loaded)
        conversation.show(scene.picture)
        *_, told = conversation.ask()
        question = EagerQuestion(
            images=[to_pixels([scene.picture])[0]], ids=torch.tensor([understanding.start_id]),
            max_tokens=understanding.max_tokens, stop_ids=understanding.stop_ids,
        )  # fmt: skip
        assert told.token_ids == eager_answer(model, question).ids, scene.demand.caption
        assert told.ended_by == "stop"
        right += told.text == scene.demand.caption
    return right


def test_captions_of_thirty_pictures_are_those_of_eager_pytorch(model: RFModel, loaded: Loaded) -> None:
    assert check_captions(model, loaded, 30) >= 10, "the captions say what is there"


@pytest.mark.slow
def test_captions_of_five_hundred_pictures_are_those_of_eager_pytorch(model: RFModel, loaded: Loaded) -> None:
    check_captions(model, loaded, 500)
