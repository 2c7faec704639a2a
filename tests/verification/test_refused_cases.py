"""An engine that refuses cases is judged by all others: none of them is lost, and every count tells what was compared.

The engine is emulated by the graphs themselves, which refuse what they are told to.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from verifying import load

from runtime import Pipeline
from runtime.backends.interface import Target
from runtime.bundle.engine import Engine
from runtime.bundle.folder import open_bundle
from runtime.errors import RFError
from runtime.signature import Variant
from verification import Outcome, Remembering, VerifyOptions
from verification.candidates import Candidate
from verification.cases import Cases, choose_cases
from verification.graph_reference import GraphReference
from verification.trial import verify_pipeline

VARIANT = Variant("fp32", "classic")


class Refusing(Pipeline):
    """Draws batches of some sizes only."""

    taken: tuple[int, ...] = (1, 2)

    def begin(self, requests: Any, *arguments: Any, **options: Any) -> Any:
        if len(requests) not in self.taken:
            raise RFError(f"the engine was not built for {len(requests)} pictures.")
        return super().begin(requests, *arguments, **options)


class Blind:
    """An image encoder that takes no picture."""

    def __init__(self, session: Any) -> None:
        self.signature = session.signature

    def run(self, inputs: Any) -> Any:
        raise RFError("the engine was not built for such pictures.")


@pytest.fixture(scope="module")
def memory(tiny_bundle: Path) -> Remembering:
    return Remembering(GraphReference(load(tiny_bundle)))


@pytest.fixture(scope="module")
def cases(tiny_bundle: Path) -> Cases:
    """Two questions; a pair, and one picture alone."""
    return choose_cases(open_bundle(tiny_bundle).manifest.model, None, "quick")


@pytest.fixture
def judge(tiny_bundle: Path, memory: Remembering, cases: Cases, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The verdict on an engine that draws such batches, and the names of the cases that were tried."""
    backend = SimpleNamespace(target=lambda: Target(backend="emulated", version="1.0 of today", device="none"))
    monkeypatch.setattr("verification.outcome.create_backend", lambda name: backend)

    def run(taken: tuple[int, ...], *, engine: bool = True, backend: str = "emulated", blind: bool = False) -> Any:
        pipeline = load(tiny_bundle)
        if blind:
            pipeline = pipeline.with_sessions({"vision_encoder": Blind(pipeline.sessions["vision_encoder"])})
        refusing = Refusing(pipeline.model)
        refusing.taken = taken
        opened = Engine(Path("engine"), None) if engine else None  # type: ignore[arg-type]
        candidate = Candidate(variant=VARIANT, backend=backend, engine=opened)
        options = VerifyOptions(profile="quick", num_threads=1, record=False, look_inside=False)
        tried: list[str] = []
        return verify_pipeline(refusing, candidate, memory, cases, options, tried.append), tried

    return run


def counts(outcome: Outcome) -> tuple[int, int, int]:
    """Cases, representation tokens and tokens of answers, as the record tells them; all agree here."""
    record = outcome.record
    assert record["rep_tokens"] == record["rep_tokens_equal"]
    assert record["answer_tokens"] == record["answer_tokens_equal"]
    return record["cases"], record["rep_tokens"], record["answer_tokens"]


@pytest.mark.parametrize(
    ("taken", "drawn", "refused"),
    [
        ((1, 2), ["pair", "unguided", "several tokens at once"], []),
        ((1,), ["unguided", "several tokens at once"], ["pair"]),
        ((2,), ["pair"], ["unguided", "several tokens at once"]),
    ],
)
def test_cases_after_a_refused_one_are_compared(judge, memory, cases, taken, drawn, refused) -> None:
    outcome, tried = judge(taken)
    assert tried == [case.name for case in (*cases.answers, *cases.draws)]
    rep_tokens = sum(len(each.rep_ids) for case in cases.draws if case.name in drawn for each in memory.draw(case))
    answer_tokens = sum(len(memory.answer(case).ids) for case in cases.answers)
    assert counts(outcome) == (2 + len(drawn), rep_tokens, answer_tokens)
    assert (outcome.verdict, outcome.reason) == ("passed", "")
    told = [f"{name}: the engine was not built for {2 if name == 'pair' else 1} pictures." for name in refused]
    told += ["in windows: the engine was not built for 2 pictures."] * ("pair" in refused)
    assert outcome.record["windowed_tokens"] == outcome.record["windowed_tokens_equal"] == 12 * ("pair" in drawn)
    assert outcome.skipped == outcome.record.get("skipped", []) == told
    assert bool(outcome.record["guidance_effect"]) == (not refused), "it needs both"


def test_an_engine_that_refuses_every_drawing_is_not_verified(judge) -> None:
    outcome, _ = judge(())
    assert (outcome.verdict, outcome.reason) == ("unverified", "no case could be run")
    assert outcome.record["verdict"] == "unverified"
    assert counts(outcome)[:2] == (2, 0)
    assert [text.split(":")[0] for text in outcome.skipped] == [
        "pair",
        "unguided",
        "several tokens at once",
        "in windows",
    ]


def test_an_engine_that_refuses_every_question_is_not_verified(judge, cases) -> None:
    outcome, _ = judge((1, 2), blind=True)
    assert (outcome.verdict, outcome.reason) == ("unverified", "no case could be run")
    assert counts(outcome)[::2] == (3, 0)
    assert [text.split(":")[0] for text in outcome.skipped] == [case.name for case in cases.answers]


@pytest.mark.parametrize(("engine", "backend"), [(False, "ort"), (True, "ort")])
def test_graphs_and_engines_of_onnx_runtime_take_every_case(judge, engine, backend) -> None:
    with pytest.raises(RFError, match="not built for 2 pictures"):
        judge((1,), engine=engine, backend=backend)
