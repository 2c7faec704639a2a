"""Trains the checker on composed scenes: `python -m examples.checker.train`.

Deterministic from the seed, on one thread, for a given torch release. Knows nothing of generated pictures: a
checker tuned on what it judges would flatter it.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor, nn
from torch.nn import functional

from examples.checker.accuracy import measure_checker
from examples.checker.practice import NAMED_HEAT, PracticeBatch, practice_batch
from rf_export.evaluation.checker import (
    FACTS_FILE,
    FORMAT_VERSION,
    NUM_BLOCKS,
    WEIGHTS_FILE,
    checker_from_bytes,
    checker_scenes,
    load_checker,
)
from rf_export.training.scenes import COLOURS, DATA_VERSION, SceneConfig
from runtime.commands.terminal import progress

STYLES = ("fluent-flat", "fluent-3d", "noto")
WIDTHS = (32, 64, 88)  # channels of the stem, of the detail layer and of the blocks


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the checker is trained; about 11 minutes of one core with the defaults."""

    num_steps: int = 4500
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    warmup_steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 1:
            raise ValueError(f"num_steps, batch_size must be >= 1, got {self.num_steps}, {self.batch_size}")


class Layer(nn.Module):
    """Convolution of 3 x 3 and batch normalisation, which `folded` makes one."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in, H, W]` -> `[B, out, H / stride, W / stride]`."""
        out: Tensor = self.norm(self.convolution(x))
        return out

    def folded(self) -> tuple[Tensor, Tensor]:
        """The kernel `[out, in, rows, columns]` and the bias `[out]` of one equal convolution."""
        norm = self.norm
        assert norm.running_var is not None and norm.running_mean is not None  # the default of BatchNorm2d
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return self.convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class Detector(nn.Module):
    """The network of `checker.run_network` with batch normalisation still apart, in torch's channel order."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        stem, detail, width = WIDTHS
        self.layers = nn.ModuleDict(
            {"stem": Layer(3, stem, stride=2), "detail": Layer(stem, detail), "down": Layer(detail, width, stride=2)}
        )
        for i in range(NUM_BLOCKS):
            self.layers.update({f"block{i}-a": Layer(width, width), f"block{i}-b": Layer(width, width)})
        self.head = nn.Conv2d(width, num_outputs, 1, bias=False)
        most_cells_are_empty = torch.tensor([-3.0] + [0.0] * (num_outputs - 1))  # RetinaNet, arXiv 1708.02002, 4.1
        self.head_bias = nn.Parameter(most_cells_are_empty)

    def forward(self, ink: Tensor) -> Tensor:
        """`float32 [B, 3, H, W]`, 0 white to 1 black -> `[B, outputs, G, G]`."""
        x = ink
        for name in ("stem", "detail", "down"):
            x = self.layers[name](x).relu()
        for i in range(NUM_BLOCKS):
            inner = self.layers[f"block{i}-a"](x).relu()
            x = (x + self.layers[f"block{i}-b"](inner)).relu()
        return functional.conv2d(x, self.head.weight, self.head_bias)

    def folded_weights(self) -> dict[str, NDArray[np.float16]]:
        """For `checker.run_network`: float16, kernels `[rows, columns, in, out]`, normalisation folded in."""
        tensors = {}
        for name, layer in self.layers.items():
            assert isinstance(layer, Layer)
            tensors[f"{name}.kernel"], tensors[f"{name}.bias"] = layer.folded()
        tensors |= {"head.kernel": self.head.weight, "head.bias": self.head_bias}
        return {
            name: np.ascontiguousarray((x.permute(2, 3, 1, 0) if x.ndim == 4 else x).detach().half().numpy())
            for name, x in tensors.items()
        }


def detector_loss(out: Tensor, batch: PracticeBatch) -> Tensor:
    """Sum of the losses of heat, names and offsets, each per object.

    The heat is learnt with the quality focal loss of exponent 2 (arXiv 2006.04388, eq. 2), |y - p|^2 *
    BCE(p, y), because the target of a centre between two cells is high, yet not 1, in both.

    Args:
        out: `[B, 3 + colours + objects, G, G]`.
        batch: the targets.
    """
    out = out.float()
    heat = torch.from_numpy(batch.heat)
    logits = out[:, 0]
    distance = (heat - logits.sigmoid()).square()
    heat_loss = (distance * functional.binary_cross_entropy_with_logits(logits, heat, reduction="none")).sum()
    weight = torch.where(heat >= NAMED_HEAT, heat, 0.0)
    gap = (out[:, 1:3] - torch.from_numpy(batch.offset).permute(0, 3, 1, 2)).abs().sum(1)
    split = 3 + len(COLOURS)
    colour_loss = functional.cross_entropy(out[:, 3:split], torch.from_numpy(batch.colour), reduction="none")
    object_loss = functional.cross_entropy(out[:, split:], torch.from_numpy(batch.object), reduction="none")
    named = ((colour_loss + object_loss + gap) * weight).sum() / weight.sum().clamp(min=1)
    return 4 * heat_loss / heat.sum().clamp(min=1) + named


def train(config: TrainingConfig, scenes: SceneConfig, detector: Detector) -> Iterator[float]:
    """Train the detector in place; yield the loss of every step."""
    detector.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(detector.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    for step in range(config.num_steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
        optimiser.param_groups[0]["lr"] = config.learning_rate * min(1, (step + 1) / config.warmup_steps) * decay
        batch = practice_batch(config.seed, step, config.batch_size, scenes)
        ink = 1 - torch.from_numpy(batch.pictures).permute(0, 3, 1, 2).float() / 255
        with torch.autocast("cpu", torch.bfloat16):
            out = detector(ink.contiguous(memory_format=torch.channels_last))
        loss = detector_loss(out, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        yield loss.item()


def train_with_progress(config: TrainingConfig, scenes: SceneConfig) -> tuple[dict[str, NDArray[np.float16]], float]:
    """The trained, folded weights, and the processor time in minutes; a bar goes to stderr."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    start = time.process_time()
    detector = Detector(3 + len(COLOURS) + len(scenes.objects))
    with progress("checker") as report:
        average = math.nan
        for step, loss in enumerate(train(config, scenes, detector), 1):
            average = loss if math.isnan(average) else 0.98 * average + 0.02 * loss
            report(f"checker, loss {average:.3f}", step, config.num_steps)
    return detector.eval().folded_weights(), (time.process_time() - start) / 60


def save_checker(
    folder: Path, weights: dict[str, NDArray[np.float16]], scenes: SceneConfig, training: dict[str, Any]
) -> None:
    """Measure the checker as it will be loaded, and write its two files."""
    content = save(weights)
    facts: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "data_version": DATA_VERSION,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "config": {"size": scenes.size, "objects": list(scenes.objects), "styles": list(scenes.styles)},
        "num_parameters": sum(tensor.size for tensor in weights.values()),
        "training": training,
    }
    facts["accuracy"] = measure_checker(checker_from_bytes(content, facts))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE.name).write_bytes(content)
    (folder / FACTS_FILE.name).write_text(json.dumps(facts, indent=1) + "\n")


@click.command()
@click.option("--evaluate", is_flag=True, help="Do not train: measure the checker in the folder again, print JSON.")
@click.option("--num", default=2000, show_default=True, help="Prompts to measure with (with --evaluate).")
@click.option("--test-seed", default=0, show_default=True, help="Seed of the scenes to measure with (with --evaluate).")
@click.option("--num-steps", default=TrainingConfig.num_steps, show_default=True, help="Training steps.")
@click.option("--seed", default=TrainingConfig.seed, show_default=True, help="Seed of the training.")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=WEIGHTS_FILE.parent, help="Where it lies."
)
def main(evaluate: bool, num: int, test_seed: int, num_steps: int, seed: int, folder: Path) -> None:
    """Train the checker (about 11 minutes on one core), measure it, and write checker.safetensors and .json.

    Example: python -m examples.checker.train --evaluate --num 400
    """
    if evaluate:
        click.echo(json.dumps(measure_checker(load_checker(folder), num, test_seed), indent=1))
        return
    config = TrainingConfig(num_steps=num_steps, seed=seed)
    scenes = checker_scenes(STYLES)
    weights, minutes = train_with_progress(config, scenes)
    command = f"python -m examples.checker.train --num-steps {num_steps} --seed {seed}"
    facts = {**vars(config), "command": command, "cpu_minutes": round(minutes, 1), "torch": torch.__version__}
    save_checker(folder, weights, scenes, facts)
    click.echo(f"Wrote {folder / WEIGHTS_FILE.name} and {FACTS_FILE.name}.", err=True)


if __name__ == "__main__":
    main()
