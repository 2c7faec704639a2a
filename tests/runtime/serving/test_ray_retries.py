"""What a front does where a replica dies in the midst of its events: without Ray, whose handles are played here.

test_ray.py kills replicas of a cluster.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import pytest

from runtime.errors import RFError
from runtime.serving.orders import Accepted, Drawing, Progress
from runtime.serving.ray_app import Refused, RemoteDrawer, Settings

EVENTS = [Accepted(), *(Progress(stage="pixels", step=step, num_steps=4) for step in range(1, 5))]


class DiedError(Exception):
    """In the place of RayActorError."""


class BusyError(Exception):
    """In the place of BackPressureError."""


@pytest.fixture(autouse=True)
def _errors_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, error, played in (
        ("ray.exceptions", "RayActorError", DiedError),
        ("ray.serve.exceptions", "BackPressureError", BusyError),
    ):
        module = ModuleType(name)
        setattr(module, error, played)
        monkeypatch.setitem(sys.modules, name, module)


class Events:
    """What one replica says: the name of what draws, and events; an exception among them is raised."""

    def __init__(self, said: list[Any]) -> None:
        (self._draws, *self._said), self.is_cancelled = said, False

    async def __aiter__(self) -> AsyncIterator[Any]:
        for each in self._said:
            if isinstance(each, Exception):
                raise each
            yield self._draws, each

    def cancel(self) -> None:
        self.is_cancelled = True


class Replicas:
    """A handle whose calls reach one replica after the other."""

    def __init__(self, *said: list[Any]) -> None:
        self.calls = [Events(each) for each in said]
        self._next = iter(self.calls)

    def options(self, **_: Any) -> "Replicas":
        return self

    def remote(self, _: Any) -> Events:
        return next(self._next)


def drawn(*said: list[Any]) -> tuple[list[Any], RFError | None]:
    """What a client sees of a drawing, and how it ends."""
    replicas, found = Replicas(*said), []

    async def draw() -> None:
        async for event in RemoteDrawer(replicas, Settings(bundle="bundle")).draw(Drawing(prompt="a cup")):
            found.append(event)

    try:
        asyncio.run(draw())
    except RFError as error:
        return found, error
    finally:
        assert all(each.is_cancelled for each in replicas.calls)
    return found, None


@pytest.mark.parametrize("num_seen", range(len(EVENTS) + 1))
def test_the_next_replica_goes_on_where_the_first_one_died(num_seen: int) -> None:
    assert drawn(["cars", *EVENTS[:num_seen], DiedError()], ["cars", *EVENTS]) == (EVENTS, None)


def test_a_replica_of_another_bundle_does_not_go_on_with_its_picture() -> None:
    seen, error = drawn(["cars", *EVENTS[:2], DiedError()], ["birds", *EVENTS])
    assert seen == EVENTS[:2]
    assert error is not None and "was replaced" in str(error) and error.kind == "cancelled"


def test_another_bundle_may_begin_what_nobody_has_seen() -> None:
    assert drawn(["cars", DiedError()], ["birds", *EVENTS]) == (EVENTS, None)


def test_a_second_death_is_told() -> None:
    seen, error = drawn(["cars", EVENTS[0], DiedError()], ["cars", *EVENTS[:3], DiedError()])
    assert seen == EVENTS[:3]
    assert error is not None and "Two replicas" in str(error)


@pytest.mark.parametrize(
    ("said", "kind"), [(["cars", BusyError()], "busy"), (["cars", Refused("Four words, please.", "input")], "input")]
)
def test_refusals_are_errors_with_their_kind(said: list[Any], kind: str) -> None:
    seen, error = drawn(said)
    assert seen == [] and error is not None and error.kind == kind
