/**
 * Exact parallel decoding of representation tokens: what a window is fed, and what is kept of what comes out.
 *
 * See runtime/backends/windows.py. Knows nothing of graphs, caches and noise. Position 0 is the start token, position k
 * has token k - 1; token k is drawn at position k, and position N only enters the cache.
 */
export class TokenWindow {
  #columns;
  #forced;
  #inputs; // [N + 1]
  #numGuessed = 0; // tokens that some pass has put out
  numKnown = 0; // tokens that are settled
  numCached = 0; // positions whose keys and values are in the cache
  start = 0; // the first position of the next window

  /**
   * @param {[number, number]} grid Rows and columns.
   * @param {number} startId
   * @param {number} size Tokens W of a pass; never more than the N + 1 positions.
   * @param {?readonly number[]} forced [N], -1 for a drawn token.
   */
  constructor([rows, columns], startId, size, forced) {
    this.#columns = columns;
    this.numTokens = rows * columns;
    this.size = Math.min(size, this.numTokens + 1);
    this.drawn = new Array(this.numTokens).fill(0); // as the graph drew them, also where other ones are forced
    this.#forced = forced ?? new Array(this.numTokens).fill(-1);
    this.#inputs = [startId, ...this.#forced.map((id) => Math.max(id, 0))];
  }

  /** The tokens to go on with. */
  get repIds() {
    return this.#inputs.slice(1);
  }

  /** Whether all tokens are known and in the cache. */
  get ended() {
    return this.numCached > this.numTokens;
  }

  /** Whether the next window draws a token: else it only fills the cache. */
  get draws() {
    return this.numKnown < this.numTokens;
  }

  /** The next window: [W] tokens, and their rows and columns, [W, 2]. */
  fill() {
    for (let token = this.#numGuessed; token < Math.min(this.start + this.size - 1, this.numTokens); ++token) {
      if (token && this.#forced[token] < 0) this.#inputs[token + 1] = this.#inputs[token]; // the first guess: the one before
    }
    const repIds = this.#inputs.slice(this.start, this.start + this.size);
    const gridPositions = repIds.flatMap((_, place) => {
      const cell = Math.max(this.start + place - 1, 0); // the start token has the first cell
      return [Math.floor(cell / this.#columns), cell % this.#columns];
    });
    return { repIds, gridPositions };
  }

  /**
   * Take what a pass drew at each position of the window, [W].
   *
   * @param {readonly number[]} drawn
   * @returns {[number, number]} From which position to before which one it is right.
   */
  settle(drawn) {
    const first = this.start, before = this.numCached, end = first + this.size, limit = Math.min(end, this.numTokens);
    let known = before;
    while (known < end) {
      const token = known++; // the token at this position was right, so what was drawn there is
      if (token === this.numTokens) break; // nothing is, at the last one
      const guess = this.#inputs[token + 1];
      this.drawn[token] = drawn[token - first];
      if (this.#forced[token] < 0) this.#inputs[token + 1] = drawn[token - first];
      if (guess !== this.#inputs[token + 1]) break;
    }
    this.numCached = known, this.numKnown = Math.min(known, this.numTokens);
    for (let token = known; token < limit; ++token) { // drawn after a wrong token: the best guess there is
      if (this.#forced[token] < 0) this.#inputs[token + 1] = drawn[token - first];
    }
    this.#numGuessed = Math.max(this.#numGuessed, limit);
    this.start = Math.min(known, this.numTokens + 1 - this.size);
    return [before, known];
  }
}
