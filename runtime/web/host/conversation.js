/**
 * A conversation about pictures: texts and images in any order, questions, answers, and the way back.
 *
 * See runtime/understanding/conversation.py. What was read stays in a row of keys and values of its own, so a further
 * question reads its own words alone. The tokens of a conversation are a list; the row holds the keys and values of its
 * first ones. One question, as the model was trained on:
 *
 *     [features of the images][start_id][words of the question][words of the answer][one of stop_ids]
 *
 * @typedef {{type: "word", step: number, maxTokens: number, tokenId: number, text: string}} WordEvent
 * @typedef {{type: "answer", question: string, text: string, ids: number[], seed: bigint, endedBy: "stop"|"length"}} AnswerEvent
 *
 * @typedef {object} OwnAskOptions
 * @property {bigint|number|string} [seed]
 * @property {"keep"|"forget"} [history]         "forget" leaves the conversation as it was before the question, its images read.
 * @property {?readonly number[]} [ids]          Of the question, in place of its text.
 * @property {?readonly number[]} [forcedIds]    An answer to go on with instead of the tokens that are drawn.
 *
 * @typedef {import("./plans.js").AnswerOptions & OwnAskOptions} AskOptions
 */

import { RFError, told } from "./errors.js";
import { STAGES, gumbel } from "./noise.js";
import { floats, ints, isFinite } from "./ort.js";
import { loadPixels } from "./pictures.js";
import { planAnswer } from "./plans.js";
import { checkIds, readSeed } from "./request.js";
import { MAX_ANSWER, gridProblem } from "./signature.js";
import { TextRow, textInputs } from "./stages.js";
import { breathe } from "./turns.js";

/** @typedef {import("./pipeline.js").LoadedModel} LoadedModel */

export class Conversation {
  #loaded;
  #format;
  #row;
  #ids = /** @type {number[]} */ ([]); // V + f for image token f of #features
  #features = /** @type {(Float32Array|Uint16Array)[]} */ ([]); // [d] each; kept so that the way back can go anywhere
  #isAnswering = false;

  /** @param {LoadedModel} loaded */
  constructor(loaded) {
    planAnswer({}, loaded.manifest); // refuses a model that answers no questions
    this.#loaded = loaded;
    this.#format = /** @type {NonNullable<import("./manifest.js").Manifest["understanding"]>} */ (loaded.manifest.understanding);
    this.#row = new TextRow(loaded.graphs);
  }

  /** Tokens so far, images included: a place to rewind to. */
  get length() {
    return this.#ids.length;
  }

  /** Tokens whose keys and values are kept; the others are read with the next question. */
  get numRead() {
    return this.#row.length;
  }

  /**
   * Add a picture, fitted into `height` x `width` pixels, or into the model's default size.
   *
   * @param {import("./pictures.js").Picture} picture @param {{height?: number, width?: number}} [size]
   */
  async show(picture, size = {}) {
    this.#refuseWhileAnswering();
    const { model } = this.#loaded.manifest, height = size.height ?? model.default_height, width = size.width ?? model.default_width;
    const problem = gridProblem(model, height, width);
    if (problem) throw new RFError(`This model reads no pictures of ${height} x ${width} pixels: ${problem}.`);
    const pixels = floats(loadPixels(picture, height, width), [1, 3, height, width]);
    const { image_features: features } = await this.#loaded.graphs.sessions.vision_encoder.run({ pixels }, ["image_features"]);
    if (!isFinite(features)) {
      throw new RFError(
        `The numbers overflowed in ${this.#loaded.graphs.variant.precision}. Use precision fp32.`,
        "overflow",
      );
    }
    this.#refuseWhileAnswering();
    const data = /** @type {Float32Array} */ (features.data), count = features.dims[1], start = this.#features.length;
    this.#requireRoom(count);
    for (let i = 0; i < count; ++i) {
      this.#ids.push(model.vocab_size + start + i);
      this.#features.push(data.slice(i * model.hidden_size, (i + 1) * model.hidden_size));
    }
  }

  /** Add a text that is no question, or ids in place of it. @param {string|readonly number[]} text */
  say(text) {
    this.#refuseWhileAnswering();
    const ids = typeof text === "string" ? this.#encode(text, null, "text") : this.#encode("", text, "text");
    this.#requireRoom(ids.length);
    this.#ids.push(...ids);
  }

  /**
   * Ask, and report each token of the answer; an empty question asks for a caption.
   *
   * An answer that is given up leaves the conversation as it was before the question.
   *
   * @param {string} [question] @param {AskOptions} [options] @param {{signal?: AbortSignal}} [how]
   * @returns {AsyncGenerator<WordEvent|AnswerEvent>}
   */
  async *ask(question = "", { seed: given, history = "keep", ids, forcedIds, ...options } = {}, { signal } = {}) {
    this.#refuseWhileAnswering();
    const seed = readSeed(given ?? 0, (value) => `seed must be 0 to 2**64 - 1, got ${value}.`);
    if (!["keep", "forget"].includes(history)) {
      throw new RFError(`history must be "keep" or "forget", got ${told(history)}.`);
    }
    const { model } = this.#loaded.manifest, own = planAnswer(options, this.#loaded.manifest);
    if (forcedIds && !(forcedIds.length && forcedIds.every((id) => Number.isInteger(id) && id >= 0 && id < model.vocab_size))) {
      throw new RFError("token_ids must be at least one id that the model knows.");
    }
    const plan = forcedIds ? { ...own, maxTokens: forcedIds.length } : own, words = this.#encode(question, ids, "question");
    this.#requireRoom(1 + words.length + plan.maxTokens - 1);
    const base = this.#ids.length, drawn = /** @type {number[]} */ ([]);
    let isComplete = false, shown = "";
    this.#isAnswering = true;
    this.#ids.push(this.#format.start_id, ...words);
    try {
      for await (const step of this.#draw(plan, seed, forcedIds ?? null, signal)) {
        drawn.push(forcedIds ? forcedIds[step.step] : step.tokenId);
        const text = this.#text(drawn), added = text.startsWith(shown) && !text.endsWith("\ufffd") ? text.slice(shown.length) : "";
        shown += added;
        yield { type: "word", step: step.step, maxTokens: plan.maxTokens, tokenId: step.tokenId, text: added };
      }
      this.#ids.push(...drawn);
      isComplete = true;
    } finally {
      this.#isAnswering = false;
      if (!isComplete || history === "forget") this.#goBack(base);
    }
    const endedBy = this.#stops(drawn[drawn.length - 1]) ? "stop" : "length";
    yield { type: "answer", question, text: this.#text(drawn), ids: drawn, seed, endedBy };
  }

  /** Go back to when the conversation had `length` tokens. @param {number} length */
  rewind(length) {
    this.#refuseWhileAnswering();
    if (!(Number.isInteger(length) && length >= 0 && length <= this.#ids.length)) {
      throw new RFError(`A conversation of ${this.#ids.length} tokens cannot be rewound to ${told(length)}.`);
    }
    this.#goBack(length);
  }

  /**
   * The run that reads the question draws the first token; each run after it reads the last token and draws the next.
   *
   * @param {import("./plans.js").AnswerPlan} plan @param {bigint} seed @param {?readonly number[]} forced @param {AbortSignal} [signal]
   * @returns {AsyncGenerator<{step: number, tokenId: number}>}
   */
  async *#draw(plan, seed, forced, signal) {
    const { model } = this.#loaded.manifest, row = this.#row, { prompt, features } = this.#unread();
    row.grow(prompt.length + plan.maxTokens - 1);
    const penalised = plan.repetitionPenalty !== 1, window = penalised ? Math.min(plan.maxTokens, MAX_ANSWER) : 1; // without, nobody looks
    const answer = new Array(window).fill(model.vocab_size);
    const inputs = /** @type {import("./ort.js").Values} */ ({
      ...textInputs(row.cache),
      temperature: floats([plan.temperature]),
      top_k: ints([plan.topK]),
      top_p: floats([plan.topP]),
      repetition_penalty: floats([plan.repetitionPenalty]),
    });
    const images = features && { image_features: features };
    let next = prompt;
    for (let step = 0; step < plan.maxTokens; ++step) {
      await breathe(signal);
      if (!plan.greedy) inputs.gumbel = floats(gumbel(seed, step, model.vocab_size, STAGES.text), [1, model.vocab_size]);
      const outputs = await row.read(next, { ...inputs, ...(step ? {} : images), answer_ids: ints(answer, [1, window]) });
      if (!isFinite(outputs.logits)) {
        throw new RFError(
          `The numbers overflowed in ${this.#loaded.graphs.variant.precision}: the answer means nothing. Use ` +
            "precision fp32.",
          "overflow",
        );
      }
      const [tokenId] = /** @type {number[]} */ (outputs.next_ids.data), last = forced ? forced[step] : tokenId;
      yield { step, tokenId };
      if (this.#stops(last)) return;
      if (penalised) answer[step % window] = last;
      next = [last];
    }
  }

  /** The ids that are still to be read, with image tokens counted from 0, and the features of these. */
  #unread() {
    const { vocab_size: vocabulary, hidden_size: width } = this.#loaded.manifest.model, { dtype, Kind } = this.#row.cache;
    const unread = this.#ids.slice(this.#row.length), images = unread.filter((id) => id >= vocabulary), data = new Kind(images.length * width);
    images.forEach((id, index) => data.set(this.#features[id - vocabulary], index * width));
    let count = 0;
    const prompt = unread.map((id) => (id >= vocabulary ? vocabulary + count++ : id));
    return { prompt, features: count ? { dtype, dims: [count, width], data } : null };
  }

  /** @param {number[]} drawn */
  #text(drawn) {
    return this.#loaded.tokenizer ? this.#loaded.tokenizer.decode(drawn.filter((id) => !this.#stops(id))) : "";
  }

  /** @param {number} id */
  #stops(id) {
    return this.#format.stop_ids.includes(id);
  }

  /**
   * @param {string} text @param {?readonly number[]|undefined} ids @param {"text"|"question"} what
   * @returns {readonly number[]}
   */
  #encode(text, ids, what) {
    const { manifest } = this.#loaded;
    return ids ? checkIds(ids, manifest, manifest.model.max_positions, what) : this.#loaded.encode(text, manifest.model.max_positions, what);
  }

  /** @param {number} numTokens */
  #requireRoom(numTokens) {
    const needed = this.#ids.length + numTokens, { max_positions: positions } = this.#loaded.manifest.model, { slots } = this.#loaded.graphs;
    const start = `That takes ${needed} tokens, images included, and`;
    if (needed > positions) {
      throw new RFError(
        `${start} the model has ${positions} positions. Ask with fewer or smaller images, a shorter text, or a ` +
          "smaller max_tokens.",
      );
    }
    if (slots && needed > slots) {
      throw new RFError(
        `${start} these graphs have ${slots} cache slots. Ask with fewer images, a smaller max_tokens, or export ` +
          "with more --cache-slots.",
      );
    }
  }

  /** @param {number} length */
  #goBack(length) {
    this.#ids.length = length;
    this.#features.length = this.#ids.filter((id) => id >= this.#loaded.manifest.model.vocab_size).length;
    this.#row.cache.forget(Math.min(this.#row.length, length));
  }

  #refuseWhileAnswering() {
    if (this.#isAnswering) throw new RFError("An answer is being given. Read it to its end, or close it, before going on.", "busy");
  }
}
