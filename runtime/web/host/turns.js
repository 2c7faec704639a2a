/** Lets others have their turn: what was posted to a worker is read between two pieces of work. Knows nothing of the work. */

const { port1, port2 } = new MessageChannel(), waiting = /** @type {(() => void)[]} */ ([]);
port1.onmessage = () => waiting.shift()?.();

/** A timer would wait for 4 ms. Raises what the signal was aborted with. @param {AbortSignal} [signal] */
export async function breathe(signal) {
  await new Promise((resolve) => {
    waiting.push(() => resolve(undefined));
    port2.postMessage(null);
  });
  signal?.throwIfAborted();
}
