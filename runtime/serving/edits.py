"""The tokens that edits of a picture come to, drawn on the scheduler together with everybody's pictures.

Knows nothing of HTTP. The language is that of runtime/commands/token_edits.py, without files: those would be the
server's. The tokens are those that `rf-export generate --rep-tokens --edit` draws from.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np

from runtime.bundle.manifest import Manifest
from runtime.commands.token_edits import Copy, Edit, Ids, apply_edits, draw_edits, parse_edit, require_fit
from runtime.errors import RFError
from runtime.plans import plan_drawing
from runtime.serving.orders import Drawing

DrawTokens = Callable[[Drawing, int, Ids | None], Awaitable[Ids]]  # seed, and [N] with -1 where they are drawn

MAX_EDITS = 64  # each redraw costs the first stage of a drawing


def read_edits(drawing: Drawing, manifest: Manifest) -> list[Edit]:
    """What the edits of a drawing mean; raises RFError for one that this model or a server cannot make."""
    if len(drawing.edits) > MAX_EDITS:
        raise RFError(f"One request may have {MAX_EDITS} edits, got {len(drawing.edits)}. Make them one after another.")
    if not drawing.edits:
        return []
    edits = [parse_edit(text) for text in drawing.edits]
    for edit in edits:
        if isinstance(edit.source, Copy) and edit.source.path is not None:
            raise RFError(
                f"The edit {edit} is not understood: a server reads no files. "
                "Give a code, ROWS,COLUMNS to copy from, or redraw:SEED."
            )
    grid = plan_drawing(drawing.options, manifest).grid
    require_fit(edits, grid, manifest)
    apply_edits(np.zeros(grid, np.int64), edits, manifest)  # refuses copies of another size
    return edits


def with_own_size(drawing: Drawing, manifest: Manifest) -> Drawing:
    """The drawing in the size of its tokens; raises RFError where another one was asked for, or they are foreign."""
    tokens, options = drawing.tokens, drawing.options
    if tokens is None:
        return drawing
    tokens.require_fit(manifest, "the picture's tokens")
    asked = (options.height or tokens.height, options.width or tokens.width)
    if asked != (tokens.height, tokens.width):
        raise RFError(
            f"These tokens are those of a picture of {tokens.width}x{tokens.height}, and {asked[1]}x{asked[0]} was "
            "asked for. Leave out size."
        )
    return replace(drawing, options=replace(options, height=tokens.height, width=tokens.width))


async def choose_tokens(drawing: Drawing, edits: list[Edit], manifest: Manifest, draw: DrawTokens) -> Ids | None:
    """The tokens to draw from, [N]; None leaves all of them to the model."""
    if drawing.tokens is None and not edits:
        return None
    grid = plan_drawing(drawing.options, manifest).grid
    given = None if drawing.tokens is None else drawing.tokens.rep_ids.ravel()
    drawings = draw_edits(given, edits, drawing.seed, grid, manifest)
    drawn: Ids | None = None
    while True:
        try:
            seed, given = next(drawings) if drawn is None else drawings.send(drawn)
        except StopIteration as done:
            edited: Ids = done.value
            return edited
        drawn = await draw(drawing, seed, given)
