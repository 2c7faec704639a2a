/**
 * Edits of a picture's representation tokens, in the language of `rf-export generate --edit` without files.
 *
 *     ROWS,COLUMNS=137            one code everywhere
 *     ROWS,COLUMNS=ROWS,COLUMNS   the tokens of another place, as large or a single cell
 *     ROWS,COLUMNS=redraw         drawn again by the model, with seed + 1
 *     ROWS,COLUMNS=redraw:5       ... or with seed 5
 *
 * See runtime/commands/token_edits.py. Knows nothing of drawing. Tokens are in reading order.
 */

import { RFError, quoted } from "./errors.js";
import { MAX_SEED } from "./noise.js";

const SPAN = String.raw`(\d{1,6})?(:)?(\d{1,6})?`;
const REGION = new RegExp(String.raw`^\s*${SPAN}\s*,\s*${SPAN}\s*$`);
const GRAMMAR = "Write ROWS,COLUMNS=SOURCE, such as 0:2,1=137, 0:2,0:2=2:4,2:4 or 1:3,1:3=redraw:5.";

/** @typedef {{start: number, stop: ?number}} Span From `start` to before `stop`; null is the end of the grid. */

/** @typedef {{rows: Span, columns: Span}} Region */

/**
 * @typedef {{region: Region, fill?: number, copy?: Region, redraw?: ?bigint, words: string}} Edit Of the last three one; null redraws with the next seed.
 */

/** Raises RFError for an edit that is not understood. @param {string} text @returns {Edit} */
export function parseEdit(text) {
  const equals = text.indexOf("="), source = text.slice(equals + 1).trim(), region = equals < 0 ? null : parseRegion(text.slice(0, equals));
  if (!region || !source) throw new RFError(`The edit ${quoted(text)} is not understood. ${GRAMMAR}`);
  const start = `${inWords(region)}=`;
  if (/^\d+$/.test(source)) { // more digits than any vocabulary has
    const fill = Number(source.slice(0, 12));
    return { region, fill, words: start + fill };
  }
  const redraw = /^redraw(?::(\d{1,20}))?$/.exec(source);
  if (redraw) {
    const seed = redraw[1] === undefined ? null : BigInt(redraw[1]);
    if (seed !== null && seed > MAX_SEED) throw new RFError(`The seed of ${quoted(source)} must be below 2**64.`);
    return { region, redraw: seed, words: start + (seed === null ? "redraw" : `redraw:${seed}`) };
  }
  const copy = parseRegion(source);
  if (copy) return { region, copy, words: start + inWords(copy) };
  throw new RFError(
    `The edit ${start}${source} is not understood: the browser reads no files. Give a code, ROWS,COLUMNS to copy ` +
      "from, or redraw:SEED.",
  );
}

/** @param {string} text @returns {?Region} */
function parseRegion(text) {
  const found = REGION.exec(text);
  if (!found) return null;
  const rows = spanOf(found[1], found[2], found[3]), columns = spanOf(found[4], found[5], found[6]);
  return rows && columns && { rows, columns };
}

/** @param {string|undefined} start @param {string|undefined} colon @param {string|undefined} stop @returns {?Span} */
function spanOf(start, colon, stop) {
  if (!colon) return start === undefined || stop !== undefined ? null : { start: Number(start), stop: Number(start) + 1 };
  return { start: Number(start ?? 0), stop: stop === undefined ? null : Number(stop) };
}

/** @param {Region} region */
const inWords = ({ rows, columns }) => [rows, columns].map(({ start, stop }) => `${start}:${stop ?? ""}`).join(",");

/**
 * The places of a region in reading order, row by row; raises RFError where it is not inside.
 *
 * @param {Region} region @param {[number, number]} grid
 */
function placesOf(region, [numRows, numColumns]) {
  const { rows, columns } = region, bottom = rows.stop ?? numRows, right = columns.stop ?? numColumns;
  if (!(rows.start < bottom && bottom <= numRows && columns.start < right && right <= numColumns)) {
    throw new RFError(
      `The region ${inWords(region)} is not inside a grid of ${numRows} rows and ${numColumns} columns, which are ` +
        "counted from 0.",
    );
  }
  return Array.from({ length: bottom - rows.start }, (_, row) =>
    Array.from({ length: right - columns.start }, (_, column) => (rows.start + row) * numColumns + columns.start + column));
}

/**
 * Fill and copy; regions that the model draws again stay as they are. Copies read the tokens from before all edits.
 *
 * Raises RFError for a region that is not inside, and a code that does not exist.
 *
 * @param {readonly number[]} repIds [N] @param {readonly Edit[]} edits @param {[number, number]} grid @param {number} numCodes
 */
export function applyEdits(repIds, edits, grid, numCodes) {
  const changed = repIds.slice();
  for (const { region, fill, copy, words } of edits) {
    const target = placesOf(region, grid), source = copy && placesOf(copy, grid);
    if (fill !== undefined && fill >= numCodes) {
      throw new RFError(`The edit ${words} paints with a code that does not exist: they are 0 to ${numCodes - 1}.`);
    }
    const size = (/** @type {number[][]} */ places) => `${places.length} x ${places[0].length}`;
    if (source && size(source) !== size(target) && size(source) !== "1 x 1") {
      throw new RFError(
        `The edit ${words} copies ${size(source)} tokens to a region of ${size(target)}: give one as large, or a ` +
          "single cell.",
      );
    }
    target.forEach((row, y) => row.forEach((place, x) => {
      if (fill !== undefined) changed[place] = fill;
      else if (source) changed[place] = repIds[size(source) === size(target) ? source[y][x] : source[0][0]];
    }));
  }
  return changed;
}

/**
 * The same with -1 where the model draws again.
 *
 * @param {readonly number[]} repIds @param {Edit} edit @param {[number, number]} grid
 */
export function cleared(repIds, edit, grid) {
  const changed = repIds.slice();
  for (const place of placesOf(edit.region, grid).flat()) changed[place] = -1;
  return changed;
}
