/** What goes into every graph and what comes out, after runtime/signature.py. Knows nothing of files and libraries. */

import { RFError } from "./errors.js";

export const GRAPHS = /** @type {const} */ (["text_decoder", "rep_decoder", "denoiser", "vision_encoder"]);
export const PRECISIONS = /** @type {const} */ (["fp32", "fp16", "int8", "int8-fp16"]);
export const DIALECTS = /** @type {const} */ (["classic", "modern"]);
export const MAX_ANSWER = 256; // places of answer_ids
const MAX_LAYERS = 1024, MAX_TOP_K = 1024;

/** @typedef {typeof GRAPHS[number]} GraphName */

/** @typedef {{precision: string, dialect: string}} Variant */

/** @typedef {{name: string, dtype: string, shape: (number|string)[]}} TensorSpec */

/** @typedef {{inputs: TensorSpec[], outputs: TensorSpec[]}} Signature */

/**
 * @typedef {object} ModelSpec As the manifest has it.
 * @property {number} patch_size
 * @property {number} max_grid
 * @property {number} default_height
 * @property {number} default_width
 * @property {number} hidden_size
 * @property {number} num_layers
 * @property {number} num_kv_heads
 * @property {number} head_dim
 * @property {number} vocab_size
 * @property {number} rep_vocab_size
 * @property {number} rep_start_id
 * @property {number} max_positions
 * @property {number} num_parameters
 */

/** @param {Variant} variant */
export const isHalf = (variant) => variant.precision === "fp16" || variant.precision === "int8-fp16";
/** @param {Variant} variant */
export const inWords = (variant) => `${variant.precision} ${variant.dialect}`;
/** @param {ModelSpec} model */
export const cellOf = (model) => 2 * model.patch_size;
/** @param {ModelSpec} model */
export const maxTopK = (model) => Math.min(model.rep_vocab_size, MAX_TOP_K);
/** @param {ModelSpec} model */
export const maxTextTopK = (model) => Math.min(model.vocab_size, MAX_TOP_K);
/**
 * Name of a cache tensor: key and value of layer 0, key and value of layer 1, ...
 *
 * @param {string} prefix @param {number} index
 */
export const kvName = (prefix, index) => `${prefix}.${index >> 1}.${index & 1 ? "value" : "key"}`;

/**
 * Why there are no rows and columns of representation tokens for a size.
 *
 * @param {ModelSpec} model @param {number} height @param {number} width
 */
export function gridProblem(model, height, width) {
  const cell = cellOf(model);
  for (const [name, value] of /** @type {[string, number][]} */ ([["height", height], ["width", width]])) {
    if (!Number.isInteger(value) || value < cell || value % cell || value / cell > model.max_grid) {
      return `${name} must be a multiple of ${cell} from ${cell} to ${cell * model.max_grid}, got ${value}`;
    }
  }
  return null;
}

/** @param {ModelSpec} model @returns {?string} */
export function modelProblem(model) {
  if (model.num_layers > MAX_LAYERS) return `num_layers must be at most ${MAX_LAYERS}, got ${model.num_layers}`;
  return gridProblem(model, model.default_height, model.default_width);
}

/** @param {Signature} signature @returns {?number} Slots, where the graph has a fixed number of them. */
export function cacheSlots({ inputs }) {
  const slots = inputs.find((each) => each.name === "past_key_values.0.key")?.shape[2];
  return typeof slots === "number" ? slots : null;
}

/**
 * The signature that a graph of this model must have.
 *
 * @param {GraphName} graph @param {ModelSpec} m @param {Variant} variant @param {?number} slots
 * @returns {Signature}
 */
export function signatureOf(graph, m, variant, slots) {
  const kv = isHalf(variant) ? "float16" : "float32", f = "float32", i = "int64", cache = slots ?? "cache";
  const isModern = variant.dialect === "modern", picture = ["request", 3, "height", "width"];
  /** @param {[string, string, (number|string)[]][]} specs */
  const tensors = (specs) => specs.map(([name, dtype, shape]) => ({ name, dtype, shape }));
  /** @param {string} prefix @param {string} rows @param {number|string} length */
  const keysAndValues = (prefix, rows, length) =>
    Array.from({ length: 2 * m.num_layers }, (_, index) => {
      return { name: kvName(prefix, index), dtype: kv, shape: [rows, m.num_kv_heads, length, m.head_dim] };
    });
  if (graph === "text_decoder") {
    return {
      inputs: [
        ...tensors([
          ["input_ids", i, ["batch", "sequence"]], ["row_starts", i, ["batch"]], ["past_lengths", i, ["batch"]],
          ["image_features", kv, ["features", m.hidden_size]], ["answer_ids", i, ["batch", "answer"]],
          ["gumbel", f, ["batch", m.vocab_size]], ["temperature", f, ["batch"]], ["top_k", i, ["batch"]],
          ["top_p", f, ["batch"]], ["repetition_penalty", f, ["batch"]],
        ]),
        ...keysAndValues("past_key_values", "batch", cache),
      ],
      outputs: [
        ...tensors([["next_ids", i, ["batch"]], ["logits", f, ["batch", m.vocab_size]]]),
        ...keysAndValues("present", "batch", isModern ? cache : "sequence"),
      ],
    };
  }
  if (graph === "rep_decoder") {
    return {
      inputs: [
        ...tensors([
          ["rep_ids", i, ["request", "window"]], ["grid_positions", i, ["request", "window", 2]], ["row_requests", i, ["row"]],
          ["uncond_rows", i, ["request"]], ["row_starts", i, ["row"]], ["past_lengths", i, ["row"]],
          ["gumbel", f, ["request", "window", m.rep_vocab_size]], ["guidance_scale", f, ["request"]],
          ["temperature", f, ["request"]], ["top_k", i, ["request"]],
        ]),
        ...keysAndValues("past_key_values", "row", cache),
      ],
      outputs: [
        ...tensors([["next_rep_ids", i, ["request", "window"]], ["logits", f, ["request", "window", m.rep_vocab_size]]]),
        ...keysAndValues("present", "row", isModern ? cache : "window"),
      ],
    };
  }
  if (graph === "denoiser") {
    return {
      inputs: [
        ...tensors([
          ["x_t", f, picture], ["t", f, ["request"]], ["t_next", f, ["request"]], ["guidance_scale", f, ["request"]],
          ["row_requests", i, ["row"]], ["uncond_rows", i, ["request"]], ["row_starts", i, ["request"]], ["past_lengths", i, ["request"]],
        ]),
        ...keysAndValues("past_key_values", "request", cache),
      ],
      outputs: tensors([["x_next", f, picture], ["x_pred", f, picture]]),
    };
  }
  return {
    inputs: tensors([["pixels", f, ["images", 3, "height", "width"]]]),
    outputs: tensors([["image_features", kv, ["images", "tokens", m.hidden_size]]]),
  };
}

/**
 * Raises RFError (mismatch) that names the first tensor that differs.
 *
 * @param {Signature} expected @param {Signature} actual @param {string} what
 */
export function checkSignature(expected, actual, what) {
  checkTensors("input", expected.inputs, actual.inputs, what);
  checkTensors("output", expected.outputs, actual.outputs, what);
}

/** @param {string} kind @param {TensorSpec[]} wanted @param {TensorSpec[]} found @param {string} what */
function checkTensors(kind, wanted, found, what) {
  const words = (/** @type {TensorSpec} */ { name, dtype, shape }) => `${name} ${dtype} [${shape.join(", ")}]`;
  const byName = new Map(found.map((each) => [each.name, each]));
  for (const spec of wanted) {
    const other = byName.get(spec.name);
    byName.delete(spec.name);
    const agree = other?.dtype === spec.dtype && other.shape.length === spec.shape.length &&
      spec.shape.every((size, index) => size === other.shape[index] || (other.shape[index] === "?" && typeof size === "string"));
    if (!agree) {
      throw new RFError(
        `${what}: expected ${kind} ${words(spec)}, found ${other ? words(other) : "nothing of that name"}. Export ` +
          "the bundle again.",
        "mismatch",
      );
    }
  }
  if (byName.size) {
    const extra = [...byName.values()].map(words).join(", ");
    throw new RFError(
      `${what}: unexpected ${kind} ${extra}. It was made by another version: export the bundle again.`,
      "mismatch",
    );
  }
}
