/**
 * Counter-based random numbers: the same noise from the same seed as on every other host; see runtime/noise.py.
 *
 * Knows nothing of models: a (seed, stage, step) in, numbers out. Philox4x64-10 with the key [seed, stage << 32 | step].
 */

export const STAGES = /** @type {const} */ ({ representation: 0, pixels: 1, text: 2 });
export const MAX_SEED = (1n << 64n) - 1n;

/**
 * Uniform numbers in (0, 1): [size] float64.
 *
 * @param {bigint} seed @param {number} stage @param {number} step @param {number} size
 */
function uniform(seed, stage, step, size) {
  const values = new Float64Array(size), keys = [];
  let one = seed, other = (BigInt(stage) << 32n) | BigInt(step);
  for (let round = 0; round < 10; ++round) {
    keys.push([one, other]);
    one = BigInt.asUintN(64, one + 0x9e3779b97f4a7c15n), other = BigInt.asUintN(64, other + 0xbb67ae8584caa73bn);
  }
  for (let at = 0, counter = 1n; at < size; at += 4, ++counter) { // 2**66 numbers need the lowest 64 bits of its 256
    let a = counter, b = 0n, c = 0n, d = 0n;
    for (const [k, l] of keys) {
      const p = 0xd2e7470ee14c6c93n * a, q = 0xca5a826395121157n * c;
      a = (q >> 64n) ^ b ^ k, b = BigInt.asUintN(64, q), c = (p >> 64n) ^ d ^ l, d = BigInt.asUintN(64, p);
    }
    values[at] = Number(a >> 11n);
    if (at + 1 < size) values[at + 1] = Number(b >> 11n);
    if (at + 2 < size) values[at + 2] = Number(c >> 11n);
    if (at + 3 < size) values[at + 3] = Number(d >> 11n);
  }
  return values.map((value) => Math.min((value + 0.5) * 2 ** -53, 1 - 2 ** -53)); // the largest number would round to 1
}

/**
 * Gumbel noise of one token, [size] float32.
 *
 * @param {bigint} seed @param {number} step @param {number} size @param {number} [stage]
 */
export function gumbel(seed, step, size, stage = STAGES.representation) {
  return new Float32Array(uniform(seed, stage, step, size).map((u) => -Math.log(-Math.log(u))));
}

/** The standard normal noise that a picture starts from, [size] float32. @param {bigint} seed @param {number} size */
export function normal(seed, size) {
  const u = uniform(seed, STAGES.pixels, 0, size + (size % 2)), values = new Float32Array(size);
  for (let i = 0; i < size; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(u[i])), angle = 2 * Math.PI * u[i + 1];
    values[i] = radius * Math.cos(angle);
    if (i + 1 < size) values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}
