"""The README stays short, every figure in it is that of a committed result, and every page is found from it.

A figure is a number that stands by itself ("162 ms", "92.0%"), not one in a name ("INT8", "fp32") or in a command.
Each is part of a phrase that is built here from the result; what no phrase explains is refused.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from documents import BLOCK, ROOT, links
from serving_tables import section

from rf_export.training.scenes import COLOURS
from tuning.config import TuneConfig
from tuning.subjects import split

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks/results"
SCORES = ROOT / "examples/reference/scores"
MAX_LINES, MAX_WORDS = 140, 900
FIGURE = re.compile(r"(?<![\w.,-])\d[\d.,]*(?![\w-])")
ENGINES = ("engine int8", "engine fp32")
STAGES = ("rep_step", "denoise_step", "picture")


def result(path: Path) -> dict[str, Any]:
    """A committed result."""
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


REFERENCE = result(RESULTS / "int8-reference-amd-epyc.json")
BASE_90M = result(RESULTS / "int8-base-90m-amd-epyc.json")
INSTALL = result(RESULTS / "install-amd-epyc.json")["environments_mib"]
PLAN = result(ROOT / "examples/reference/checkpoint/plan.json")
SOFTER = result(RESULTS / "plan-reference-any-distance.json")
PLAN_PROMPTS = (ROOT / "examples/reference/tuning-prompts.txt").read_text(encoding="utf-8").splitlines()
PLANS = result(RESULTS / "plans-reference-intel-r-xeon-r-processor-2-80ghz.json")
SCHEDULER = result(RESULTS / "scheduler-reference-amd-epyc.json")


def milliseconds(bench: dict[str, Any], contender: str, stage: str = "picture") -> float:
    """Median of a contender with one thread."""
    median: float = bench["runs"][0]["timings"][stage][contender]["median_ms"]
    return median


def speed_phrases() -> list[str]:
    """The headline, the table, and what they were measured on."""
    names = {"engine, INT8": "engine int8", "engine, fp32": "engine fp32", "torch.compile, bf16": "torch.compile bf16"}
    names |= {"torch.compile, fp32": "torch.compile fp32", "eager, fp32": "eager fp32"}
    rows = [
        f"| {name} | {milliseconds(REFERENCE, each):,.0f} | {milliseconds(BASE_90M, each):,.0f} |"
        for name, each in names.items()
    ]
    machine, versions = REFERENCE["machine"], REFERENCE["machine"]["versions"]
    assert BASE_90M["machine"]["cpu"] == machine["cpu"]
    shapes = [
        f"{bench['preset']}, {bench['model']['num_parameters'] / 1e6:.{digits}f} M, {bench['model']['width']} px"
        for bench, digits in ((REFERENCE, 1), (BASE_90M, 0))
    ]
    return [
        f"One picture on one CPU thread: {milliseconds(REFERENCE, 'engine int8'):.0f} ms with our INT8 engine, "
        f"{milliseconds(REFERENCE, 'torch.compile bf16'):.0f} ms with torch.compile in bf16",
        f"{machine['cpu']}, {machine['cores']} cores",
        "ONNX Runtime " + versions["onnxruntime"].rpartition(".")[0],
        "PyTorch " + versions["torch"].rpartition(".")[0],
        *shapes,
        *rows,
    ]


def score_phrases() -> list[str]:
    """The table of scores, and what is said of reading."""
    phrases = []
    for name, file in (
        ("fp32 graphs", "onnx-fp32"),
        ("fp32 graphs, pairs never seen in training", "onnx-fp32-held-out"),
    ):
        scored = result(SCORES / f"questions-002000-{file}.json")
        score = scored["score"]["overall"]
        kinds = [f"{scored['score']['kinds'][kind]['value']:.0%}" for kind in ("single", "count", "two", "relation")]
        interval = f"{100 * score['low']:.1f}, {100 * score['high']:.1f}"
        phrases.append(f"| {name} | {100 * score['value']:.1f}% [{interval}] | {' | '.join(kinds)} |")
        phrases.append(f"{scored['options']['num_prompts']} captions")
    reading = result(SCORES / "understanding-questions-002000-eager-fp32.json")["understanding"]["new scenes"]
    assert all(share["value"] == 1 for kind, share in reading.items() if kind.startswith("caption"))
    agreement = result(SCORES / "understanding-questions-002000-engine-fp32.json")["agreement"]["all sets"]
    assert agreement["answers"] == agreement["answers_equal"]
    return [
        *phrases,
        "score [95% interval]",  # Wilson's: rf_export/evaluation/metric.py
        f"counts right in {100 * reading['count']['value']:.1f}%",
        f"all {agreement['answers']:,} answers as eager PyTorch does",
    ]


def plan_phrases() -> list[str]:
    """What the tuned plan of the reference checkpoint takes, and what its held-out pictures came to."""
    rows, full_rows = PLAN["evidence"]["rows"]
    judged = PLAN["evidence"]["held_out"][-1]
    assert judged["verdict"] == "as good"
    return [
        f"{rows} of {full_rows} denoiser rows",
        f"of {judged['pictures']} held-out pictures {judged['score']['value']:.1f}% are right, "
        f"{judged['full']['value']:.1f}% by the full plan",
        f"INT8 then draws in {PLANS['timings']['picture']['engine int8, tuned']['median_ms']:.0f} ms, "
        f"{PLANS['speedups']['picture']['eager fp32, paper']['engine int8, tuned']['median']:.1f} times as fast",
    ]


def tried_rows() -> list[str]:
    """The table of docs/plans.md: what was tried to the end, and the held-out half."""
    tried = [each for each in PLAN["evidence"]["tried"] if each["pictures"] == len(PLAN_PROMPTS) // 2]
    rows = [("first half", each, "kept" if each["promising"] else "not kept") for each in tried]
    rows += [("held out", each, each["verdict"]) for each in PLAN["evidence"]["held_out"]]
    return [
        f"| {half} | {each['plan']} | {each['rows']} | {span(each['full'])} | {span(each['score'])} | "
        f"{each['lost']} / {each['won']} | {span(each['psnr_db'])} | {verdict} |"
        for half, each, verdict in rows
    ] + [
        f"{SOFTER['evidence']['held_out'][-1]['plan']}: {SOFTER['evidence']['rows'][0]} rows, as good for the checker "
        "(held out: {}% against {}%)".format(
            *(span(SOFTER["evidence"]["held_out"][-1][name]) for name in ("score", "full"))
        )
    ]


def span(each: dict[str, float]) -> str:
    """A figure with its interval."""
    return f"{each['value']:.1f} [{each['low']:.1f}, {each['high']:.1f}]"


def test_the_tuned_plan_is_that_of_the_committed_prompts() -> None:
    assert len(set(PLAN_PROMPTS)) == PLAN["evidence"]["limits"]["num_pictures"] == 400
    subjects = [(each.prompt, each.seed) for each in split(PLAN_PROMPTS, TuneConfig()).all]
    digest = hashlib.sha256(json.dumps(subjects, sort_keys=True).encode()).hexdigest()
    assert PLAN["evidence"]["prompts"] == digest[:16]


def other_phrases() -> list[str]:
    """The reference checkpoint, the versions of Python."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.findall(r'requires-python = ">=([\d.]+)"', project)[0]
    exporting = ".".join(re.findall(r"sys.version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text())[0])
    scenes = result(ROOT / "examples/reference/run.json")["stages"][0]["train"]["scenes"]
    model = REFERENCE["model"]
    return [
        f"({model['num_parameters'] / 1e6:.1f} M parameters, {model['width']} px; "
        f"{scenes['num_objects']} objects, {len(COLOURS)} colours)",
        f"an environment of {INSTALL['export,ort,tensorrt-rtx,dev'] / 1024:.1f} GiB",
        f"Python {exporting} or newer ({oldest} where bundles only run)",
    ]


def benchmark_rows() -> list[str]:
    """The tables of docs/benchmarks.md."""
    rows = []
    for bench, digits in ((REFERENCE, 2), (BASE_90M, 0)):
        for contender in bench["runs"][0]["timings"]["picture"]:
            if contender != "onnx int8":
                cells = [
                    f"{milliseconds(bench, contender, stage):.{places}f}{faster(bench, contender, stage)}"
                    for stage, places in zip(STAGES, (2, digits, 0), strict=True)
                ]
                rows.append(f"| {contender} | {' | '.join(cells)} |")
    return rows


def faster(bench: dict[str, Any], contender: str, stage: str) -> str:
    """How many times our engines in INT8 and in fp32 are faster, in brackets."""
    if contender == "engine int8":
        return ""
    ratios = (milliseconds(bench, contender, stage) / milliseconds(bench, engine, stage) for engine in ENGINES)
    int8, fp32 = (f"{ratio:.2f}x" for ratio in ratios)
    return f" ({int8} / {'-' if contender in ENGINES else fp32})"


def serving_phrases() -> list[str]:
    """The table of docs/serving.md, and its section "How fast"."""
    ways = {way["way"]: way for way in SCHEDULER["at_once"]}
    named = {
        "one at a time, 2 threads": "one at a time, 2 threads",
        "static batch of 8, 2 threads": "static batch of 8, 2 threads",
        "scheduler, 2 workers x 1 thread": "scheduler, max_batch 8, 2 workers x 1 threads",
    }
    rows = [
        f"| {name} | {ways[way]['pictures_per_s']:.2f} | {ways[way]['latency_p50_s']:.2f} |"
        for name, way in named.items()
    ]
    alone, together = (ways[named[name]]["pictures_per_s"] for name in list(named)[::2])
    return [*rows, f"{together / alone:.2f} times as many", *filter(None, section().splitlines())]


PAGES = {
    "README.md": [*speed_phrases(), *score_phrases(), *plan_phrases(), *other_phrases()],
    "docs/plans.md": tried_rows(),
    "docs/benchmarks.md": benchmark_rows(),
    "docs/serving.md": serving_phrases(),
    "docs/install.md": [f"| `.[{extra}]` | {size:,} |" for extra, size in INSTALL.items()],
}


def one_line(text: str) -> str:
    """Without line breaks, so that a phrase is found wherever a paragraph was broken."""
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_those_of_committed_results(page: str) -> None:
    text = one_line((ROOT / page).read_text(encoding="utf-8"))
    assert [phrase for phrase in PAGES[page] if phrase not in text] == []


def unexplained(text: str) -> list[str]:
    """Figures that are in no phrase of a result, outside of commands and links."""
    text = one_line(re.sub(r"\]\([^)]*\)", "]", BLOCK.sub("", text)))
    for phrase in sorted(PAGES["README.md"], key=len, reverse=True):
        text = text.replace(one_line(phrase), "")
    return FIGURE.findall(re.sub(r"`[^`]*`|arXiv [\d.]+", "", text))


def test_the_readme_has_no_other_figures() -> None:
    assert unexplained(README.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("figure", ["7.5", "42", "1,024", "3"])
def test_a_figure_that_no_result_has_is_found(figure: str) -> None:
    claim = f"It is {figure} times as fast, in {figure}% of cases."
    assert [each.rstrip(".,") for each in unexplained(README.read_text(encoding="utf-8") + claim)] == [figure, figure]


def test_the_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert len(text.split()) <= MAX_WORDS


def test_every_page_is_reached_from_the_readme() -> None:
    seen, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
        waiting += [target for target in targets if target.suffix == ".md" and target not in seen]
    assert set((ROOT / "docs").glob("*.md")) <= seen


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_page_opens_with_what_it_is_for(page: Path) -> None:
    title, first = page.read_text(encoding="utf-8").split("\n\n")[:2]
    assert title.startswith("# ")
    assert first[0].isalnum() or first[0] in "`*"
    assert len(first.split()) >= 10
