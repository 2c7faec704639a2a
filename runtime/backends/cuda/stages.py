"""The three stages on a device: inputs are uploaded once, a stage runs as a whole, results are downloaded once.

Knows nothing of the library that runs graphs: `DeviceSession`. Between two steps nothing goes through the host. The
next token is fed back by its address: step i writes its token where step i + 1 reads it. What changes from step to step
lies in tables, and step i is given entry i. One strided copy writes the new keys and values of all layers; modern
graphs write them themselves, with past and present at one address. So a stage is a fixed sequence of launches, captured
once as a CUDA graph and replayed for every drawing of the same shape.

Where tokens are drawn in windows, the host looks at each pass to see how many of its tokens are right: a few numbers go
up, the captured pass is replayed, a few come down, and the keys and values of the right tokens are kept. Noise is
uploaded once, and moved into the window on the device.

Prompts are padded on the left, so that all rows end at the same slot. Rows 0 to R - 1 of the cache are those of the
requests, with their text. Behind them are the unconditional rows, where the drawing is guided, which see no text; the
denoiser reads the first R rows only.

Legend: R requests, N representation tokens, K representation vocabulary, W tokens of a window.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from runtime.backends.cuda.device import BlockCopy, CudaDevice
from runtime.backends.cuda.layout import padded_prompt
from runtime.backends.cuda.memory import DeviceCache, KeysValues, NewRows, StepTable, kv_addresses, kv_shapes
from runtime.backends.cuda.session import DeviceSession, Enqueue
from runtime.backends.cuda.workspace import Shape, Work, Workspace, WorkspacePool
from runtime.backends.host.stages import TokenLogits, unsampled_inputs
from runtime.backends.interface import DrawingShape, FillNoise, Session
from runtime.backends.windows import TokenWindow
from runtime.events import StepEvent, TokenEvent
from runtime.options import DrawingPlan
from runtime.signature import GraphName

Tables: TypeAlias = Mapping[str, StepTable]


class DeviceStages:
    """See `runtime.backends.interface.StageRunner`.

    Attributes:
        num_passes: Runs of rep_decoder that the tokens took.
    """

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
        self.num_passes = 0

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

    def draw_tokens(
        self, plan: DrawingPlan, fill_noise: FillNoise, forced: npt.NDArray[np.int64] | None
    ) -> Generator[TokenEvent, None, npt.NDArray[np.int64]]:
        """Draw the representation tokens; one by one, the events come when all are drawn."""
        # Tokens are the same in windows of any size, so an engine for smaller ones is no reason to refuse.
        window = min(plan.window, plan.num_rep_tokens + 1, self._sessions["rep_decoder"].longest("rep_ids", 1))
        given = set() if forced is None else set((forced >= 0).ravel().tolist())
        if window > 1 or len(given) > 1:  # any set of forced places would be a schedule of its own
            return (yield from self._draw_windows(plan, fill_noise, forced, window))
        num_steps, guided = plan.num_rep_tokens, plan.guides_tokens
        with self._device.exclusive():
            tables = self._token_tables(num_steps + 1, 1)
            self._upload_token_inputs(tables, plan, fill_noise, forced)
            is_given, self.num_passes = True in given, num_steps + 1
            self._run(
                ("tokens", guided, is_given), lambda: self._prepare_tokens(tables, guided=guided, is_given=is_given)
            )
            drawn = tables["next_rep_ids"].download(num_steps)[:, :, 0].astype(np.int64)
            logits = tables["logits"].download(num_steps)[:, :, 0] if self._drawing.previews else None
        if logits is not None:
            for step in range(num_steps):
                yield TokenEvent(step, num_steps, drawn[step].copy(), logits[step].copy())
        return np.ascontiguousarray(drawn.T)

    def denoise(
        self, plan: DrawingPlan, times: npt.NDArray[np.float32], x_t: npt.NDArray[np.float32]
    ) -> Generator[StepEvent, None, npt.NDArray[np.float32]]:
        """Turn noise into pictures; the events come when all steps are made."""
        num_steps = len(times) - 1
        guided = tuple(plan.is_guided(float(t)) for t in times[:-1])
        slots = self._shape.prompt_slots + self._shape.num_rep_tokens + 1
        with self._device.exclusive():
            tables = self._step_tables(num_steps, x_t.shape)
            tables["past_lengths"].upload(np.full((1, len(x_t)), slots))
            tables["guidance_scale"].upload(np.full((1, len(x_t)), plan.pix_guidance_scale))
            tables["t"].upload(np.repeat(times[:-1, None], len(x_t), axis=1))
            tables["t_next"].upload(np.repeat(times[1:, None], len(x_t), axis=1))
            tables["x"].upload(x_t[None])
            self._run(("steps", guided, x_t.shape), lambda: self._prepare_steps(tables, guided))
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
            "past_lengths": np.zeros(len(rows), np.int64),
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
                cache.fill(new, line, int(row), slice(int(starts[row]), slots), int(starts[row]))
            else:
                cache.hide(int(row), int(starts[row]))
        self._device.synchronize()  # before the buffers of this stage go

    def _run(self, key: Any, prepare: Callable[[], Work]) -> None:
        """Run a stage or a pass: captured at its first run, replayed at the others."""
        done = self._workspace.work
        if key not in done:
            work = prepare()
            if work.capturable:
                # A library settles its own state in the first run, which must not be captured (TensorRT's developer
                # guide, "CUDA graphs"). The captured work makes these runs again, from the same inputs.
                work.first()
                self._device.synchronize()
            done[key] = (self._device.capture(work.record) if work.capturable else work.record, work)
        run, _ = done[key]
        run()

    def _prepare(
        self, graph: GraphName, tables: Tables, guided: bool, fixed: Sequence[str], present: KeysValues | None
    ) -> Enqueue:
        """Prepare runs of rep_decoder or the denoiser.

        Args:
            graph: Which one.
            tables: Of its inputs and outputs, but those of rows and of the cache.
            guided: Whether its requests have unconditional rows.
            fixed: The tables of which every run has the first entry.
            present: Where new keys and values go; None for a graph that has none.

        Returns:
            What puts a run on the stream, given the addresses of the other tables.
        """
        workspace, rows = self._workspace, self._workspace.rows(guided)
        # The first rows of a tensor are a tensor too.
        num_rows = rows["row_requests"].shape[0] if present is not None else self._shape.num_requests
        written = {} if present is None else kv_shapes("present", present, num_rows)
        enqueue = self._sessions[graph].prepare(
            {
                **{name: table.shape for name, table in (*tables.items(), *rows.items())},
                **dict.fromkeys(("row_starts", "past_lengths"), (num_rows,)),
                **kv_shapes("past_key_values", workspace.cache, num_rows),
                **written,
            }
        )
        addresses = {
            **{name: tables[name].address() for name in fixed},
            **{name: table.address() for name, table in rows.items()},
            "row_starts": workspace.row_starts.address(),
            **kv_addresses("past_key_values", workspace.cache),
            **({} if present is None else kv_addresses("present", present)),
        }
        return lambda changing: enqueue({**addresses, **changing})

    def _token_tables(self, num_runs: int, window: int) -> dict[str, StepTable]:
        """Tables of so many runs over windows of that size."""
        key, tables = ("tokens", num_runs, window), self._workspace.tables
        if key not in tables:
            session, device, model = self._sessions["rep_decoder"], self._device, self._drawing.model
            requests = self._shape.num_requests
            tokens, noise = (requests, window), (requests, window, model.rep_vocab_size)
            sizes = {
                "rep_ids": (num_runs, tokens),
                "next_rep_ids": (num_runs, tokens),
                "grid_positions": (num_runs, (*tokens, 2)),
                "past_lengths": (num_runs, (2 * requests,)),
                "gumbel": (num_runs, noise),
                "logits": (num_runs if self._drawing.previews else 1, noise),
                "guidance_scale": (1, (requests,)),
                "temperature": (1, (requests,)),
                "top_k": (1, (requests,)),
            }
            tables[key] = {
                name: StepTable(device, steps, shape, session.dtype(name)) for name, (steps, shape) in sizes.items()
            }
        return tables[key]

    def _upload_sampling(self, tables: Tables, plan: DrawingPlan) -> None:
        requests = self._shape.num_requests
        tables["guidance_scale"].upload(np.full((1, requests), plan.rep_guidance_scale))
        tables["temperature"].upload(np.full((1, requests), plan.temperature))
        tables["top_k"].upload(np.full((1, requests), plan.top_k))

    def _noise(self, plan: DrawingPlan, fill_noise: FillNoise) -> npt.NDArray[np.float32]:
        """[R, N + 1, K]; none for the position after the last token."""
        requests, num_tokens = self._shape.num_requests, plan.num_rep_tokens
        noise = np.zeros((requests, num_tokens + 1, self._drawing.model.rep_vocab_size), np.float32)
        if not plan.greedy:
            for request in range(requests):
                for token in range(num_tokens):
                    fill_noise(request, token, noise[request, token])
        return noise

    def _upload_token_inputs(
        self, tables: Tables, plan: DrawingPlan, fill_noise: FillNoise, forced: npt.NDArray[np.int64] | None
    ) -> None:
        requests, num_steps = self._shape.num_requests, plan.num_rep_tokens
        cells = np.maximum(np.arange(num_steps + 1) - 1, 0)  # the start token has the first cell, as the first token
        positions = np.stack(np.divmod(cells, plan.grid[1]), axis=1)
        rep_ids = np.full((num_steps + 1 if forced is not None else 1, requests), self._drawing.model.rep_start_id)
        if forced is not None:
            rep_ids[1:] = forced.T
        lengths = self._shape.prompt_slots + np.arange(num_steps + 1)
        tables["rep_ids"].upload(rep_ids)
        tables["grid_positions"].upload(np.repeat(positions[:, None], requests, axis=1))
        tables["past_lengths"].upload(np.repeat(lengths[:, None], 2 * requests, axis=1))
        tables["gumbel"].upload(self._noise(plan, fill_noise).swapaxes(0, 1))
        self._upload_sampling(tables, plan)

    def _prepare_tokens(self, tables: Tables, *, guided: bool, is_given: bool) -> Work:
        """All tokens one by one; `is_given`: a step goes on from the host's token, not from the one that was drawn."""
        workspace, previews = self._workspace, self._drawing.previews
        present = workspace.cache if self._in_place else workspace.new(1)
        fixed = ("guidance_scale", "temperature", "top_k")
        enqueue = self._prepare("rep_decoder", tables, guided, fixed, present)
        num_rows = self._shape.num_requests * (1 + guided)

        def put(step: int) -> None:
            ids = ("rep_ids", step) if is_given or not step else ("next_rep_ids", step - 1)
            entries = ("grid_positions", "past_lengths", "gumbel", "next_rep_ids")
            enqueue(
                {
                    "rep_ids": tables[ids[0]].address(ids[1]),
                    **{name: tables[name].address(step) for name in entries},
                    "logits": tables["logits"].address(step if previews else 0),
                }
            )

        def record() -> None:
            for step in range(self._shape.num_rep_tokens + 1):  # the last run only fills the cache
                put(step)
                if isinstance(present, NewRows):
                    workspace.cache.append(present, self._shape.prompt_slots + step, num_rows)

        return Work(self._sessions["rep_decoder"].capturable, lambda: put(0), record)

    def _draw_windows(
        self, plan: DrawingPlan, fill_noise: FillNoise, forced: npt.NDArray[np.int64] | None, size: int
    ) -> Generator[TokenEvent, None, npt.NDArray[np.int64]]:
        requests, model, previews = self._shape.num_requests, self._drawing.model, self._drawing.previews
        windows = [
            TokenWindow(plan.grid, model.rep_start_id, size, None if forced is None else forced[request])
            for request in range(requests)
        ]
        guided = plan.guides_tokens
        with self._device.exclusive():
            tables, noise = self._token_tables(1, size), self._noise_table()
            noise.upload(self._noise(plan, fill_noise)[None])
            self._upload_sampling(tables, plan)
            self._device.synchronize()
        logits = TokenLogits(plan.num_rep_tokens, requests)
        while not all(window.ended for window in windows):
            starts = [window.start for window in windows]
            with self._device.exclusive():
                self._upload_windows(tables, windows)
                self._move_noise(noise, tables["gumbel"], starts)
                self._run(("window", guided, size), lambda: self._prepare_window(tables, guided, size))
                self.num_passes += 1
                drawn = tables["next_rep_ids"].download(1)[0].astype(np.int64)
                known = [self._settle(line, window, drawn[line], guided) for line, window in enumerate(windows)]
                found = tables["logits"].download(1)[0] if previews else None
            if found is not None:
                logits.add(starts, known, found)
                for step in logits.complete():
                    tokens = np.array([window.drawn[step] for window in windows])
                    yield TokenEvent(step, plan.num_rep_tokens, tokens, logits.take(step))
        return np.stack([window.drawn for window in windows])

    def _noise_table(self) -> StepTable:
        """Noise of all tokens, [R, N + 1, K]."""
        tables, shape = self._workspace.tables, self._shape
        if ("noise",) not in tables:
            size = (shape.num_requests, shape.num_rep_tokens + 1, self._drawing.model.rep_vocab_size)
            dtype = self._sessions["rep_decoder"].dtype("gumbel")
            tables[("noise",)] = {"gumbel": StepTable(self._device, 1, size, dtype)}
        return tables[("noise",)]["gumbel"]

    def _upload_windows(self, tables: Tables, windows: Sequence[TokenWindow]) -> None:
        rep_ids, positions = (
            np.zeros(tables["rep_ids"].shape, np.int64),
            np.zeros(tables["grid_positions"].shape, np.int64),
        )
        for line, window in enumerate(windows):
            window.fill(rep_ids[line], positions[line])
        lengths = self._shape.prompt_slots + np.array([window.start for window in windows])
        tables["rep_ids"].upload(rep_ids[None])
        tables["grid_positions"].upload(positions[None])
        tables["past_lengths"].upload(np.tile(lengths, 2)[None])

    def _move_noise(self, noise: StepTable, gumbel: StepTable, starts: Sequence[int]) -> None:
        _, num_tokens, _ = noise.shape
        _, size, vocabulary = gumbel.shape
        token = vocabulary * noise.dtype.itemsize
        for line, start in enumerate(starts):
            self._device.copy(
                BlockCopy(
                    source=noise.address() + (line * num_tokens + start) * token,
                    source_pitch=size * token,
                    source_rows=1,
                    target=gumbel.address() + line * size * token,
                    target_pitch=size * token,
                    target_rows=1,
                    width=size * token,
                    height=1,
                    depth=1,
                )
            )

    def _prepare_window(self, tables: Tables, guided: bool, size: int) -> Work:
        """One pass over windows."""
        present = self._workspace.cache if self._in_place else self._workspace.new(size)
        enqueue = self._prepare("rep_decoder", tables, guided, list(tables), present)

        def put() -> None:
            enqueue({})

        return Work(self._sessions["rep_decoder"].capturable, put, put)

    def _settle(self, line: int, window: TokenWindow, drawn: npt.NDArray[np.int64], guided: bool) -> range:
        """Keep what is right; the tokens that are known now and were not before."""
        before, start = window.num_known, window.start
        first, end = window.settle(drawn)
        if end > first and not self._in_place:  # else they are there; those beyond are written over
            new = self._workspace.new(window.size)
            for row in (line, line + self._shape.num_requests)[: 1 + guided]:
                tokens = slice(first - start, end - start)
                self._workspace.cache.fill(new, row, row, tokens, self._shape.prompt_slots + first)
        return range(before, window.num_known)

    def _step_tables(self, num_steps: int, picture: tuple[int, ...]) -> dict[str, StepTable]:
        key, tables = ("steps", num_steps, picture), self._workspace.tables
        if key not in tables:
            session, device, previews = self._sessions["denoiser"], self._device, self._drawing.previews
            requests = (picture[0],)
            sizes = {
                "past_lengths": (1, requests),
                "guidance_scale": (1, requests),
                "t": (num_steps, requests),
                "t_next": (num_steps, requests),
                "x_pred": (num_steps if previews else 1, picture),
            }
            tables[key] = {name: StepTable(device, n, shape, session.dtype(name)) for name, (n, shape) in sizes.items()}
            # Step i reads entry i and writes entry i + 1; without previews two entries take turns.
            tables[key]["x"] = StepTable(device, num_steps + 1 if previews else 2, picture, session.dtype("x_t"))
        return tables[key]

    def _prepare_steps(self, tables: Tables, guided: Sequence[bool]) -> Work:
        """All steps; `guided` says of each whether it has unconditional rows."""
        named = {**tables, "x_t": tables["x"], "x_next": tables["x"]}
        del named["x"]
        previews, fixed = self._drawing.previews, ("past_lengths", "guidance_scale")
        kinds = {kind: self._prepare("denoiser", named, kind, fixed, None) for kind in dict.fromkeys(guided)}

        def put(step: int, entry: int, following: int) -> None:
            kinds[guided[step]](
                {
                    "t": tables["t"].address(step),
                    "t_next": tables["t_next"].address(step),
                    "x_t": tables["x"].address(entry),
                    "x_next": tables["x"].address(following),
                    "x_pred": tables["x_pred"].address(step if previews else 0),
                }
            )

        def first() -> None:  # always from the noise, which is not written over
            for kind in kinds:
                put(guided.index(kind), 0, 1)

        def record() -> None:
            for step in range(len(guided)):
                put(step, *((step, step + 1) if previews else (step % 2, (step + 1) % 2)))

        return Work(self._sessions["denoiser"].capturable, first, record)
