"""The comparison: our engine, its plain ONNX graphs, eager PyTorch and torch.compile, interleaved in one run.

    check_inputs -> per number of threads: choose the best baselines -> agreement -> time in turns -> floor;
    then a picture step by step, scaling, what a fresh process costs, and the same timings again in fresh processes

Every contender first has to draw the right picture and give the right answers. Baselines compete with their best
variant per stage, found by a short trial, and the trial's figures are reported too. The result has every sample and
two yardsticks that took turns with the contenders; with `repeats`, from several processes, so that `compare.py` can
hold two results against each other.
"""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rf_export.benchmark.compiled import Compiled, CompiledReader
from rf_export.benchmark.contenders import (
    READING_STAGES,
    STAGES,
    Contender,
    ReadReference,
    draw_reference,
    read_reference,
    reading_runs,
)
from rf_export.benchmark.energy import EnergyMeter
from rf_export.benchmark.environment import describe_machine, describe_state, free_bytes
from rf_export.benchmark.floor import (
    StepCost,
    denoise_step_cost,
    encode_cost,
    measure_floors,
    read_cost,
    rep_step_cost,
)
from rf_export.benchmark.footprint import measure_footprint
from rf_export.benchmark.repeats import in_fresh_process
from rf_export.benchmark.scaling import measure_scaling, measure_timeline
from rf_export.benchmark.selection import (
    LAYOUTS,
    TRIAL_STEPS,
    baseline_variants,
    choose_baselines,
    drawing_runs,
    plain_baseline,
)
from rf_export.benchmark.tables import FORMAT
from rf_export.benchmark.workload import QuestionWorkload, Workload
from rf_export.benchmark.yardstick import NAMES, bounding, yardsticks
from rf_export.eager import EagerResult
from rf_export.export import open_exported
from rf_export.model import RFModel
from runtime.bundle import Bundle
from runtime.errors import RFError
from runtime.figures import cosine, psnr_db
from runtime.options import GenerationOptions
from runtime.pipeline import Pipeline
from runtime.signature import Precision
from runtime.timing import Timing, interleave, ratio
from verification.compare import LIMITS

MEMORY_SHARE = 8  # all contenders together take about so many times the weights in fp32
SLOWEST_SCALING = 500e6  # parameters; beyond, a single round takes minutes
ROUNDS_AGAIN = 8  # in a fresh process; more processes tell more than more rounds
Progress = Callable[[str, int, int], None]
Timings = dict[str, dict[str, Timing]]  # stage -> who


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
    allow_unverified: bool = False
    repeats: int = 0

    def __post_init__(self) -> None:
        if min(*self.threads, self.num_rounds, self.num_picture_rounds, self.num_prompt_tokens) < 1:
            raise ValueError("threads, num_rounds, num_picture_rounds and num_prompt_tokens must be >= 1")
        if self.repeats < 0:
            raise ValueError("repeats must be >= 0")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model and what it has to do."""

    opened: Bundle
    model: RFModel
    work: Workload
    questions: QuestionWorkload
    options: BenchOptions
    left_out: dict[str, str]  # what, and why

    @functools.cached_property
    def drawn(self) -> EagerResult:
        """What eager PyTorch draws in the steps of a trial."""
        return draw_reference(self.model, self.work, TRIAL_STEPS)

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
            "rep_step": rep_step_cost(config, work.num_slots),
            "denoise_step": denoise_step_cost(config, work.num_slots, 4 * work.plan.num_rep_tokens),
            "encode_image": encode_cost(config, patches),
            "first_word": encode_cost(config, patches) + read_cost(config, read, 0),
            "next_word": read_cost(config, 1, read + questions.num_words // 2),
            "second_question": read_cost(config, asked, questions.num_image_tokens),
        }


def run_bench(
    bundle: Path, checkpoint: Path, options: BenchOptions, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Measure a bundle against the checkpoint that it was exported from.

    Returns:
        JSON-ready: `machine`, `state`, `model`, `runs` (one per number of threads), `timeline`, `scaling`,
        `footprint`, `repeats` (of each fresh process what `time_again` returns), and what was `left_out`.

    Raises:
        RFError: The two do not belong together, the model cannot take the prompt, or our graphs do not do what the
            checkpoint does.
    """
    begin = describe_state()
    opened, model = open_exported(bundle, checkpoint)
    options = _with_precisions(options, opened)
    num_stages = len(options.threads) + 2 + options.repeats

    def report(what: str, done: int) -> None:
        if on_progress is not None:
            on_progress(what, done, num_stages)

    task = _task(opened, model, options)
    threads_before = torch.get_num_threads()
    runs = []
    try:
        for i, num_threads in enumerate(options.threads):
            torch.set_num_threads(num_threads)
            runs.append(_run(task, num_threads, lambda what, i=i: report(what, i)))  # type: ignore[misc]
    finally:
        torch.set_num_threads(threads_before)
    report("a picture step by step, and scaling", len(options.threads))
    # From here on, what was measured above and no other graph: nothing is refused any more.
    pipeline = Pipeline.load(bundle, options.precisions[0], num_threads=options.threads[0], allow_unverified=True)
    num_pictures = 0 if "whole pictures" in task.left_out else options.num_picture_rounds
    timeline = measure_timeline(pipeline, task.work, num_pictures)
    scaling = {} if "scaling" in task.left_out else measure_scaling(pipeline, task.work, options.stage_seconds / 3)
    report("cold start, load time and memory", len(options.threads) + 1)
    footprint = measure_footprint(
        bundle, checkpoint, options.precisions, options.threads[0], repeats=min(options.num_rounds, 5)
    )
    described, left_out, repeats = _describe(task), task.left_out, []
    del pipeline, task, model  # fresh processes need the memory
    for i in range(options.repeats):
        report(f"fresh process {i + 1} of {options.repeats}", num_stages - options.repeats + i)
        repeats.append(in_fresh_process(bundle, checkpoint, options))
    return {
        "format": FORMAT,
        "machine": describe_machine(),
        "state": {"begin": begin, "end": describe_state()},
        "model": described,
        "options": asdict(options),
        "left_out": left_out,
        "runs": runs,
        "timeline": timeline,
        "scaling": scaling,
        "footprint": footprint,
        "repeats": repeats,
    }


def time_again(bundle: Path, checkpoint: Path, options: BenchOptions) -> list[dict[str, Any]]:
    """Ours, eager PyTorch and yardsticks only, for a comparison with other processes; correctness was judged before.

    PyTorch is always the same variant: a trial might choose another in every process.

    Returns:
        Per number of threads: `threads`, and `timings` and `yardsticks` by stage as in `run_bench`.
    """
    opened, model = open_exported(bundle, checkpoint)
    num_rounds = min(options.num_rounds, ROUNDS_AGAIN)
    options = replace(_with_precisions(options, opened), num_rounds=num_rounds, compile=False)
    task = _task(opened, model, options)
    threads_before, runs = torch.get_num_threads(), []
    try:
        for num_threads in options.threads:
            torch.set_num_threads(num_threads)
            contenders = [*_ours(task, num_threads), plain_baseline(model, task.work, task.questions)]
            for each in contenders:
                each.prepare()
            costs = task.costs()
            timings, yards = _time_stages(task, contenders, costs, measure_floors(costs), lambda stage: None)
            runs.append({"threads": num_threads, "timings": _as_dicts(timings), "yardsticks": _as_dicts(yards)})
    finally:
        torch.set_num_threads(threads_before)
    return runs


def _with_precisions(options: BenchOptions, opened: Bundle) -> BenchOptions:
    """All that the bundle has, where none is named."""
    if options.precisions:
        return options
    manifest = opened.manifest
    present = tuple(each for each in manifest.precisions if manifest.graphs_of(each, "classic"))
    return replace(options, precisions=present)


def _task(opened: Bundle, model: RFModel, options: BenchOptions) -> Task:
    work = Workload.of(opened.manifest, options.num_prompt_tokens, GenerationOptions())
    questions = QuestionWorkload.of(opened.manifest)
    left_out = left_out_for_memory(opened.manifest.model.num_parameters, free_bytes())
    if not options.compile:
        left_out["torch.compile"] = "it was not asked for"
    if not options.scaling or opened.manifest.model.num_parameters > SLOWEST_SCALING:
        asked = "it takes minutes at this size" if options.scaling else "it was not asked for"
        left_out["scaling"] = asked
    return Task(opened=opened, model=model, work=work, questions=questions, options=options, left_out=left_out)


def left_out_for_memory(num_parameters: int, free: int) -> dict[str, str]:
    """Contenders that copy the weights once more, where that does not fit."""
    needed = MEMORY_SHARE * 4 * num_parameters
    if needed <= free:
        return {}
    why = f"all contenders take about {needed >> 30} GiB, and {free >> 30} GiB are free"
    return dict.fromkeys(("torch.compile", "eager weights as [out, in]", "plain ONNX graphs beside an engine"), why)


def _describe(task: Task) -> dict[str, Any]:
    manifest, work = task.opened.manifest, task.work
    graphs = [graph for graph in manifest.graphs if graph.precision == task.options.precisions[0]]
    weights = sum(manifest.files[name].size for name in {file for graph in graphs for file in graph.weights})
    return {
        "num_parameters": manifest.model.num_parameters, "bundle_id": manifest.bundle_id, "height": work.plan.height,
        "width": work.plan.width, "rep_tokens": work.plan.num_rep_tokens, "patches": 4 * work.plan.num_rep_tokens,
        "prompt_tokens": len(work.prompt_ids), "cache_slots": work.num_slots, "num_steps": work.plan.num_steps,
        "question_tokens": len(task.questions.first), "answer_tokens": task.questions.num_words,
        "weight_bytes": weights,
    }  # fmt: skip


def _run(task: Task, num_threads: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Everything with one number of threads."""
    options = task.options
    lean = "eager weights as [out, in]" in task.left_out
    variants = baseline_variants(
        compiled="torch.compile" not in task.left_out, layouts=LAYOUTS[:1] if lean else LAYOUTS
    )
    baselines, trials = choose_baselines(task.model, task.work, task.questions, variants, report)
    ours = _ours(task, num_threads)
    report("agreement")
    agreement = {contender.name: _agreement(contender, task) for contender in (*ours, *baselines)}
    wrong = [name for name, each in agreement.items() if not each["passed"]]
    if set(wrong) & {contender.name for contender in ours}:
        raise RFError(f"{wrong[0]} does not do what the checkpoint does: {agreement[wrong[0]]}. Run rf-export verify.")
    contenders = [contender for contender in (*ours, *baselines) if contender.name not in wrong]
    report("the machine's limits")
    costs = task.costs()
    floors = measure_floors(costs)
    timings, yards = _time_stages(task, contenders, costs, floors, report)
    bests = {precision: next(c.name for c in ours if c.name.endswith(f" {precision}"))
             for precision in options.precisions}  # fmt: skip
    return {
        "threads": num_threads,
        "ours": ours[0].name,
        "timings": _as_dicts(timings),
        "yardsticks": _as_dicts(yards),
        "speedups": {
            best: {stage: {name: ratio(timing, rows[best]) for name, timing in rows.items() if name != best}
                   for stage, rows in timings.items()}
            for best in bests.values()
        },
        "floor": floors,
        "agreement": agreement,
        "trials": trials,
        "joules_per_picture": _energy(contenders, task),
    }  # fmt: skip


def _time_stages(
    task: Task, contenders: list[Contender], costs: dict[str, StepCost], floors: dict[str, Any],
    report: Callable[[str], None],
) -> tuple[Timings, Timings]:  # fmt: skip
    """Of the contenders and of the yardsticks, by stage; whole pictures only where they do not take too long."""
    timings: Timings = {}
    yards: Timings = {}
    for stage in (*STAGES, *READING_STAGES):
        report(f"timing {stage.replace('_', ' ')}")
        if stage == "picture" and (seconds := _picture_seconds(task, timings)) > task.options.stage_seconds:
            task.left_out["whole pictures"] = f"one of every contender takes {seconds:.0f} s"
            continue
        marks = yardsticks(NAMES)
        if stage in costs:
            floor, num_bytes = floors[stage], costs[stage].num_bytes
            bounds = bounding(floor["flops"] / floor["matrix_gflop_s"], num_bytes / floor["bandwidth_gb_s"])
            marks = yardsticks(bounds, num_bytes)
        timings[stage], yards[stage] = _time_stage(stage, contenders, marks, task)
    return timings, yards


def _as_dicts(timings: Timings) -> dict[str, dict[str, Any]]:
    return {stage: {name: each.as_dict() for name, each in rows.items()} for stage, rows in timings.items()}


def _ours(task: Task, num_threads: int) -> list[Contender]:
    """Of all precisions."""
    return [each for precision in task.options.precisions for each in _our_contenders(task, precision, num_threads)]


def _our_contenders(task: Task, precision: Precision, num_threads: int) -> list[Contender]:
    """The engine and the plain graphs; without an engine that fits, these alone."""
    load = functools.partial(Pipeline.load, task.opened.path, precision, num_threads=num_threads,
                             allow_unverified=task.options.allow_unverified)  # fmt: skip
    loaded = {"engine": load()}
    if loaded["engine"].engine is None:
        loaded = {"onnx": loaded["engine"]}
    elif "plain ONNX graphs beside an engine" not in task.left_out:
        loaded["onnx"] = load(engine="none")
    contenders = []
    for name, pipeline in loaded.items():
        drawer, reader = Compiled(pipeline, task.work), CompiledReader(pipeline, task.questions)
        readers = dict.fromkeys(READING_STAGES, reader)
        contenders.append(Contender(name=f"{name} {precision}", tokens=drawer, pixels=drawer, readers=readers))
    return contenders


def _agreement(contender: Contender, task: Task) -> dict[str, Any]:
    """Against the independent eager loops in fp32, in the state that is timed.

    Tokens, the picture after the trial's steps, words after the same history. Only fp32 has to agree: what fewer bits
    may change is judged where a bundle is made, by pictures, not here.
    """
    drawn = contender.prepare()
    ids = drawn[contender.tokens]
    pixels = contender.pixels.denoise(TRIAL_STEPS)
    words = np.array(contender.readers["next_word"].words(task.read.words))
    firsts = contender.readers["first_word"].first_word(), contender.readers["second_question"].second_question()
    result = {
        "tokens_equal": int((ids == task.drawn.rep_ids.numpy()).sum()), "tokens": len(ids),
        "psnr_db": psnr_db(pixels, task.drawn.pixels.numpy()),
        "words_equal": int((words == task.read.words).sum()), "words": len(words),
        "first_words_equal": firsts == (task.read.words[0], task.read.second_word),
        "features_cosine": cosine(contender.readers["encode_image"].encode(), task.read.features),
    }  # fmt: skip
    right = result["tokens_equal"] == len(ids) and result["words_equal"] == len(words)
    right = right and result["first_words_equal"] and result["psnr_db"] >= LIMITS["fp32"].psnr_db
    return {**result, "passed": bool(right) or not contender.name.endswith("fp32")}


def _picture_seconds(task: Task, timings: Timings) -> float:
    """About how long one picture of every contender takes."""
    runs = {"rep_step": task.work.num_decoder_runs, "denoise_step": task.work.plan.num_steps}
    return sum(count * timing.median for stage, count in runs.items() for timing in timings[stage].values())


def _time_stage(
    stage: str, contenders: list[Contender], marks: dict[str, Callable[[], int]], task: Task
) -> tuple[dict[str, Timing], dict[str, Timing]]:
    """Of the contenders, and of the yardsticks that took turns with them."""
    runs: dict[str, Callable[[], int]] = {}
    for each in contenders:
        if stage == "picture":
            runs[each.name] = lambda each=each: each.picture(task.work.plan.num_steps)  # type: ignore[misc]
        else:
            runs[each.name] = {**drawing_runs(each, task.work), **reading_runs(each.readers)}[stage]  # type: ignore[index]
    num_rounds = task.options.num_picture_rounds if stage == "picture" else task.options.num_rounds
    timings = interleave(
        {**runs, **{f"yardstick {name}": run for name, run in marks.items()}}, num_rounds, warm=stage != "picture",
        most_seconds=task.options.stage_seconds,
    )  # fmt: skip
    return {name: timings[name] for name in runs}, {name: timings[f"yardstick {name}"] for name in marks}


def _energy(contenders: list[Contender], task: Task) -> dict[str, float]:
    """Of one whole picture each; nothing where the board does not tell, or a picture takes too long."""
    meter = EnergyMeter()
    if meter.source is None or "whole pictures" in task.left_out:
        return {}
    steps = task.work.plan.num_steps
    return {each.name: meter.joules(lambda each=each: each.picture(steps)) for each in contenders}  # type: ignore[misc]
