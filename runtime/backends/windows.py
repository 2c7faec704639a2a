"""Exact parallel decoding of representation tokens: what a window is fed, and what is kept of what comes out.

A token is drawn by arg-max of its logits and of noise that belongs to (seed, token), so it is a function of the tokens
before it. A pass takes W tokens: the one that is known, and guesses behind it. As long as a guess equals what the graph
draws there, all that follows from it is what a pass per token would have drawn; the first token that differs is right
too, since all before it were. What comes out behind it is the next guess. So every pass settles one token or more, and
the tokens are those of the loop with W = 1 (predictive sampling: Wiggers and Hoogeboom, ICML 2020, arXiv 2002.09928).

Knows nothing of graphs, caches and noise. Position 0 is the start token, position k has token k - 1; token k is drawn
at position k, and position N only enters the cache.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

WINDOWS: Final = (1, 2, 4, 8, 16)  # sizes that are tried where the best one for a machine is looked for


class TokenWindow:
    """The representation tokens of one request, drawn in windows.

    Attributes:
        rep_ids: int64 [N] the tokens to go on with; guesses from `num_known` on.
        drawn: int64 [N] the same as the graph drew them, also where other ones are forced.
        num_known: Tokens that are settled.
        num_cached: Positions whose keys and values are in the cache.
        start: The first position of the next window: the first that is not in the cache, or, where the window would end
            beyond position N, one before it.
    """

    def __init__(
        self, grid: tuple[int, int], start_id: int, size: int, forced: npt.NDArray[np.int64] | None = None
    ) -> None:
        """`size` is W; a window is never longer than the N + 1 positions. `forced` is [N], -1 for a drawn token."""
        self._columns = grid[1]
        num_tokens = grid[0] * grid[1]
        self.size = min(size, num_tokens + 1)
        self.drawn = np.zeros(num_tokens, np.int64)
        self._inputs = np.zeros(num_tokens + 1, np.int64)
        self._inputs[0] = start_id
        self.rep_ids = self._inputs[1:]
        self._num_guessed = 0  # tokens that some pass has put out
        self._forced = np.full(num_tokens, -1, np.int64) if forced is None else forced
        np.copyto(self.rep_ids, self._forced, where=self._forced >= 0)
        self.num_known = self.num_cached = self.start = 0

    @property
    def num_tokens(self) -> int:
        """Tokens N."""
        return len(self.drawn)

    @property
    def ended(self) -> bool:
        """Whether all tokens are known and in the cache."""
        return self.num_cached > self.num_tokens

    @property
    def draws(self) -> bool:
        """Whether the next window draws a token: else it only fills the cache."""
        return self.num_known < self.num_tokens

    def fill(self, rep_ids: npt.NDArray[np.int64], grid_positions: npt.NDArray[np.int64]) -> None:
        """Write the next window into `[W]` and `[W, 2]`."""
        for token in range(self._num_guessed, min(self.start + self.size - 1, self.num_tokens)):
            if token and self._forced[token] < 0:  # the one before: measured better than the one above, and than none
                self.rep_ids[token] = self.rep_ids[token - 1]
        rep_ids[:] = self._inputs[self.start : self.start + self.size]
        cells = np.maximum(np.arange(self.start, self.start + self.size) - 1, 0)  # the start token has the first cell
        grid_positions[:, 0], grid_positions[:, 1] = np.divmod(cells, self._columns)

    def settle(self, drawn: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Take what a pass drew at each position of the window, `[W]`; where all had ended before, nothing is new.

        Returns:
            From which position to before which one it is right: these keys and values are kept, and these tokens known.
        """
        first, before = self.start, self.num_cached
        end = first + self.size
        known = before
        while known < end:
            known += 1  # the token at this position was right
            token = known - 1  # so what was drawn there is
            if token == self.num_tokens:  # nothing is, at the last one
                break
            guess = self.rep_ids[token]
            self.drawn[token] = drawn[token - first]
            if self._forced[token] < 0:
                self.rep_ids[token] = drawn[token - first]
            if guess != self.rep_ids[token]:
                break
        self.num_cached, self.num_known = known, min(known, self.num_tokens)
        limit = min(end, self.num_tokens)
        for token in range(known, limit):  # drawn after a wrong token: the best guess there is
            if self._forced[token] < 0:
                self.rep_ids[token] = drawn[token - first]
        self._num_guessed = max(self._num_guessed, limit)
        self.start = min(known, self.num_tokens + 1 - self.size)
        return before, known
