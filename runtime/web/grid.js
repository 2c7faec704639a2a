/**
 * The representation tokens over the picture: shown as they are drawn, and chosen by pointer or keys.
 *
 * Knows nothing of drawing. A region is {top, left, bottom, right}, the last two just outside, counted from 0.
 */

export class TokenGrid {
  /**
   * @param {HTMLElement} element Becomes the grid.
   * @param {(region: ?object) => void} onChoose Called with the chosen region; null where there is none.
   */
  constructor(element, onChoose) {
    Object.assign(this, { element, onChoose, rows: 0, columns: 0, codes: [], region: null, isActive: false, anchor: null });
    element.tabIndex = -1;
    element.setAttribute("role", "img");
    element.addEventListener("pointerdown", (event) => this.#begin(event));
    element.addEventListener("pointermove", (event) => this.#extend(event));
    element.addEventListener("pointerup", () => (this.anchor = null));
    element.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Begin a grid without tokens. */
  reset(rows, columns) {
    Object.assign(this, { rows, columns, codes: [], anchor: null });
    this.element.style.setProperty("--rows", rows);
    this.element.style.setProperty("--columns", columns);
    this.element.replaceChildren(...Array.from({ length: rows * columns }, () => document.createElement("span")));
    this.choose(null);
  }

  /** Show the next token. */
  add(code) {
    const cell = this.element.children[this.codes.length];
    this.codes.push(code);
    if (!cell) return;
    cell.textContent = code;
    cell.style.setProperty("--hue", (code * 137.508) % 360); // the golden angle: neighbouring codes look different
    cell.className = "known";
  }

  /** Show all tokens. */
  fill(rows) {
    this.reset(rows.length, rows[0].length);
    for (const code of rows.flat()) this.add(code);
  }

  /** Whether regions may be chosen. */
  activate(isActive) {
    this.isActive = isActive;
    this.element.classList.toggle("active", isActive);
    this.element.tabIndex = isActive ? 0 : -1;
    this.element.setAttribute("role", isActive ? "application" : "img");
    this.element.setAttribute("aria-label", isActive ? "Tokens: arrow keys move, with shift they extend the region" : "Tokens");
    this.choose(isActive ? this.region : null);
  }

  choose(region) {
    this.region = region;
    [...this.element.children].forEach((cell, index) => {
      const row = Math.floor(index / this.columns), column = index % this.columns;
      const isIn = region && row >= region.top && row < region.bottom && column >= region.left && column < region.right;
      cell.classList.toggle("chosen", Boolean(isIn));
    });
    this.onChoose(region);
  }

  /** The code that is there most often: what the background is made of. */
  get commonest() {
    const counts = new Map();
    for (const code of this.codes) counts.set(code, (counts.get(code) ?? 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0];
  }

  #cellAt(event) {
    const box = this.element.getBoundingClientRect();
    const clamp = (value, size) => Math.max(0, Math.min(size - 1, Math.floor(value * size)));
    return { row: clamp((event.clientY - box.top) / box.height, this.rows), column: clamp((event.clientX - box.left) / box.width, this.columns) };
  }

  #begin(event) {
    if (!this.isActive) return;
    event.preventDefault();
    this.element.focus({ preventScroll: true });
    this.element.setPointerCapture(event.pointerId);
    this.anchor = this.#cellAt(event);
    this.choose(between(this.anchor, this.anchor));
  }

  #extend(event) {
    if (!this.anchor) return;
    const region = between(this.anchor, this.#cellAt(event));
    if (regionText(region) !== regionText(this.region)) this.choose(region);
  }

  #key(event) {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
    if (!this.isActive || down === undefined) return;
    event.preventDefault();
    const now = this.region ?? { top: 0, left: 0, bottom: 1, right: 1 };
    const { rows, columns } = this;
    if (event.shiftKey) {
      const bottom = Math.max(now.top + 1, Math.min(rows, now.bottom + down));
      this.choose({ ...now, bottom, right: Math.max(now.left + 1, Math.min(columns, now.right + right)) });
      return;
    }
    const top = this.region ? Math.max(0, Math.min(rows - 1, now.top + down)) : 0;
    const left = this.region ? Math.max(0, Math.min(columns - 1, now.left + right)) : 0;
    this.choose({ top, left, bottom: top + 1, right: left + 1 });
  }
}

function between(one, other) {
  return {
    top: Math.min(one.row, other.row),
    left: Math.min(one.column, other.column),
    bottom: Math.max(one.row, other.row) + 1,
    right: Math.max(one.column, other.column) + 1,
  };
}

/** A region as `--edit` has it: rows, then columns. */
export function regionText(region) {
  return region && `${region.top}:${region.bottom},${region.left}:${region.right}`;
}
