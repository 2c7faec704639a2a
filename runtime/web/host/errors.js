/** The one error class for what a user can put right, and values in words. Knows nothing of what can go wrong. */

const LONGEST = 2000; // characters of a message

/**
 * Something that the user can put right; the message says what happened, what was expected, and what to do.
 *
 * @typedef {"input"|"damaged"|"mismatch"|"missing"|"busy"|"overflow"|"unsupported"} ErrorKind
 */
export class RFError extends Error {
  /**
   * @param {string} message
   * @param {ErrorKind} [kind] What a caller may decide by, as in runtime/errors.py. "unsupported": this host does not do
   *   it, and the message says what else there is.
   */
  constructor(message, kind = "input") {
    super(message.length > LONGEST ? `${message.slice(0, LONGEST / 2)} ... ${message.slice(-LONGEST / 4)}` : message);
    this.name = "RFError";
    this.kind = kind;
  }
}

const UNPRINTABLE = /[\p{C}\p{Zl}\p{Zp}\p{Zs}]/u;

/** @param {string} text A character; a blank is printable. */
export const isPrintable = (text) => text === " " || !UNPRINTABLE.test(text);

/** A text as Python's repr writes it. @param {string} text */
export function quoted(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  let out = "";
  for (const each of text) {
    const code = /** @type {number} */ (each.codePointAt(0));
    if (each === quote || each === "\\") out += `\\${each}`;
    else if ("\n\r\t".includes(each)) out += { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[each];
    else if (isPrintable(each)) out += each;
    else if (code < 256) out += `\\x${code.toString(16).padStart(2, "0")}`;
    else out += code < 65536 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
  }
  return quote + out + quote;
}

/** A value that a caller gave, in words. @param {unknown} value @returns {string} */
export function told(value) {
  if (typeof value === "string") return quoted(value);
  if (typeof value === "number") return Number.isNaN(value) ? "nan" : Number.isFinite(value) ? String(value) : value < 0 ? "-inf" : "inf";
  if (Array.isArray(value) || ArrayBuffer.isView(value)) {
    const all = Array.from(/** @type {ArrayLike<unknown>} */ (value));
    const text = all.slice(0, 8).map(told).join(", ");
    return all.length > 8 ? `${text}, ... (${all.length} numbers)` : text || "nothing";
  }
  return value === null || value === undefined ? "nothing" : typeof value === "object" ? "an object" : String(value);
}
