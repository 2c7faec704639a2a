"""The section "How fast" of docs/serving.md, made of results: a table for each kind of load that was measured.

    python benchmarks/serving_tables.py

Takes benchmarks/results/serving*.json, the newest of each kind, and says of which processor each is. Knows nothing of
measuring: serving.py and serving_simulation.py write what is read here.
"""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCUMENT = ROOT / "docs/serving.md"
KINDS = ("", "-int8", "-ray", "-triton", "-simulation")
SECTION = re.compile(r"(?<=^## How fast\n\n).*?(?=^## )", re.MULTILINE | re.DOTALL)
HOW = (
    "`python benchmarks/serving.py bundle` asks this server and a naive one (a lock around `Pipeline.draw`) for the "
    "same pictures, in turns: clients at once, with previews, requests at random moments, some of other sizes, some "
    "that leave. With `--ray ENVIRONMENT` or `--triton ENVIRONMENT` it asks those in the place of the naive one, "
    "and with `--precision int8` all draw with these graphs. Eight pictures of each are compared with the "
    "pipeline's. What the scheduler alone gains is [below](#what-it-gains)."
)
TITLES = {
    "": "The reference checkpoint by its full plan",
    "-int8": "The same in INT8",
    "-ray": "Beside Ray, whose cluster has one replica and, in a second application, two (CPU and memory of both)",
    "-triton": "Beside NVIDIA's Triton, whose own client sends the load through gRPC",
}


def section() -> str:
    """The text below the heading."""
    found = {kind: latest(kind) for kind in KINDS}
    parts = [wrapped(HOW)]
    for kind, title in TITLES.items():
        if (path := found[kind]) is not None:
            parts.append(measured(title, path, json.loads(path.read_text(encoding="utf-8"))))
    if (path := found["-simulation"]) is not None:
        parts.append(simulated(path, json.loads(path.read_text(encoding="utf-8"))))
    return "\n".join(parts) + "\n"


def latest(kind: str) -> Path | None:
    """The result of a kind; the one that was measured last."""
    pattern = re.compile(rf"serving{kind}-(?!int8|ray|triton|simulation).*\.json")
    paths = [path for path in RESULTS.iterdir() if pattern.fullmatch(path.name)]
    moments = {path: json.loads(path.read_text(encoding="utf-8")).get("measured_at") for path in paths}
    return max((path for path in paths if moments[path]), key=lambda path: moments[path], default=None)


def measured(title: str, path: Path, report: dict[str, Any]) -> str:
    """A table and what it comes to."""
    machine, options, lone, targets = (report[key] for key in ("machine", "options", "lone", "targets"))
    head = (
        f"{title}, on {machine['cpu']} with {machine['cores']} cores: medians of {options['rounds']} rounds of "
        f"{options['requests']} requests ([result]({link(path)}))."
    )
    rows = [
        wrapped(head),
        "| clients | server | pictures/s | p50, s | p95, s | preview, s | CPU of a picture, s | memory, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours: dict[str, Any] = {}
    before = None
    for each in report["results"]:
        if before != each["scenario"]:
            ours = each
        name = each["scenario"].replace(" at once", "") if before != each["scenario"] else ""
        name = f"{name}, some leave" if name.startswith("at random") else name
        times = f"{each['pictures_per_s']:.2f}"
        times += "" if each is ours else f" ({ours['pictures_per_s'] / each['pictures_per_s']:.2f}x with ours)"
        preview = each["first_preview_p50_s"]
        server = f"`{each['server']}`" if each is ours else each["server"]
        shown = "" if preview is None else f"{preview:.2f}"
        rest = (f"{each['p50_s']:.2f}", f"{each['p95_s']:.2f}", shown, f"{each['cpu_s_per_picture']:.2f}")
        rows.append(row(name, server, times, *rest, f"{each['rss_mib']:.0f}"))
        before = each["scenario"]
    told = (
        f"At 8 clients the server draws {targets['share_of_the_bound_at_8']:.0%} of what each core draws by itself in "
        f"full batches of 8; the first preview is there after {targets['steps_before_the_first_preview']} steps."
    )
    if "times_the_pictures_of_the_naive_server_at_8" in targets:
        told = (
            f"HTTP takes {lone['http_s'] * 1000:.1f} ms of a lone picture's {lone['with_http_s'] * 1000:.0f}, "
            f"{lone['http_share']:.1%} ({lone['pairs']} in turns with the scheduler alone). {told}"
        )
    if report["precision"].startswith("int8"):
        least = report["least_psnr_db"]["8 at once"]["rf-export serve"]
        told += (
            " A lone picture is that of `rf-export generate --precision int8`, bit for bit. In a batch pixels differ, "
            f"by {least:.0f} dB at least: what is rounded to INT8 may be rounded the other way where the last bit of a "
            "float differs."
        )
    return "\n".join([*rows, "", wrapped(told)])


def simulated(path: Path, report: dict[str, Any]) -> str:
    """How waiting scales."""
    trial = report["trial"]
    head = (
        "**More replicas: a simulation.** `python benchmarks/serving_simulation.py bundle` tells how waiting scales to "
        "64 replicas. Step times are measured, and the scheduler's own dispatcher runs on a clock that jumps. The same "
        f"arrivals at one real scheduler, at {trial['load']:.0%} of what it can draw: p50 "
        f"{trial['measured']['p50_s']:.2f} s measured, {trial['simulated']['p50_s']:.2f} s simulated; p95 "
        f"{trial['measured']['p95_s']:.2f} and {trial['simulated']['p95_s']:.2f} s ([result]({link(path)}))."
    )
    rows = [
        wrapped(head),
        "| load | replicas | pictures/s | p50, s | p95, s | p99, s | waited in the front |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in report["simulated"]:
        seconds = [f"{each[f'p{which}_s']:.2f}" for which in (50, 95, 99)]
        counts = (f"{each['load']:.0%}", str(each["replicas"]), f"{each['pictures_per_s']:.1f}")
        rows.append(row(*counts, *seconds, f"{each['queued_share']:.1%}"))
    return "\n".join([*rows, ""])


def row(*cells: str) -> str:
    """A line of a table."""
    return " ".join(f"| {' | '.join(cells)} |".split())


def wrapped(text: str) -> str:
    """A paragraph in the width of the documents."""
    return textwrap.fill(text, 135, break_long_words=False, break_on_hyphens=False) + "\n"


def link(path: Path) -> str:
    """From the document."""
    return f"../{path.relative_to(ROOT)}"


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(SECTION.sub(lambda _: section(), text), encoding="utf-8")
