/** Runs pipelines for client.js: a message is a call, and each event and result is a message. Knows nothing of drawing. */

import { RFError } from "./errors.js";
import { openBundle } from "./rf.js";

/** @typedef {{id: number, target: number, method: string, args: any[]}} Call */

/**
 * What runs: how it is given up, and how many of its events nobody has taken yet.
 *
 * @typedef {{controller: AbortController, ahead: number, wake: () => void}} Running
 */

const targets = /** @type {Map<number, any>} */ (new Map()), running = /** @type {Map<number, Running>} */ (new Map());
/** @type {(message: any, transfer?: Transferable[]) => void} */
const post = (message, transfer = []) => globalThis.postMessage(message, { transfer });

/**
 * Arrays of an event are the receiver's own: they are handed over and not copied.
 *
 * @param {Record<string, any>} event
 */
const buffersOf = (event) => [...new Set(Object.values(event).filter(ArrayBuffer.isView).map((array) => array.buffer))];

/** @param {Call} call @param {Running} own */
async function run({ id, target, method, args }, own) {
  const { signal } = own.controller;
  if (method === "open") {
    const [place, options] = args, onProgress = (/** @type {any} */ event) => post({ id, event });
    const pipeline = await openBundle(place, { ...options, signal, onProgress: options.onProgress ? onProgress : undefined });
    targets.set(id, pipeline);
    return pipeline.info;
  }
  const object = targets.get(target);
  if (!object) throw new RFError("This was closed. Open it again.");
  if (method === "close") {
    targets.delete(target);
    return object.close?.();
  }
  if (method === "get") return object[args[0]];
  if (method === "converse") return void targets.set(id, object.converse());
  if (method !== "draw" && method !== "ask") return object[method](...args);
  const [first, options, how] = method === "draw" ? [args[0], args[1]] : args;
  const events = method === "draw" ? object.draw(first, { ...options, signal }) : object.ask(first, options, { ...how, signal });
  // A drawing is a little ahead of who looks at it; an answer is not, since whoever leaves it has to find things as they were.
  const most = method === "draw" ? 3 : 0;
  for await (const event of events) {
    post({ id, event }, buffersOf(event));
    for (++own.ahead; own.ahead > most; ) {
      await new Promise((resolve) => (own.wake = () => resolve(undefined)));
      signal.throwIfAborted();
    }
  }
}

onmessage = async ({ data }) => {
  const now = running.get(data.id);
  if (now && "taken" in data) return --now.ahead, now.wake();
  if (now && "abort" in data) return now.controller.abort(), now.wake();
  if (!data.method) return; // it has ended meanwhile
  const own = { controller: new AbortController(), ahead: 0, wake: () => {} };
  running.set(data.id, own);
  try {
    post({ id: data.id, result: await run(data, own) });
  } catch (error) {
    post({ id: data.id, error: { name: error.name, message: error.message, kind: error.kind, stack: error.stack } });
  } finally {
    running.delete(data.id);
  }
};
