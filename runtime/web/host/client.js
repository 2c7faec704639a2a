/**
 * The module of rf.js in a worker, so that the page stays alive: the same names, each method a promise or a generator.
 *
 * Knows nothing of drawing: a call is a message to worker.js.
 *
 * @typedef {import("./pipeline.js").OpenOptions} OpenOptions
 * @typedef {import("./pipeline.js").TokenEvent|import("./pipeline.js").StepEvent|import("./pipeline.js").PictureEvent} DrawEvent
 * @typedef {import("./conversation.js").WordEvent|import("./conversation.js").AnswerEvent} AskEvent
 */

import { RFError } from "./errors.js";
import { filesByPath } from "./source.js";

export { RFError };

/** @typedef {{onEvent: (event: any) => void, resolve: (value: any) => void, reject: (error: unknown) => void}} Waiting */

/** Calls into one worker, and what comes back. */
class Channel {
  #next = 1;
  #waiting = /** @type {Map<number, Waiting>} */ (new Map());
  #ended = /** @type {?Error} */ (null);
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });

  constructor() {
    this.#worker.onmessage = ({ data }) => this.#take(data);
    this.#worker.onerror = ({ message }) => {
      this.end(new RFError(`The worker that draws cannot go on (${message || "it did not start"}). Load the page again.`, "missing"));
    };
  }

  /** @param {any} message */
  #take({ id, event, result, error }) {
    const call = this.#waiting.get(id);
    if (!call) return;
    if (event) return call.onEvent(event);
    this.#waiting.delete(id);
    if (!error) return call.resolve(result);
    const { name, message, kind, stack } = error;
    if (name === "RFError") call.reject(new RFError(message, kind));
    else call.reject(name === "AbortError" ? new DOMException(message, name) : Object.assign(new Error(message), { name, stack }));
  }

  /** Everything that still waits has failed. @param {Error} error */
  end(error) {
    this.#ended ??= error;
    this.#worker.terminate();
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  /**
   * @param {number} target @param {string} method @param {any[]} args @param {AbortSignal} [signal] @param {(event: any) => void} [onEvent]
   * @returns {{id: number, done: Promise<any>}}
   */
  call(target, method, args, signal, onEvent = () => {}) {
    const id = this.#next++, abort = () => this.abort(id);
    if (signal?.aborted || this.#ended) return { id, done: Promise.reject(signal?.aborted ? signal.reason : this.#ended) };
    const done = new Promise((resolve, reject) => this.#waiting.set(id, { onEvent, resolve, reject }));
    signal?.addEventListener("abort", abort);
    this.#worker.postMessage({ id, target, method, args });
    const told = done.catch((error) => {
      throw signal?.aborted ? signal.reason : error;
    });
    return { id, done: told.finally(() => signal?.removeEventListener("abort", abort)) };
  }

  /** @param {number} id */
  abort(id) {
    this.#worker.postMessage({ id, abort: true });
  }

  /**
   * @param {number} target @param {string} method @param {any[]} args @param {AbortSignal} [signal]
   * @returns {AsyncGenerator<any>}
   */
  async *events(target, method, args, signal) {
    const queue = /** @type {any[]} */ ([]);
    let wake = () => {}, isDone = false, failure = /** @type {unknown} */ (null);
    const { id, done } = this.call(target, method, args, signal, (event) => (queue.push(event), wake()));
    done.catch((error) => (failure = error)).finally(() => (isDone = true, wake()));
    try {
      for (;;) {
        if (signal?.aborted) throw signal.reason; // events that are still on their way are of no use
        if (queue.length) {
          yield queue.shift();
          this.#worker.postMessage({ id, taken: true });
        } else if (failure) throw failure;
        else if (isDone) return;
        else await new Promise((resolve) => (wake = () => resolve(undefined)));
      }
    } finally {
      if (!isDone) {
        this.abort(id);
        await done.catch(() => {}); // until what runs has ended: then all is as it was before
      }
    }
  }
}

/** See pipeline.js. */
export class Pipeline {
  #channel;
  #id;

  /** @param {Channel} channel @param {number} id @param {import("./pipeline.js").Pipeline["info"]} info */
  constructor(channel, id, info) {
    this.#channel = channel, this.#id = id, this.info = info;
  }

  /**
   * @param {import("./plans.js").DrawOptions} [options]
   * @returns {Promise<ReturnType<import("./pipeline.js").Pipeline["measure"]>>}
   */
  measure(options = {}) {
    return this.#channel.call(this.#id, "measure", [options]).done;
  }

  /** @returns {Promise<void>} */
  warmUp() {
    return this.#channel.call(this.#id, "warmUp", []).done;
  }

  /** @param {string} text @returns {Promise<number[]>} */
  tokenize(text) {
    return this.#channel.call(this.#id, "tokenize", [text]).done;
  }

  /** @param {readonly number[]} ids @returns {Promise<string>} */
  detokenize(ids) {
    return this.#channel.call(this.#id, "detokenize", [ids]).done;
  }

  /**
   * @param {import("./request.js").DrawRequest} request
   * @param {{signal?: AbortSignal, previews?: boolean|number}} [how] @returns {AsyncGenerator<DrawEvent>}
   */
  draw(request, { signal, ...how } = {}) {
    return this.#channel.events(this.#id, "draw", [request, how], signal);
  }

  /** @returns {Promise<Conversation>} */
  async converse() {
    const { id, done } = this.#channel.call(this.#id, "converse", []);
    await done;
    return new Conversation(this.#channel, id);
  }

  /** Ends the worker, and all that runs in it. */
  async close() {
    this.#channel.end(new RFError("This pipeline was closed. Open the bundle again: openBundle."));
  }
}

/** See conversation.js. */
export class Conversation {
  #channel;
  #id;

  /** @param {Channel} channel @param {number} id */
  constructor(channel, id) {
    this.#channel = channel, this.#id = id;
  }

  /** @returns {Promise<number>} */
  get length() {
    return this.#channel.call(this.#id, "get", ["length"]).done;
  }

  /** @returns {Promise<number>} */
  get numRead() {
    return this.#channel.call(this.#id, "get", ["numRead"]).done;
  }

  /**
   * @param {import("./pictures.js").Picture} picture @param {{height?: number, width?: number}} [size]
   * @returns {Promise<void>}
   */
  show({ rgb, rgba, data, height, width }, size) { // ImageData, an event: whatever else they hold stays here
    return this.#channel.call(this.#id, "show", [{ rgb, rgba, data, height, width }, size]).done;
  }

  /** @param {string|readonly number[]} text @returns {Promise<void>} */
  say(text) {
    return this.#channel.call(this.#id, "say", [text]).done;
  }

  /**
   * @param {string} [question] @param {import("./conversation.js").AskOptions} [options]
   * @param {{signal?: AbortSignal}} [how] @returns {AsyncGenerator<AskEvent>}
   */
  ask(question = "", options = {}, { signal } = {}) {
    return this.#channel.events(this.#id, "ask", [question, options], signal);
  }

  /** @param {number} length @returns {Promise<void>} */
  rewind(length) {
    return this.#channel.call(this.#id, "rewind", [length]).done;
  }

  /** Forget it: what it has read takes memory. @returns {Promise<void>} */
  close() {
    return this.#channel.call(this.#id, "close", []).done;
  }
}

/**
 * Open a bundle in a worker of its own; see `Pipeline.open` of pipeline.js. `ort` is the address of the module here.
 *
 * @param {import("./source.js").Place} place @param {OpenOptions} [options] @returns {Promise<Pipeline>}
 */
export async function openBundle(place, { signal, onProgress, ort, wasmPaths, ...options } = {}) {
  const absolute = (/** @type {string|URL|undefined} */ url) => url && new URL(url, location.href).href; // the worker lies elsewhere
  const isList = typeof place === "object" && "length" in place; // its paths would not come along
  const where = typeof place === "string" || place instanceof URL ? absolute(place) : isList ? filesByPath(place) : place;
  const channel = new Channel();
  const files = typeof wasmPaths === "object" ? wasmPaths : absolute(wasmPaths);
  const given = { ...options, ort: absolute(ort), wasmPaths: files, onProgress: Boolean(onProgress) };
  try {
    const { id, done } = channel.call(0, "open", [where, given], signal, onProgress);
    return new Pipeline(channel, id, await done);
  } catch (error) {
    channel.end(error);
    throw error;
  }
}
