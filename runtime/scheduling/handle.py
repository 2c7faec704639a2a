"""What a caller holds of a request that is drawn elsewhere: its events, its picture, and a way to stop it.

Knows nothing of how and when the request is drawn. Every method may be called from any thread.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

from runtime.backends.host.forks import ProcessBound
from runtime.errors import DrawingCancelledError
from runtime.events import Event, PictureEvent
from runtime.request import Request

Status: TypeAlias = Literal["queued", "tokens", "pixels", "done", "failed", "cancelled"]
Reports: TypeAlias = Literal["all", "picture"]


class DrawingHandle(ProcessBound):
    """A request that was submitted.

    Iterating gives its events as they come, the same as `Pipeline.generate` gives for one prompt; it ends
    with the picture, or where the request is cancelled, and raises where it fails. Each event is given once:
    loops in several threads share them. Leaving a loop does not stop the drawing, `cancel` does.

    Attributes:
        request: What is drawn.
    """

    def __init__(self, request: Request, reports: Reports, on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self.request = request
        self.reports_steps = reports == "all"
        self._on_cancel = on_cancel
        self._changed = threading.Condition()
        self._status: Status = "queued"
        self._events: deque[Event] = deque()
        self._picture: PictureEvent | None = None
        self._error: BaseException | None = None

    @property
    def status(self) -> Status:
        """Where the request is: "pixels" from its last token on, also while it waits to be denoised."""
        return self._status

    @property
    def ended(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self._status in ("done", "failed", "cancelled")

    def __iter__(self) -> Iterator[Event]:
        """Wait for each event in turn."""
        while (event := self._next_event()) is not None:
            yield event

    def result(self, timeout_s: float | None = None) -> PictureEvent:
        """Wait for the picture.

        Args:
            timeout_s: How long; None waits as long as it takes.

        Raises:
            RFError: The numbers overflowed.
            DrawingCancelledError: The request was cancelled.
            TimeoutError: The picture is not finished yet; it goes on.
        """
        self.require_own_process()
        with self._changed:
            if not self._changed.wait_for(lambda: self.ended, timeout_s):
                raise TimeoutError(f"the picture was not finished in {timeout_s} s: {self._status}")
            if self._error is not None:
                raise self._error
            if self._picture is None:
                raise DrawingCancelledError
            return self._picture

    def cancel(self) -> bool:
        """Give the request up: what runs of it stops after the step that runs, and its events are dropped.

        Returns:
            False if it had ended before.
        """
        self.require_own_process()
        with self._changed:
            if self.ended:
                return False
            self._status = "cancelled"
            self._events.clear()
            self._changed.notify_all()
        self._on_cancel()
        return True

    def move(self, status: Literal["tokens", "pixels"]) -> None:
        """For who draws: the request has come to a stage."""
        with self._changed:
            if not self.ended:
                self._status = status

    def report(self, event: Event) -> None:
        """For who draws: something was done; a `PictureEvent` ends the request."""
        with self._changed:
            if self.ended:
                return
            self._events.append(event)
            if isinstance(event, PictureEvent):
                self._picture, self._status = event, "done"
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """For who draws: the request ends with an error."""
        with self._changed:
            if not self.ended:
                self._error, self._status = error, "failed"
                self._changed.notify_all()

    def _next_event(self) -> Event | None:
        self.require_own_process()
        with self._changed:
            self._changed.wait_for(lambda: self._events or self.ended)
            if self._events:
                return self._events.popleft()
            if self._error is not None:
                raise self._error
            return None
