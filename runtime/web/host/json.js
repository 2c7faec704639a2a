/**
 * JSON as the documents of a bundle have it. Knows nothing of what the keys mean: that is schema.js.
 *
 * Stricter than JSON.parse: no double keys, no more than 50 levels; and it knows 1 from 1.0 and whole numbers of any
 * size, which a checksum depends on. Like Python's reader it takes NaN and Infinity, which the schemas refuse.
 */

import { RFError } from "./errors.js";

const MAX_DEPTH = 50, MAX_DIGITS = 4300;
const NUMBER = /-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?/y;
const PLAIN = /[^"\\\x00-\x1f]*/y;
const ESCAPES = /** @type {Record<string, string>} */ ({ '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" });

/** A number as it was written. */
export class Numeral {
  /** @param {string} literal @param {boolean} isWhole */
  constructor(literal, isWhole) {
    this.literal = literal;
    this.isWhole = isWhole;
  }

  get value() {
    return this.literal === "NaN" ? NaN : Number(this.literal);
  }
}

/** @typedef {Map<string, any>} JsonObject */

/** @typedef {null|boolean|string|Numeral|any[]|JsonObject} Json */

class Damage extends Error {}

class Parser {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  document() {
    const value = this.value(1);
    this.blanks();
    if (this.at < this.text.length) this.fail("Extra data");
    return value;
  }

  /** @param {string} what @param {number} [at] @returns {never} */
  fail(what, at = this.at) {
    const before = this.text.slice(0, at), line = before.split("\n").length;
    throw new Damage(`${what}: line ${line} column ${at - before.lastIndexOf("\n")} (char ${at})`);
  }

  blanks() {
    while (this.at < this.text.length && " \t\n\r".includes(this.text[this.at])) ++this.at;
  }

  /** @param {number} depth @returns {Json} */
  value(depth) {
    this.blanks();
    const { text, at } = this, first = text[at];
    if ((first === "{" || first === "[") && depth > MAX_DEPTH) throw new Damage(`nested deeper than ${MAX_DEPTH} levels`);
    if (first === '"') return this.string();
    if (first === "{") return this.object(depth);
    if (first === "[") return this.list(depth);
    for (const [word, value] of /** @type {[string, Json][]} */ ([["null", null], ["true", true], ["false", false]])) {
      if (!text.startsWith(word, at)) continue;
      this.at += word.length;
      return value;
    }
    for (const word of ["NaN", "Infinity", "-Infinity"]) {
      if (!text.startsWith(word, at)) continue;
      this.at += word.length;
      return new Numeral(word, false);
    }
    NUMBER.lastIndex = at;
    const found = NUMBER.exec(text);
    if (!found) this.fail("Expecting value");
    this.at += found[0].length;
    const isWhole = !found[1] && !found[2];
    if (isWhole && found[0].length > MAX_DIGITS) throw new Damage(`a number of ${found[0].length} digits`);
    return new Numeral(found[0], isWhole);
  }

  string() {
    const start = this.at++;
    let out = "";
    for (;;) {
      PLAIN.lastIndex = this.at;
      const [run] = /** @type {RegExpExecArray} */ (PLAIN.exec(this.text)), each = this.text[(this.at += run.length)];
      out += run;
      if (each === undefined) this.fail("Unterminated string starting at", start);
      if (each < " ") this.fail("Invalid control character at");
      ++this.at;
      if (each === '"') return out;
      const escape = this.text[this.at++];
      if (escape === undefined) this.fail("Unterminated string starting at", start);
      if (escape === "u") {
        const code = this.text.slice(this.at, this.at + 4);
        if (!/^[0-9a-fA-F]{4}$/.test(code)) this.fail("Invalid \\uXXXX escape", this.at - 1);
        out += String.fromCharCode(parseInt(code, 16));
        this.at += 4;
      } else if (escape in ESCAPES) out += ESCAPES[escape];
      else this.fail("Invalid \\escape", this.at - 2);
    }
  }

  /** @param {number} depth */
  list(depth) {
    const items = /** @type {Json[]} */ ([]);
    ++this.at, this.blanks();
    if (this.text[this.at] === "]") return ++this.at, items;
    for (;;) {
      items.push(this.value(depth + 1));
      this.blanks();
      if (this.text[this.at] === "]") return ++this.at, items;
      if (this.text[this.at] !== ",") this.fail("Expecting ',' delimiter");
      ++this.at;
    }
  }

  /** @param {number} depth */
  object(depth) {
    const members = /** @type {JsonObject} */ (new Map());
    ++this.at, this.blanks();
    if (this.text[this.at] === "}") return ++this.at, members;
    for (;;) {
      if (this.text[this.at] !== '"') this.fail("Expecting property name enclosed in double quotes");
      const name = this.string();
      this.blanks();
      if (this.text[this.at] !== ":") this.fail("Expecting ':' delimiter");
      ++this.at;
      if (members.has(name)) throw new Damage(`the key '${name}' is there twice`);
      members.set(name, this.value(depth + 1));
      this.blanks();
      if (this.text[this.at] === "}") return ++this.at, members;
      if (this.text[this.at] !== ",") this.fail("Expecting ',' delimiter");
      ++this.at, this.blanks();
    }
  }
}

/**
 * Raises RFError (damaged) with the place in the file `where`.
 *
 * @param {Uint8Array} data @param {string} where @returns {Json}
 */
export function parseJson(data, where) {
  try {
    return new Parser(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data)).document();
  } catch (error) {
    if (!(error instanceof Damage) && !(error instanceof TypeError)) throw error;
    throw new RFError(`${where} is not valid JSON (${error.message}): it is damaged or was cut off.`, "damaged");
  }
}

/** A float as Python's repr writes it. @param {number} value */
export function floatText(value) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value < 0 ? "-Infinity" : "Infinity";
  const sign = value < 0 || Object.is(value, -0) ? "-" : "";
  const [mantissa, power] = Math.abs(value).toExponential().split("e"), exponent = Number(power);
  if (value && (exponent < -4 || exponent >= 16)) {
    return `${sign}${mantissa}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  const digits = mantissa.replace(".", "");
  if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${digits}`;
  return `${sign}${digits.slice(0, exponent + 1).padEnd(exponent + 1, "0")}.${digits.slice(exponent + 1) || "0"}`;
}

/** By code points: UTF-16 sorts what is beyond U+FFFF otherwise. @param {string} a @param {string} b */
export function byCodePoints(a, b) {
  const one = Array.from(a), other = Array.from(b);
  for (let i = 0; i < Math.min(one.length, other.length); ++i) {
    if (one[i] !== other[i]) return /** @type {number} */ (one[i].codePointAt(0)) - /** @type {number} */ (other[i].codePointAt(0));
  }
  return one.length - other.length;
}

/** @param {string} text */
const textOf = (text) =>
  JSON.stringify(text).replace(/[\x7f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** The text that Python's json.dumps makes. @param {Json} value @param {boolean} [sortKeys] @returns {string} */
export function dumpJson(value, sortKeys = false) {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return textOf(value);
  if (value instanceof Numeral) return !value.isWhole ? floatText(value.value) : value.literal === "-0" ? "0" : value.literal;
  if (Array.isArray(value)) return `[${value.map((each) => dumpJson(each, sortKeys)).join(", ")}]`;
  const names = [...value.keys()];
  if (sortKeys) names.sort(byCodePoints);
  return `{${names.map((name) => `${textOf(name)}: ${dumpJson(/** @type {Json} */ (value.get(name)), sortKeys)}`).join(", ")}}`;
}

/** Cut off where it is long. @param {Json|undefined} value */
export function shortened(value) {
  const text = dumpJson(value ?? null);
  return text.length <= 60 ? text : `${text.slice(0, 57)}...`;
}

/** Without the spelling of numbers. @param {Json|undefined} value @returns {any} */
export function plain(value) {
  if (value instanceof Numeral) return value.value;
  if (Array.isArray(value)) return value.map(plain);
  return value instanceof Map ? Object.fromEntries([...value].map(([name, each]) => [name, plain(each)])) : value ?? null;
}
