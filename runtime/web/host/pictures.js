/**
 * Pictures of 8 bits and the numbers that graphs read and write; any size fitted into the model's, as Pillow does it.
 *
 * See runtime/pictures/load.py: a picture is laid on white where it is transparent, made smaller or larger until it fits
 * (Lanczos, 3 lobes), and padded with white. Knows nothing of models but the size.
 *
 * @typedef {{height: number, width: number, rgb?: ArrayLike<number>, rgba?: ArrayLike<number>, data?: ArrayLike<number>}} Picture
 *   `data` is RGBA, as ImageData has it.
 * @typedef {{height: number, width: number, rgb: Uint8Array|Uint8ClampedArray}} Rgb
 */

import { RFError, told } from "./errors.js";

/**
 * Pixels [3, H, W] from -1 to 1 as RGBA from 0 to 255, rounded to the nearest, half to even.
 *
 * @param {Float32Array} pixels
 */
export function toRgba(pixels) {
  const size = pixels.length / 3, rgba = new Uint8ClampedArray(4 * size).fill(255); // it clamps and rounds as NumPy does
  for (let colour = 0; colour < 3; ++colour) {
    for (let i = 0; i < size; ++i) rgba[4 * i + colour] = Math.fround(Math.fround(pixels[colour * size + i] + 1) * 127.5);
  }
  return rgba;
}

/**
 * What vision_encoder reads, [3, height, width].
 *
 * @param {Picture} picture @param {number} height @param {number} width
 */
export function loadPixels(picture, height, width) {
  const { rgb } = fit(asRgb(picture), height, width), size = height * width, pixels = new Float32Array(3 * size);
  for (let i = 0; i < size; ++i) {
    for (let colour = 0; colour < 3; ++colour) pixels[colour * size + i] = Math.fround(rgb[3 * i + colour] / 127.5) - 1;
  }
  return pixels;
}

/** @param {Picture} picture @returns {Rgb} */
function asRgb({ height, width, rgb, rgba, data }) {
  const given = rgb ?? rgba ?? data, channels = rgb ? 3 : 4, size = height * width;
  if (!(Number.isInteger(size) && size > 0 && given?.length === channels * size)) {
    throw new RFError(
      "A picture must be {rgb, height, " +
        `width} or {rgba, height, width} with 3 or 4 numbers per pixel, got ${told(given?.length ?? null)} for ${told(height)} x ${told(width)}.`,
    );
  }
  if (rgb) return { height, width, rgb: Uint8Array.from(rgb) };
  const out = new Uint8Array(3 * size);
  for (let i = 0; i < size; ++i) {
    const alpha = given[4 * i + 3];
    for (let colour = 0; colour < 3; ++colour) out[3 * i + colour] = blend(given[4 * i + colour], 255, alpha);
  }
  return { height, width, rgb: out };
}

/** @param {number} above @param {number} below @param {number} alpha */
function blend(above, below, alpha) {
  const both = above * alpha + below * (255 - alpha) + 128;
  return ((both >> 8) + both) >> 8;
}

/**
 * The whole picture as large as fits, in the middle of white.
 *
 * @param {Rgb} picture @param {number} height @param {number} width @returns {Rgb}
 */
function fit(picture, height, width) {
  const scale = Math.min(height / picture.height, width / picture.width);
  const side = (/** @type {number} */ own, /** @type {number} */ most) => Math.min(Math.max(roundEven(own * scale), 1), most);
  const [wide, high] = [side(picture.width, width), side(picture.height, height)];
  const resized = wide === picture.width && high === picture.height ? picture : resize(picture, high, wide);
  if (wide === width && high === height) return resized;
  const ground = { height, width, rgb: new Uint8Array(3 * height * width).fill(255) };
  const left = Math.floor((width - wide) / 2), top = Math.floor((height - high) / 2);
  for (let y = 0; y < high; ++y) ground.rgb.set(resized.rgb.subarray(3 * y * wide, 3 * (y + 1) * wide), 3 * ((top + y) * width + left));
  return ground;
}

/** @param {number} value */
function roundEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2) ? floor + 1 : floor;
}

/**
 * Image.resize with LANCZOS and reducing_gap=3.
 *
 * @param {Rgb} picture @param {number} height @param {number} width @returns {Rgb}
 */
function resize(picture, height, width) {
  const factorX = Math.floor(picture.width / width / 3) || 1, factorY = Math.floor(picture.height / height / 3) || 1;
  const box = { width: picture.width / factorX, height: picture.height / factorY };
  const reduced = factorX > 1 || factorY > 1 ? reduce(picture, factorY, factorX) : picture;
  return resampled(resampled(reduced, width, box.width, true), height, box.height, false);
}

/**
 * The mean of each block of pixels; those at the right and at the bottom may be smaller.
 *
 * @param {Rgb} picture @param {number} high @param {number} wide @returns {Rgb}
 */
function reduce({ height, width, rgb }, high, wide) {
  const rows = Math.ceil(height / high), columns = Math.ceil(width / wide), out = new Uint8Array(3 * rows * columns);
  for (let y = 0; y < rows; ++y) {
    for (let x = 0; x < columns; ++x) {
      const bottom = Math.min((y + 1) * high, height), right = Math.min((x + 1) * wide, width);
      const count = (bottom - y * high) * (right - x * wide);
      const share = Math.trunc(Math.fround(2 ** 24 / count)); // as Pillow divides
      for (let colour = 0; colour < 3; ++colour) {
        let sum = Math.floor(count / 2);
        for (let row = y * high; row < bottom; ++row) {
          for (let column = x * wide; column < right; ++column) sum += rgb[3 * (row * width + column) + colour];
        }
        out[3 * (y * columns + x) + colour] = Math.floor((sum * share) / 2 ** 24);
      }
    }
  }
  return { height: rows, width: columns, rgb: out };
}

const BITS = 22; // of a weight behind the point

/** @param {number} x */
const sinc = (x) => (x ? Math.sin(x * Math.PI) / (x * Math.PI) : 1);
/** @param {number} x */
const lanczos = (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0);

/**
 * For each pixel of the result its first source pixel, and whole weights.
 *
 * @param {number} sizeIn @param {number} box @param {number} sizeOut
 */
function weightsOf(sizeIn, box, sizeOut) {
  const scale = box / sizeOut, stretch = Math.max(scale, 1), support = 3 * stretch;
  return Array.from({ length: sizeOut }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0), end = Math.min(Math.trunc(centre + support + 0.5), sizeIn);
    const own = Array.from({ length: end - first }, (_, place) => lanczos((place + first - centre + 0.5) * (1 / stretch)));
    const sum = own.reduce((a, b) => a + b, 0), shares = own.map((weight) => (sum ? weight / sum : weight));
    return { first, weights: shares.map((share) => Math.trunc(share * 2 ** BITS + (share < 0 ? -0.5 : 0.5))) };
  });
}

/**
 * One direction of a resampling.
 *
 * @param {Rgb} picture @param {number} size @param {number} box @param {boolean} isWide @returns {Rgb}
 */
function resampled(picture, size, box, isWide) {
  const { height, width, rgb } = picture, own = isWide ? width : height;
  if (size === own && box === own) return picture;
  const lines = isWide ? height : width, weights = weightsOf(own, box, size), out = new Uint8ClampedArray(3 * lines * size);
  const place = (/** @type {number} */ line, /** @type {number} */ at, /** @type {number} */ length) =>
    3 * (isWide ? line * length + at : at * lines + line);
  for (let line = 0; line < lines; ++line) {
    for (let at = 0; at < size; ++at) {
      const { first, weights: all } = weights[at], to = place(line, at, size);
      for (let colour = 0; colour < 3; ++colour) {
        let sum = 1 << (BITS - 1);
        for (let i = 0; i < all.length; ++i) sum += rgb[place(line, first + i, own) + colour] * all[i];
        out[to + colour] = sum >> BITS;
      }
    }
  }
  return isWide ? { height, width: size, rgb: out } : { height: size, width, rgb: out };
}
