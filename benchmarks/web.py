"""Pictures drawn in a browser beside the Python runtime: as right, how fast, and what a visitor waits for.

    python benchmarks/web.py BUNDLE --rounds 15 --drawings 60

Every precision of BUNDLE, by the full plan and the tuned one, with one thread and with two, takes turns with the Python
runtime on one thread, ONNX graphs both. Then drawings and captions of each precision are compared with Python's, and an
exported site is visited: bytes and seconds of the first visit, seconds of the next one, frames a second while it draws,
how soon Stop is heeded, and when the first preview is there. The seconds are those of the page's own clock, from the
begin of the navigation until something can be drawn. With `--beside SITE` another site, such as one that an earlier
version exported, is visited in turns with it; `--visits-only` measures nothing else and writes
`benchmarks/results/web-visits-<name>-<cpu>.json`. Needs Chromium and playwright. Writes
`benchmarks/results/web-<name>-<cpu>.json`. Keep the machine quiet meanwhile.
"""

import json
import os
import shlex
import shutil
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
import numpy as np
import psutil
from cpu import HERE, progress_line
from playwright.sync_api import Browser, Page, sync_playwright

from rf_export.benchmark.environment import describe_machine, file_label
from rf_export.web import preview
from rf_export.web.site import SiteOptions, export_site
from runtime import GenerationOptions, Pipeline
from runtime.bundle.folder import open_bundle
from runtime.events import PictureEvent
from runtime.signature import Precision
from verification.measures.timing import interleave

PROMPTS: Final = HERE.parent / "examples" / "reference" / "prompts.txt"
IDLE: Final = "body.ready:not(.busy)"
WATCH: Final = """new MutationObserver((_, observer) => {
  if (!document.body?.classList.contains("ready")) return;
  window.readyAfter = performance.now();
  observer.disconnect();
}).observe(document, {subtree: true, childList: true, attributes: true, attributeFilter: ["class"]})"""
OPEN: Final = """async ([name, options]) => {
  const { openBundle } = await import("./host/client.js");
  (window.pipelines ??= {})[name] = await openBundle(new URL("bundle/", location), {...options, allowUnverified: true});
}"""
DRAW: Final = """async ([name, request]) => {
  const begun = performance.now();
  let picture;
  for await (const event of pipelines[name].draw(request)) picture = event;
  return {seconds: (performance.now() - begun) / 1000, ids: picture.repIds, rgba: [...picture.rgba]};
}"""
CAPTION: Final = """async ([name, rgba, width]) => {
  const conversation = await pipelines[name].converse();
  await conversation.show({rgba: Uint8ClampedArray.from(rgba), width, height: rgba.length / width / 4});
  let answer;
  for await (const event of conversation.ask()) answer = event;
  conversation.close();
  return answer.text;
}"""
VISIT: Final = """async () => {
  const told = {frames: [], stop: 0}, idle = () => !document.body.classList.contains("busy");
  const status = document.getElementById("status"), begun = performance.now();
  const seen = (pattern) => new Promise((resolve) => {
    const observer = new MutationObserver(() => {
      if (pattern.test(status.textContent)) { observer.disconnect(); resolve(performance.now()); }
    });
    observer.observe(status, {childList: true, characterData: true, subtree: true});
  });
  go.click();
  told.preview = await new Promise((resolve) => { picture.onload = () => resolve(performance.now() - begun); });
  picture.onload = null;
  while (!idle()) { told.frames.push(await new Promise(requestAnimationFrame)); }
  steps.max = 1000;
  steps.value = 1000;
  const step = seen(/^Step [3-9]/);
  go.click();
  await step;
  const pressed = performance.now();
  document.getElementById("stop").click();
  while (!idle()) await new Promise((resolve) => setTimeout(resolve));
  told.stop = performance.now() - pressed;
  plan.onchange();
  return told;
}"""


class Isolated(SimpleHTTPRequestHandler):
    """A plain server with the headers that threads need."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """The address of a server that runs."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield preview.url_of(server)
    finally:
        server.shutdown()
        server.server_close()


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True, help="Of timing.")
@click.option("--drawings", type=click.IntRange(1), default=60, show_default=True, help="For equality, each precision.")
@click.option("--visits", type=click.IntRange(1), default=9, show_default=True, help="Of the exported site.")
@click.option("--name", default="reference", show_default=True, help="Of the result.")
@click.option("--beside", type=click.Path(path_type=Path, exists=True), help="A site to visit in turns with ours.")
@click.option("--visits-only", is_flag=True, help="Measure visits alone.")
def main(
    bundle: Path, rounds: int, drawings: int, visits: int, name: str, beside: Path | None, visits_only: bool
) -> None:
    """See the module."""
    bundle = bundle.resolve()
    precisions = open_bundle(bundle).manifest.precisions
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with TemporaryDirectory() as temporary, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        folder = Path(temporary)
        result: dict[str, Any] = {
            "command": shlex.join(["python", "benchmarks/web.py", *sys.argv[1:]]),
            "machine": describe_machine(),
            "browser": f"Chromium {browser.version}",
            "sites": sites(bundle, precisions, folder),
        }
        if not visits_only:
            result |= beside_python(browser, bundle, precisions, folder, rounds, drawings)
        best = "fp16" if "fp16" in precisions else precisions[0]
        progress_line("visits", 3, 4)
        result["visits"] = {"precision": best, **visited(browser, folder / best, beside, visits)}
        browser.close()
    kind = "web-visits" if visits_only else "web"
    path = HERE / "results" / f"{kind}-{name}-{file_label(result['machine']['cpu'])}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(path)


def beside_python(
    browser: Browser, bundle: Path, precisions: tuple[Precision, ...], folder: Path, rounds: int, drawings: int
) -> dict[str, Any]:
    """Pictures of each precision beside the Python runtime's: milliseconds, and what differs."""
    result: dict[str, Any] = {}
    (folder / "host").symlink_to(folder / precisions[0] / "host")
    (folder / "bundle").symlink_to(bundle)
    (folder / "index.html").write_text("<!doctype html><title>benchmark</title>")
    with serving(ThreadingHTTPServer((preview.ADDRESS, 0), partial(Isolated, directory=str(folder)))) as url:
        page = browser.new_page()
        page.goto(url)
        result["isolated"] = page.evaluate("crossOriginIsolated")
        result["pictures"], pipelines = pictures(page, bundle, precisions, rounds)
        result["equality"] = {
            each: equality(page, pipelines[each], f"{each}, 1 thread", drawings) for each in precisions
        }
        page.close()
    return result


def sites(bundle: Path, precisions: tuple[Precision, ...], folder: Path) -> dict[str, Any]:
    """Export a site for each precision; bytes of all files, and of a first visit."""
    progress_line("sites", 0, 4)
    sizes = {}
    for precision in precisions:
        options = SiteOptions(precision=precision, allow_unverified=True)
        site = export_site(bundle, folder / precision, options, lambda *_: None)
        sizes[precision] = {"bytes": site.size, "first_visit_bytes": site.packed_size}
    return sizes


def pictures(
    page: Page, bundle: Path, precisions: tuple[Precision, ...], rounds: int
) -> tuple[dict[str, Any], dict[str, Pipeline]]:
    """Seconds of a picture, in turns; and the pipelines of Python."""
    progress_line("pictures", 1, 4)
    plans = ("paper",) if open_bundle(bundle).manifest.tuned is None else ("paper", "tuned")
    pipelines: dict[str, Pipeline] = {}
    contenders: dict[str, Callable[[], Any]] = {}
    for precision in precisions:
        pipeline = Pipeline.load(bundle, precision, num_threads=1, engine="none", allow_unverified=True)
        pipelines[precision] = pipeline
        for plan in plans:
            options = GenerationOptions(plan=plan)  # type: ignore[arg-type]
            contenders[f"python, {precision}, {plan}"] = partial(_in_python, pipeline, options)
        for threads in (1, 2):
            name = f"{precision}, {threads} thread{'s' * (threads > 1)}"
            page.evaluate(OPEN, [name, {"precision": precision, "numThreads": threads}])
            for plan in plans:
                contenders[f"browser, {name}, {plan}"] = partial(_in_browser, page, name, plan)
    timings = interleave(contenders, rounds)
    return {name: timing.as_dict() for name, timing in timings.items()}, pipelines


def _in_python(pipeline: Pipeline, options: GenerationOptions) -> int:
    pipeline.draw("a red car", seed=7, options=options)
    return 1


def _in_browser(page: Page, name: str, plan: str) -> tuple[float, float]:
    """Seconds of a picture with its previews, and of all processes of the browser."""
    before = _cpu_seconds()
    drawn = page.evaluate(DRAW, [name, {"prompt": "a red car", "seed": 7, "plan": plan}])
    return drawn["seconds"], _cpu_seconds() - before


def _cpu_seconds() -> float:
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def equality(page: Page, pipeline: Pipeline, name: str, drawings: int) -> dict[str, Any]:
    """Draw and caption the same in both, and count what differs."""
    progress_line(f"equality of {name}", 2, 4)
    prompts = [line for line in PROMPTS.read_text().splitlines() if line and not line.startswith("#")]
    tokens = tokens_equal = bytes_differ = largest = answers_equal = num_bytes = 0
    for seed in range(drawings):
        prompt = prompts[seed % len(prompts)]
        (event,) = (each for each in pipeline.generate([prompt], seed=seed) if isinstance(each, PictureEvent))
        found = page.evaluate(DRAW, [name, {"prompt": prompt, "seed": seed}])
        height, width, _ = event.picture.shape
        rgba = np.array(found["rgba"], np.int64).reshape(height, width, 4)
        difference = np.abs(rgba[..., :3] - event.picture)
        tokens, tokens_equal = tokens + event.rep_ids.size, tokens_equal + int((event.rep_ids == found["ids"]).sum())
        num_bytes, bytes_differ = num_bytes + difference.size, bytes_differ + int((difference > 0).sum())
        largest = max(largest, int(difference.max()))
        caption = page.evaluate(CAPTION, [name, found["rgba"], width])
        answers_equal += caption == pipeline.understand(rgba[..., :3].astype(np.uint8))
    return {
        "drawings": drawings,
        "tokens": tokens,
        "tokens_equal": tokens_equal,
        "bytes": num_bytes,
        "bytes_that_differ": bytes_differ,
        "largest_difference": largest,
        "captions_equal": answers_equal,
    }


def visited(browser: Browser, site: Path, beside: Path | None, visits: int) -> dict[str, Any]:
    """What visitors of a site wait for; each is a new one, who comes twice. In turns with another site."""
    folders = {"ours": site} if beside is None else {"ours": site, "beside": beside}
    seen: dict[str, dict[str, list[float]]] = {name: {} for name in folders}
    with ExitStack() as servers:
        urls = {name: servers.enter_context(serving(preview.open_server(each, 0))) for name, each in folders.items()}
        for number in range(visits):
            for name in sorted(folders, reverse=number % 2 == 1):
                for what, value in _visit(browser, urls[name]).items():
                    seen[name].setdefault(what, []).append(value)
    told = {name: {what: statistics.median(values) for what, values in each.items()} for name, each in seen.items()}
    most = max(seen["ours"]["stop_ms"])
    samples = {name: [round(value, 3) for value in each["from_cache_s"]] for name, each in seen.items()}
    ours = {**told.pop("ours"), "most_stop_ms": most, "visits": visits}
    return {**ours, **told, "samples_from_cache_s": samples}


def _visit(browser: Browser, url: str) -> dict[str, float]:
    """One visitor: comes, comes again, draws, and stops."""
    context = browser.new_context()
    context.add_init_script(WATCH)
    page = context.new_page()
    seconds, cpu = [], []
    for _ in range(2):
        before = _cpu_seconds()
        page.goto(url)
        page.wait_for_selector(IDLE)
        seconds.append(page.evaluate("readyAfter") / 1000)
        cpu.append(_cpu_seconds() - before)
        page.wait_for_timeout(1500)  # what is left is kept meanwhile
    page.evaluate(VISIT)  # warms up
    told = page.evaluate(VISIT)
    context.close()
    return {
        "first_visit_s": seconds[0],
        "from_cache_s": seconds[1],
        "from_cache_cpu_s": cpu[1],
        "frames_per_second": 1000 / float(np.diff(told["frames"]).mean()),
        "stop_ms": told["stop"],
        "first_preview_ms": told["preview"],
    }


if __name__ == "__main__":
    main()
