/** One picture that is asked for: everything is checked before a graph runs. See runtime/request.py. */

import { parseEdit, applyEdits } from "./edits.js";
import { RFError, told } from "./errors.js";
import { MAX_SEED } from "./noise.js";
import { DRAW_KEYS, planDrawing, requireKnown } from "./plans.js";

/** @typedef {import("./manifest.js").Manifest} Manifest */

/**
 * @typedef {object} OwnRequest
 * @property {string} [prompt]                   Blank: draw without a text.
 * @property {?readonly number[]} [ids]          Token ids in place of the text.
 * @property {bigint|number|string} [seed]       0 to 2**64 - 1.
 * @property {?readonly number[]} [repIds]       [N] tokens in reading order to go on with; -1 is drawn.
 * @property {?readonly string[]} [edits]        Changes of them, or of those that the model draws first; see edits.js.
 *
 * @typedef {import("./plans.js").DrawOptions & OwnRequest} DrawRequest
 *
 * @typedef {object} Request Every value is fit for the model.
 * @property {string} prompt
 * @property {readonly number[]} ids
 * @property {bigint} seed
 * @property {import("./plans.js").DrawingPlan} plan
 * @property {?readonly number[]} forced
 * @property {import("./edits.js").Edit[]} edits
 */

/** @param {bigint|number|string} value @param {(told: string) => string} problem @returns {bigint} */
export function readSeed(value, problem) {
  const isWhole = typeof value === "bigint" || Number.isSafeInteger(value) || (typeof value === "string" && /^\d{1,99}$/.test(value));
  const seed = isWhole ? BigInt(value) : -1n;
  if (seed < 0n || seed > MAX_SEED) throw new RFError(problem(isWhole ? String(value) : told(value)));
  return seed;
}

/**
 * Ids that came in place of a text; raises RFError where the model does not know one.
 *
 * @param {readonly number[]} ids @param {Manifest} manifest @param {number} maxTokens @param {string} what
 */
export function checkIds(ids, { model }, maxTokens, what) {
  const wrong = ids.find((id) => !(Number.isInteger(id) && id >= 0 && id < model.vocab_size));
  if (wrong !== undefined) {
    throw new RFError(`The ids of a ${what} must be 0 to ${model.vocab_size - 1}, got ${told(wrong)}.`);
  }
  if (ids.length > maxTokens) {
    const place = what === "prompt" ? " for this size of picture" : "";
    throw new RFError(`The ${what} has ${ids.length} tokens and the model takes ${maxTokens}${place}. Shorten it.`);
  }
  return ids;
}

/**
 * @param {DrawRequest} request @param {Manifest} manifest @param {?number} slots
 * @param {(text: string, maxTokens: number, what: "prompt") => number[]} encode
 * @returns {Request}
 */
export function checkRequest(request, manifest, slots, encode) {
  const { prompt = "", ids, seed: given = 0, repIds, edits: texts, ...options } = request;
  requireKnown(options, [...DRAW_KEYS, "prompt", "ids", "seed", "repIds", "edits"]);
  const seed = readSeed(given, (value) => `seed must be 0 to 2**64 - 1 for 1 prompts, got ${value}.`);
  const plan = planDrawing(options, manifest), { grid } = plan, { model } = manifest, numTokens = grid[0] * grid[1];
  const most = maxPromptTokens(plan, model.max_positions, slots);
  const read = ids ? checkIds(ids, manifest, most, "prompt") : encode(prompt, most, "prompt");
  const forced = repIds ? checkRepIds(repIds, numTokens, model.rep_vocab_size) : null;
  const edits = (texts ?? []).map(parseEdit);
  applyEdits(forced ?? new Array(numTokens).fill(0), edits, grid, model.rep_vocab_size); // refuses before anything is drawn
  return { prompt, ids: read, seed, plan, forced, edits };
}

/**
 * Tokens that a prompt may have.
 *
 * @param {import("./plans.js").DrawingPlan} plan @param {number} maxPositions @param {?number} slots
 */
function maxPromptTokens({ grid, height, width }, maxPositions, slots) {
  // Positions: the text, the start token, N tokens, and one that all pixel patches share.
  const numTokens = grid[0] * grid[1], positions = maxPositions - numTokens - 2;
  if (!slots) return positions;
  if (slots <= numTokens) {
    throw new RFError(
      `These graphs have ${slots} cache slots, and a picture of ${height} x ${width} takes ${numTokens + 1}. Draw a smaller one, or export with more --cache-slots.`,
    );
  }
  return Math.min(positions, slots - numTokens - 1);
}

/** @param {readonly number[]} repIds @param {number} size @param {number} numCodes */
function checkRepIds(repIds, size, numCodes) {
  const values = Array.from(repIds);
  if (values.length !== size || !values.every(Number.isInteger)) {
    throw new RFError(
      `rep_ids must be ${size} whole numbers, got ${values.length === size ? told(values) : `${values.length}`}.`,
    );
  }
  const least = Math.min(...values), most = Math.max(...values);
  if (least < -1 || most >= numCodes) {
    throw new RFError(`rep_ids must be 0 to ${numCodes - 1}, or -1 to draw one, got ${least} to ${most}.`);
  }
  return values;
}
