"""The memory of a drawing on a device and its captured work, kept for the next drawing of the same shape.

Knows nothing of the order of steps: tables, rows of keys and values, and recordings by their names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from runtime.backends.cuda.device import CudaDevice
from runtime.backends.cuda.layout import cache_slots
from runtime.backends.cuda.memory import DeviceCache, NewRows, StepTable
from runtime.backends.host.stages import rows_of
from runtime.backends.interface import DrawingShape


@dataclass(frozen=True)
class Shape:
    """What captured work depends on: two drawings of one shape use the same memory and graphs, one after the other."""

    num_requests: int
    prompt_slots: int
    num_rep_tokens: int
    previews: bool


@dataclass(frozen=True)
class Work:
    """A stage, or a pass of it, before it is captured.

    Attributes:
        capturable: Whether it may be.
        first: Runs every kind of run once, and destroys no input.
        record: All of it.
    """

    capturable: bool
    first: Callable[[], None]
    record: Callable[[], None]


class Workspace:
    """The memory of a drawing and its captured work; used again for the next drawing of the same shape.

    Attributes:
        cache: Keys and values.
        row_starts: [2R].
        tables: The tables of both loops, by a name that also says for which window, picture and number of steps.
        work: The captured stages, by a name of the same kind; and what they were recorded from. That has to live as
            long: captured kernels use memory of the library's own context.
    """

    def __init__(
        self, device: CudaDevice, drawing: DrawingShape, shape: Shape, kv: npt.DTypeLike, ids: npt.DTypeLike
    ) -> None:
        slots = drawing.num_slots  # of modern graphs, which have it fixed
        if drawing.variant.dialect == "classic":
            slots = cache_slots(drawing.model, drawing.variant.precision, shape.prompt_slots, shape.num_rep_tokens)
        self.cache = DeviceCache(device, drawing.model, kv, 2 * shape.num_requests, slots)
        self.row_starts = StepTable(device, 1, (2 * shape.num_requests,), ids)
        self.tables: dict[Any, dict[str, StepTable]] = {}
        self.work: dict[Any, tuple[Callable[[], None], Work]] = {}
        self._device, self._model, self._kv, self._ids = device, drawing.model, kv, ids
        self._num_requests = shape.num_requests
        self._new: dict[int, NewRows] = {}

    def new(self, window: int) -> NewRows:
        """What rep_decoder returns for windows of this size."""
        if window not in self._new:
            self._new[window] = NewRows(self._device, self._model, self._kv, 2 * self._num_requests, window)
        return self._new[window]

    def rows(self, guided: bool) -> dict[str, StepTable]:
        """`row_requests` and `uncond_rows`, where all requests are guided or none."""
        key = ("rows", guided)
        if key not in self.tables:
            arrays = dict(zip(("row_requests", "uncond_rows"), rows_of([guided] * self._num_requests), strict=True))
            self.tables[key] = {
                name: StepTable(self._device, 1, array.shape, self._ids) for name, array in arrays.items()
            }
            for name, array in arrays.items():
                self.tables[key][name].upload(array[None])
        return self.tables[key]

    def release(self) -> None:
        """Free everything now: the recordings refer to the workspace, which would stay until the next collection."""
        self.work.clear()
        self.tables.clear()


class WorkspacePool:
    """Keeps the workspace that was used last, so that memory is bounded and the usual case replays at once."""

    def __init__(self) -> None:
        self._kept: dict[Shape, Workspace] = {}

    def take(self, shape: Shape) -> Workspace | None:
        """The workspace of this shape, which then belongs to the caller; others make room."""
        found = self._kept.pop(shape, None)
        self._drop()
        return found

    def give(self, shape: Shape, workspace: Workspace) -> None:
        """Keep a workspace for the next drawing."""
        self._drop()
        self._kept[shape] = workspace

    def _drop(self) -> None:
        for workspace in self._kept.values():
            workspace.release()
        self._kept.clear()
