"""The committed checkpoint, compiled, answers token for token as eager PyTorch does, on scenes never trained on."""

from pathlib import Path

import onnx_ir as ir
import pytest

from rf_export.checkpoint import load_checkpoint
from rf_export.checkpoint import open_tokenizer as checkpoint_tokenizer
from rf_export.evaluation.understanding import SCENE_SEED, eager_answerer, everything_to_ask
from rf_export.model import RFModel, model_spec
from rf_export.trace import trace
from rf_export.training.scenes import SceneConfig, make_scene
from runtime.backends import create_backend
from runtime.bundle.folder import open_bundle
from runtime.loading import LoadedModel, open_tokenizer
from runtime.signature import Variant
from runtime.understanding.conversation import Conversation
from verification.measures.token_agreement import TokenAgreement, compare_answers, read_answer

CHECKPOINT = Path(__file__).parents[3] / "examples/reference/checkpoint"


@pytest.fixture(scope="module")
def model() -> RFModel:
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def loaded(model: RFModel, reference_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The two graphs of understanding in fp32, and what the bundle says of the model."""
    folder, backend, sessions = tmp_path_factory.mktemp("fp32"), create_backend("ort"), {}
    for name in ("vision_encoder", "text_decoder"):
        ir.save(trace(model, name, Variant(), model_spec(model)), folder / f"{name}.onnx")
        sessions[name] = backend.open(folder / f"{name}.onnx", num_threads=1, compiled=False)
    bundle = open_bundle(reference_bundle)
    return LoadedModel(bundle=bundle, sessions=sessions, tokenizer=open_tokenizer(bundle))


def check_answers(model: RFModel, loaded: LoadedModel, num_scenes: int) -> tuple[TokenAgreement, int]:
    """Compare captions and answers about held-out scenes with eager PyTorch's, in tokens; and how many are right."""
    eager, config = eager_answerer(model, checkpoint_tokenizer(CHECKPOINT, model.config)), SceneConfig()
    pairs, right = [], 0
    for index in range(num_scenes):
        scene = make_scene(SCENE_SEED, index, config, held_out=True)
        asked = everything_to_ask(scene, index, config)
        conversation = Conversation(loaded)
        conversation.show(scene.picture)
        expected = eager(scene.picture, [one.question for one in asked])
        for one, reference in zip(asked, expected, strict=True):
            reading = read_answer(conversation, one.question)
            pairs.append((reference, reading))
            assert reading.token_ids == reference.token_ids, (index, one.question, reading.text, reference.text)
            right += reading.text in one.right
    return compare_answers(pairs), right


def test_answers_about_a_few_held_out_pictures_are_those_of_eager_pytorch(model: RFModel, loaded: LoadedModel) -> None:
    agreement, right = check_answers(model, loaded, 6)
    assert agreement.answers > 30
    assert right > 0.8 * agreement.answers, "the answers say what is there"


@pytest.mark.slow
def test_answers_about_five_hundred_held_out_pictures_are_those_of_eager_pytorch(
    model: RFModel, loaded: LoadedModel
) -> None:
    agreement, _ = check_answers(model, loaded, 500)
    assert agreement.answers_equal == agreement.answers > 2500
