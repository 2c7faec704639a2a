"""Which layers of a graph become INT8: every kind of layer has to earn its place by its time and its error.

    1. every kind alone, in every format: time against the original, agreement on recorded inputs
    2. of each kind the fastest format that agrees, if it saves time, or at least costs none and saves memory
    3. all of these together: they agree, or the layers that hurt most get a more exact format that costs no time, or
       their old precision, until they do
    4. together faster than the original, or nothing is kept

Knows nothing of bundles and of whole drawings: see `calibration.gate`.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from calibration.config import CalibrationConfig, Format
from calibration.layers import Layer
from calibration.workbench import Agreement, StepTime, Workbench
from runtime.backends.interface import Session
from runtime.signature import GraphName

Report = Callable[[str], None]
Option = tuple[Format, Agreement, float | None]  # the last: milliseconds that it saves


@dataclass(frozen=True)
class Row:
    """A line of the decision table: a kind of layer in a format, alone."""

    graph: GraphName
    kind: str
    format: Format
    layers: int
    weights_share: float  # of all weights of the graph's products
    cosine: float
    error: float
    saved_ms: float | None  # per run; None where nothing was timed
    kept: int  # layers
    why: str


@dataclass
class Decision:
    """What becomes of one graph.

    Attributes:
        formats: weight -> format of the layers that become INT8.
        trials: the decision table, `kept` as it was before layers were given back.
        before, after: time per run of the original and of the mixed graph; None where nothing was timed.
        agreement: of the mixed graph.
        fallbacks: kind -> formats to go on to where a layer hurts, each more exact than the one before.
        returned: why layers that had been chosen are not kept.
        sensitivity: (layer, error alone), the worst first; only filled where layers had to change.
    """

    graph: GraphName
    formats: dict[str, Format]
    trials: list[Row]
    fallbacks: dict[str, list[Format]] = field(default_factory=dict)
    agreement: Agreement = field(default_factory=lambda: Agreement(1.0, 0.0))
    before: StepTime | None = None
    after: StepTime | None = None
    returned: str = ""
    sensitivity: list[tuple[str, float]] = field(default_factory=list)

    def rows(self, layers: Mapping[str, Layer]) -> list[Row]:
        """The decision table as it came out."""
        kept = collections.Counter((layers[weight].kind, format) for weight, format in self.formats.items())
        rows = []
        for row in self.trials:
            number = kept[row.kind, row.format]
            rows.append(row if number == row.kept else replace(row, kept=number, why=self.returned))
        return rows

    @property
    def speedup(self) -> float | None:
        """How many times faster the mixed graph is; None where nothing was timed."""
        return None if self.before is None or self.after is None else self.before.ms / self.after.ms

    def to_dict(self, layers: Mapping[str, Layer]) -> dict[str, Any]:
        """For JSON."""
        return {
            "graph": self.graph,
            "rows": [asdict(row) for row in self.rows(layers)],
            "agreement": asdict(self.agreement),
            "before": self.before and asdict(self.before),
            "after": self.after and asdict(self.after),
            "speedup": self.speedup,
            "int8_layers": len(self.formats),
            "sensitivity": self.sensitivity,
        }


def decide(bench: Workbench, config: CalibrationConfig, *, timed: bool, report: Report) -> Decision:
    """Decide for one graph; see the module."""
    formats = config.formats_of(bench.graph)
    trials: dict[tuple[str, Format], Agreement] = {}
    times: dict[str, StepTime] = {}
    for format in formats:
        sessions = {"original": bench.original}
        for kind in bench.kinds:
            report(f"{bench.graph}: {kind} as {format}")
            session = bench.candidate(dict.fromkeys(bench.weights_of(kind), format))
            trials[kind, format] = bench.compare(session)
            sessions[kind] = session
        if timed:
            report(f"{bench.graph}: timing {format}")
            for name, time in bench.time(sessions).items():
                times[f"{name} {format}"] = time
    chosen: dict[str, Format] = {}
    fallbacks: dict[str, list[Format]] = {}
    rows: list[Row] = []
    for kind in bench.kinds:
        options = [(format, trials[kind, format], _saved(times, kind, format) if timed else None) for format in formats]
        good = _eligible(kind, options, times, config)
        rows += [_row(bench, kind, option, good[0] if good else None, times, config) for option in options]
        if good:
            chosen |= dict.fromkeys(bench.weights_of(kind), good[0][0])
            fallbacks[kind] = _more_exact(good)
    decision = Decision(bench.graph, chosen, rows, fallbacks)
    report(f"{bench.graph}: all together")
    decision.agreement = bench.compare(bench.candidate(chosen))
    if decision.agreement.cosine < config.limits.cosine:
        correct(bench, decision, lambda session: bench.compare(session).cosine >= config.limits.cosine, report)
    if timed:
        settle(bench, decision, config, report)
    return decision


def _saved(times: dict[str, StepTime], kind: str, format: Format) -> float:
    return times[f"original {format}"].ms - times[f"{kind} {format}"].ms


def _noise_ms(times: dict[str, StepTime], kind: str, format: Format, config: CalibrationConfig) -> float:
    """What cannot be told from nothing: a part of the graph's time, or the spread of its timing."""
    original = times[f"original {format}"]
    return max(config.tolerance * original.ms, original.spread_ms, times[f"{kind} {format}"].spread_ms)


def _eligible(
    kind: str, options: Sequence[Option], times: dict[str, StepTime], config: CalibrationConfig
) -> list[Option]:
    """The formats that agree and cost no time, the fastest first; in their order where no difference can be told.

    Forced, those that cost time too.
    """

    def noise(format: Format) -> float:
        return _noise_ms(times, kind, format, config)

    good = [
        option
        for option in options
        if option[1].cosine >= config.limits.cosine
        and (option[2] is None or option[2] > -noise(option[0]) or config.force)
    ]
    fastest = max((option[2] or 0.0 for option in good), default=0.0)
    slower = [option for option in good if times and (option[2] or 0.0) < fastest - noise(option[0])]
    return [option for option in good if option not in slower] + slower


def _more_exact(good: Sequence[Option]) -> list[Format]:
    """The formats after the first, without those that err more than the one before."""
    chain, error = [], good[0][1].error
    for format, agreement, _ in good[1:]:
        if agreement.error < error:
            chain.append(format)
            error = agreement.error
    return chain


def _row(
    bench: Workbench,
    kind: str,
    option: Option,
    best: Option | None,
    times: dict[str, StepTime],
    config: CalibrationConfig,
) -> Row:
    format, agreement, saved = option
    weights = bench.weights_of(kind)
    sizes = {weight: layer.in_size * layer.out_size for weight, layer in bench.layers.items()}
    if agreement.cosine < config.limits.cosine:
        why = f"cosine below {config.limits.cosine}"
    elif saved is not None and saved <= -_noise_ms(times, kind, format, config) and not config.force:
        why = "costs time"
    elif best is not None and best is not option:
        is_faster = saved is not None and best[2] is not None and best[2] > saved
        why = f"{best[0]} is faster" if is_faster else f"{best[0]} comes first"
    elif saved is None:
        why = "not timed"
    else:
        why = _why_kept(saved, _noise_ms(times, kind, format, config))
    share = sum(sizes[weight] for weight in weights) / sum(sizes.values())
    kept = len(weights) if best is option else 0
    return Row(bench.graph, kind, format, len(weights), share, agreement.cosine, agreement.error, saved, kept, why)


def _why_kept(saved_ms: float, noise_ms: float) -> str:
    if saved_ms > noise_ms:
        return "saves time"
    if saved_ms <= -noise_ms:
        return "forced: costs time"
    return "as fast, and smaller" if saved_ms >= 0 else "slower by less than timing tells, and smaller"


def settle(bench: Workbench, decision: Decision, config: CalibrationConfig, report: Report) -> None:
    """Time the mixed graph; unless forced, nothing is kept where it is not faster as a whole."""
    if not decision.formats:
        return
    report(f"{bench.graph}: timing all together")
    times = bench.time({"original": bench.original, "mixed": bench.candidate(decision.formats)})
    decision.before, decision.after = times["original"], times["mixed"]
    if decision.after.ms >= decision.before.ms and not config.force:
        decision.formats, decision.agreement = {}, Agreement(1.0, 0.0)
        decision.returned = "the graph as a whole is not faster"


def correct(bench: Workbench, decision: Decision, is_good: Callable[[Session], bool], report: Report) -> None:
    """Change the fewest layers such that the graph is good, those that err most alone first.

    They go on to their next fallback, or all the way back to their precision: whichever saves more time in the end.
    """
    if not decision.sensitivity:
        for weight, format in decision.formats.items():
            report(f"{bench.graph}: sensitivity of {weight}")
            decision.sensitivity.append((weight, bench.compare(bench.candidate({weight: format})).error))
        decision.sensitivity.sort(key=lambda item: -item[1])
    order = [weight for weight, _ in decision.sensitivity if weight in decision.formats]

    def fewest(change: Callable[[Sequence[str]], dict[str, Format]]) -> dict[str, Format] | None:
        """The formats after the fewest changes that do, or None."""

        def passes(number: int) -> bool:
            report(f"{bench.graph}: {number} of {len(order)} layers changed")
            return is_good(bench.candidate(change(order[:number])))

        few, many = 0, len(order)  # changing `few` is not enough
        if not passes(many):
            return None
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if passes(middle) else (middle, many)
        return change(order[:many])

    ways = (fewest(lambda weights: _fallen_back(bench, decision, weights)), fewest(lambda w: _without(decision, w)))
    found = [formats for formats in ways if formats is not None]
    decision.formats = max(found, key=lambda formats: _saving(bench, decision, formats)) if found else {}
    decision.returned = "the layers that hurt most were changed to pass the limits"
    decision.agreement = bench.compare(bench.candidate(decision.formats))


def _without(decision: Decision, weights: Sequence[str]) -> dict[str, Format]:
    return {weight: format for weight, format in decision.formats.items() if weight not in weights}


def _fallen_back(bench: Workbench, decision: Decision, weights: Sequence[str]) -> dict[str, Format]:
    """The formats with some layers at their next fallback, or gone where there is none."""
    formats = _without(decision, weights)
    for weight in weights:
        before, chain = decision.formats[weight], decision.fallbacks.get(bench.layers[weight].kind, [])
        further = chain[chain.index(before) + 1 :] if before in chain else chain
        if further:
            formats[weight] = further[0]
    return formats


def _saving(bench: Workbench, decision: Decision, formats: Mapping[str, Format]) -> float:
    """Time that these formats save, from the trials of whole kinds; the number of layers where nothing was timed."""
    saved = {(row.kind, row.format): row.saved_ms for row in decision.trials}
    each = [saved[bench.layers[weight].kind, format] for weight, format in formats.items()]
    counts = collections.Counter(layer.kind for layer in bench.layers.values())
    kinds = [bench.layers[weight].kind for weight in formats]
    return sum(1.0 if ms is None else ms / counts[kind] for ms, kind in zip(each, kinds, strict=True))
