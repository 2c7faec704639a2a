"""A training run as a person watches it: progress, log, live sample sheet, snapshots, resume."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rf_export.checkpoint import save_checkpoint
from rf_export.config import ModelConfig
from rf_export.training.curves import draw_curves
from rf_export.training.samples import SHEET_PROMPTS, draw_eager
from rf_export.training.tokens import UNKNOWN_ID
from rf_export.training.trainer import StepReport, TrainConfig, Trainer, write_json
from runtime.bundle.atomic import locked
from runtime.bundle.strict_json import read_json
from runtime.errors import RFError
from runtime.events import Progress
from runtime.pictures.png import save_png
from runtime.pictures.sheet import contact_sheet

SAVE_EVERY = 250
SAMPLE_EVERY = 500


def run_training(
    config: TrainConfig,
    model_config: ModelConfig,
    folder: Path,
    *,
    resume: bool,
    start: Path | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Train to the end of the recipe; returns the folder of the final EMA checkpoint.

    `on_progress` is told (phase and losses, steps done, steps in all) after every step.

    Raises:
        RFError: the folder holds another run, or a state that cannot be resumed.
    """
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.absolute()):  # a second run in one folder would write over the state of the first
        return _run(Trainer(config, model_config, folder, start), folder, resume=resume, on_progress=on_progress)


def _run(trainer: Trainer, folder: Path, *, resume: bool, on_progress: Progress | None) -> Path:
    _claim(folder, trainer, resume=resume)
    with (folder / "log.jsonl").open("a") as log:
        for report in trainer.run():
            log.write(json.dumps(asdict(report)) + "\n")
            if on_progress is not None:
                on_progress(f"{report.phase}, {_summary(report)}", report.step, trainer.num_steps)
            _keep(trainer, report.step, log.flush)
    draw_curves([folder], folder / "curves.png")
    target = folder / "checkpoint"
    save_checkpoint(trainer.average, trainer.tokenizer.to_str(pretty=True), target, torch.float16)
    return target


def _keep(trainer: Trainer, step: int, flush: object) -> None:
    """Save what this step's number calls for."""
    joint_step = step - trainer.config.describe_steps
    last = step == trainer.num_steps
    if step % SAVE_EVERY == 0 or last:
        assert callable(flush)
        flush()
        trainer.save()
    if joint_step > 0 and (joint_step % SAMPLE_EVERY == 0 or last):
        write_samples(trainer)
    if joint_step > 0 and joint_step % trainer.config.snapshot_every == 0:
        target = trainer.folder / f"snapshot-{joint_step:06}"
        save_checkpoint(trainer.average, trainer.tokenizer.to_str(pretty=True), target, torch.float16)


def write_samples(trainer: Trainer) -> None:
    """Redraw `samples.png` with the averaged parameters, of the prompts whose words this run's scenes have."""
    encoded = {prompt: trainer.tokenizer.encode(prompt).ids for prompt in SHEET_PROMPTS}
    known = {prompt: ids for prompt, ids in encoded.items() if UNKNOWN_ID not in ids}
    pictures = [
        draw_eager(trainer.average, ids, seed, with_rep=trainer.config.with_rep)[0]
        for seed, ids in enumerate(known.values())
    ]
    if pictures:
        parameters = {"step": trainer.step, "prompts": list(known)}
        save_png(trainer.folder / "samples.png", contact_sheet(pictures, list(known)), parameters)


def _claim(folder: Path, trainer: Trainer, *, resume: bool) -> None:
    """Start a new folder, or resume one whose recipe is the same."""
    file, recipe = folder / "run.json", json.loads(json.dumps(trainer.recipe()))
    if file.exists():
        if not resume:
            raise RFError(f"{folder} already holds a training run; continue it with --resume or name another folder")
        before = _read_recipe(file)
        changed = [key for key, value in recipe["train"].items() if before["train"].get(key) != value]
        changed = [key for key in changed if key not in ("joint_steps", "snapshot_every", "compile")]
        changed += [key for key in ("model", "data_version", "start") if before.get(key) != recipe[key]]
        if changed:
            what = ", ".join(changed)
            raise RFError(f"{folder} was started with another recipe ({what} differ); use the same options to resume")
        if (folder / "state.safetensors").exists():
            trainer.load()
    elif folder.exists() and any(folder.iterdir()):
        raise RFError(f"{folder} is not empty and holds no training run; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, recipe)


def _read_recipe(file: Path) -> dict[str, Any]:
    recipe = read_json(file)
    if not (
        isinstance(recipe, dict) and isinstance(recipe.get("train"), dict) and {"model", "data_version"} <= set(recipe)
    ):
        raise RFError(f"{file} is not the recipe of a training run; start a new run in another folder")
    return recipe


def _summary(report: StepReport) -> str:
    parts = [("lm", report.lm), ("rep", report.rep), ("fm", report.fm), ("codes", report.codes_used)]
    return " ".join(f"{name} {value:.3f}" for name, value in parts if value is not None)
