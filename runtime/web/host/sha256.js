/** SHA-256: the browser's where it has one, else the one below. Knows nothing of files. */

/** @param {number} exponent The first 32 bits behind the point of roots of the first primes. @param {number} count */
function roots(exponent, count) {
  const found = [];
  for (let number = 2; found.length < count; ++number) {
    let isPrime = true;
    for (let each = 2; each * each <= number; ++each) isPrime &&= number % each !== 0;
    if (isPrime) found.push((number ** exponent % 1) * 2 ** 32);
  }
  return Uint32Array.from(found);
}

const START = roots(1 / 2, 8), ROUNDS = roots(1 / 3, 64);

/** @param {Uint8Array} bytes */
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** @param {Uint8Array|string} data @returns {string} 64 hexadecimal digits */
export function sha256(data) {
  const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
  const state = START.slice(), w = new Uint32Array(64), whole = bytes.length - (bytes.length % 64);
  const tail = new Uint8Array(bytes.length - whole < 56 ? 64 : 128);
  tail.set(bytes.subarray(whole));
  tail[bytes.length - whole] = 0x80;
  new DataView(tail.buffer).setBigUint64(tail.length - 8, BigInt(bytes.length) * 8n);
  for (const [part, size] of /** @type {[Uint8Array, number][]} */ ([[bytes, whole], [tail, tail.length]])) {
    const view = new DataView(part.buffer, part.byteOffset, size);
    for (let at = 0; at < size; at += 64) block(state, w, view, at);
  }
  const out = new DataView(new ArrayBuffer(32));
  state.forEach((word, index) => out.setUint32(4 * index, word));
  return hex(new Uint8Array(out.buffer));
}

/** @param {Uint32Array} state @param {Uint32Array} w @param {DataView} view @param {number} at */
function block(state, w, view, at) {
  const turn = (/** @type {number} */ x, /** @type {number} */ by) => (x >>> by) | (x << (32 - by));
  for (let i = 0; i < 16; ++i) w[i] = view.getUint32(at + 4 * i);
  for (let i = 16; i < 64; ++i) {
    const a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + w[i - 7] + (turn(a, 7) ^ turn(a, 18) ^ (a >>> 3)) + (turn(b, 17) ^ turn(b, 19) ^ (b >>> 10));
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; ++i) {
    const one = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i]) | 0;
    const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g, g = f, f = e, e = (d + one) | 0, d = c, c = b, b = a, a = (one + two) | 0;
  }
  [a, b, c, d, e, f, g, h].forEach((word, index) => (state[index] += word));
}

/**
 * The same of much data. A page that is not secure (http, not of this machine) has no crypto.subtle.
 *
 * @param {Uint8Array<ArrayBuffer>} bytes
 */
export async function sha256Of(bytes) {
  const subtle = globalThis.crypto?.subtle;
  return subtle ? hex(new Uint8Array(await subtle.digest("SHA-256", bytes))) : sha256(bytes);
}
