"""The training loop of the reference checkpoint: describe-only warm-up, then the joint objective; resumable.

A run folder holds `run.json` (the recipe), `state.safetensors` (to resume), `log.jsonl`, `samples.png` and snapshots of
the parameter EMA. All randomness is keyed by (seed, step), so a resumed run is the same run.
"""

import json
import math
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from rf_export.checkpoint import checkpoint_sha256, load_checkpoint
from rf_export.config import ModelConfig
from rf_export.model import RFModel
from rf_export.training.objective import Batch, Draws, Losses, describe_loss, joint_losses
from rf_export.training.questions import QUESTIONS_VERSION, questions_about
from rf_export.training.scenes import DATA_VERSION, SceneConfig, make_scene
from rf_export.training.tokens import SPECIAL, UNKNOWN_ID, build_tokenizer, make_batch
from rf_export.vision import ImageEncoder, pooled_features
from runtime.bundle.atomic import write_file
from runtime.errors import RFError

# Parameters that only drawing uses: the paper trains them at a multiple of the base rate.
GENERATION_PARTS = (
    "rep_",
    "pixel_",
    "time.",
    ".experts.representation.",
    ".experts.pixel.",
    "final_norms.representation",
    "final_norms.pixel",
)
RateDecay = Literal["constant", "cosine"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training recipe. Rates are per step."""

    scenes: SceneConfig = field(default_factory=SceneConfig)
    with_rep: bool = True
    seed: int = 0
    batch_size: int = 64
    describe_steps: int = 1200  # encoder and understanding expert first: codes that move destroy L_Rep
    joint_steps: int = 10_000
    learning_rate: float = 6e-4
    generation_rate_multiplier: float = 2.0
    rate_warmup_steps: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    parameter_ema: float = 0.999
    encoder_ema: float = 0.9999
    prototype_momentum: float = 0.9999
    drop_text: float = 0.1
    drop_rep: float = 0.1
    drop_both: float = 0.1  # the pixel stage's unconditional row; 0.1 x 0.1 alone is too rare for a short run
    compile: bool = True
    snapshot_every: int = 1000
    questions_per_picture: int = 2  # besides the caption; they share the picture's features
    rate_decay: RateDecay = "constant"  # over the joint steps; "cosine" ends at zero

    def __post_init__(self) -> None:
        if self.questions_per_picture < 0:
            raise ValueError("questions_per_picture must be >= 0")
        if self.rate_decay not in get_args(RateDecay):
            raise ValueError(f"rate_decay must be among {get_args(RateDecay)}, got {self.rate_decay!r}")
        if self.batch_size < 1 or self.joint_steps < 1 or self.describe_steps < 0:
            raise ValueError("batch_size and joint_steps must be >= 1 and describe_steps >= 0")


@dataclass(frozen=True)
class StepReport:
    """What one step did; `rep` is None in describe steps and without representation tokens."""

    step: int
    num_steps: int
    phase: str
    lm: float
    rep: float | None
    fm: float | None
    codes_used: float | None  # share of prototypes among this batch's targets
    cpu_seconds: float  # of the whole run so far, over all resumes


class Trainer:
    """Owns the model, its EMA, the teacher encoder and the optimiser of one run."""

    def __init__(self, config: TrainConfig, model_config: ModelConfig, folder: Path, start: Path | None = None) -> None:
        """Build everything of a run.

        Args:
            config: the recipe.
            model_config: the shape of the model, that of `start` if there is one.
            folder: where the run is kept.
            start: a checkpoint to continue from, with new optimiser state; its codes are kept, and its encoder becomes
                the teacher too, because a checkpoint does not hold one.

        Raises:
            RFError: `start` is no checkpoint, or its words have other ids than these scenes'.
        """
        self.config, self.model_config, self.folder, self.start = config, model_config, folder, start
        side = config.scenes.size
        try:
            model_config.rep_grid(side, side)
        except ValueError as error:
            raise ValueError(f"scenes of {side} x {side} pixels do not fit the model: {error}") from error
        torch.manual_seed(config.seed)
        self.model = RFModel(model_config)
        if start is not None:
            self.model.load_state_dict(load_checkpoint(start).state_dict())
        self.average = RFModel(model_config)
        self.average.load_state_dict(self.model.state_dict())
        self.average.eval()
        self.teacher = ImageEncoder(model_config)
        self.teacher.load_state_dict(self.model.encoder.state_dict())
        self.tokenizer: Tokenizer = build_tokenizer(config.scenes)
        if self.tokenizer.get_vocab_size() > model_config.vocab_size:
            raise ValueError(f"vocab_size must be >= {self.tokenizer.get_vocab_size()} for these scenes")
        if start is not None:
            check_extension(self.tokenizer, start)
        self.optimiser = torch.optim.AdamW(
            [
                {
                    "params": [p for n, p in self.model.named_parameters() if _is_generation(n)],
                    "scale": config.generation_rate_multiplier,
                },
                {"params": [p for n, p in self.model.named_parameters() if not _is_generation(n)], "scale": 1.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step, self.cpu_before = 0, 0.0
        self._describe = torch.compile(describe_loss) if config.compile else describe_loss
        self._joint = torch.compile(joint_losses) if config.compile else joint_losses

    @property
    def num_steps(self) -> int:
        """Describe steps plus joint steps."""
        return self.config.describe_steps + self.config.joint_steps

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the run so far."""
        return self.cpu_before + time.process_time()

    def run(self) -> Iterator[StepReport]:
        """Train from the current step to the end, reporting every step."""
        while self.step < self.num_steps:
            if self.step == self.config.describe_steps and self.start is None:
                self._start_codes()
            yield self.train_step()

    def train_step(self) -> StepReport:
        """One optimiser step."""
        config, step = self.config, self.step
        joint = step >= config.describe_steps
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        batch = self.batch(step)
        used = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if joint:
                ids, used = self._targets(batch) if config.with_rep else (None, None)
                losses = self._joint(self.model, batch, self._draws(generator, batch), ids)
            else:
                losses = Losses(lm=self._describe(self.model, batch), rep=None, fm=torch.zeros(()))
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * group["scale"] * rate_factor(config, step)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self._update_averages(joint)
        return StepReport(
            step=self.step,
            num_steps=self.num_steps,
            phase="joint" if joint else "describe",
            lm=losses.lm.item(),
            rep=None if losses.rep is None else losses.rep.item(),
            fm=losses.fm.item() if joint else None,
            codes_used=used,
            cpu_seconds=self.cpu_seconds,
        )

    def batch(self, step: int) -> Batch:
        """The scenes of a step, a pure function of (seed, step)."""
        size = self.config.batch_size
        seed, config, num_questions = self.config.seed, self.config.scenes, self.config.questions_per_picture
        indices = range(step * size, (step + 1) * size)
        scenes = [make_scene(seed, index, config) for index in indices]
        questions = [
            questions_about(scene, seed, index, num_questions, config)
            for scene, index in zip(scenes, indices, strict=True)
        ]
        return make_batch(scenes, self.tokenizer, questions)

    def _draws(self, generator: torch.Generator, batch: Batch) -> Draws:
        size = len(batch.pixels)
        # Logit-normal times after SD3 (arXiv 2403.03206), centred towards noise as in JiT.
        t = torch.sigmoid(torch.randn(size, generator=generator) * 1.0 - 0.4)
        both = torch.rand(size, generator=generator) < self.config.drop_both
        return Draws(
            t=t,
            noise=torch.randn(batch.pixels.shape, generator=generator),
            drop_text=(torch.rand(size, generator=generator) < self.config.drop_text) | both,
            drop_rep=(torch.rand(size, generator=generator) < self.config.drop_rep) | both,
        )

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        rows, columns = (side // self.model_config.patch_size for side in pixels.shape[2:])
        return pooled_features(self.teacher(pixels).float(), rows, columns)

    def _targets(self, batch: Batch) -> tuple[Tensor, float]:
        """Balanced token ids `[B, N]` of a batch from the EMA encoder; updates the prototypes."""
        features = self._features(batch.pixels)
        quantiser = self.model.quantiser
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            ids = quantiser.assign_balanced(features.flatten(0, 1))
            quantiser.update(features.flatten(0, 1), ids, self.config.prototype_momentum)
        used = len(ids.unique()) / min(len(ids), self.model_config.rep_vocab_size)
        return ids.reshape(features.shape[:2]), used

    def _start_codes(self) -> None:
        """At the end of the describe phase: freeze the teacher's start and place the prototypes on real features."""
        self.teacher.load_state_dict(self.average.encoder.state_dict())
        if self.config.with_rep:
            need = self.model_config.rep_vocab_size * 8
            features: list[Tensor] = []
            step = 0
            while sum(map(len, features)) < need:
                features.append(self._features(self.batch(10_000_000 + step).pixels).flatten(0, 1))
                step += 1
            generator = torch.Generator().manual_seed(self.config.seed)
            self.model.quantiser.initialise(torch.cat(features), generator)

    @torch.no_grad()
    def _update_averages(self, joint: bool) -> None:
        decay = min(self.config.parameter_ema, (1 + self.step) / (10 + self.step))
        _approach(self.average, self.model, 1 - decay)
        self.average.quantiser.prototypes.copy_(self.model.quantiser.prototypes)
        if joint:
            _approach(self.teacher, self.model.encoder, 1 - self.config.encoder_ema)

    def save(self) -> None:
        """Write the state so that `load` resumes exactly here; replaces the old state only when complete.

        Raises:
            RFError: the disk is full; the old state is still there.
        """
        tensors = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.state_dict().items()}
        tensors |= {f"teacher.{n}": t for n, t in self.teacher.state_dict().items()}
        names: dict[Tensor, str] = {p: n for n, p in self.model.named_parameters()}
        for parameter, state in self.optimiser.state.items():
            tensors |= {f"adam.{names[parameter]}.{key}": value.clone() for key, value in state.items()}
        progress = {"step": str(self.step), "cpu_seconds": str(self.cpu_seconds)}
        file = self.folder / "state.safetensors"
        try:
            with write_file(file) as temporary:
                save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, metadata=progress)
        except (SafetensorError, RFError) as error:
            raise RFError(f"{file} was not written ({error}); make room, then continue with --resume") from error

    def load(self) -> None:
        """Resume from the folder's state; raises RFError if it does not fit this recipe."""
        file = self.folder / "state.safetensors"
        try:
            with safe_open(file, framework="pt") as state:
                metadata = state.metadata() or {}
                tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118 - not a dict
            for prefix, module in (("model.", self.model), ("average.", self.average), ("teacher.", self.teacher)):
                module.load_state_dict({n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)})
            self.step, self.cpu_before = int(metadata["step"]), float(metadata["cpu_seconds"]) - time.process_time()
        except Exception as error:
            reason = textwrap.shorten(str(error), 300)  # torch lists every name, on a line each
            raise RFError(f"cannot resume from {file} ({reason}); start a new run in another folder") from error
        for name, parameter in self.model.named_parameters():
            found = {key: tensors.get(f"adam.{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
            state_of = {key: value for key, value in found.items() if value is not None}
            if state_of:
                self.optimiser.state[parameter] = state_of

    def recipe(self) -> dict[str, object]:
        """Everything needed to repeat the run, for `run.json`."""
        start = None if self.start is None else {"name": self.start.name, "sha256": checkpoint_sha256(self.start)}
        return {
            "data_version": f"{DATA_VERSION}, {QUESTIONS_VERSION}",
            "start": start,
            "train": asdict(self.config),
            "model": self.model_config.to_dict(),
            "torch": torch.__version__,
        }


def rate_factor(config: TrainConfig, step: int) -> float:
    """Share of the learning rate in a step: a linear warm-up in each phase, then the decay of the joint phase."""
    joint = step >= config.describe_steps
    since = step - config.describe_steps if joint else step
    warm = min(1.0, (since + 1) / config.rate_warmup_steps)
    if not joint or config.rate_decay == "constant":
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * since / config.joint_steps))


def check_extension(tokenizer: Tokenizer, start: Path) -> None:
    """Refuse to go on from a checkpoint whose words have other ids: its embeddings would mean other words.

    Raises:
        RFError: the checkpoint's tokenizer is missing or damaged, or not contained in this one.
    """
    file = start / "tokenizer.json"
    try:
        started = Tokenizer.from_file(str(file))
        before: dict[str, int] = started.get_vocab()
    except Exception as error:  # tokenizers raises nothing narrower
        raise RFError(f"{file} is not a tokenizer ({error}); name a checkpoint written by rf-export train") from error
    if type(started.model) is not type(tokenizer.model) or SPECIAL[UNKNOWN_ID] not in before:
        raise RFError(
            f"{start} has a vocabulary of its own, and this command trains with the words of its scenes; train it in a "
            "loop of your own (docs/porting.md), or name a checkpoint written by rf-export train"
        )
    words = tokenizer.get_vocab()
    changed = sorted(word for word, number in before.items() if words.get(word) != number)
    if changed:
        raise RFError(
            f"the words of {start} have other ids than these scenes' ({', '.join(changed[:4])}); train with "
            "the objects that it was trained with"
        )


def _is_generation(name: str) -> bool:
    return any(part in name if part.startswith(".") else name.startswith(part) for part in GENERATION_PARTS)


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically."""
    with write_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def _approach(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move the parameters of one module towards those of another of its kind."""
    torch._foreach_lerp_(tuple(average.parameters()), tuple(model.parameters()), share)
