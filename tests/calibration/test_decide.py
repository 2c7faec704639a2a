"""What becomes of every kind of layer, on a bench whose times and errors are given: nothing is timed or run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.config import CalibrationConfig, GateLimits
from calibration.decide import Decision, _fallen_back, _more_exact, _saving, _without, correct, decide, settle
from calibration.layers import Layer
from calibration.workbench import Agreement, StepTime

STATIC, BYTES, NIBBLES = "static", "weight-only", "weight-only-4"
LIMIT = 0.99


class Bench:
    """A candidate is its formats. Times and errors of a kind add up over its layers."""

    graph = "denoiser"
    original = None  # no formats

    def __init__(self, kinds, saved_ms=None, errors=None, is_bad=lambda formats: False, spread_ms=0.0):
        """Args: kinds: kind -> number of layers; saved_ms, errors: (kind, format) -> of all layers of the kind."""
        self.layers = {
            f"{kind}.{i}": Layer(f"{kind}.{i}", kind, i, 64, 32) for kind, count in kinds.items() for i in range(count)
        }
        self.kinds, self._counts = list(kinds), kinds
        self._saved, self._errors, self._is_bad = saved_ms or {}, errors or {}, is_bad
        self._spread, self.tried = spread_ms, []

    def weights_of(self, kind):
        return [weight for weight, layer in self.layers.items() if layer.kind == kind]

    def _sum(self, table, formats, default):
        return sum(
            table.get((self.layers[w].kind, f), default) / self._counts[self.layers[w].kind] for w, f in formats.items()
        )

    def candidate(self, formats):
        self.tried.append(dict(formats))
        return dict(formats)

    def compare(self, formats):
        error = self._sum(self._errors, formats, 0.001)
        return Agreement(0.5 if self._is_bad(formats) else 1 - error, error)

    def time(self, sessions):
        return {
            name: StepTime(10 - self._sum(self._saved, formats or {}, 1.0), self._spread)
            for name, formats in sessions.items()
        }


def quiet(what):
    pass


def config(*formats, **options):
    return CalibrationConfig(formats=formats or (STATIC,), limits=GateLimits(cosine=LIMIT), **options)


def decided(bench, settings, timed=True):
    return decide(bench, settings, timed=timed, report=quiet)


def table(decision, bench):
    return {(row.kind, row.format): (row.kept, row.why) for row in decision.rows(bench.layers)}


def test_each_kind_is_kept_for_its_time_or_its_size_and_the_table_says_which():
    saved = {("fast", STATIC): 1.0, ("same", STATIC): 0.1, ("less", STATIC): -0.1, ("slow", STATIC): -1.0}
    errors = {("wrong", STATIC): 0.02}
    bench = Bench(dict.fromkeys(("fast", "same", "less", "slow", "wrong"), 2), saved, errors)
    decision = decided(bench, config(tolerance=0.03))  # of 10 ms
    assert table(decision, bench) == {
        ("fast", STATIC): (2, "saves time"),
        ("same", STATIC): (2, "as fast, and smaller"),
        ("less", STATIC): (2, "slower by less than timing tells, and smaller"),
        ("slow", STATIC): (0, "costs time"),
        ("wrong", STATIC): (0, f"cosine below {LIMIT}"),
    }
    assert set(decision.formats) == {f"{kind}.{i}" for kind in ("fast", "same", "less") for i in (0, 1)}
    assert (decision.before.ms, decision.after.ms) == (10, 9)
    assert decision.speedup == pytest.approx(10 / 9)
    assert [row.weights_share for row in decision.trials] == [0.2] * 5


def test_forced_kinds_cost_time_and_wrong_ones_stay_out_all_the_same():
    bench = Bench({"slow": 1, "wrong": 1}, {("slow", STATIC): -1.0}, {("wrong", STATIC): 0.02})
    decision = decided(bench, config(force=True))
    assert table(decision, bench)["slow", STATIC] == (1, "forced: costs time")
    assert decision.formats == {"slow.0": STATIC}, "slower as a whole, and kept"


def test_the_spread_of_the_rounds_hides_a_difference_that_the_tolerance_would_not():
    bench = Bench({"a": 1}, {("a", STATIC): -0.5}, spread_ms=0.6)
    assert table(decided(bench, config(force=True)), bench)["a", STATIC][1].startswith("slower by less")
    bench = Bench({"a": 1}, {("a", STATIC): -0.5}, spread_ms=0.4)
    assert table(decided(bench, config()), bench)["a", STATIC] == (0, "costs time")


@pytest.mark.parametrize(
    ("of_bytes", "kept", "why_not"),
    [
        (2.0, BYTES, f"{BYTES} is faster"),
        (1.2, STATIC, f"{STATIC} comes first"),  # faster by less than can be told, and no lie about it
        (0.9, STATIC, f"{STATIC} is faster"),
    ],
)
def test_of_two_formats_the_faster_one_is_kept_or_the_first(of_bytes, kept, why_not):
    bench = Bench({"a": 3}, {("a", STATIC): 1.0, ("a", BYTES): of_bytes})
    decision = decided(bench, config(STATIC, BYTES))
    assert set(decision.formats.values()) == {kept}
    assert [why for row, why in table(decision, bench).values() if not row] == [why_not]


def test_untimed_the_first_format_that_agrees_is_kept():
    bench = Bench({"a": 1, "b": 1}, errors={("b", STATIC): 0.02})
    decision = decided(bench, config(STATIC, BYTES), timed=False)
    assert decision.formats == {"a.0": STATIC, "b.0": BYTES}
    assert table(decision, bench) == {
        ("a", STATIC): (1, "not timed"),
        ("a", BYTES): (0, f"{STATIC} comes first"),
        ("b", STATIC): (0, f"cosine below {LIMIT}"),
        ("b", BYTES): (1, "not timed"),
    }
    assert (decision.before, decision.after, decision.speedup) == (None, None, None)


def test_a_graph_that_is_not_faster_as_a_whole_keeps_nothing():
    bench = Bench({"a": 1, "b": 1}, {("a", STATIC): 0.1, ("b", STATIC): -0.1})
    decision = decided(bench, config())
    assert (decision.formats, decision.agreement) == ({}, Agreement(1.0, 0.0))
    assert set(table(decision, bench).values()) == {(0, "the graph as a whole is not faster")}


def test_settling_nothing_times_nothing():
    bench, decision = Bench({"a": 1}), Decision("denoiser", {}, [])
    settle(bench, decision, config(), quiet)
    assert (bench.tried, decision.before) == ([], None)


def all_static(bench, fallbacks=None):
    """A decision that keeps everything."""
    decision = decided(bench, config(STATIC, BYTES, NIBBLES))
    assert set(decision.formats.values()) == {STATIC} and len(decision.formats) == len(bench.layers)
    decision.fallbacks = fallbacks or {}
    return decision


# The layers err differently alone: a kind each.
SIZES = [1, 2, 3, 5, 8]


def graded(num_layers, worst_first):
    """Layers of which the i-th in `worst_first` errs i-th most."""
    errors = {(f"k{layer}", STATIC): 1e-3 / (2 + rank) for rank, layer in enumerate(worst_first)}
    return Bench({f"k{i}": 1 for i in range(num_layers)}, errors=errors)


@given(st.data(), st.sampled_from(SIZES))
def test_exactly_as_many_layers_change_as_are_needed_those_that_err_most_first(data, num_layers):
    order = data.draw(st.permutations(range(num_layers)))
    needed = data.draw(st.integers(1, num_layers))
    bench = graded(num_layers, order)
    decision = all_static(bench)

    def is_good(formats):
        return sum(f"k{layer}.0" not in formats for layer in order[:needed]) == needed

    correct(bench, decision, is_good, quiet)
    assert set(decision.formats) == {f"k{layer}.0" for layer in order[needed:]}
    assert [weight for weight, _ in decision.sensitivity] == [f"k{layer}.0" for layer in order]
    assert decision.returned == "the layers that hurt most were changed to pass the limits"
    assert decision.agreement == bench.compare(decision.formats)


@given(st.data(), st.sampled_from(SIZES))
def test_layers_fall_back_to_the_more_exact_format_where_that_is_enough(data, num_layers):
    needed = data.draw(st.integers(1, num_layers))
    bench = graded(num_layers, range(num_layers))
    decision = all_static(bench, {kind: [BYTES] for kind in bench.kinds})
    correct(bench, decision, lambda formats: sum(f == BYTES for f in formats.values()) >= needed, quiet)
    wanted = {f"k{i}.0": BYTES if i < needed else STATIC for i in range(num_layers)}
    assert decision.formats == wanted


def test_where_no_change_is_enough_nothing_is_kept():
    bench = graded(4, range(4))
    decision = all_static(bench, {kind: [BYTES] for kind in bench.kinds})
    correct(bench, decision, lambda formats: False, quiet)
    assert decision.formats == {}


@pytest.mark.parametrize(("of_bytes", "wanted"), [(0.9, {"a.0": BYTES, "b.0": STATIC}), (0.0, {"b.0": STATIC})])
def test_falling_back_and_giving_back_compete_by_the_time_that_they_save(of_bytes, wanted):
    """Both do; of two that save as much the one that falls back keeps its bytes, of which the time says nothing."""
    saved = {("a", STATIC): 1.0, ("b", STATIC): 1.0, ("a", BYTES): of_bytes - 0.2, ("b", BYTES): 0.5}
    bench = Bench({"a": 1, "b": 1}, saved, {("a", STATIC): 0.004, ("b", STATIC): 0.001})
    decision = all_static(bench, {"a": [BYTES], "b": [BYTES]})
    correct(bench, decision, lambda formats: formats.get("a.0") != STATIC, quiet)
    assert decision.formats == wanted


def test_a_second_round_goes_on_from_the_first_and_measures_no_layer_again():
    bench = graded(3, range(3))
    decision = all_static(bench, {kind: [BYTES] for kind in bench.kinds})
    correct(bench, decision, lambda formats: formats.get("k0.0") == BYTES, quiet)
    assert decision.formats == {"k0.0": BYTES, "k1.0": STATIC, "k2.0": STATIC}
    before = len(bench.tried)
    correct(bench, decision, lambda formats: "k0.0" not in formats, quiet)
    assert decision.formats == {"k1.0": STATIC, "k2.0": STATIC}
    assert all(len(formats) > 1 or formats == {} for formats in bench.tried[before:]), "no layer alone"
    assert len(decision.sensitivity) == 3


def test_a_layer_goes_all_the_way_down_its_chain_in_later_rounds():
    bench = graded(2, range(2))
    decision = all_static(bench, {kind: [BYTES, NIBBLES] for kind in bench.kinds})
    for wanted in (BYTES, NIBBLES):
        correct(bench, decision, lambda formats, wanted=wanted: formats.get("k0.0") == wanted, quiet)
        assert decision.formats == {"k0.0": wanted, "k1.0": STATIC}


def test_all_together_that_miss_the_limit_are_corrected_in_the_decision():
    bench = Bench(dict.fromkeys("abc", 1), errors={("a", STATIC): 0.006, ("b", STATIC): 0.005, ("c", STATIC): 0.001})
    decision = decided(bench, config())
    assert set(decision.formats) == {"b.0", "c.0"}
    assert decision.agreement.cosine >= LIMIT
    assert table(decision, bench)["a", STATIC] == (0, "the layers that hurt most were changed to pass the limits")
    on_the_limit = Bench(dict.fromkeys("ab", 1), errors={("a", STATIC): 1 - LIMIT, ("b", STATIC): 0.0})
    assert len(decided(on_the_limit, config()).formats) == 2, "the limit itself is good enough"


def test_fallbacks_err_less_from_one_to_the_next():
    def option(format, error):
        return format, Agreement(1.0, error), 0.0

    assert _more_exact([option(STATIC, 3), option(BYTES, 2), option(NIBBLES, 1)]) == [BYTES, NIBBLES]
    assert _more_exact([option(STATIC, 2), option(BYTES, 3), option(NIBBLES, 1)]) == [NIBBLES]
    assert _more_exact([option(STATIC, 2), option(BYTES, 1), option(NIBBLES, 1)]) == [BYTES]
    assert _more_exact([option(STATIC, 2), option(BYTES, 2)]) == []
    assert _more_exact([option(STATIC, 2)]) == []


def test_changed_layers_leave_or_go_one_step_down_their_chain():
    bench = Bench({"a": 2, "b": 1})
    decision = Decision("denoiser", {"a.0": STATIC, "a.1": BYTES, "b.0": STATIC}, [], {"a": [BYTES, NIBBLES]})
    assert _without(decision, ["a.0", "b.0"]) == {"a.1": BYTES}
    assert _without(decision, []) == decision.formats
    assert _fallen_back(bench, decision, ["a.0"]) == {"a.0": BYTES, "a.1": BYTES, "b.0": STATIC}
    assert _fallen_back(bench, decision, ["a.1"]) == {"a.0": STATIC, "a.1": NIBBLES, "b.0": STATIC}
    assert _fallen_back(bench, decision, ["b.0"]) == {"a.0": STATIC, "a.1": BYTES}, "a kind without a fallback"
    decision.formats["a.0"] = NIBBLES
    assert "a.0" not in _fallen_back(bench, decision, ["a.0"]), "the end of the chain"


def test_a_layer_saves_its_share_of_its_kind_or_counts_where_nothing_was_timed():
    bench = Bench({"a": 4, "b": 1}, {("a", STATIC): 2.0, ("a", BYTES): 1.0, ("b", STATIC): -0.1})
    timed = decided(bench, config(STATIC, BYTES))
    assert _saving(bench, timed, {"a.0": STATIC, "a.1": BYTES}) == pytest.approx(0.75)
    assert _saving(bench, timed, {"a.0": STATIC, "b.0": STATIC}) == pytest.approx(0.4)
    assert _saving(bench, timed, {}) == 0
    untimed = decided(bench, config(STATIC, BYTES), timed=False)
    assert _saving(bench, untimed, {"a.0": STATIC, "a.1": BYTES, "b.0": STATIC}) == 3


def test_a_decision_goes_into_json_as_it_came_out():
    bench = Bench({"a": 2})
    found = decided(bench, config()).to_dict(bench.layers)
    assert (found["int8_layers"], found["before"], found["agreement"]) == (
        2,
        {"ms": 10, "spread_ms": 0.0},
        {"cosine": pytest.approx(0.999), "error": 0.001},
    )
    assert found["speedup"] == pytest.approx(10 / 9)
    assert np.isclose(sum(row["weights_share"] for row in found["rows"]), 1)


@pytest.mark.parametrize(
    ("version", "named", "target", "tried"),
    [
        ("1.24.4 3f3f4b5", (), "ort", (STATIC, BYTES)),
        ("1.25.0", (), "ort", (BYTES,)),
        ("1.24.4", (NIBBLES,), "ort", (NIBBLES,)),
        ("1.24.4", (), "tensorrt", (BYTES,)),
    ],
)
def test_static_comes_first_for_decoders_where_the_library_makes_floats_of_weights(version, named, target, tried):
    found, why = CalibrationConfig(ar_formats=named, target=target).for_library(version)
    assert found.formats_of("rep_decoder") == found.formats_of("text_decoder") == tried
    assert (why is not None) is (tried == (STATIC, BYTES))
