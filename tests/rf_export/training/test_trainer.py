"""Training runs on a tiny model: what is averaged, what learns how fast, and that a resumed run is the same run."""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from cli import main
from rf_export.checkpoint import checkpoint_sha256, load_checkpoint
from rf_export.config import ModelConfig, SamplingConfig, preset
from rf_export.training.curves import read_log
from rf_export.training.objective import describe_loss
from rf_export.training.questions import QUESTION_WORDS, questions_about
from rf_export.training.run import run_training
from rf_export.training.scenes import SceneConfig, make_scene
from rf_export.training.tokens import build_tokenizer, make_batch
from rf_export.training.trainer import StepReport, TrainConfig, Trainer
from runtime.errors import RFError
from runtime.text.tokenizer import PromptTokenizer

CONFIG = TrainConfig(
    scenes=SceneConfig(size=16, num_objects=4),
    batch_size=4,
    describe_steps=2,
    joint_steps=3,
    rate_warmup_steps=3,
    compile=False,
)
MODEL = msgspec.structs.replace(preset("tiny"), sampling=SamplingConfig(num_steps=2, top_k=10))  # quick sample sheets


def make_trainer(folder: Path, **changes: object) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(dataclasses.replace(CONFIG, **changes), MODEL, folder)


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor that the rest of a run depends on."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    tensors = {
        f"adam.{names[parameter]}.{key}": value
        for parameter, values in trainer.optimiser.state.items()
        for key, value in values.items()
    }
    for prefix, module in (("model", trainer.model), ("average", trainer.average), ("teacher", trainer.teacher)):
        tensors |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def numbers(report: StepReport) -> tuple[object, ...]:
    """A report without its CPU time."""
    return dataclasses.astuple(report)[:-1]


# Seeds and resuming


def test_a_run_is_decided_by_its_seed(tmp_path: Path) -> None:
    ends = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        trainer = make_trainer(tmp_path, seed=seed)
        torch.manual_seed(noise)  # what else the process drew does not matter
        for _ in trainer.run():
            torch.rand(3)
        ends.append(state(trainer))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


@pytest.mark.parametrize("with_rep", [True, False])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop: int, with_rep: bool) -> None:
    """Stops in both phases and at the border, where the codes are started."""
    whole = make_trainer(tmp_path / "whole", with_rep=with_rep)
    reports = [numbers(report) for report in whole.run()]
    assert [report[2] for report in reports] == ["describe"] * 2 + ["joint"] * 3

    first = make_trainer(tmp_path / "parts", with_rep=with_rep)
    resumed = [numbers(report) for report in itertools.islice(first.run(), stop)]
    first.save()
    second = make_trainer(tmp_path / "parts", with_rep=with_rep)
    second.load()
    assert same(state(second), state(first))
    resumed += [numbers(report) for report in second.run()]
    assert resumed == reports
    assert same(state(second), state(whole))


def test_a_longer_run_goes_on_where_the_shorter_one_ended(tmp_path: Path) -> None:
    long = run_training(CONFIG, MODEL, tmp_path / "long", resume=False)
    run_training(dataclasses.replace(CONFIG, joint_steps=1), MODEL, tmp_path / "run", resume=False)
    resumed = run_training(CONFIG, MODEL, tmp_path / "run", resume=True)
    assert (resumed / "model.safetensors").read_bytes() == (long / "model.safetensors").read_bytes()
    assert read_log(tmp_path / "run")["step"].tolist() == [1, 2, 3, 4, 5]


# What every step does


def after_every_step(trainer: Trainer, look: Callable[[], None]) -> list[StepReport]:
    """Run to the end, looking at the trainer after every step."""
    reports = []
    for report in trainer.run():
        reports.append(report)
        look()
    return reports


def test_the_parameter_average_follows_its_formula_from_the_first_step(tmp_path: Path) -> None:
    """decay(n) = min(parameter_ema, (1 + n) / (10 + n)), so that the random start is forgotten soon."""
    trainer = make_trainer(tmp_path, parameter_ema=0.4)
    expected = {name: value.detach().double() for name, value in trainer.model.named_parameters()}
    decays = []

    def look() -> None:
        decays.append(min(0.4, (1 + trainer.step) / (10 + trainer.step)))
        for name, value in trainer.model.named_parameters():
            expected[name] = decays[-1] * expected[name] + (1 - decays[-1]) * value.detach().double()
        for name, value in trainer.average.named_parameters():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7, msg=name)
        assert torch.equal(trainer.average.quantiser.prototypes, trainer.model.quantiser.prototypes)

    after_every_step(trainer, look)
    assert decays == [2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4]


def test_the_teacher_starts_as_the_averaged_encoder_and_then_follows_slowly(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, encoder_ema=0.75)
    teacher = {name: value.detach().clone() for name, value in trainer.teacher.named_parameters()}
    average = dict(teacher)

    def look() -> None:
        if trainer.step == CONFIG.describe_steps + 1:
            teacher.update(average)  # as it was when the joint phase began
        average.update({name: value.detach().clone() for name, value in trainer.average.encoder.named_parameters()})
        for name, value in trainer.teacher.named_parameters():
            if trainer.step > CONFIG.describe_steps:
                student = trainer.model.encoder.get_parameter(name).detach()
                teacher[name] = 0.75 * teacher[name] + 0.25 * student
            torch.testing.assert_close(value.detach(), teacher[name], rtol=1e-5, atol=1e-7, msg=name)

    after_every_step(trainer, look)


def test_a_step_moves_parameters_of_generation_by_the_multiplied_rate(tmp_path: Path) -> None:
    """AdamW's first step moves a parameter by its rate, whatever the gradient; drawing's are those captions lack."""
    trainer = make_trainer(
        tmp_path, describe_steps=0, weight_decay=0.0, rate_warmup_steps=1, generation_rate_multiplier=4.0
    )
    describe_loss(trainer.model, trainer.batch(0)).backward()
    generation = {name for name, parameter in trainer.model.named_parameters() if parameter.grad is None}
    assert {"rep_embedding", "rep_head.weight", "pixel_in.weight", "time.fc1.weight"} <= generation
    trainer.model.zero_grad()
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    next(iter(trainer.run()))
    for name, value in trainer.model.named_parameters():
        moved = float((value.detach() - before[name]).abs().max())
        rate = CONFIG.learning_rate * (4 if name in generation else 1)
        assert moved == pytest.approx(rate, rel=0.02), name


def test_the_rate_warms_up_in_each_phase(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, describe_steps=4, joint_steps=4)
    rates: list[float] = []
    after_every_step(trainer, lambda: rates.append(trainer.optimiser.param_groups[1]["lr"] / CONFIG.learning_rate))
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1 / 3, 2 / 3, 1, 1])


def test_the_cosine_rate_falls_to_zero_over_the_joint_steps(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, describe_steps=3, joint_steps=4, rate_decay="cosine", rate_warmup_steps=2)
    rates: list[float] = []
    after_every_step(trainer, lambda: rates.append(trainer.optimiser.param_groups[1]["lr"] / CONFIG.learning_rate))
    cosine = [0.5 * (1 + math.cos(math.pi * n / 4)) for n in range(4)]
    assert rates == pytest.approx([0.5, 1, 1, 0.5 * cosine[0], *cosine[1:]])


def test_describe_steps_leave_the_parameters_of_generation_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    before = trainer.model.rep_head.weight.detach().clone()
    next(iter(trainer.run()))
    assert torch.equal(trainer.model.rep_head.weight, before)


def test_the_codebook_stays_in_use(tmp_path: Path) -> None:
    """Every batch of 256 tokens uses half of the 40 codes or more (seen: 57% or more), 20 batches 90% (seen: 97%)."""
    trainer = make_trainer(
        tmp_path,
        scenes=SceneConfig(size=32, num_objects=4),
        batch_size=16,
        joint_steps=20,
        learning_rate=3e-3,
        prototype_momentum=0.9,
    )
    seen: set[int] = set()
    targets = trainer._targets

    def listen(batch):
        ids, used = targets(batch)
        assert used == len(ids.unique()) / 40
        seen.update(ids.flatten().tolist())
        return ids, used

    trainer._targets = listen
    used = [report.codes_used for report in trainer.run()][CONFIG.describe_steps :]
    assert min(used) >= 0.5
    assert len(seen) >= 36


def test_a_few_dozen_steps_on_one_batch_lower_all_three_losses(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, describe_steps=0, joint_steps=60, learning_rate=3e-3)
    batch = trainer.batch(0)
    trainer.batch = lambda step: batch
    reports = list(trainer.run())
    for name, share in (("lm", 0.5), ("rep", 0.75), ("fm", 0.5)):
        losses = [getattr(report, name) for report in reports]
        assert np.mean(losses[-10:]) < share * np.mean(losses[:5]), name


def test_scenes_are_new_in_every_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    batches = [trainer.batch(step).pixels for step in (0, 1, 1)]
    assert not torch.equal(batches[0], batches[1])
    assert torch.equal(batches[1], batches[2])


def test_conditions_are_dropped_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    """1 - (1 - 0.1)(1 - both) each; together `both` plus the chance that both fall independently."""
    trainer = make_trainer(tmp_path, batch_size=2)
    batch = dataclasses.replace(trainer.batch(0), pixels=torch.zeros(20_000, 1))
    draws = trainer._draws(torch.Generator().manual_seed(0), batch)
    each = 1 - 0.9 * 0.9
    assert draws.drop_text.float().mean().item() == pytest.approx(each, abs=0.01)
    assert draws.drop_rep.float().mean().item() == pytest.approx(each, abs=0.01)
    both = (draws.drop_text & draws.drop_rep).float().mean().item()
    assert both == pytest.approx(0.1 + 0.9 * 0.1 * 0.1, abs=0.01)
    assert ((draws.t > 0) & (draws.t < 1)).all()


def test_captions_become_prompts_and_descriptions(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    batch = trainer.batch(0)
    words = build_tokenizer(CONFIG.scenes)
    for row in range(CONFIG.batch_size):
        prompt = batch.prompt_ids[row, batch.prompt_starts[row] :].tolist()
        caption = batch.text_ids[row, 0]
        assert words.decode(prompt)
        assert caption[: len(prompt) + 2].tolist() == [2, *prompt, 3]
        assert batch.text_targets[row, 0].nonzero().flatten().tolist() == list(range(1, len(prompt) + 2))


@pytest.mark.parametrize("num", [0, 1, 3])
def test_every_picture_is_asked_as_often_as_the_recipe_says(tmp_path: Path, num: int) -> None:
    """[BOS][question][answer][EOS], of which answer and EOS are to be predicted."""
    trainer = make_trainer(tmp_path, questions_per_picture=num)
    batch = trainer.batch(5)
    words = build_tokenizer(CONFIG.scenes)
    assert batch.text_ids.shape[:2] == (CONFIG.batch_size, 1 + num)
    for row in range(CONFIG.batch_size):
        index = 5 * CONFIG.batch_size + row
        scene = make_scene(CONFIG.seed, index, CONFIG.scenes)
        for n, question in enumerate(questions_about(scene, CONFIG.seed, index, num, CONFIG.scenes), start=1):
            ids = words.encode(f"{question.text} {question.answer}").ids
            assert batch.text_ids[row, n, : len(ids) + 2].tolist() == [2, *ids, 3]
            said = batch.text_ids[row, n][batch.text_targets[row, n]].tolist()
            assert said == [*words.encode(question.answer).ids, 3]


def test_pictures_become_numbers_from_minus_one_to_one() -> None:
    class Shown:
        demand = type("Demand", (), {"caption": "a red car"})
        picture = np.stack([np.full((2, 3), value, np.uint8) for value in (0, 255, 51)], axis=2)

    pixels = make_batch([Shown()], build_tokenizer(SceneConfig())).pixels  # type: ignore[list-item]
    assert pixels.shape == (1, 3, 2, 3)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


# Whole runs


def test_the_run_without_representation_tokens_is_a_whole_run(tmp_path: Path) -> None:
    checkpoint = run_training(dataclasses.replace(CONFIG, with_rep=False), MODEL, tmp_path / "run", resume=False)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5]
    assert all(row["rep"] is None and row["codes_used"] is None for row in log)
    assert all(row["fm"] > 0 for row in log[2:])
    assert {"samples.png", "curves.png", "run.json"} <= {path.name for path in (tmp_path / "run").iterdir()}
    PromptTokenizer(checkpoint / "tokenizer.json", MODEL.vocab_size)
    start = make_trainer(tmp_path / "start").model.state_dict()
    trained = load_checkpoint(checkpoint).state_dict()
    torch.testing.assert_close(trained["rep_head.weight"], start["rep_head.weight"], rtol=1e-3, atol=1e-4)
    assert (trained["pixel_out.weight"] - start["pixel_out.weight"]).abs().max() > 1e-4


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run that was stopped after one step."""
    folder = tmp_path / "run"
    trainer = make_trainer(folder)
    (folder / "run.json").write_text(json.dumps(trainer.recipe()))
    trainer.train_step()
    trainer.save()
    return folder


def refused(folder: Path, *words: str, **changes: object) -> None:
    """One sentence with these words, and the folder stays as it was."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    resume = changes.pop("resume", True)
    assert isinstance(resume, bool)
    with pytest.raises(RFError) as error:
        run_training(dataclasses.replace(CONFIG, **changes), MODEL, folder, resume=resume)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert word in message, message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_another_recipe_is_refused_with_what_differs(run_folder: Path) -> None:
    refused(run_folder, "another recipe", "learning_rate", "seed", learning_rate=1.0, seed=3)


def test_another_model_is_refused(run_folder: Path) -> None:
    recipe = json.loads((run_folder / "run.json").read_text())
    recipe["model"]["num_layers"] = 7
    (run_folder / "run.json").write_text(json.dumps(recipe))
    refused(run_folder, "another recipe", "model")


def test_a_run_is_not_overwritten_unasked(run_folder: Path) -> None:
    refused(run_folder, "--resume", resume=False)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_state_is_refused(run_folder: Path, share: float) -> None:
    file = run_folder / "state.safetensors"
    os.truncate(file, int(file.stat().st_size * share))
    refused(run_folder, "state.safetensors", "cannot resume")


def test_a_state_of_something_else_is_refused(run_folder: Path, tiny_checkpoint: Path) -> None:
    (run_folder / "state.safetensors").write_bytes((tiny_checkpoint / "model.safetensors").read_bytes())
    refused(run_folder, "state.safetensors", "cannot resume")


@pytest.mark.parametrize("text", ['{"train": ', "[]", '{"model": {}}', '{"train": 3, "model": {}, "data_version": ""}'])
def test_a_damaged_recipe_is_refused(run_folder: Path, text: str) -> None:
    (run_folder / "run.json").write_text(text)
    refused(run_folder, "run.json")


def test_scenes_that_do_not_fit_the_model_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scenes of 48 x 48 pixels do not fit the model: height must be"):
        run_training(dataclasses.replace(CONFIG, scenes=SceneConfig()), MODEL, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_more_words_than_the_model_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size must be >= 95"):
        make_trainer(tmp_path, scenes=SceneConfig(size=16, num_objects=32))


def test_a_full_disk_keeps_the_state_that_was_saved_before(run_folder: Path) -> None:
    resource = pytest.importorskip("resource")
    trainer = make_trainer(run_folder)
    trainer.load()
    trainer.train_step()
    before = (run_folder / "state.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RFError, match=r"state\.safetensors was not written.*--resume"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run_folder / "state.safetensors").read_bytes() == before
    assert sorted(path.name for path in run_folder.iterdir()) == ["run.json", "state.safetensors"]


# Going on from a checkpoint


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """The checkpoint of a short run."""
    return run_training(CONFIG, MODEL, tmp_path / "before", resume=False)


def test_a_run_from_a_checkpoint_starts_with_its_weights_everywhere_and_keeps_its_codes(
    tmp_path: Path, start: Path
) -> None:
    """Model, average and teacher; prototypes are not placed anew but follow slowly, and the step count starts at 0."""
    before = load_checkpoint(start).state_dict()
    trainer = Trainer(dataclasses.replace(CONFIG, describe_steps=0, seed=5), MODEL, tmp_path / "run", start)
    for module, prefix in ((trainer.model, ""), (trainer.average, ""), (trainer.teacher, "encoder.")):
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[prefix + name]), name
    assert (trainer.step, len(trainer.optimiser.state)) == (0, 0)
    next(iter(trainer.run()))
    moved = (trainer.model.quantiser.prototypes - before["quantiser.prototypes"]).norm(dim=1)
    assert moved.max() < 1e-3
    teacher = trainer.teacher.state_dict()
    assert max((teacher[name] - before["encoder." + name]).abs().max() for name in teacher) < 1e-6


def test_a_run_from_a_checkpoint_resumes_as_the_same_run(tmp_path: Path, start: Path) -> None:
    config = dataclasses.replace(CONFIG, describe_steps=0, seed=5, rate_decay="cosine")
    whole = Trainer(config, MODEL, tmp_path, start)
    reports = [numbers(report) for report in whole.run()]
    first = Trainer(config, MODEL, tmp_path, start)
    resumed = [numbers(report) for report in itertools.islice(first.run(), 2)]
    first.save()
    second = Trainer(config, MODEL, tmp_path, start)
    second.load()
    resumed += [numbers(report) for report in second.run()]
    assert resumed == reports
    assert same(state(second), state(whole))


def test_a_run_names_its_start_and_resumes_from_no_other(tmp_path: Path, start: Path) -> None:
    config = dataclasses.replace(CONFIG, describe_steps=0, seed=5)
    end = run_training(config, MODEL, tmp_path / "run", resume=False, start=start)
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())
    assert recipe["start"] == {"name": "checkpoint", "sha256": checkpoint_sha256(start)}
    for other in (None, end):
        with pytest.raises(RFError, match=r"another recipe \(start differ\)"):
            run_training(config, MODEL, tmp_path / "run", resume=True, start=other)


def test_a_checkpoint_without_questions_is_a_start_and_one_with_other_words_is_not(tmp_path: Path, start: Path) -> None:
    """Words may be added at the end; an id that meant another word is refused."""
    tokenizer = json.loads((start / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: n for word, n in vocab.items() if word not in QUESTION_WORDS}
    (start / "tokenizer.json").write_text(json.dumps(tokenizer))
    Trainer(CONFIG, MODEL, tmp_path, start)
    tokenizer["model"]["vocab"] |= {"car": vocab["fish"], "fish": vocab["car"]}
    (start / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RFError, match=r"have other ids than these scenes' \(car, fish\)"):
        Trainer(CONFIG, MODEL, tmp_path, start)
    tokenizer["model"] = {"type": "BPE", "vocab": {"[UNK]": 1, "a": 0}, "merges": []}
    (start / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RFError, match=r"has a vocabulary of its own, .*train it in a loop of your own"):
        Trainer(CONFIG, MODEL, tmp_path, start)
    (start / "tokenizer.json").unlink()
    with pytest.raises(RFError, match=r"tokenizer\.json is not a tokenizer"):
        Trainer(CONFIG, MODEL, tmp_path, start)


@pytest.mark.parametrize(
    ("options", "rate", "decay", "describe_steps"),
    [
        ([], 6e-4, "constant", 1250),
        (["--from"], 5e-4, "cosine", 0),
        (["--from", "--learning-rate", "1e-3", "--decay", "constant", "--describe-steps", "7"], 1e-3, "constant", 7),
    ],
)
def test_the_command_goes_on_from_a_checkpoint_with_its_shape_and_a_falling_rate(
    monkeypatch: pytest.MonkeyPatch, start: Path, options: list[str], rate: float, decay: str, describe_steps: int
) -> None:
    calls: list[tuple[TrainConfig, ModelConfig, Path | None]] = []

    def listen(
        config: TrainConfig, model: ModelConfig, folder: Path, *, resume: bool, start: Path | None, on_progress: Any
    ) -> Path:
        calls.append((config, model, start))
        return folder

    monkeypatch.setattr("rf_export.training.run.run_training", listen)
    begin = ["--from", str(start)] if options else []
    result = CliRunner().invoke(main, ["train", "run", *begin, *options[1:]])
    assert result.exit_code == 0, result.output
    ((config, model, begun),) = calls
    assert (config.learning_rate, config.rate_decay, config.describe_steps) == (rate, decay, describe_steps)
    assert (begun, model) == ((start, MODEL) if options else (None, preset("reference")))


def test_snapshots_begin_with_the_first_joint_step(tmp_path: Path) -> None:
    run_training(dataclasses.replace(CONFIG, snapshot_every=1), MODEL, tmp_path / "run", resume=False)
    assert sorted(path.name for path in (tmp_path / "run").glob("snapshot-*")) == [
        f"snapshot-{step:06}" for step in (1, 2, 3)
    ]


def test_a_run_of_one_joint_step_has_a_sheet_of_samples(tmp_path: Path) -> None:
    run_training(dataclasses.replace(CONFIG, joint_steps=1), MODEL, tmp_path / "run", resume=False)
    assert (tmp_path / "run/samples.png").is_file()


def test_a_batch_has_as_many_slots_as_its_longest_texts() -> None:
    config = SceneConfig(num_objects=16)
    tokenizer = build_tokenizer(config)
    scenes = [make_scene(1, index, config) for index in range(200)]
    batch = make_batch(scenes, tokenizer, [questions_about(scene, 1, i, 6, config) for i, scene in enumerate(scenes)])
    assert int((batch.text_ids != 0).sum(-1).max()) == batch.text_ids.shape[-1]
