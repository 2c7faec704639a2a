"""What is measured and against what: options, a model with its work, our contenders and rivals. Measures nothing."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

from rf_export.benchmark import aotinductor
from rf_export.benchmark.compiled import Compiled, CompiledReader
from rf_export.benchmark.contenders import READING_STAGES, Contender, ReadReference, draw_reference, read_reference
from rf_export.benchmark.environment import free_bytes
from rf_export.benchmark.floor import StepCost, drawing_costs, encode_cost, read_cost
from rf_export.benchmark.openvino import OpenVinoKind, openvino_kinds, openvino_pipeline
from rf_export.benchmark.workload import DrawingWork, ReadingWork
from rf_export.eager import EagerResult
from rf_export.export import open_exported
from rf_export.model import RFModel
from runtime.backends import create_backend
from runtime.bundle.engine import find_engine
from runtime.bundle.folder import Bundle
from runtime.loading import EngineChoice
from runtime.options import GenerationOptions, Plan
from runtime.pipeline import Pipeline
from runtime.signature import Precision, Variant

Rival: TypeAlias = Literal["openvino", "aotinductor"]
RIVALS: Final[tuple[Rival, ...]] = ("openvino", "aotinductor")
MEMORY_SHARE = 8  # all contenders together take about so many times the weights in fp32
PLAIN_GRAPHS = "plain ONNX graphs beside an engine"
SLOWEST_SCALING = 500e6  # parameters; beyond, a single round takes minutes


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure. The prompt is made up; its length decides the size of the cache.

    Attributes:
        threads: Everything is measured with each.
        precisions: Of our graphs; all that the bundle has, where none is named.
        num_prompt_tokens: Length of the prompt.
        num_rounds: Turns of every contender per kind of step.
        num_picture_rounds: The same for whole pictures.
        stage_seconds: Begin no further round of a stage after so long.
        compile: Measure torch.compile too, which takes minutes.
        scaling: Measure over lengths, batches and threads too.
        rivals: Other libraries and compilers that run our graphs.
        plan: How all contenders draw.
        allow_spinning: Let the threads of our sessions wait busily for the next run.
        allow_unverified: Also measure graphs and engines that failed a verification or that nobody verified.
        repeats: Fresh processes in which our graphs and eager PyTorch are timed again.
    """

    threads: tuple[int, ...] = (1,)
    precisions: tuple[Precision, ...] = ()
    num_prompt_tokens: int = 32
    num_rounds: int = 20
    num_picture_rounds: int = 3
    stage_seconds: float = 60.0
    compile: bool = True
    scaling: bool = True
    rivals: tuple[Rival, ...] = ()
    plan: Plan | Literal["paper", "tuned"] = "paper"
    allow_spinning: bool = True
    allow_unverified: bool = False
    repeats: int = 0

    def __post_init__(self) -> None:
        if min(*self.threads, self.num_rounds, self.num_picture_rounds, self.num_prompt_tokens) < 1:
            raise ValueError("threads, num_rounds, num_picture_rounds and num_prompt_tokens must be >= 1")
        if self.repeats < 0:
            raise ValueError("repeats must be >= 0")


Candidates: TypeAlias = dict[str, Callable[[], Contender]]  # who would compete, loaded by a call


@dataclass(frozen=True, kw_only=True)
class BenchTask:
    """A model and what it has to do."""

    opened: Bundle
    checkpoint: Path
    model: RFModel
    work: DrawingWork
    questions: ReadingWork
    options: BenchOptions
    left_out: dict[str, str]  # what, and why

    @functools.cached_property
    def drawn(self) -> EagerResult:
        """What eager PyTorch draws in the steps of a trial."""
        return draw_reference(self.model, self.work, self.work.num_trial_steps)

    @functools.cached_property
    def read(self) -> ReadReference:
        """What eager PyTorch answers."""
        return read_reference(self.model, self.questions)

    def costs(self) -> dict[str, StepCost]:
        """Of each kind of step."""
        config, work, questions = self.model.config, self.work, self.questions
        asked, patches = len(questions.first), 4 * questions.num_image_tokens
        read = questions.num_image_tokens + asked
        return {
            **drawing_costs(config, work.num_slots, work.num_patches),
            "encode_image": encode_cost(config, patches),
            "first_word": encode_cost(config, patches) + read_cost(config, read, 0),
            "next_word": read_cost(config, 1, read + questions.num_words // 2),
            "second_question": read_cost(config, asked, questions.num_image_tokens),
        }


def open_task(bundle: Path, checkpoint: Path, options: BenchOptions) -> BenchTask:
    """A bundle and the checkpoint that it was exported from; raises RFError where they do not belong together."""
    opened, model = open_exported(bundle, checkpoint)
    options = _with_precisions(options, opened)
    work = DrawingWork.of(opened.manifest, options.num_prompt_tokens, GenerationOptions(plan=options.plan))
    questions = ReadingWork.of(opened.manifest)
    left_out = left_out_for_memory(opened.manifest.model.num_parameters, free_bytes())
    if not options.compile:
        left_out["torch.compile"] = "it was not asked for"
    if not options.scaling or opened.manifest.model.num_parameters > SLOWEST_SCALING:
        asked = "it takes minutes at this size" if options.scaling else "it was not asked for"
        left_out["scaling"] = asked
    return BenchTask(
        opened=opened,
        checkpoint=checkpoint,
        model=model,
        work=work,
        questions=questions,
        options=options,
        left_out=left_out,
    )


def left_out_for_memory(num_parameters: int, free: int | None) -> dict[str, str]:
    """Contenders that copy the weights once more, where that does not fit."""
    needed = MEMORY_SHARE * 4 * num_parameters
    if free is None or needed <= free:
        return {}
    why = f"all contenders take about {needed >> 30} GiB, and {free >> 30} GiB are free"
    return dict.fromkeys(("torch.compile", "eager weights as [out, in]", PLAIN_GRAPHS, *RIVALS), why)


def _with_precisions(options: BenchOptions, opened: Bundle) -> BenchOptions:
    """All that the bundle has, where none is named."""
    if options.precisions:
        return options
    manifest = opened.manifest
    present = tuple(each for each in manifest.precisions if manifest.graphs_of(Variant(each)))
    return replace(options, precisions=present)


def our_candidates(task: BenchTask, num_threads: int) -> Candidates:
    """Of every precision the engine and the plain graphs; without an engine that fits, these alone."""
    target, found = create_backend("ort").target(), Candidates()
    for precision in task.options.precisions:
        engine = find_engine(task.opened, Variant(precision), target, "size")
        choices: dict[str, EngineChoice] = {} if engine is None else {"engine": engine.path}
        if engine is None or PLAIN_GRAPHS not in task.left_out:
            choices["onnx"] = "none"
        for name, choice in choices.items():
            load = functools.partial(_load, task, precision, choice, num_threads)
            found[f"{name} {precision}"] = functools.partial(_contender, task, f"{name} {precision}", load)
    return found


def rival_candidates(task: BenchTask, num_threads: int) -> Candidates:
    """Those that were asked for and can compete here; `task.left_out` is told of the others."""
    asked = [name for name in task.options.rivals if name not in task.left_out]
    found: Candidates = {}
    for kind in openvino_kinds(task.options.precisions, task.left_out) if "openvino" in asked else ():
        found[kind.name] = functools.partial(
            _contender, task, kind.name, functools.partial(_in_openvino, task, kind, num_threads)
        )
    if "aotinductor" in asked:
        if why := aotinductor.why_not():
            task.left_out["aotinductor"] = why
        else:
            load = functools.partial(_in_aotinductor, task, num_threads)
            found[aotinductor.NAME] = functools.partial(_contender, task, aotinductor.NAME, load)
    return found


def _contender(task: BenchTask, name: str, load: Callable[[], Pipeline]) -> Contender:
    pipeline = load()
    drawer, reader = Compiled(pipeline, task.work), CompiledReader(pipeline, task.questions)
    return Contender(name=name, tokens=drawer, pixels=drawer, readers=dict.fromkeys(READING_STAGES, reader))


def _load(task: BenchTask, precision: Precision, engine: EngineChoice, num_threads: int) -> Pipeline:
    return Pipeline.load(
        task.opened.path,
        precision,
        num_threads=num_threads,
        engine=engine,
        allow_unverified=task.options.allow_unverified,
        allow_spinning=task.options.allow_spinning,
    )


def _in_openvino(task: BenchTask, kind: OpenVinoKind, num_threads: int) -> Pipeline:
    """The sessions of the engine, where there is one, are exchanged: the window of tokens is the same then."""
    return openvino_pipeline(_load(task, kind.precision, "auto", num_threads), kind, num_threads)


def _in_aotinductor(task: BenchTask, num_threads: int) -> Pipeline:
    return aotinductor.aotinductor_pipeline(_load(task, "fp32", "auto", num_threads), task.model)
