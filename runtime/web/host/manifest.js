/**
 * The content of manifest.json: what a bundle holds. Knows nothing of where files lie. One that was read is valid.
 *
 * See runtime/bundle/manifest.py: what is refused there is refused here, in the same sentences.
 */

import { RFError, isPrintable, quoted } from "./errors.js";
import { byCodePoints, shortened } from "./json.js";
import { checkPlan, planOf } from "./plans.js";
import { ABOVE, DIM, FINITE, FROM_ZERO, HASH, NOT_NEGATIVE, OBJECT, POSITIVE, SHARE, TEXT } from "./schema.js";
import { choice, list, optional, orNull, readAs, readDocument, record, table } from "./schema.js";
import { sha256 } from "./sha256.js";
import { DIALECTS, GRAPHS, PRECISIONS, cacheSlots, checkSignature, inWords, maxTopK, modelProblem, signatureOf } from "./signature.js";

const FORMAT = "rf-export-bundle";

/**
 * @typedef {object} GraphEntry
 * @property {import("./signature.js").GraphName} name
 * @property {string} precision
 * @property {string} dialect
 * @property {string} file
 * @property {string[]} weights
 * @property {import("./signature.js").TensorSpec[]} inputs
 * @property {import("./signature.js").TensorSpec[]} outputs
 *
 * @typedef {object} Manifest As the file has it, and `bundleId`.
 * @property {Record<string, string>} checkpoint
 * @property {import("./signature.js").ModelSpec} model
 * @property {{num_steps: number, rep_guidance_scale: number, pix_guidance_scale: number, temperature: number, top_k: number, shift: number,
 *   shift_base_patches?: ?number, times?: ?number[], guided?: number[], noise_scale?: number}} sampling
 * @property {?{start_id: number, stop_ids: number[], max_tokens: number}} understanding
 * @property {?Record<string, any>} tuned       See planOf of plans.js.
 * @property {{file: string}} tokenizer
 * @property {GraphEntry[]} graphs
 * @property {Record<string, {sha256: string, size: number}>} files
 * @property {Record<string, Record<string, any>>} verified
 * @property {string[]} requires
 * @property {string} bundleId
 */

const TIMES = orNull(list(SHARE)), PAIR = list(SHARE, "a list", (size) => size === 2);
const IDS = list(NOT_NEGATIVE, "a list of one id at least", (size) => size > 0);
const TENSORS = list(record({ name: TEXT, dtype: TEXT, shape: list(DIM) }));
const MODEL = record(
  {
    patch_size: POSITIVE, hidden_size: POSITIVE, num_layers: POSITIVE, num_kv_heads: POSITIVE, head_dim: POSITIVE,
    vocab_size: POSITIVE, rep_vocab_size: POSITIVE, rep_start_id: POSITIVE, max_grid: POSITIVE, max_positions: POSITIVE,
    default_height: POSITIVE, default_width: POSITIVE, num_parameters: POSITIVE, num_heads: orNull(POSITIVE), ffn_size: orNull(POSITIVE),
  },
  modelProblem,
);
const SAMPLING = record(
  {
    num_steps: POSITIVE, rep_guidance_scale: FINITE, pix_guidance_scale: FINITE, temperature: FROM_ZERO, top_k: POSITIVE, shift: ABOVE,
    shift_base_patches: orNull(POSITIVE), times: TIMES, guided: optional(PAIR), noise_scale: optional(ABOVE),
  },
  ({ times, guided }) => planProblem({ times, guided }),
);
const TUNED = orNull(record(
  {
    num_steps: orNull(POSITIVE), shift: orNull(FINITE), times: TIMES, guided: orNull(PAIR), rep_guidance_scale: orNull(FINITE),
    pix_guidance_scale: orNull(FINITE), window: orNull(POSITIVE), evidence: optional(OBJECT),
  },
  (value) => planProblem(planOf(value)),
));
const MANIFEST = record(
  {
    created_by: table(TEXT),
    checkpoint: table(TEXT),
    model: MODEL,
    sampling: SAMPLING,
    understanding: orNull(record({ start_id: NOT_NEGATIVE, stop_ids: IDS, max_tokens: POSITIVE })),
    tokenizer: record({ file: TEXT }),
    graphs: list(record({
      name: choice(GRAPHS), precision: choice(PRECISIONS), dialect: choice(DIALECTS), opset: POSITIVE, file: TEXT, weights: list(TEXT),
      lint: optional(list(TEXT)), inputs: TENSORS, outputs: TENSORS,
    })),
    files: table(record({ sha256: HASH, size: NOT_NEGATIVE })),
    verified: table(OBJECT),
    tuned: TUNED,
    requires: optional(list(TEXT)),
  },
  manifestProblem,
);

/** @param {import("./plans.js").Plan} plan */
function planProblem(plan) {
  try {
    checkPlan(plan);
  } catch (error) {
    return error.message;
  }
  return null;
}

/** @param {string} name */
function isInside(name) {
  const isPlain = ![..."\\:"].some((each) => name.includes(each)) && Array.from(name).every(isPrintable);
  return isPlain && name.split("/").every((part) => !["", ".", ".."].includes(part) && new TextEncoder().encode(part).length <= 255);
}

/** @param {any} m */
function manifestProblem(m) {
  const outside = Object.keys(m.files).find((name) => !isInside(name));
  if (outside !== undefined) return `${quoted(outside)} is not a path inside the folder`;
  const named = [...m.graphs.flatMap((/** @type {GraphEntry} */ graph) => [graph.file, ...graph.weights]), m.tokenizer.file];
  const lost = named.find((name) => !Object.hasOwn(m.files, name));
  if (lost !== undefined) return `${quoted(lost)} is not in the table of files`;
  const seen = new Set(), slots = new Map();
  for (const graph of /** @type {GraphEntry[]} */ (m.graphs)) {
    const variant = inWords(graph), key = `${graph.name} ${variant}`;
    if (seen.has(key)) return `graph ${key} is there twice`;
    seen.add(key);
  }
  for (const graph of /** @type {GraphEntry[]} */ (m.graphs)) {
    if (graph.name === "vision_encoder") continue;
    const variant = inWords(graph), found = cacheSlots(graph);
    if (slots.has(variant) && slots.get(variant) !== found) return `the ${variant} graphs have caches of different lengths`;
    slots.set(variant, found);
  }
  if (m.sampling.top_k > maxTopK(m.model)) return `top_k must be at most ${maxTopK(m.model)}, got ${m.sampling.top_k}`;
  const largest = m.understanding ? Math.max(m.understanding.start_id, ...m.understanding.stop_ids) : -1;
  return largest >= m.model.vocab_size ? `understanding has id ${largest}, and the model knows ${m.model.vocab_size}` : null;
}

/**
 * Check and read the content of a file `where`.
 *
 * @param {import("./json.js").Json} content @param {string} where @returns {Manifest}
 */
export function readManifest(content, where) {
  const { version, document } = readDocument(content, where, FORMAT, [2, 3], "Export the bundle");
  if (version !== 3) {
    throw new RFError(
      `${where}: the bundle is in format 2, whose graphs the browser host does not run. Export it again.`,
      "unsupported",
    );
  }
  const foundId = document.get("bundle_id");
  document.delete("bundle_id");
  const m = readAs(MANIFEST, document, where);
  for (const [index, graph] of m.graphs.entries()) {
    const slots = graph.dialect === "modern" ? cacheSlots(graph) : null;
    checkSignature(signatureOf(graph.name, m.model, graph, slots), graph, `${where}, graphs[${index}]`);
  }
  const lines = Object.keys(m.files).sort(byCodePoints).map((name) => `${m.files[name].sha256} ${m.files[name].size} ${name}\n`);
  const bundleId = sha256(lines.join("")).slice(0, 16);
  if (foundId !== bundleId) {
    throw new RFError(
      `${where}: 'bundle_id' must be '${bundleId}' as the table of files has it, found ${shortened(foundId)}: it was changed. Export the bundle again.`,
      "damaged",
    );
  }
  return { understanding: null, requires: [], tuned: null, ...m, bundleId };
}
