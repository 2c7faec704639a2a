/**
 * The stages of a drawing, and what is read in a conversation: token ids and noise in, token ids and pixels out.
 *
 * See runtime/backends/host/{cache,stages,text}.py. Knows nothing of texts, seeds and files. One picture at a time: row 0
 * is the prompt's, row 1 the unconditional one.
 */

import { floats, ints } from "./ort.js";
import { isGuided } from "./plans.js";
import { isHalf, kvName } from "./signature.js";
import { TokenWindow } from "./windows.js";

/** @typedef {import("./ort.js").Values} Values */

/**
 * @typedef {object} Graphs The loaded graphs of a model.
 * @property {import("./signature.js").ModelSpec} model
 * @property {import("./signature.js").Variant} variant
 * @property {?number} slots Of the cache, where the graphs have a fixed number.
 * @property {Record<import("./signature.js").GraphName, import("./ort.js").Session>} sessions
 */

/**
 * @typedef {{type: "token", step: number, numSteps: number, repId: number, logits: Float32Array}} TokenStep
 * @typedef {{type: "step", step: number, numSteps: number, t: number, tNext: number, xNext: Float32Array, xPred: Float32Array}} PixelStep
 */

/** Keys and values of rows in slots: for each of 2 L, [rows, H, slots, D]. Zero at first: hidden slots have to be finite. */
export class Cache {
  /** @param {Graphs} graphs @param {number} numRows @param {number} numSlots */
  constructor({ model, variant }, numRows, numSlots) {
    this.model = model, this.numSlots = numSlots;
    this.isModern = variant.dialect === "modern";
    this.dtype = isHalf(variant) ? "float16" : "float32";
    this.Kind = isHalf(variant) ? Uint16Array : Float32Array;
    this.rowSize = model.num_kv_heads * numSlots * model.head_dim;
    this.lengths = new Array(numRows).fill(0);
    this.layers = Array.from({ length: 2 * model.num_layers }, () => new this.Kind(numRows * this.rowSize));
  }

  /** What graphs read of the first rows. @param {number} numRows @returns {Values} */
  inputs(numRows) {
    return this.#values((layer) => layer.subarray(0, numRows * this.rowSize), numRows, this.numSlots);
  }

  /** An empty past of one hidden slot, where graphs need not write into the cache itself. @returns {Values} */
  emptyInputs() {
    if (this.isModern) return this.inputs(1);
    return this.#values(() => new this.Kind(this.model.num_kv_heads * this.model.head_dim), 1, 1);
  }

  /**
   * @param {(layer: Float32Array|Uint16Array) => Float32Array|Uint16Array} part @param {number} rows
   * @param {number} slots
   */
  #values(part, rows, slots) {
    const dims = [rows, this.model.num_kv_heads, slots, this.model.head_dim];
    const values = this.layers.map((layer) => ({ dtype: this.dtype, dims, data: part(layer) }));
    return Object.fromEntries(values.map((value, index) => [kvName("past_key_values", index), value]));
  }

  /** Names of the outputs with new keys and values. */
  get outputs() {
    return this.layers.map((_, index) => kvName("present", index));
  }

  /**
   * Keep tokens `first` to before `end` of what a run wrote for each of the first rows, from its slot on.
   *
   * @param {Values} written @param {number} first @param {number} end @param {number[]} slots One per row.
   */
  keep(written, first, end, slots) {
    const { num_kv_heads: heads, head_dim: size } = this.model;
    this.layers.forEach((layer, index) => {
      const { data, dims } = written[kvName("present", index)];
      if (this.isModern) return layer.set(data); // the whole of these rows
      for (let head = 0; head < slots.length * heads; ++head) {
        const from = head * dims[2], to = head * this.numSlots + slots[Math.floor(head / heads)];
        layer.set(/** @type {Float32Array} */ (data).subarray((from + first) * size, (from + end) * size), to * size);
      }
    });
    slots.forEach((slot, row) => (this.lengths[row] = slot + end - first));
  }

  /** Forget what row 0 has from a slot on. @param {number} length */
  forget(length) {
    const { num_kv_heads: heads, head_dim: size } = this.model;
    for (const layer of this.layers) {
      for (let head = 0; head < heads; ++head) layer.fill(0, (head * this.numSlots + length) * size, (head + 1) * this.numSlots * size);
    }
    this.lengths[0] = length;
  }

  /** Take over what another cache has in row 0. @param {Cache} other */
  copyFrom(other) {
    const { num_kv_heads: heads, head_dim: size } = this.model, [length] = other.lengths;
    this.layers.forEach((layer, index) => {
      for (let head = 0; head < heads; ++head) {
        const from = head * other.numSlots * size;
        layer.set(other.layers[index].subarray(from, from + length * size), head * this.numSlots * size);
      }
    });
    this.lengths[0] = length;
  }
}

/**
 * What else text_decoder reads, for a text without images whose next token nobody wants.
 *
 * @param {Cache} cache @returns {Values}
 */
export function textInputs({ model, dtype, Kind }) {
  return {
    row_starts: ints([0]),
    image_features: { dtype, dims: [1, model.hidden_size], data: new Kind(model.hidden_size) },
    answer_ids: ints([model.vocab_size], [1, 1]),
    gumbel: floats(new Float32Array(model.vocab_size), [1, model.vocab_size]),
    temperature: floats([1]),
    top_k: ints([1]),
    top_p: floats([1]),
    repetition_penalty: floats([1]),
  };
}

/** Whose row each is, and which row is the unconditional one. @param {boolean} isGuided @returns {Values} */
const rowsOf = (isGuided) => ({ row_requests: ints(isGuided ? [0, 0] : [0]), uncond_rows: ints([isGuided ? 1 : 0]) });

/** One drawing; belongs to nobody else. */
export class Drawing {
  #graphs;
  #plan;
  #textLength;
  #cache;

  /** @param {Graphs} graphs @param {import("./plans.js").DrawingPlan} plan @param {number} textLength */
  constructor(graphs, plan, textLength) {
    this.#graphs = graphs, this.#plan = plan, this.#textLength = textLength;
    this.#cache = new Cache(graphs, 2, graphs.slots ?? textLength + plan.grid[0] * plan.grid[1] + 1);
  }

  /** @param {number[]} ids */
  async prefill(ids) {
    if (!ids.length) return;
    const cache = this.#cache, own = { input_ids: ints(ids, [1, ids.length]), past_lengths: ints([0]) };
    const inputs = { ...own, ...textInputs(cache), ...cache.emptyInputs() };
    cache.keep(await this.#graphs.sessions.text_decoder.run(inputs, cache.outputs), 0, ids.length, [0]);
  }

  /**
   * @param {(token: number) => Float32Array} noiseOf The Gumbel noise of a token, [K].
   * @param {?readonly number[]} forced [N], -1 for a drawn token.
   * @returns {AsyncGenerator<TokenStep, number[]>} The tokens to go on with.
   */
  async *drawTokens(noiseOf, forced) {
    const { grid, window: wanted } = this.#plan, codes = this.#graphs.model.rep_vocab_size;
    const window = new TokenWindow(grid, this.#graphs.model.rep_start_id, wanted, forced);
    const noise = new TokenNoise(noiseOf, window, codes);
    while (!window.ended) {
      const { start, numKnown } = window, logits = await this.#pass(window, noise);
      for (let token = numKnown; token < window.numKnown; ++token) {
        const at = (token - start) * codes;
        yield { type: "token", step: token, numSteps: window.numTokens, repId: window.drawn[token], logits: logits.slice(at, at + codes) };
      }
    }
    return window.repIds;
  }

  /** @param {TokenWindow} window @param {TokenNoise} noise @returns {Promise<Float32Array>} Logits, [W, K]. */
  async #pass(window, noise) {
    const plan = this.#plan, cache = this.#cache, { size, start } = window;
    const guided = plan.repGuidanceScale !== 1 && window.draws; // at the last position nothing is to be guided
    const { repIds, gridPositions } = window.fill(), offsets = guided ? [this.#textLength, 0] : [this.#textLength];
    const inputs = {
      rep_ids: ints(repIds, [1, size]),
      grid_positions: ints(gridPositions, [1, size, 2]),
      ...rowsOf(guided),
      row_starts: ints(offsets.map(() => 0)),
      past_lengths: ints(offsets.map((offset) => offset + start)),
      gumbel: floats(plan.greedy ? new Float32Array(size * noise.codes) : noise.of(start), [1, size, noise.codes]),
      guidance_scale: floats([plan.repGuidanceScale]),
      temperature: floats([plan.temperature]),
      top_k: ints([plan.topK]),
      ...cache.inputs(offsets.length),
    };
    const outputs = await this.#graphs.sessions.rep_decoder.run(inputs, ["next_rep_ids", "logits", ...cache.outputs]);
    const [first, end] = window.settle(/** @type {number[]} */ (outputs.next_rep_ids.data));
    cache.keep(outputs, first - start, end - start, offsets.map((offset) => offset + first));
    return /** @type {Float32Array} */ (outputs.logits.data);
  }

  /**
   * @param {Float32Array} noise [3, height, width]
   * @returns {AsyncGenerator<PixelStep, Float32Array>} The picture.
   */
  async *denoise(noise) {
    const plan = this.#plan, { times } = plan, picture = [1, 3, plan.height, plan.width], numSteps = times.length - 1;
    const fixed = {
      guidance_scale: floats([plan.pixGuidanceScale]),
      row_starts: ints([0]),
      past_lengths: ints([this.#cache.lengths[0]]),
      ...this.#cache.inputs(1),
    };
    let x = noise;
    for (let step = 0; step < numSteps; ++step) {
      const t = times[step], tNext = times[step + 1], rows = rowsOf(isGuided(plan, t));
      const inputs = { x_t: floats(x, picture), t: floats([t]), t_next: floats([tNext]), ...rows, ...fixed };
      const { x_next, x_pred } = await this.#graphs.sessions.denoiser.run(inputs, ["x_next", "x_pred"]);
      x = /** @type {Float32Array} */ (x_next.data);
      yield { type: "step", step, numSteps, t, tNext, xNext: x, xPred: /** @type {Float32Array} */ (x_pred.data) };
    }
    return x;
  }
}

/** Noise belongs to a token: what a window has in common with the last one is kept, the rest is made. */
class TokenNoise {
  #noiseOf;
  #window;
  #known = /** @type {Map<number, Float32Array>} */ (new Map());

  /** @param {(token: number) => Float32Array} noiseOf @param {TokenWindow} window @param {number} codes */
  constructor(noiseOf, window, codes) {
    this.#noiseOf = noiseOf, this.#window = window, this.codes = codes;
  }

  /** [W, K] @param {number} start The first token. */
  of(start) {
    const { size, numTokens } = this.#window, values = new Float32Array(size * this.codes), known = new Map();
    for (let token = start; token < Math.min(start + size, numTokens); ++token) {
      const own = this.#known.get(token) ?? this.#noiseOf(token);
      known.set(token, own);
      values.set(own, (token - start) * this.codes);
    }
    this.#known = known;
    return values;
  }
}

/** What text_decoder has read in one conversation. */
export class TextRow {
  #graphs;

  /** @param {Graphs} graphs */
  constructor(graphs) {
    this.#graphs = graphs;
    this.cache = new Cache(graphs, 1, graphs.slots ?? 1);
  }

  get length() {
    return this.cache.lengths[0];
  }

  /** Make room. @param {number} numTokens */
  grow(numTokens) {
    const needed = this.length + numTokens;
    if (this.#graphs.slots || needed <= this.cache.numSlots) return;
    const larger = new Cache(this.#graphs, 1, needed);
    larger.copyFrom(this.cache);
    this.cache = larger;
  }

  /** Read tokens. @param {number[]} ids @param {Values} inputs @returns {Promise<Values>} `next_ids` and `logits`. */
  async read(ids, inputs) {
    const { cache } = this, { length } = this, past = length ? cache.inputs(1) : cache.emptyInputs();
    const all = { input_ids: ints(ids, [1, ids.length]), past_lengths: ints([length]), ...inputs, ...past };
    const outputs = await this.#graphs.sessions.text_decoder.run(all, ["next_ids", "logits", ...cache.outputs]);
    cache.keep(outputs, 0, ids.length, [length]);
    return outputs;
  }
}

