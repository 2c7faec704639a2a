"""`docs/benchmarks-cpu.md` from results: a page of Markdown with every table. Knows nothing of measuring."""

from collections.abc import Mapping, Sequence
from typing import Any

from rf_export.benchmark.compare import drifts, shown_interval
from rf_export.benchmark.tables import TITLES, describe
from verification.pages.page import number


def document(results: Sequence[Mapping[str, Any]], planted: Mapping[str, Any] | None) -> str:
    """The whole page; each result tells the command that it came from."""
    machine = results[0]["machine"]
    names = " ".join(result["preset"] for result in results)
    parts = [
        "# Benchmarks on a CPU, over model sizes\n",
        "How to measure your own bundle, and what these words mean: [benchmarks.md](benchmarks.md).\n",
        "Every number, table and sentence of this page is made by `benchmarks/cpu.py`; each shape names its "
        f"command. One that makes all of it:\n\n```\npython benchmarks/cpu.py {names} --stage-seconds 60 --write "
        "docs/benchmarks-cpu.md\n```\n",
        f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['features'])}), "
        f"{', '.join(machine['caches']) or 'caches unknown'}, {machine['memory_gib']} GiB; {machine['system']}; "
        f"Python {machine['python']}, {', '.join(f'{name} {each}' for name, each in machine['versions'].items())}. "
        f"Energy: {machine['energy']}. Load average before and after: "
        + "; ".join(
            f"{result['preset']} {result['state']['begin']['load_average']}, {result['state']['end']['load_average']}"
            for result in results
        )
        + ".\n",
        HOW,
        "## Over model sizes\n",
        _sizes(results),
        "Milliseconds; in brackets how many times as long eager PyTorch and torch.compile take, each with its best "
        "layout, attention and mode in fp32, and how far our engine is from the floor. A dash was not measured; the "
        "reason is below.\n",
    ]
    for result in results:
        parts += _one(result)
    if planted is not None:
        parts += _planted(planted)
    return "\n".join(parts)


HOW = """Every fp32 contender first has to draw the picture and give the answers of an independent eager loop; what the
others draw is told below, not judged. Then all take turns within each round, in a rotating order, after a round that
does not count. Figures are medians over rounds with 95% intervals from order statistics (with fewer than six rounds
their whole range, which is no 95% interval); a ratio is that of the two medians. The floor is what one step has
to read and compute, by the bandwidth and the matrix rate that are measured on the spot. Weights of shapes other than
`reference` are random: speed does not depend on them. `rf-export bench --report FILE.html` has plots: roofline, steps
of one picture, scaling.
"""


def _sizes(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for result in results:
        for run in result["runs"]:
            title = f"{result['preset']}, {result['model']['num_parameters'] / 1e6:.0f} M, {run['threads']} thread(s)"
            rows.append([title, *(_against(run, stage) for stage in TITLES)])
    return _table(["shape", *TITLES.values()], rows)


def _against(run: Mapping[str, Any], stage: str) -> str:
    timings, ours = run["timings"].get(stage), run["ours"]
    if timings is None:
        return "-"
    others = [
        (name, run["speedups"][ours][stage][f"{name} fp32"]["median"])
        for name in ("eager", "torch.compile")
        if f"{name} fp32" in timings
    ]
    floor = run["floor"].get(stage)
    if floor is not None:
        others.append(("floor", timings[ours]["median_ms"] / floor["floor_ms"]))
    return f"**{number(timings[ours]['median_ms'])}** ({', '.join(f'{name} {ratio:.2f}x' for name, ratio in others)})"


def _one(result: Mapping[str, Any]) -> list[str]:
    parts = [f"## {result['preset']}\n", f"{describe(result)[2]}. Measured by `{result['command']}`.\n"]
    for run in result["runs"]:
        parts.append(f"### {run['threads']} thread(s)\n")
        rows = []
        for stage, contenders in run["timings"].items():
            for name, timing in contenders.items():
                speedup = run["speedups"][run["ours"]][stage].get(name)
                rows.append(
                    [
                        TITLES[stage],
                        name,
                        number(timing["median_ms"]),
                        _interval(timing),
                        timing["rounds"],
                        number(timing["p95_ms"]) if timing["rounds"] > 1 else "",
                        number(timing["cpu_median_ms"]),
                        "" if speedup is None else f"{speedup['median']:.2f}x",
                    ]
                )
            if stage in run["floor"]:
                floor = run["floor"][stage]
                rates = f"{floor['bandwidth_gb_s']:.1f} GB/s, {floor['matrix_gflop_s']:.0f} GFLOP/s"
                rows.append([TITLES[stage], "floor fp32", number(floor["floor_ms"]), rates, "", "", "", ""])
        parts.append(
            _table(
                ["stage", "contender", "median ms", "interval", "rounds", "p95", "CPU ms", f"times {run['ours']}"], rows
            )
        )
        parts.append(
            _table(
                ["against eager fp32", "tokens", "picture PSNR", "words", "image features, cosine"],
                [
                    [
                        name,
                        f"{each['tokens_equal']}/{each['tokens']}",
                        f"{each['psnr_db']:.0f} dB",
                        f"{each['words_equal']}/{each['words']}",
                        f"{each['features_cosine']:.6f}",
                    ]
                    for name, each in run["agreement"].items()
                ],
            )
        )
        parts.append(_prefix_line(run))
    steps = "; ".join(
        f"{TITLES[kind]} {number(each['p50_ms'])}, {number(each['p95_ms'])}, {number(each['p99_ms'])}"
        for kind, each in result["timeline"]["steps"].items()
        if kind in TITLES
    )
    parts.append(f"Single steps of ours, ms at the 50th, 95th and 99th percentile: {steps}.\n")
    parts.append(
        _table(
            ["a fresh process", "imports s", "loading s", "first picture of one step s", "resident MiB", "peak MiB"],
            [
                [
                    name,
                    f"{row['start_seconds']:.2f}",
                    f"{row['load_seconds']:.2f}",
                    f"{row['first_picture_seconds']:.2f}",
                    f"{row['drawn_bytes'] / 2**20:.0f}",
                    f"{row['peak_bytes'] / 2**20:.0f}",
                ]
                for name, row in result["footprint"].items()
            ],
        )
    )
    return [*parts, *_scaling(result), *(f"Left out: {what}: {why}.\n" for what, why in result["left_out"].items())]


def _interval(timing: Mapping[str, Any]) -> str:
    if timing["rounds"] == 1:
        return ""
    return f"{number(timing['low_ms'])} to {number(timing['high_ms'])}"


def _prefix_line(run: Mapping[str, Any]) -> str:
    """What the kept prefix saves."""
    parts = []
    for name in (run["ours"], "eager fp32"):
        first, second = (run["timings"][stage][name]["median_ms"] for stage in ("first_word", "second_question"))
        word = run["timings"]["next_word"][name]["median_ms"]
        parts.append(
            f"{name} {number(first)} ms, then {number(second)} ms ({first / second:.1f}x less); "
            f"{1e3 / word:.0f} words/s"
        )
    return f"First word of an answer about a new picture, then of a second question about it: {'; '.join(parts)}.\n"


def _scaling(result: Mapping[str, Any]) -> list[str]:
    titles = {"prompt_tokens": "cache slots", "batch": "pictures together, ms per picture", "threads": "threads"}
    parts = []
    for kind, rows in result["scaling"].items():
        if len(rows) > 1:
            xs = [str(row["cache_slots"] if kind == "prompt_tokens" else row["x"]) for row in rows]
            parts.append(
                _table(
                    [titles[kind], *xs],
                    [
                        [TITLES[stage], *(number(row[stage]["median_ms"]) for row in rows)]
                        for stage in ("rep_step", "denoise_step")
                    ],
                )
            )
    return parts


def _planted(planted: Mapping[str, Any]) -> list[str]:
    share, clock = f"{planted['share']:.0%}", {"wall": "wall time", "cpu": "CPU time"}[planted["clock"]]
    return [
        "## Does `bench --compare` see what it should?\n",
        f"`python benchmarks/planted.py {planted['preset']} --clock {planted['clock']}` times the "
        f"reference three times, in {planted['processes']} fresh processes each, the third time with graphs whose "
        f"every run is followed by a loop that spins for {share} of its time, and compares by {clock}, smallest effect "
        f"{planted['min_effect']:.0%}:\n",
        f"- two runs of one build: {planted['same_build']['verdict']}",
        f"- {share} planted: {planted['planted']['verdict']}",
        f"- {planted['found']} of the {planted['planted_rows']} planted rows were found"
        f"{'' if planted['right'] else '. **This is not what it should see.**'}\n",
        _table(
            ["stage", "contender", "raw", "drift of yardsticks", "normalised", "interval", ""],
            [
                [
                    TITLES.get(each["stage"], each["stage"]),
                    each["contender"],
                    f"{each['raw']:.3f}",
                    drifts(each["drift"]),
                    f"{each['normalised']:.3f}",
                    shown_interval(each["low"], each["high"]),
                    each["verdict"],
                ]
                for each in planted["planted"]["changes"]
            ],
        ),
        f"Raw is the ratio of the times, {share} planted against none. The yardsticks take turns with the contenders: "
        "a fixed matrix product and a memory copy, as the stage is bound (`kernels` where all stages are taken "
        "together), and eager PyTorch. What one of them explains is not charged. Intervals come from how far the "
        "processes lie apart.\n",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
