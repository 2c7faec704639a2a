/**
 * Checks a JSON document against what it has to be: every key is known, present, of its type and in its range.
 *
 * What it refuses, and in which words, is what runtime/bundle/strict_json.py refuses. Knows nothing of what keys mean.
 */

import { RFError, quoted } from "./errors.js";
import { Numeral, dumpJson, plain, shortened } from "./json.js";
import { sha256 } from "./sha256.js";

/** @typedef {import("./json.js").Json} Json */

/**
 * @typedef {object} Schema
 * @property {string} expected                                What a value has to be, in words.
 * @property {(value: Json) => boolean} fits                  Of the value itself, not of what it holds.
 * @property {Schema} [item]                                  Of a list, and of the values of a table.
 * @property {Record<string, Schema>} [fields]                Of a record; one with `isOptional` may be missing.
 * @property {(value: any) => ?string} [rules]                What belongs together: a problem in words, or null.
 * @property {boolean} [isOptional]
 */

const isWellFormed = (/** @type {string} */ text) => !/\p{Surrogate}/u.test(text);

/** @param {string} expected @param {(value: number) => boolean} isIn @returns {Schema} */
const number = (expected, isIn) => ({ expected, fits: (value) => value instanceof Numeral && isIn(value.value) });

/** @param {string} expected @param {number} least @returns {Schema} */
const whole = (expected, least) => ({ expected, fits: (value) => value instanceof Numeral && value.isWhole && value.value >= least });

/** @type {Schema} */
export const TEXT = { expected: "a text", fits: (value) => typeof value === "string" && isWellFormed(value) };
export const POSITIVE = whole("a whole number >= 1", 1);
export const NOT_NEGATIVE = whole("a whole number >= 0", 0);
export const FINITE = number("a finite number", Number.isFinite);
export const ABOVE = number("a finite number > 0", (value) => value > 0 && Number.isFinite(value));
export const FROM_ZERO = number("a finite number >= 0", (value) => value >= 0 && Number.isFinite(value));
export const SHARE = number("a number from 0 to 1", (value) => value >= 0 && value <= 1);
/** @type {Schema} */
export const HASH = { expected: "64 hexadecimal digits", fits: (value) => typeof value === "string" && /^[0-9a-f]{64}$/.test(value) };
/** @type {Schema} */
export const DIM = { expected: "a size >= 1 or a text", fits: (value) => POSITIVE.fits(value) || TEXT.fits(value) };
/** @type {Schema} */
export const OBJECT = { expected: "an object", fits: (value) => value instanceof Map };

/** @param {readonly string[]} choices @returns {Schema} */
export const choice = (choices) => ({
  expected: choices.map(quoted).join(" or "),
  fits: (value) => typeof value === "string" && choices.includes(value),
});

/** @param {Schema} item @param {string} [expected] @param {(size: number) => boolean} [hasSize] @returns {Schema} */
export const list = (item, expected = "a list", hasSize = () => true) => ({
  expected,
  item,
  fits: (value) => Array.isArray(value) && hasSize(value.length),
});

/** @param {Schema} item @returns {Schema} */
export const table = (item) => ({ ...OBJECT, item });

/** @param {Record<string, Schema>} fields @param {Schema["rules"]} [rules] @returns {Schema} */
export const record = (fields, rules) => ({ ...OBJECT, fields, rules });

/** @param {Schema} schema @returns {Schema} */
export const optional = (schema) => ({ ...schema, isOptional: true });

/** @param {Schema} schema @returns {Schema} */
export const orNull = (schema) => optional({ ...schema, fits: (value) => value === null || schema.fits(value) });

/**
 * The document in plain values.
 *
 * @param {Schema} schema @param {Json} content
 * @param {string} where The file, for messages; raises RFError (damaged) with the path of the key.
 */
export function readAs(schema, content, where) {
  check(schema, content, where, "");
  return plain(content);
}

/** @param {string} where @param {string} problem @returns {never} */
function refuse(where, problem) {
  throw new RFError(`${where}${problem}. Correct the file, or make it again.`, "damaged");
}

/** @param {Schema} schema @param {Json} content @param {string} where @param {string} path */
function check(schema, content, where, path) {
  const name = path.replace(/^\.+/, "");
  if (schema.fields && content instanceof Map) return checkRecord(schema, content, where, path);
  if (schema.item && content instanceof Map) {
    for (const [key, value] of content) {
      check(TEXT, key, where, `${path}.${key}`);
      check(schema.item, value, where, `${path}.${key}`);
    }
  } else if (schema.item && Array.isArray(content)) {
    content.forEach((value, index) => check(/** @type {Schema} */ (schema.item), value, where, `${path}[${index}]`));
  }
  if (!schema.fits(content)) refuse(where, `${name && `: ${quoted(name)}`} must be ${schema.expected}, found ${shortened(content)}`);
}

/** @param {Schema} schema @param {Map<string, Json>} content @param {string} where @param {string} path */
function checkRecord(schema, content, where, path) {
  const fields = /** @type {Record<string, Schema>} */ (schema.fields), start = path.replace(/^\.+/, ""), prefix = start && `${start}.`;
  const unknown = [...content.keys()].filter((name) => !Object.hasOwn(fields, name)).sort();
  for (const [name, value] of content) if (Object.hasOwn(fields, name)) check(fields[name], value, where, `${path}.${name}`);
  const missing = Object.keys(fields).filter((name) => !fields[name].isOptional && !content.has(name));
  const listed = (/** @type {string[]} */ names) => names.map((name) => quoted(prefix + name)).join(", ");
  if (missing.length) refuse(where, `: ${listed(missing)} ${missing.length === 1 ? "is" : "are"} missing`);
  if (unknown.length) refuse(where, `: unknown ${listed(unknown)}`);
  const problem = schema.rules?.(plain(content));
  if (problem) refuse(where, `: ${start && `${start}: `}${problem}`);
}

/**
 * What a document of a format and version of ours holds besides these; its checksum fits where it has one.
 *
 * @param {Json} content @param {string} where @param {string} form @param {[number, number]} versions Oldest and newest.
 * @param {string} remedy What to do again.
 * @returns {{version: number, document: import("./json.js").JsonObject}}
 */
export function readDocument(content, where, form, [oldest, newest], remedy) {
  const isObject = content instanceof Map;
  if (!isObject || content.get("format") !== form) {
    const other = shortened(isObject ? content.get("format") : content);
    throw new RFError(
      `${where} is no file of the format ${quoted(form)}, found ${other}. Give a file that rf-export wrote.`,
      "damaged",
    );
  }
  const found = content.get("format_version");
  if (!(found instanceof Numeral && found.isWhole && found.value >= 1)) {
    throw new RFError(
      `${where}: 'format_version' must be a whole number >= 1, found ${shortened(found)}. ${remedy} again.`,
      "damaged",
    );
  }
  const version = found.value;
  if (version < oldest || version > newest) {
    const reads = oldest < newest ? `${oldest} to ${newest}` : newest;
    const again = version > newest ? `Install a newer rf-export, or ${remedy[0].toLowerCase()}${remedy.slice(1)}` : remedy;
    throw new RFError(
      `${where} has format version ${found.literal}, and this rf-export reads ${reads}. ${again} again.`,
      "mismatch",
    );
  }
  const document = new Map(content), seal = document.get("checksum");
  document.delete("checksum");
  if (seal !== undefined && seal !== sha256(dumpJson(document, true)).slice(0, 16)) {
    throw new RFError(
      `${where} differs from what was written (checksum): it is damaged or was changed. Copy it again, make it again, ` +
        "or remove the key 'checksum' if you changed it on purpose.",
      "damaged",
    );
  }
  document.delete("format"), document.delete("format_version");
  return { version, document };
}
