/**
 * What comes of a caller's options for a given model: defaults are filled in, and what no model or this one cannot do
 * is refused; see runtime/options.py and runtime/plans.py. Knows nothing of graphs, prompts and files.
 *
 * @typedef {object} Plan Null and undefined stand for what the bundle says.
 * @property {?number} [numSteps]            Euler steps of the denoiser.
 * @property {?number} [shift]               How much earlier, in noise, the steps go.
 * @property {?readonly number[]} [times]    The times of the steps, from 0 to 1, in place of both.
 * @property {?readonly number[]} [guided]   From which time to before which one the denoiser is guided.
 * @property {?number} [repGuidanceScale]    1: the tokens cost half.
 * @property {?number} [pixGuidanceScale]    1: the steps cost half.
 * @property {?number} [window]              Tokens of a pass; the tokens are the same with any.
 *
 * @typedef {object} OwnOptions
 * @property {?number} [height]              In pixels.
 * @property {?number} [width]
 * @property {?number} [temperature]         0 takes the most likely token every time.
 * @property {?number} [topK]
 * @property {?(Plan|"paper"|"tuned")} [plan]
 *
 * @typedef {Plan & OwnOptions} DrawOptions
 *
 * @typedef {object} AnswerOptions
 * @property {?number} [maxTokens]
 * @property {?number} [temperature]         Default 0: the most likely token every time.
 * @property {?number} [topK]
 * @property {?number} [topP]
 * @property {?number} [repetitionPenalty]
 */

import { RFError, quoted, told } from "./errors.js";
import { timesteps } from "./schedule.js";
import { cellOf, gridProblem, maxTextTopK, maxTopK } from "./signature.js";

const MAX_STEPS = 1000, MAX_SHIFT = 1000, MAX_WINDOW = 65536, MAX_PENALTY = 1000, MAX_TEMPERATURE = 1_000_000, MAX_GUIDANCE = 1000;
const SMALLEST = 1e-20; // of temperature and top_p: below, the most likely token is drawn for sure

export const PLAN_KEYS = /** @type {const} */ (["numSteps", "shift", "times", "guided", "repGuidanceScale", "pixGuidanceScale", "window"]);
export const DRAW_KEYS = /** @type {const} */ ([...PLAN_KEYS, "height", "width", "temperature", "topK", "plan"]);
export const ANSWER_KEYS = /** @type {const} */ (["maxTokens", "temperature", "topK", "topP", "repetitionPenalty"]);

/** @typedef {import("./manifest.js").Manifest} Manifest */

/** What was tuned, as a plan. @param {any} value @returns {Plan} */
export const planOf = (value) => ({
  numSteps: value.num_steps, shift: value.shift, times: value.times, guided: value.guided,
  repGuidanceScale: value.rep_guidance_scale, pixGuidanceScale: value.pix_guidance_scale, window: value.window,
});

/**
 * Raises RFError for a name that nobody knows: a slip would change what is drawn.
 *
 * @param {object} options @param {readonly string[]} known
 */
export function requireKnown(options, known) {
  const unknown = Object.keys(options).filter((name) => !known.includes(name));
  if (unknown.length) {
    throw new RFError(`There is no option ${unknown.map(quoted).join(", ")}. There are ${known.join(", ")}.`);
  }
}

/** @param {string} name @param {unknown} value @param {number} least @param {number} most */
const requireWhole = (name, value, least, most) => {
  if (!isNull(value) && !(Number.isInteger(value) && Number(value) >= least && Number(value) <= most)) {
    throw new RFError(
      `${name} must be ${most === Infinity ? `>= ${least}` : `${least} to ${most}`}, got ${told(value)}.`,
    );
  }
};

const isNull = (/** @type {unknown} */ value) => value === null || value === undefined;
const isNumber = (/** @type {unknown} */ value) => typeof value === "number";

/** Raises RFError for a value that no model takes. @param {Plan} plan */
export function checkPlan(plan) {
  const { numSteps, shift, times, guided, window } = plan;
  requireWhole("num_steps", numSteps, 1, MAX_STEPS);
  if (!isNull(shift) && !(isNumber(shift) && Number(shift) > 0 && Number(shift) <= MAX_SHIFT)) {
    throw new RFError(`shift must be above 0 and at most ${MAX_SHIFT}, got ${told(shift)}.`);
  }
  if (times) {
    if (!isNull(numSteps) || !isNull(shift)) throw new RFError("times say all of the steps: give no num_steps and no shift beside them.");
    requireTimes(times);
  }
  if (guided && !(guided.length === 2 && guided[0] >= 0 && guided[0] <= guided[1] && guided[1] <= 1)) {
    throw new RFError(`guided must be two times between 0 and 1, the smaller one first, got ${told(guided)}.`);
  }
  requireWhole("window", window, 1, MAX_WINDOW);
  for (const [name, value] of [["rep_guidance_scale", plan.repGuidanceScale], ["pix_guidance_scale", plan.pixGuidanceScale]]) {
    if (!isNull(value) && !(isNumber(value) && Math.abs(Number(value)) <= MAX_GUIDANCE)) {
      throw new RFError(`${name} must be -${MAX_GUIDANCE} to ${MAX_GUIDANCE}, got ${told(value)}.`);
    }
  }
}

/** @param {readonly number[]} times */
function requireTimes(times) {
  const rounded = Array.from(times, Math.fround); // as graphs get them
  if (!(rounded.length >= 2 && rounded.length <= MAX_STEPS + 1 && rounded[0] === 0 && rounded[rounded.length - 1] === 1)) {
    throw new RFError(`times must begin with 0 and end with 1, of ${MAX_STEPS} steps at most, got ${told(times)}.`);
  }
  if (rounded.some((t, index) => index && !(rounded[index - 1] < t))) {
    throw new RFError(`times must increase from one to the next, got ${told(times)}.`);
  }
}

/** Raises RFError for a value that no model takes. @param {DrawOptions} options */
function checkOptions(options) {
  requireKnown(options, DRAW_KEYS);
  checkPlan(options);
  requireWhole("top_k", options.topK, 1, Infinity);
  requireTemperature(options.temperature);
  const { plan } = options;
  if (isNull(plan) || plan === "paper" || plan === "tuned") return;
  if (typeof plan !== "object") throw new RFError(`plan must be "paper", "tuned" or a Plan, got ${told(plan)}.`);
  requireKnown(/** @type {Plan} */ (plan), PLAN_KEYS);
  checkPlan(/** @type {Plan} */ (plan));
}

/** @param {unknown} value */
function requireTemperature(value) {
  if (!isNull(value) && !(isNumber(value) && Number(value) >= 0 && Number(value) <= MAX_TEMPERATURE)) {
    throw new RFError(`temperature must be >= 0 and at most ${MAX_TEMPERATURE}, got ${told(value)}.`);
  }
}

/**
 * @typedef {object} DrawingPlan Every value that a drawing needs, fit for the model.
 * @property {number} height
 * @property {number} width
 * @property {[number, number]} grid         Rows and columns of representation tokens.
 * @property {Float32Array} times
 * @property {readonly number[]} guided
 * @property {number} repGuidanceScale
 * @property {number} pixGuidanceScale
 * @property {number} temperature            Above 0.
 * @property {number} topK
 * @property {boolean} greedy                No noise: the most likely token every time.
 * @property {number} window
 * @property {number} noiseScale
 */

/**
 * Raises RFError where the model cannot draw this.
 *
 * @param {DrawOptions} options @param {Manifest} manifest @returns {DrawingPlan}
 */
export function planDrawing(options, manifest) {
  const { model, sampling, tuned } = manifest;
  checkOptions(options);
  if (options.plan === "tuned" && !tuned) {
    throw new RFError("This bundle has no tuned plan. Make one with `rf-export tune`, or draw as the paper does: --plan paper.");
  }
  const plan = options.plan === "tuned" ? planOf(tuned) : typeof options.plan === "object" ? options.plan ?? {} : {};
  const height = options.height ?? model.default_height, width = options.width ?? model.default_width;
  const size = `${height} x ${width} pixels`, problem = gridProblem(model, height, width);
  if (problem) throw new RFError(`This model cannot draw ${size}: ${problem}.`);
  const rows = height / cellOf(model), columns = width / cellOf(model), numTokens = rows * columns;
  if (numTokens + 2 > model.max_positions) { // the start token, N tokens, one for all pixel patches
    throw new RFError(
      `This model cannot draw ${size}: that takes ${numTokens + 2} positions and the model has ${model.max_positions}. Choose a smaller picture.`,
    );
  }
  if ((options.window ?? 1) > numTokens + 1) {
    throw new RFError(
      `window must be 1 to ${numTokens + 1} for ${size}, which have ${numTokens} tokens and a start token, got ` +
        `${options.window}.`,
    );
  }
  const topK = options.topK ?? sampling.top_k, temperature = options.temperature ?? sampling.temperature, greedy = temperature < SMALLEST;
  if (topK > maxTopK(model)) throw new RFError(`top_k must be 1 to ${maxTopK(model)} for this model, got ${topK}.`);
  return {
    height,
    width,
    grid: [rows, columns],
    times: timesOf(options, plan, sampling, 4 * numTokens),
    guided: options.guided ?? plan.guided ?? sampling.guided ?? [0, 1],
    repGuidanceScale: options.repGuidanceScale ?? plan.repGuidanceScale ?? sampling.rep_guidance_scale,
    pixGuidanceScale: options.pixGuidanceScale ?? plan.pixGuidanceScale ?? sampling.pix_guidance_scale,
    temperature: greedy ? 1 : temperature,
    topK: greedy ? 1 : topK,
    greedy,
    window: Math.min(options.window ?? plan.window ?? 1, numTokens + 1),
    noiseScale: sampling.noise_scale ?? 1,
  };
}

/**
 * Who says anything about steps says all of it.
 *
 * @param {Plan} options @param {Plan} plan @param {Manifest["sampling"]} defaults @param {number} numPatches
 */
function timesOf(options, plan, defaults, numPatches) {
  const own = { numSteps: defaults.num_steps, shift: defaults.shift, times: defaults.times };
  const first = [options, plan].find((each) => each.times || !isNull(each.numSteps) || !isNull(each.shift)) ?? own;
  if (first.times) return Float32Array.from(first.times);
  const numSteps = options.numSteps ?? plan.numSteps ?? own.numSteps, shift = options.shift ?? plan.shift ?? own.shift;
  return timesteps(numSteps, numPatches, shift, defaults.shift_base_patches);
}

/** Whether the step from that time on has an unconditional row. @param {DrawingPlan} plan @param {number} t */
export const isGuided = ({ pixGuidanceScale, guided }, t) => pixGuidanceScale !== 1 && guided[0] <= t && t < guided[1];

/**
 * @typedef {object} AnswerPlan
 * @property {number} maxTokens
 * @property {number} temperature            Above 0.
 * @property {number} topK
 * @property {number} topP
 * @property {number} repetitionPenalty
 * @property {boolean} greedy
 */

/**
 * Raises RFError where the model was not trained to answer, or not with such options.
 *
 * @param {AnswerOptions} options @param {Manifest} manifest @returns {AnswerPlan}
 */
export function planAnswer(options, { model, understanding }) {
  if (!understanding) {
    throw new RFError(
      "This model answers no questions: its bundle says nothing of the ids around a question. If it was trained to, add a " +
        'section "understanding" with start_id and stop_ids to config.json, and export it again.',
    );
  }
  requireKnown(options, ANSWER_KEYS);
  requireWhole("max_tokens", options.maxTokens, 1, Infinity);
  requireWhole("top_k", options.topK, 1, Infinity);
  requireTemperature(options.temperature);
  const temperature = options.temperature ?? 0, topP = options.topP ?? 1, repetitionPenalty = options.repetitionPenalty ?? 1;
  if (!(isNumber(topP) && topP > 0 && topP <= 1)) {
    throw new RFError(`top_p must be above 0 and at most 1, got ${told(topP)}.`);
  }
  if (!(isNumber(repetitionPenalty) && repetitionPenalty > 0 && repetitionPenalty <= MAX_PENALTY)) {
    throw new RFError(`repetition_penalty must be above 0 and at most ${MAX_PENALTY}, got ${told(repetitionPenalty)}.`);
  }
  const limit = maxTextTopK(model), greedy = temperature < SMALLEST;
  if ((options.topK ?? 1) > limit) throw new RFError(`top_k must be 1 to ${limit} for this model, got ${options.topK}.`);
  return {
    maxTokens: options.maxTokens ?? understanding.max_tokens,
    temperature: greedy ? 1 : temperature,
    topK: greedy ? 1 : options.topK ?? limit,
    topP: Math.max(topP, SMALLEST), // the most likely token alone
    repetitionPenalty,
    greedy,
  };
}
