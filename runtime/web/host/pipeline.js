/**
 * Texts in, pictures out, and questions about pictures: checks what is asked for, and runs a loaded model.
 *
 * See runtime/pipeline.py and runtime/loading.py. Knows nothing of the page.
 *
 * @typedef {object} OpenOptions
 * @property {string} [precision]          Default: fp16 where the bundle has it, otherwise what it has.
 * @property {string} [dialect]            Default "classic".
 * @property {number} [numThreads]         Default: up to 4 where the page is isolated, otherwise 1; more need isolation.
 * @property {boolean} [allowUnverified]   Also run graphs that failed a verification or that nobody verified.
 * @property {"wasm"|"webgpu"} [executionProvider]  "webgpu" needs a build of onnxruntime-web that has it, and was not tried.
 * @property {any} [ort]                   The module onnxruntime-web, or where it lies. Default: the folder ort beside this file.
 * @property {string|{wasm?: string, mjs?: string}} [wasmPaths]  A folder, or addresses of its files. Default: the folder of `ort`.
 * @property {import("./bundle.js").OnProgress} [onProgress]  Bytes that were read, of all that will be.
 * @property {AbortSignal} [signal]
 *
 * @typedef {object} LoadedModel           All that drawing and answering need. It keeps nothing of a request.
 * @property {import("./manifest.js").Manifest} manifest
 * @property {import("./stages.js").Graphs} graphs
 * @property {?import("./tokenizer.js").Tokenizer} tokenizer  Null: of a kind that is not read.
 * @property {(text: string, maxTokens: number, what: "prompt"|"question"|"text") => number[]} encode
 * @property {(ids: readonly number[]) => string} decode
 *
 * @typedef {Uint8ClampedArray<ArrayBuffer>} Rgba
 *
 * @typedef {{type: "token", step: number, numSteps: number, repId: number, logits: Float32Array}} TokenEvent
 *   As the model drew it, also where another one is forced.
 * @typedef {{type: "step", step: number, numSteps: number, t: number, tNext: number, rgba?: Rgba}} StepEvent
 *   With a preview of the finished picture.
 * @typedef {{type: "picture", rgba: Rgba, pixels: Float32Array, height: number, width: number, repIds: number[], seed: bigint,
 *   prompt: string}} PictureEvent
 */

import { Bundle } from "./bundle.js";
import { Conversation } from "./conversation.js";
import { cleared, applyEdits } from "./edits.js";
import { RFError, quoted, told } from "./errors.js";
import { gumbel, normal } from "./noise.js";
import { DEFAULT_ORT, Session, isFinite, floats, loadOrt, versionOf } from "./ort.js";
import { toRgba } from "./pictures.js";
import { planDrawing, requireKnown } from "./plans.js";
import { checkRequest } from "./request.js";
import { DIALECTS, GRAPHS, PRECISIONS, cacheSlots, cellOf, checkSignature } from "./signature.js";
import { sourceOf } from "./source.js";
import { Drawing } from "./stages.js";
import { Tokenizer } from "./tokenizer.js";
import { breathe } from "./turns.js";

const MAX_THREADS = 4;
const CHECK_TEXTS = "check_texts.json"; // texts with their ids, where a bundle has them
const OPEN_KEYS = [
  ...["precision", "dialect", "numThreads", "allowUnverified", "executionProvider"],
  ...["ort", "wasmPaths", "onProgress", "signal"],
];

/** @typedef {import("./request.js").Request} Request */

export class Pipeline {
  #loaded;
  info;

  /** @param {LoadedModel} loaded @param {string} library @param {number} numThreads */
  constructor(loaded, library, numThreads) {
    const { manifest, graphs, tokenizer } = loaded, { model, sampling, understanding, tuned } = manifest;
    this.#loaded = /** @type {?LoadedModel} */ (loaded);
    /** What was opened; model and sampling as the manifest has them. */
    this.info = {
      bundleId: manifest.bundleId, checkpoint: manifest.checkpoint, ...graphs.variant, numThreads, library,
      tokenizer: tokenizer?.kind ?? null, words: tokenizer?.words ?? null,
      answers: understanding !== null, cell: cellOf(model), model, sampling, understanding, tuned,
    };
  }

  /**
   * Open a bundle: format, sizes, hashes, paths and verdicts are checked, the graphs are loaded.
   *
   * @param {import("./source.js").Place} place @param {OpenOptions} [options]
   */
  static async open(place, options = {}) {
    requireKnown(options, OPEN_KEYS);
    const { dialect = "classic", allowUnverified = false, executionProvider = "wasm", onProgress, signal } = options;
    const cores = globalThis.crossOriginIsolated ? globalThis.navigator?.hardwareConcurrency ?? 1 : 1;
    const numThreads = options.numThreads ?? Math.min(cores, MAX_THREADS);
    if (!(Number.isInteger(numThreads) && numThreads >= 1)) {
      throw new RFError(`num_threads must be >= 1, got ${told(numThreads)}.`);
    }
    const source = sourceOf(place);
    const library = loadOrt(options.ort ?? DEFAULT_ORT, { numThreads, wasmPaths: options.wasmPaths, provider: executionProvider });
    library.catch(() => {}); // told when it is needed: what is wrong with the bundle comes first
    const bundle = await Bundle.open(source, signal), { manifest } = bundle;
    const variant = { precision: options.precision ?? bundle.defaultPrecision, dialect };
    requireOneOf("precision", variant.precision, PRECISIONS);
    requireOneOf("dialect", dialect, DIALECTS);
    const entries = GRAPHS.map((name) => bundle.graph(name, variant));
    if (!allowUnverified) bundle.requireVerified(variant);
    const checks = Object.hasOwn(manifest.files, CHECK_TEXTS) ? [CHECK_TEXTS] : [];
    const [ort, files] = await Promise.all([
      library,
      bundle.read([...entries.flatMap(({ file, weights }) => [file, ...weights]), manifest.tokenizer.file, ...checks], onProgress, signal),
    ]);
    const content = (/** @type {string} */ name) => /** @type {Uint8Array<ArrayBuffer>} */ (files.get(name));
    const tokenizer = openTokenizer(content, source.name, manifest);
    const sessions = /** @type {import("./stages.js").Graphs["sessions"]} */ ({});
    for (const entry of entries) {
      signal?.throwIfAborted();
      const folder = entry.file.slice(0, entry.file.lastIndexOf("/") + 1), where = `${source.name}/${entry.file}`;
      const inside = (/** @type {string} */ name) => (name.startsWith(folder) ? name.slice(folder.length) : name);
      const weights = entry.weights.map((name) => ({ path: inside(name), data: content(name) }));
      // Decoders have INT8 weights alone, whose product takes more than twice as long in WebAssembly as that of floats.
      const how = { provider: executionProvider, where, foldsWeights: entry.name.endsWith("_decoder") };
      const session = await Session.open(ort, content(entry.file), weights, how);
      checkSignature(entry, session.signature, where);
      sessions[entry.name] = session;
    }
    const graphs = { model: manifest.model, variant, slots: cacheSlots(entries[1]), sessions };
    return new Pipeline({ manifest, graphs, ...tokenizer }, `onnxruntime-web ${versionOf(ort)}`, numThreads);
  }

  /** @returns {LoadedModel} */
  get #model() {
    if (!this.#loaded) throw new RFError("This pipeline was closed. Open the bundle again: openBundle.");
    return this.#loaded;
  }

  /** What a drawing with these options takes. @param {import("./plans.js").DrawOptions} [options] */
  measure(options = {}) {
    const { height, width, grid, times, window } = planDrawing(options, this.#model.manifest);
    return { height, width, rows: grid[0], columns: grid[1], numRepTokens: grid[0] * grid[1], numSteps: times.length - 1, window };
  }

  /**
   * Ids of a text; raises RFError (unsupported) where the tokenizer is of a kind that is not read.
   *
   * @param {string} text
   */
  tokenize(text) {
    return this.#model.encode(text, this.#model.manifest.model.max_positions, "text");
  }

  /** The text of ids. @param {readonly number[]} ids */
  detokenize(ids) {
    return this.#model.decode(ids);
  }

  /**
   * Draw a picture, and report each step. Whoever stops reading the generator cancels the drawing, and so does a signal.
   *
   * @param {import("./request.js").DrawRequest} request
   * @param {{signal?: AbortSignal, previews?: boolean|number}} [how] Previews with every step, every n-th one and the last, or none.
   * @returns {AsyncGenerator<TokenEvent|StepEvent|PictureEvent>}
   */
  async *draw(request, { signal, previews = true } = {}) {
    const { manifest, graphs, encode } = this.#model, checked = checkRequest(request, manifest, graphs.slots, encode);
    const { plan, seed, prompt } = checked, forced = await this.#editedTokens(checked, signal), { height, width } = plan;
    const drawing = new Drawing(graphs, plan, checked.ids.length);
    await breathe(signal);
    await drawing.prefill([...checked.ids]);
    const repIds = yield* this.#tokens(drawing, seed, forced, signal);
    const scale = Math.fround(plan.noiseScale), noise = normal(seed, 3 * height * width).map((value) => value * scale);
    const steps = drawing.denoise(noise);
    await breathe(signal);
    let next = await steps.next();
    for (; !next.done; next = await steps.next()) {
      const { type, step, numSteps, t, tNext, xPred } = next.value;
      const isShown = Number(previews) > 0 && (step + 1 === numSteps || (step + 1) % Number(previews) === 0);
      yield { type, step, numSteps, t, tNext, ...(isShown ? { rgba: toRgba(xPred) } : {}) };
      await breathe(signal);
    }
    const pixels = next.value;
    if (!isFinite(floats(pixels))) {
      throw new RFError(
        `The numbers overflowed in ${graphs.variant.precision}: the picture is not finite. Use precision fp32, or ` +
          "a smaller guidance scale.",
        "overflow",
      );
    }
    yield { type: "picture", rgba: toRgba(pixels), pixels, height, width, repIds, seed, prompt };
  }

  /**
   * @param {Drawing} drawing @param {bigint} seed @param {?readonly number[]} forced
   * @param {AbortSignal|undefined} signal @returns {AsyncGenerator<TokenEvent, number[]>}
   */
  async *#tokens(drawing, seed, forced, signal) {
    const codes = this.#model.manifest.model.rep_vocab_size;
    const stage = drawing.drawTokens((token) => gumbel(seed, token, codes), forced);
    await breathe(signal);
    let next = await stage.next();
    for (; !next.done; next = await stage.next()) {
      yield next.value;
      await breathe(signal);
    }
    return next.value;
  }

  /**
   * The tokens that edits come to; null leaves all of them to the model.
   *
   * @param {Request} request @param {AbortSignal|undefined} signal
   */
  async #editedTokens({ ids, seed, plan, forced, edits }, signal) {
    if (!edits.length) return forced;
    const { manifest, graphs } = this.#model;
    /** @param {bigint} own @param {?readonly number[]} given */
    const drawTokens = async (own, given) => {
      const drawing = new Drawing(graphs, plan, ids.length);
      await drawing.prefill([...ids]);
      const stage = this.#tokens(drawing, own, given, signal);
      let next = await stage.next();
      while (!next.done) next = await stage.next();
      return next.value;
    };
    const before = forced?.every((id) => id >= 0) ? forced : await drawTokens(seed, forced);
    let changed = applyEdits(before, edits, plan.grid, manifest.model.rep_vocab_size);
    for (const edit of edits) {
      if (edit.redraw === undefined) continue;
      changed = await drawTokens(edit.redraw ?? BigInt.asUintN(64, seed + 1n), cleared(changed, edit, plan.grid));
    }
    return changed;
  }

  /** Begin a conversation about pictures; raises RFError where the model answers no questions. */
  converse() {
    return new Conversation(this.#model);
  }

  /** Draw one small hidden picture: the first run of a graph takes twice the time of others. */
  async warmUp() {
    const { cell, answers } = this.info;
    for await (const event of this.draw({ ids: [0], height: cell, width: cell, times: [0, 1] }, { previews: false })) {
      if (event.type !== "picture" || !answers) continue;
      const conversation = this.converse();
      await conversation.show(event, { height: cell, width: cell });
    }
  }

  /** Drop the graphs and their memory. */
  async close() {
    const sessions = Object.values(this.#loaded?.graphs.sessions ?? {});
    this.#loaded = null;
    await Promise.all(sessions.map((session) => session.close()));
  }
}

/** @param {string} name @param {string} value @param {readonly string[]} all */
function requireOneOf(name, value, all) {
  if (!all.includes(value)) throw new RFError(`${name} must be ${all.map(quoted).join(" or ")}, got ${told(value)}.`);
}

/**
 * @param {(file: string) => Uint8Array|undefined} contentOf @param {string} place
 * @param {import("./manifest.js").Manifest} manifest @returns {Pick<LoadedModel, "tokenizer"|"encode"|"decode">}
 */
function openTokenizer(contentOf, place, { model, understanding, tokenizer: { file } }) {
  try {
    const content = /** @type {Uint8Array} */ (contentOf(file));
    const control = understanding ? [understanding.start_id, ...understanding.stop_ids] : [];
    const tokenizer = new Tokenizer(content, `${place}/${file}`, model.vocab_size, control), checks = contentOf(CHECK_TEXTS);
    if (checks) tokenizer.replay(checks, `${place}/${CHECK_TEXTS}`);
    const encode = tokenizer.encode.bind(tokenizer), decode = tokenizer.decode.bind(tokenizer);
    return { tokenizer, encode, decode };
  } catch (error) {
    if (!(error instanceof RFError) || error.kind !== "unsupported") throw error;
    const refuse = () => {
      throw new RFError(error.message, "unsupported");
    };
    return { tokenizer: null, encode: (text) => (text.trim() ? refuse() : []), decode: refuse };
  }
}
