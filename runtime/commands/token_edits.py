"""Edits of a picture's representation tokens: the grammar of `generate --edit`, and the tokens that come of it.

    ROWS,COLUMNS=137               one code everywhere
    ROWS,COLUMNS=ROWS,COLUMNS      the tokens of another place, as large or a single cell
    ROWS,COLUMNS=FILE              the tokens of another picture, at the same place
    ROWS,COLUMNS=FILE@ROWS,COLUMNS ... or at another one
    ROWS,COLUMNS=redraw            drawn again by the model, with seed + 1
    ROWS,COLUMNS=redraw:5          ... or with seed 5

Rows and columns are those of the grid, counted from 0, as in Python: `2`, `1:3` (1 and 2), `2:`, `:`. Copies read the
tokens from before all edits, so that two places can be swapped; where edits overlap, the last one wins. Then comes what
is drawn again, in its order: such a token follows from the prompt and the tokens before it, never from those after it.
"""

import contextlib
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.backends.interface import keep_drawn
from runtime.bundle.manifest import Manifest
from runtime.errors import RFError
from runtime.events import TokenEvent
from runtime.noise import MAX_SEED
from runtime.options import GenerationOptions
from runtime.pictures.token_file import RepGrid, read_grid
from runtime.plans import plan_drawing

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline
    from runtime.request import Request

Ids: TypeAlias = npt.NDArray[np.int64]

_SPAN: Final = r"(\d{1,6})?(:)?(\d{1,6})?"
_REGION: Final = re.compile(rf"\s*{_SPAN}\s*,\s*{_SPAN}\s*", re.ASCII)
_REDRAW: Final = re.compile(r"redraw(?::(\d{1,20}))?", re.ASCII)
_GRAMMAR: Final = (
    "Write ROWS,COLUMNS=SOURCE, such as 0:2,1=137, 0:2,0:2=2:4,2:4, 0:2,:=other.png@2:4,: or 1:3,1:3=redraw:5."
)


@dataclass(frozen=True)
class Span:
    """Rows or columns from `start` to before `stop`; None is the end of the grid."""

    start: int
    stop: int | None

    def __str__(self) -> str:
        return f"{self.start}:{'' if self.stop is None else self.stop}"

    def within(self, size: int) -> slice | None:
        """The same of a grid, or None where it is not inside."""
        stop = size if self.stop is None else self.stop
        return slice(self.start, stop) if self.start < stop <= size else None


@dataclass(frozen=True)
class Region:
    """A rectangle of a grid."""

    rows: Span
    columns: Span

    def __str__(self) -> str:
        return f"{self.rows},{self.columns}"

    def of(self, rep_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """These tokens, as a view of [rows, columns]; raises RFError where the region is not inside."""
        rows, columns = self.rows.within(rep_ids.shape[0]), self.columns.within(rep_ids.shape[1])
        if rows is None or columns is None:
            raise RFError(
                f"The region {self} is not inside a grid of {rep_ids.shape[0]} rows and {rep_ids.shape[1]} columns, "
                "which are counted from 0."
            )
        return rep_ids[rows, columns]


@dataclass(frozen=True)
class Fill:
    """One code everywhere."""

    code: int

    def __str__(self) -> str:
        return str(self.code)


@dataclass(frozen=True)
class Copy:
    """Tokens of another place, or of a file; without a place, of the same one."""

    path: Path | None
    region: Region | None

    def __str__(self) -> str:
        return "@".join(str(part) for part in (self.path, self.region) if part is not None)


@dataclass(frozen=True)
class Redraw:
    """What the model draws with another seed; None is the next one."""

    seed: int | None

    def __str__(self) -> str:
        return "redraw" if self.seed is None else f"redraw:{self.seed}"


Source: TypeAlias = Fill | Copy | Redraw


@dataclass(frozen=True)
class Edit:
    """A region, and what its tokens become."""

    region: Region
    source: Source

    def __str__(self) -> str:
        return f"{self.region}={self.source}"


def parse_edit(text: str) -> Edit:
    """Read an edit; raises RFError."""
    target, equals, source = text.partition("=")
    region = _parse_region(target)
    if not equals or region is None or not source.strip():
        raise RFError(f"The edit {text!r} is not understood. {_GRAMMAR}")
    return Edit(region, _parse_source(source.strip()))


def _parse_source(text: str) -> Source:
    if text.isascii() and text.isdecimal():
        return Fill(int(text[:12]))  # more digits than any vocabulary has
    if redraw := _REDRAW.fullmatch(text):
        seed = None if redraw[1] is None else int(redraw[1])
        if seed is not None and seed > MAX_SEED:
            raise RFError(f"The seed of {text!r} must be below 2**64.")
        return Redraw(seed)
    if region := _parse_region(text):
        return Copy(None, region)
    name, at, place = text.rpartition("@")
    region = _parse_region(place) if at and name else None
    return Copy(Path(name if region else text), region)


def _parse_region(text: str) -> Region | None:
    found = _REGION.fullmatch(text)
    if found is None:
        return None
    rows, columns = _span(*found.groups()[:3]), _span(*found.groups()[3:])
    return Region(rows, columns) if rows and columns else None


def _span(start: str | None, colon: str | None, stop: str | None) -> Span | None:
    if colon is None:
        return None if start is None or stop is not None else Span(int(start), int(start) + 1)
    return Span(int(start or 0), None if stop is None else int(stop))


def require_fit(edits: Sequence[Edit], grid: tuple[int, int], manifest: Manifest) -> None:
    """Refuse regions that are not inside a grid, and codes that the model lacks; raises RFError."""
    limit = manifest.model.rep_vocab_size
    for edit in edits:
        edit.region.of(np.zeros(grid, np.int64))
        if isinstance(edit.source, Fill) and edit.source.code >= limit:
            raise RFError(f"The edit {edit} paints with a code that does not exist: they are 0 to {limit - 1}.")


def choose_tokens(
    pipeline: "Pipeline",
    prompts: Sequence[str],
    *,
    seed: int,
    options: GenerationOptions,
    base: RepGrid | None,
    edits: Sequence[Edit],
    batch_size: int | None = None,
) -> npt.NDArray[np.int64] | None:
    """The tokens to draw prompts from.

    Args:
        pipeline: Draws what is not given.
        prompts: As for `Pipeline.generate`.
        seed: Of the first prompt.
        options: How to draw; of the size of `base`.
        base: Given tokens, the same for every picture; None stands for those that the model draws.
        edits: What to change in them.
        batch_size: Prompts drawn together, at most; None draws all of them together.

    Returns:
        [R, N], or None where the model draws all of them.

    Raises:
        RFError: Tokens, a region or a file that does not fit.
    """
    if base is None and not edits:
        return None
    manifest = pipeline.bundle.manifest
    if base is not None:
        base.require_fit(manifest, "--rep-tokens")
    grid = plan_drawing(options, manifest).grid
    if base is not None and base.rep_ids.shape != grid:
        raise RFError(
            f"--rep-tokens has those of {base.height} x {base.width} pixels, and another size was asked for. "
            "Leave out --size."
        )
    require_fit(edits, grid, manifest)
    apply_edits(np.zeros(grid, np.int64), edits, manifest)  # refuses files before anything is drawn
    rep_ids = None if base is None else np.stack([base.rep_ids.ravel()] * len(prompts))
    if base is not None:
        pipeline.check(prompts, seed=seed, options=options, rep_ids=rep_ids)
    drawings = draw_edits(rep_ids, edits, seed, grid, manifest)
    drawn: Ids | None = None
    while True:
        try:
            again, given = next(drawings) if drawn is None else drawings.send(drawn)
        except StopIteration as done:
            edited: Ids = done.value
            return edited
        drawn = draw_rep_ids(pipeline, prompts, seed=again, options=options, rep_ids=given, batch_size=batch_size)


def draw_edits(
    rep_ids: Ids | None, edits: Sequence[Edit], seed: int, grid: tuple[int, int], manifest: Manifest
) -> Generator[tuple[int, Ids | None], Ids, Ids]:
    """The tokens that edits come to; whoever runs this generator draws, on a thread, a scheduler or elsewhere.

    Args:
        rep_ids: The tokens before, [R, N] or [N]; None has them drawn first.
        edits: What to change in them.
        seed: Of the first picture.
        grid: Rows and columns.
        manifest: Says which codes there are.

    Yields:
        A seed, and the tokens that are given, -1 where they are to be drawn; None where all are. It is sent the drawn.

    Returns:
        The tokens, in the shape that they came in.
    """
    if rep_ids is None:
        rep_ids = yield seed, None
    changed = np.stack(
        [apply_edits(each, edits, manifest) for each in rep_ids.reshape(-1, *grid)]
    )  # [R, rows, columns]
    for edit in edits:
        if isinstance(edit.source, Redraw):
            for each in changed:
                edit.region.of(each)[:] = -1
            again = seed + 1 if edit.source.seed is None else edit.source.seed
            changed = (yield again, changed.reshape(rep_ids.shape)).reshape(changed.shape)
    return changed.reshape(rep_ids.shape)


def draw_rep_ids(
    pipeline: "Pipeline",
    prompts: Sequence[str],
    *,
    seed: int,
    options: GenerationOptions | None = None,
    rep_ids: npt.NDArray[np.int64] | None = None,  # [R, N]
    batch_size: int | None = None,
) -> npt.NDArray[np.int64]:
    """Run the first stage only: [R, N]; `rep_ids` as in `Pipeline.generate`, `batch_size` as in `choose_tokens`."""
    requests = pipeline.check(prompts, seed=seed, options=options, rep_ids=rep_ids)
    size = batch_size or len(requests)
    batches = [_first_stage(pipeline, requests[i : i + size]) for i in range(0, len(requests), size)]
    return keep_drawn(np.concatenate(batches), rep_ids)


def _first_stage(pipeline: "Pipeline", requests: Sequence["Request"]) -> npt.NDArray[np.int64]:
    drawn: list[npt.NDArray[np.int64]] = []
    with contextlib.closing(pipeline.run(requests)) as events:
        for event in events:
            assert isinstance(event, TokenEvent)
            drawn.append(event.rep_ids)
            if event.step + 1 == event.num_steps:
                break
    return np.stack(drawn, axis=1)


def apply_edits(rep_ids: npt.NDArray[np.int64], edits: Sequence[Edit], manifest: Manifest) -> npt.NDArray[np.int64]:
    """Fill and copy, [rows, columns]; regions that the model draws again stay as they are."""
    changed: npt.NDArray[np.int64] = rep_ids.copy()
    for edit in edits:
        target = edit.region.of(changed)
        if isinstance(edit.source, Fill):
            target[:] = edit.source.code
        elif isinstance(edit.source, Copy):
            target[:] = _copied(rep_ids, edit, edit.source, target.shape, manifest)
    return changed


def _copied(
    rep_ids: npt.NDArray[np.int64], edit: Edit, source: Copy, shape: tuple[int, ...], manifest: Manifest
) -> npt.NDArray[np.int64]:
    if source.path is not None:
        grid = read_grid(source.path)
        grid.require_fit(manifest, str(source.path))
        rep_ids = grid.rep_ids
    found = (source.region or edit.region).of(rep_ids)
    if found.shape not in (shape, (1, 1)):
        raise RFError(
            f"The edit {edit} copies {found.shape[0]} x {found.shape[1]} tokens to a region of {shape[0]} x "
            f"{shape[1]}: give one as large, or a single cell."
        )
    return found
