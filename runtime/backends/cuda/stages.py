"""The three stages on a device: inputs are uploaded once, a stage runs as a whole, results are downloaded once.

Knows nothing of the library that runs graphs: `DeviceSession`. Between two steps nothing goes through the host. The
next token is fed back by its address: step i writes its token where step i + 1 reads it. What changes from step to step
lies in tables, and step i is given entry i. One strided copy writes the new keys and values of all layers; modern
graphs write them themselves, with past and present at one address. So a stage is a fixed sequence of launches, captured
once as a CUDA graph and replayed for every drawing of the same shape.

Legend: R requests, N representation tokens, K representation vocabulary.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from runtime.backends.cuda.device import CudaDevice
from runtime.backends.cuda.layout import cache_slots, padded_prompt
from runtime.backends.cuda.memory import DeviceCache, NewRows, StepTable, kv_addresses, kv_shapes
from runtime.backends.cuda.session import DeviceSession
from runtime.backends.host.stages import unsampled_inputs
from runtime.backends.interface import DrawingShape, FillNoise, Session
from runtime.events import StepEvent, TokenEvent
from runtime.options import DrawingPlan
from runtime.signature import GraphName


@dataclass(frozen=True)
class Shape:
    """What captured work depends on: two drawings of one shape use the same memory and graphs, one after the other."""

    num_requests: int
    prompt_slots: int
    num_rep_tokens: int
    previews: bool


class Workspace:
    """The memory of a drawing and its captured work; used again for the next drawing of the same shape.

    Attributes:
        cache: Keys and values.
        new: What rep_decoder returns.
        row_starts: [2R].
        tables: The tables of both loops, by a name that also says for which picture and number of steps.
        work: The captured stages, by a name of the same kind; and what they were recorded from. That has to live as
            long: captured kernels use memory of the library's own context.
    """

    def __init__(
        self, device: CudaDevice, drawing: DrawingShape, shape: Shape, kv: npt.DTypeLike, ids: npt.DTypeLike
    ) -> None:
        num_rows = 2 * shape.num_requests
        slots = drawing.num_slots  # of modern graphs, which have it fixed
        if drawing.variant.dialect == "classic":
            slots = cache_slots(drawing.model, drawing.variant.precision, shape.prompt_slots, shape.num_rep_tokens)
        self.cache = DeviceCache(device, drawing.model, kv, num_rows, slots)
        self.new = NewRows(device, drawing.model, kv, num_rows, 1)
        self.row_starts = StepTable(device, 1, (num_rows,), ids)
        self.tables: dict[Any, dict[str, StepTable]] = {}
        self.work: dict[Any, tuple[Callable[[], None], Callable[[], None]]] = {}

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


class DeviceStages:
    """See `runtime.backends.interface.StageRunner`."""

    def __init__(
        self, device: CudaDevice, sessions: Mapping[GraphName, Session], pool: WorkspacePool, drawing: DrawingShape
    ) -> None:
        """`sessions` are of a backend whose sessions are `DeviceSession`s too."""
        self._device, self._pool, self._drawing = device, pool, drawing
        self._sessions = cast(Mapping[GraphName, DeviceSession], sessions)
        self._in_place = drawing.variant.dialect == "modern"
        shortest, longest = self._sessions["text_decoder"].sizes("input_ids", 1)
        if self._in_place:  # a graph that writes beyond its cache writes anywhere
            longest = min(longest, drawing.num_slots - drawing.num_rep_tokens - 1)
        prompt_slots = max(padded_prompt(drawing.prompt_length, shortest, longest), drawing.prompt_length)
        self._shape = Shape(drawing.num_requests, prompt_slots, drawing.num_rep_tokens, drawing.previews)
        rep = self._sessions["rep_decoder"]
        kv, ids = rep.dtype("past_key_values.0.key"), rep.dtype("row_starts")
        with device.exclusive():
            self._workspace = pool.take(self._shape) or Workspace(device, drawing, self._shape, kv, ids)
        self._closed = False

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read the prompts into the conditional rows, padded on the left."""
        slots, cache = self._shape.prompt_slots, self._workspace.cache
        starts = np.array([slots - len(ids) for ids in prompts], np.int64)
        # Graphs that write the cache write its first rows. All others may leave out empty prompts.
        rows = np.arange(len(starts)) if self._in_place and any(prompts) else np.flatnonzero(starts < slots)
        with self._device.exclusive():
            cache.clear()
            # Unconditional rows see no text in the representation stage.
            self._workspace.row_starts.upload(np.concatenate([starts, np.full_like(starts, slots)])[None])
            if len(rows):
                self._read(prompts, starts, rows)
            self._device.synchronize()
        self._starts = starts

    def draw_tokens(
        self, plan: DrawingPlan, fill_noise: FillNoise, forced: npt.NDArray[np.int64] | None
    ) -> Generator[TokenEvent, None, npt.NDArray[np.int64]]:
        """Draw the representation tokens; the events come when all are drawn."""
        num_steps = plan.num_rep_tokens
        tables = self._token_tables()
        with self._device.exclusive():
            self._upload_token_inputs(tables, plan, fill_noise, forced)
            # [N + 1] whether a step goes on from a token of the host's; requests agree (`request.check_requests`).
            given = [True, *(forced[0] >= 0 if forced is not None else [False] * num_steps)]
            if len(set(given[1:])) == 1:
                self._run(("tokens", given[1]), lambda: self._prepare_tokens(tables, given))
            else:  # any set of places is a schedule of its own: run once, alive until the download, and not kept
                *_, run_once = self._prepare_tokens(tables, given)
                run_once()
            drawn = tables["next_rep_ids"].download(num_steps).astype(np.int64)
            logits = tables["logits"].download(num_steps) if self._drawing.previews else None
        if logits is not None:
            for step in range(num_steps):
                yield TokenEvent(step, num_steps, drawn[step].copy(), logits[step].copy())
        return np.ascontiguousarray(drawn.T)

    def denoise(
        self, plan: DrawingPlan, times: npt.NDArray[np.float32], x_t: npt.NDArray[np.float32]
    ) -> Generator[StepEvent, None, npt.NDArray[np.float32]]:
        """Turn noise into pictures; the events come when all steps are made."""
        num_steps = len(times) - 1
        key = ("steps", num_steps, x_t.shape)
        tables = self._step_tables(key, num_steps, x_t.shape)
        slots = self._shape.prompt_slots + self._shape.num_rep_tokens + 1
        with self._device.exclusive():
            # Unconditional rows see neither text nor representation tokens.
            tables["row_starts"].upload(np.concatenate([self._starts, np.full_like(self._starts, slots)])[None])
            tables["past_length"].upload(np.array([[slots]]))
            tables["guidance_scale"].upload(np.full((1, len(x_t)), plan.pix_guidance_scale))
            tables["t"].upload(np.repeat(times[:-1, None], len(x_t), axis=1))
            tables["t_next"].upload(np.repeat(times[1:, None], len(x_t), axis=1))
            tables["x"].upload(x_t[None])
            self._run(key, lambda: self._prepare_steps(tables, num_steps))
            if self._drawing.previews:
                x_next, x_pred = tables["x"].download(num_steps, first=1), tables["x_pred"].download(num_steps)
            else:
                x_next, x_pred = tables["x"].download(1, first=num_steps % 2), None
        if x_pred is not None:
            for step in range(num_steps):
                t, t_next = float(times[step]), float(times[step + 1])
                yield StepEvent(step, num_steps, t, t_next, x_next[step].copy(), x_pred[step].copy())
        return np.ascontiguousarray(x_next[-1])

    def close(self) -> None:
        """Give the workspace back."""
        if not self._closed:
            self._closed = True
            with self._device.exclusive():
                self._pool.give(self._shape, self._workspace)

    def _read(self, prompts: Sequence[Sequence[int]], starts: npt.NDArray[np.int64], rows: npt.NDArray[Any]) -> None:
        session, model, slots = self._sessions["text_decoder"], self._drawing.model, self._shape.prompt_slots
        input_ids = np.zeros((len(rows), slots), np.int64)
        for line, row in enumerate(rows):
            input_ids[line, starts[row] :] = prompts[int(row)]
        cache, kv = self._workspace.cache, session.dtype("past_key_values.0.key")
        past: DeviceCache | NewRows = cache
        new: DeviceCache | NewRows = cache
        if not self._in_place:
            new = NewRows(self._device, model, kv, len(rows), slots)
            past = NewRows(self._device, model, kv, len(rows), 1)  # an empty past has one hidden slot
            self._device.zero(past.addresses()[0], past.num_bytes)
        values = {
            "input_ids": input_ids,
            "row_starts": starts[rows],
            "past_length": np.zeros(1, np.int64),
            **unsampled_inputs(len(rows), model.vocab_size, model.hidden_size, kv),
        }
        tables = {name: StepTable(self._device, 1, array.shape, session.dtype(name)) for name, array in values.items()}
        tables["logits"] = StepTable(self._device, 1, (len(rows), model.vocab_size), np.float32)
        tables["next_ids"] = StepTable(self._device, 1, (len(rows),), session.dtype("next_ids"))
        for name, array in values.items():
            tables[name].upload(array[None])
        # The first rows of a tensor are a tensor too.
        enqueue = session.prepare(
            {
                **{name: table.shape for name, table in tables.items()},
                **kv_shapes("past_key_values", past, len(rows)),
                **kv_shapes("present", new, len(rows)),
            }
        )
        enqueue(
            {
                **{name: table.address() for name, table in tables.items()},
                **kv_addresses("past_key_values", past),
                **kv_addresses("present", new),
            }
        )
        for line, row in enumerate(rows):
            # What a graph computes for the padding stays out of the cache: hidden slots have to be finite.
            if isinstance(new, NewRows):
                cache.fill(new, line, int(row), int(starts[row]), int(slots - starts[row]))
            else:
                cache.hide(int(row), int(starts[row]))
        self._device.synchronize()  # before the buffers of this stage go

    def _run(self, key: Any, prepare: Callable[[], tuple[bool, Callable[[], None], Callable[[], None]]]) -> None:
        """Run a stage: captured at its first run, replayed at the others."""
        work = self._workspace.work
        if key not in work:
            capturable, first_step, record = prepare()
            if capturable:
                # A library settles its own state in the first run, which must not be captured (TensorRT's developer
                # guide, "CUDA graphs"). The captured work makes the step again, from the same inputs.
                first_step()
                self._device.synchronize()
            work[key] = (self._device.capture(record) if capturable else record, record)
        run, _ = work[key]
        run()

    def _token_tables(self) -> dict[str, StepTable]:
        if "tokens" not in self._workspace.tables:
            session, device, model = self._sessions["rep_decoder"], self._device, self._drawing.model
            requests, num_runs = self._shape.num_requests, self._shape.num_rep_tokens + 1
            noise = (requests, model.rep_vocab_size)
            sizes = {
                "rep_ids": (num_runs, (requests,)),
                "next_rep_ids": (num_runs, (requests,)),
                "grid_positions": (num_runs, (requests, 2)),
                "past_length": (num_runs, (1,)),
                "gumbel": (num_runs, noise),
                "logits": (num_runs if self._drawing.previews else 1, noise),
                "guidance_scale": (1, (requests,)),
                "temperature": (1, (requests,)),
                "top_k": (1, (requests,)),
            }
            with device.exclusive():
                self._workspace.tables["tokens"] = {
                    name: StepTable(device, steps, shape, session.dtype(name)) for name, (steps, shape) in sizes.items()
                }
        return self._workspace.tables["tokens"]

    def _upload_token_inputs(
        self,
        tables: Mapping[str, StepTable],
        plan: DrawingPlan,
        fill_noise: FillNoise,
        forced: npt.NDArray[np.int64] | None,
    ) -> None:
        requests, num_steps = self._shape.num_requests, plan.num_rep_tokens
        cells = np.maximum(np.arange(num_steps + 1) - 1, 0)  # the start token has the first cell, as the first token
        positions = np.stack(np.divmod(cells, plan.grid[1]), axis=1)
        noise = np.zeros((num_steps + 1, *tables["gumbel"].shape), np.float32)
        if not plan.greedy:
            for step in range(num_steps):
                fill_noise(step, noise[step])
        rep_ids = np.full((num_steps + 1 if forced is not None else 1, requests), self._drawing.model.rep_start_id)
        if forced is not None:
            rep_ids[1:] = forced.T
        tables["rep_ids"].upload(rep_ids)
        tables["grid_positions"].upload(np.repeat(positions[:, None], requests, axis=1))
        tables["past_length"].upload(self._shape.prompt_slots + np.arange(num_steps + 1)[:, None])
        tables["gumbel"].upload(noise)
        tables["guidance_scale"].upload(np.full((1, requests), plan.rep_guidance_scale))
        tables["temperature"].upload(np.full((1, requests), plan.temperature))
        tables["top_k"].upload(np.full((1, requests), plan.top_k))

    def _prepare_tokens(
        self, tables: Mapping[str, StepTable], given: Sequence[bool]
    ) -> tuple[bool, Callable[[], None], Callable[[], None]]:
        session, workspace, previews = self._sessions["rep_decoder"], self._workspace, self._drawing.previews
        shapes = {name: table.shape for name, table in tables.items()}
        present = workspace.cache if self._in_place else workspace.new
        enqueue = session.prepare(
            {
                **shapes,
                "row_starts": workspace.row_starts.shape,
                **kv_shapes("past_key_values", workspace.cache),
                **kv_shapes("present", present),
            }
        )
        fixed = {
            "row_starts": workspace.row_starts.address(),
            **{name: tables[name].address() for name in ("guidance_scale", "temperature", "top_k")},
            **kv_addresses("past_key_values", workspace.cache),
            **kv_addresses("present", present),
        }

        def put(step: int) -> None:
            enqueue(
                {
                    **fixed,
                    "rep_ids": tables["rep_ids"].address(step)
                    if given[step]
                    else tables["next_rep_ids"].address(step - 1),
                    **{
                        name: tables[name].address(step)
                        for name in ("grid_positions", "past_length", "gumbel", "next_rep_ids")
                    },
                    "logits": tables["logits"].address(step if previews else 0),
                }
            )

        def record() -> None:
            for step in range(self._shape.num_rep_tokens + 1):  # the last run only fills the cache
                put(step)
                if not self._in_place:
                    workspace.cache.append(workspace.new, self._shape.prompt_slots + step)

        return session.capturable, lambda: put(0), record

    def _step_tables(self, key: Any, num_steps: int, picture: tuple[int, ...]) -> dict[str, StepTable]:
        if key not in self._workspace.tables:
            session, device, previews = self._sessions["denoiser"], self._device, self._drawing.previews
            requests = (picture[0],)
            sizes = {
                "row_starts": (1, (2 * picture[0],)),
                "past_length": (1, (1,)),
                "guidance_scale": (1, requests),
                "t": (num_steps, requests),
                "t_next": (num_steps, requests),
                "x_pred": (num_steps if previews else 1, picture),
            }
            with device.exclusive():
                tables = {name: StepTable(device, n, shape, session.dtype(name)) for name, (n, shape) in sizes.items()}
                # Step i reads entry i and writes entry i + 1; without previews two entries take turns.
                tables["x"] = StepTable(device, num_steps + 1 if previews else 2, picture, session.dtype("x_t"))
            self._workspace.tables[key] = tables
        return self._workspace.tables[key]

    def _prepare_steps(
        self, tables: Mapping[str, StepTable], num_steps: int
    ) -> tuple[bool, Callable[[], None], Callable[[], None]]:
        session, workspace, previews = self._sessions["denoiser"], self._workspace, self._drawing.previews
        picture = tables["x"].shape
        plain = ("row_starts", "past_length", "guidance_scale", "t", "t_next")
        shapes = {**{name: tables[name].shape for name in plain}, "x_t": picture, "x_next": picture, "x_pred": picture}
        enqueue = session.prepare({**shapes, **kv_shapes("past_key_values", workspace.cache)})
        fixed = {
            **{name: tables[name].address() for name in ("row_starts", "past_length", "guidance_scale")},
            **kv_addresses("past_key_values", workspace.cache),
        }

        def put(step: int) -> None:
            entry, following = (step, step + 1) if previews else (step % 2, (step + 1) % 2)
            enqueue(
                {
                    **fixed,
                    "t": tables["t"].address(step),
                    "t_next": tables["t_next"].address(step),
                    "x_t": tables["x"].address(entry),
                    "x_next": tables["x"].address(following),
                    "x_pred": tables["x_pred"].address(step if previews else 0),
                }
            )

        def record() -> None:
            for step in range(num_steps):
                put(step)

        return session.capturable, lambda: put(0), record
