"""Reports open anywhere: offline, without scripts, on a phone and on a desk, whatever names stand in them.

Every report is filled with small data in which all names are hostile. Widths are measured in Chromium where it is
installed: apt-get install chromium, or CHROMIUM=/path/to/it.
"""

import copy
import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM

from calibration.report import write_report as write_calibration
from calibration.statistics import Activations, coverage_table
from examples import demo
from rf_export.benchmark.bench_report import bench_page, latency
from rf_export.evaluation.understanding import Asked
from runtime.bundle.folder import open_bundle
from runtime.bundle.manifest import TunedPlan
from runtime.events import PictureEvent, StepEvent
from runtime.signature import Variant
from runtime.understanding.caption_match import agreement
from tuning.config import TuneConfig
from tuning.judging import Mark, compare
from tuning.report import write_report as write_tuning
from tuning.subjects import Subject
from tuning.tune import Sheet, TuneResult
from verification.candidates import Candidate, NotRun
from verification.outcome import Outcome
from verification.pages.page import number
from verification.pages.plots import Axis, Series, plot
from verification.report import write_report as write_verification
from verification.tally import Failure, Figures, Tally, WorstPicture

ROOT = Path(__file__).parents[2]
HOSTILE = """</title></style></svg>"'><script>alert(1)</script><img src=x onerror=alert(2)>$x_2$&amp;"""
MEASURE = """<body><iframe id="frame" style="border:0;width:%dpx;height:800px" srcdoc="%s"></iframe><script>
onload = () => {
  const width = frame.clientWidth, page = frame.contentDocument, wide = [], small = [];
  for (const each of page.body.querySelectorAll("*")) {
    const box = each.getBoundingClientRect(), scrolls = each.parentElement.closest(".scroll");
    if (!scrolls && (box.right > width + 1 || box.left < -1)) wide.push(each.outerHTML.slice(0, 90) + box.right);
    if (each.closest("text") && parseFloat(getComputedStyle(each).fontSize) * each.getScreenCTM().a < 9
        && !each.getAttribute("transform")?.includes("rotate(-90")) small.push(each.textContent);
  }
  const root = page.documentElement;
  document.body.textContent = JSON.stringify({wide, small, scrolls: root.scrollWidth > width});
}
</script>"""


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    """A committed result, with a contender of any name and processes that were repeated."""
    result = json.loads((ROOT / "benchmarks/results/cpu-reference-1-threads-amd-epyc.json").read_text())
    text = json.dumps(result).replace('"torch.compile bf16"', '"<script>alert(3)</script>"')
    result = json.loads(text)
    return {**result, "repeats": [copy.deepcopy(result["runs"])] * 2, "left_out": {"scaling": HOSTILE}}


def verification_page(folder: Path) -> str:
    found = Tally()
    found.failures = [
        Failure(graph="denoiser", tensor="x_pred", case=HOSTILE, request=0, step=3, what="cosine 0.5, expected 0.9999")
    ]
    found.curves = {"rep_decoder logits": [1 - 1e-7, 1.0, 0.5], "denoiser x_pred": [-1.0] * 50, HOSTILE: []}
    noise = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    found.pictures = [WorstPicture(HOSTILE, 0, 31.5, noise, noise * np.nan)]
    found.figures = {"denoiser": {"x_pred": Figures(0.5, 3, HOSTILE, 0.9, 1e30)}}
    outcome = Outcome(candidate=Candidate(variant=Variant("fp16")), verdict="failed", tally=found)
    outcome.inside = HOSTILE
    outcome.taps = {"denoiser": [SimpleNamespace(name=HOSTILE, cosine=0.5, norm_ratio=1.0, largest=3.0)]}
    outcome.record = {**found.to_dict(), "reference": HOSTILE, "first_failure": HOSTILE}
    not_run = NotRun(candidate=outcome.candidate, reason=HOSTILE)
    write_verification(folder / "page.html", Path(HOSTILE.replace("/", "|")), [outcome, not_run])
    return (folder / "page.html").read_text()


def calibration_page(folder: Path) -> str:
    recorded = {"denoiser": {HOSTILE: Activations(4, 25)}}
    for step in range(25):
        recorded["denoiser"][HOSTILE].add(step, 0, np.full((2, 4), 1.0 + step, np.float32), "x")
    row = {"graph": "denoiser", "kind": HOSTILE, "format": "static", "layers": 3, "kept": 3, "weights_share": 0.5}
    row |= {"cosine": 0.9991, "error": 0.01, "saved_ms": 0.25, "why": HOSTILE}
    decision = {"graph": "denoiser", "rows": [row, {**row, "kept": 0, "saved_ms": None}], "int8_layers": 3}
    decision |= {"before": {"ms": 10.0}, "after": {"ms": 5.0}, "speedup": 2.0, "agreement": {"cosine": 0.999}}
    decided = [decision, {**decision, "before": None, "after": None, "speedup": None}]
    interval = {"value": 0.97, "low": 0.9, "high": 1.0}
    captions = {"answers": 4, "tokens": 20, "answers_equal": 4, "tokens_equal": 19, "tokens_alike": 20}
    captions |= {f"{name}_interval": (0.8, 1.0) for name in ("answers_equal", "tokens_equal", "tokens_alike")}
    quality = {"tokens_equal": interval, "tokens": 64, "psnr_db": interval, "prompts": 4, "captions": captions}
    quality |= {"score_before": interval, "score_after": interval, "score_change": interval, "scored_pictures": 40}
    quality |= {"logits_cosine": [1.0, 0.98], "x_pred_cosine": [1.0, 0.99] * 20, "features_cosine": 0.999}
    summary = {
        "calibration": {"target": "ort", "base": "fp32", "method": HOSTILE, "smooth": True, "prompts": 16},
        "coverage": coverage_table(recorded),
        "decisions": decided,
        "quality": quality,
        "weights_share": 0.26,
        "problems": [HOSTILE],
    }
    write_calibration(folder / "page.html", HOSTILE, summary, recorded)
    return (folder / "page.html").read_text()


def demo_page(folder: Path, bundle: Path, bench: dict[str, Any]) -> str:
    pixels = np.zeros((1, 3, 8, 8), np.float32)
    picture = np.zeros((8, 8, 3), np.uint8)
    drawn = demo.Drawn(
        [PictureEvent(0, HOSTILE, 7, picture, pixels[0], np.zeros(4, np.int64))] * 3,
        [StepEvent(step, 25, 0.0, 1.0, pixels, pixels) for step in range(25)],
        1.0,
        SimpleNamespace(  # type: ignore[arg-type]
            verdicts=[SimpleNamespace(correct=True)] * 3, overall=SimpleNamespace(successes=3, num=3)
        ),
    )
    asked = Asked(kind="colour", picture=picture, question=f"what is {HOSTILE} ?", right=frozenset({"red"}))
    read = demo.Read([agreement(HOSTILE, "a car")] * 3, [[(asked, HOSTILE)]], 1.0)
    manifest = open_bundle(bundle).manifest
    tuned = TunedPlan(num_steps=6, evidence={"summary": HOSTILE})
    manifest = manifest.replace(verified={HOSTILE: manifest.verified["fp32"]}, tuned=tuned)
    demo.write_report(folder, manifest, (drawn, drawn), read, bench, 1.5)
    return (folder / "report.html").read_text()


def tuning_page(folder: Path) -> str:
    marks = [Mark(score, 20.0 + score, 0.9) for score in (0.0, 1.0, 1.0)]
    found = {**compare(marks[::-1], marks, list("abc")).to_dict(), "plan": HOSTILE, "rows": 11, "text": HOSTILE}
    subject, picture = Subject(0, HOSTILE, 0), np.zeros((8, 8, 3), np.uint8)
    evidence = {
        "summary": HOSTILE,
        "date": "2026-01-01T00:00:00",
        **dict.fromkeys(("precision", "runs", "scorer"), HOSTILE),
        "machine": {"cpu": HOSTILE, "threads": 1},
        "limits": vars(TuneConfig()),
        "rows": [11, 50],
        "tried": [{**found, "promising": True}, {**found, "promising": False, "rows": 8}],
        "held_out": [{**found, "verdict": "as good"}],
        "windows": {"1": {"ms": 3.0, "tokens_different": 0}, "8": {"ms": 2.0, "tokens_different": 1}},
        "picture_ms": {HOSTILE: 20.0, "the full plan": 80.0},
    }
    sheet = Sheet([subject] * 3, {HOSTILE: [picture] * 3}, [(subject, picture, picture, 1.0, 0.0)])
    write_tuning(folder / "page.html", HOSTILE, TuneResult(None, HOSTILE, evidence, sheet))
    return (folder / "page.html").read_text()


@pytest.fixture(scope="module", params=["bench", "calibration", "demo", "tuning", "verification"])
def page(request, bench, tiny_bundle: Path, tmp_path_factory) -> str:
    """One report after the other."""
    folder = tmp_path_factory.mktemp(request.param)
    makers = {
        "bench": lambda: bench_page(bench),
        "calibration": lambda: calibration_page(folder),
        "demo": lambda: demo_page(folder, tiny_bundle, bench),
        "tuning": lambda: tuning_page(folder),
        "verification": lambda: verification_page(folder),
    }
    return makers[request.param]()


class Elements(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_no_name_becomes_markup_and_nothing_is_fetched(page: str) -> None:
    found = Elements(page)
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>$x_2$&amp;" in found.text
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\((?!#)|@import", page)


def test_every_page_has_a_title_headings_and_words_for_what_is_drawn(page: str) -> None:
    elements = Elements(page).elements
    tags = [tag for tag, _ in elements]
    assert tags[: tags.index("body")].count("title") == tags.count("h1") == 1 and tags.count("h2") >= 2
    assert all(attributes.get("alt") for tag, attributes in elements if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in elements if tag == "svg")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in elements


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium measures the widths: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_or_too_small_to_read(page: str, width: int, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(MEASURE % (width, html.escape(page)))
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    command = [str(CHROMIUM), "--headless", "--no-sandbox", *quiet, f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1400,900", "--dump-dom", (tmp_path / "page.html").as_uri()]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = json.loads(html.unescape(re.findall(r"<body>(.*)</body>", printed, re.DOTALL)[0]))
    assert found == {"wide": [], "small": [], "scrolls": False}


def test_ratios_never_contradict_the_medians_beside_them(bench: dict[str, Any]) -> None:
    compared = 0
    for _, bars in latency(bench):
        ours = next(bar for bar in bars if bar.is_ours)
        for bar in bars:
            ratio = re.search(r"\((.*)x\)", bar.label)
            if ratio:
                compared += 1
                assert float(ratio[1]) == pytest.approx(bar.value / ours.value, abs=0.005)
    assert compared > 30


def test_the_benchmark_document_is_what_its_results_say() -> None:
    from benchmarks.document import document

    results = ROOT / "benchmarks/results"
    names = [f"cpu-{name}-1-threads" for name in ("reference", "base-90m", "qwen3-0.6b")]
    read = [json.loads((results / f"{name}-amd-epyc.json").read_text()) for name in (*names, "planted-reference")]
    assert document(read[:-1], read[-1]) == (ROOT / "docs/benchmarks-cpu.md").read_text()
    for run in (run for result in read[:-1] for run in result["runs"]):
        for ours, stages in run["speedups"].items():
            for stage, rows in stages.items():
                for name, each in rows.items():
                    medians = [run["timings"][stage][who]["median_ms"] for who in (name, ours)]
                    assert each["median"] == pytest.approx(medians[0] / medians[1], rel=1e-4)
                    assert each["low"] <= each["median"] <= each["high"]


def test_without_jinja2_verify_works_and_a_report_names_the_extra(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['jinja2'] = None\n"
        "sys.path.insert(0, sys.argv[1]); import cli, verification, verification.rebuilds\n"
        "cli.main(['verify', sys.argv[2], '--report', sys.argv[3]])"
    )
    run = [sys.executable, "-c", code, ROOT, tiny_bundle, tmp_path / "page.html"]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "needs jinja2, which is not installed; run: pip install 'rf-export[report]'" in result.stderr


def test_a_plot_puts_points_where_they_belong_and_takes_names_as_they_are() -> None:
    series = [Series(name="a <b> $x_2$", points=[(1.0, 0.2), (10.0, 2.0), (100.0, 3.8)])]
    drawn = [plot("a title", Axis(label="bytes (MiB)", log=True), Axis(label="ms"), series) for _ in range(2)]
    assert drawn[0] == drawn[1]
    spots = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: #3b7dd8', drawn[0])[:3]
    (x0, y0), (x1, y1), (x2, y2) = ((float(x), -float(y)) for x, y in spots)
    assert x2 - x1 == pytest.approx(x1 - x0) and x1 > x0, "a logarithmic axis"
    assert y2 - y1 == pytest.approx(y1 - y0, rel=1e-4) and y1 > y0
    assert {"1", "10", "100", "bytes (MiB)", "a &lt;b&gt; $x_2$"} <= set(re.findall(r">([^<>]+)</text>", drawn[0]))
    assert "#010203" not in drawn[0] and drawn[0].count("currentColor") > 10


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0000123, "1.2e-05"), (0.5, "0.500"), (1.299, "1.30"), (273.78, "274"), (8415, "8,415")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
