"""Where a denoiser step goes in a browser, by ONNX Runtime's own profiler, beside the Python runtime on one thread.

    python benchmarks/web_steps.py BUNDLE --runs 40

A guided step of the fp32 graph, in both. Of each node the least time of all runs counts, so that others on the machine
change little. A product of m x k and k x n is 2 m k n operations. Needs Chromium and playwright. Writes
`benchmarks/results/web-steps-<name>-<cpu>.json`.
"""

import json
import math
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
import numpy as np
import onnxruntime
from cpu import HERE
from playwright.sync_api import sync_playwright
from web import Isolated, serving

from rf_export.benchmark.environment import describe_machine, file_label
from rf_export.web import onnxruntime_web, preview
from runtime.bundle.folder import open_bundle
from runtime.signature import Variant

PROMPT_TOKENS: Final = 4
RUN: Final = """async ([graph, weights, location, inputs, runs]) => {
  const ort = await import("./ort/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  const data = new Uint8Array(await (await fetch(weights)).arrayBuffer());
  const options = {executionProviders: ["wasm"], externalData: [{path: location, data}], enableProfiling: true};
  const session = await ort.InferenceSession.create(graph, options);
  const feeds = Object.fromEntries(inputs.map(([name, type, dims, values]) =>
    [name, new ort.Tensor(type, type === "int64" ? BigInt64Array.from(values, BigInt) : values, dims)]));
  for (let run = 0; run < runs; ++run) await session.run(feeds, ["x_next"]);
  session.endProfiling(); // tells the console
}"""


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runs", type=click.IntRange(1), default=40, show_default=True, help="Of the step, in each.")
@click.option("--name", default="reference", show_default=True, help="Of the result.")
def main(bundle: Path, runs: int, name: str) -> None:
    """See the module."""
    opened = open_bundle(bundle.resolve())
    graph = next(each for each in opened.manifest.graphs_of(Variant("fp32")) if each.name == "denoiser")
    with TemporaryDirectory() as folder:
        python, feeds = in_python(opened.file(graph.file), runs, Path(folder))
        browser = in_browser(opened.path, graph.file, graph.weights[0], feeds, runs, Path(folder))
    result = {
        "command": shlex.join(["python", "benchmarks/web_steps.py", *sys.argv[1:]]),
        "machine": describe_machine(),
        "runs": runs,
        "python": summary(python),
        "browser": summary(browser),
    }
    path = HERE / "results" / f"web-steps-{name}-{file_label(result['machine']['cpu'])}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(path)


def in_python(graph: Path, runs: int, folder: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The events of the profiler, and what the step was given."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "python")
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    feeds = {each.name: _input(each) for each in session.get_inputs()}
    for _ in range(runs):
        session.run(["x_next"], feeds)
    return json.loads(Path(session.end_profiling()).read_text()), feeds


def _input(tensor: Any) -> np.ndarray:
    """Of a guided step at the default size: its first row reads the cache, its second one does not."""
    known = {"t": [0.3], "t_next": [0.34], "guidance_scale": [3.0]}
    if tensor.name in known:
        return np.array(known[tensor.name], np.float32)
    tokens = 64
    known_ints = {
        "row_requests": [0, 0],
        "uncond_rows": [1],
        "row_starts": [0],
        "past_lengths": [PROMPT_TOKENS + tokens],
    }
    if tensor.name in known_ints:
        return np.array(known_ints[tensor.name], np.int64)
    generator = np.random.default_rng(0)
    if tensor.name == "x_t":
        return generator.standard_normal((1, 3, 48, 48), np.float32)
    _, heads, _, size = tensor.shape
    return generator.standard_normal((1, heads, PROMPT_TOKENS + tokens + 1, size), np.float32)


def in_browser(
    bundle: Path, graph: str, weights: str, feeds: dict[str, np.ndarray], runs: int, folder: Path
) -> list[dict[str, Any]]:
    """The events of the profiler of onnxruntime-web, which tells them to the console."""
    (folder / "ort").symlink_to(onnxruntime_web.fetch())
    (folder / "bundle").symlink_to(bundle)
    (folder / "index.html").write_text("<!doctype html><title>benchmark</title>")
    inputs = [(name, str(each.dtype), each.shape, each.ravel().tolist()) for name, each in feeds.items()]
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    told: list[str] = []
    server = ThreadingHTTPServer((preview.ADDRESS, 0), partial(Isolated, directory=str(folder)))
    with sync_playwright() as driver, serving(server) as url:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.goto(url)
        location = os.path.relpath(weights, Path(graph).parent)
        page.evaluate(RUN, [f"bundle/{graph}", f"bundle/{weights}", location, inputs, runs])
        page.wait_for_function("true")  # what was told has come
        browser.close()
    return [json.loads(line.rstrip(",")) for line in told if line.startswith('{"cat"')]


def summary(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds of a step and of its operators; those of products, with operations a second."""
    least: dict[str, tuple[int, dict[str, Any]]] = {}
    for event in events:
        name = event["name"]
        if event["cat"] == "Node" and name.endswith("_kernel_time"):
            known = least.get(name)
            least[name] = (
                min(known, (event["dur"], event["args"]), key=lambda each: each[0])
                if known
                else (event["dur"], event["args"])
            )
    operators: Counter[str] = Counter()
    operations = 0
    for duration, args in least.values():
        operators[args["op_name"]] += duration
        if args["op_name"] == "MatMul":
            (first, *_), (out, *_) = (
                (next(iter(each.values())) for each in args["input_type_shape"]),
                (next(iter(each.values())) for each in args["output_type_shape"]),
            )
            operations += 2 * math.prod(out) * first[-1]
    total = sum(operators.values())
    return {
        "step_ms": total / 1000,
        "products_share": operators["MatMul"] / total,
        "products_gflops": operations / operators["MatMul"] / 1000,
        "operators_ms": {name: duration / 1000 for name, duration in operators.most_common()},
    }


if __name__ == "__main__":
    main()
