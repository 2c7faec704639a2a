/**
 * onnxruntime-web: loads it, opens graphs, and makes tensors. The only part that knows the library.
 *
 * float16 is carried as its bits (Uint16Array): nothing is computed with it here, and not every browser has Float16Array.
 *
 * @typedef {{dims: readonly number[], dtype: string, data: Float32Array|Uint16Array|number[]}} Value int64 as numbers.
 * @typedef {Record<string, Value>} Values
 */

/** The part of onnxruntime-web's API that is used here. @typedef {any} Ort */

import { RFError } from "./errors.js";

export const DEFAULT_ORT = new URL("./ort/ort.wasm.min.mjs", import.meta.url);

/**
 * The library, started: WebAssembly is compiled and its threads are there.
 *
 * @param {Ort|string|URL} ort The module, or where it lies.
 * @param {{numThreads: number, wasmPaths?: string|{wasm?: string, mjs?: string}, provider: string}} options
 * @returns {Promise<Ort>}
 */
export async function loadOrt(ort, { numThreads, wasmPaths, provider }) {
  const isPlace = typeof ort === "string" || ort instanceof URL;
  const url = isPlace ? new URL(ort, import.meta.url).href : null;
  let module;
  try {
    module = url ? await import(url) : ort;
  } catch (error) {
    throw new RFError(
      `onnxruntime-web cannot be loaded from ${url} (${error.message}). Put its files there, or name their place: ` +
        "ort.",
      "missing",
    );
  }
  const library = module.InferenceSession ? module : module.default;
  library.env.wasm.numThreads = numThreads;
  library.env.wasm.wasmPaths = wasmPaths ?? (url && new URL(".", url).href) ?? library.env.wasm.wasmPaths;
  library.env.logLevel = "error";
  // It starts with the first graph and not before; this one is empty, and refused then.
  const started = library.InferenceSession.create(new Uint8Array(0), { executionProviders: [provider], logSeverityLevel: 4 });
  await started.catch((/** @type {Error} */ { message }) => {
    if (!message.includes("no available backend")) return;
    throw new RFError(
      `onnxruntime-web ${versionOf(library)} does not start (${message}). Load the page again; where that does not ` +
        "help, take a newer browser.",
      "missing",
    );
  });
  return library;
}

/** @param {Ort} ort */
export const versionOf = (ort) => ort.env.versions.web ?? ort.env.versions.common;

/** @param {readonly number[]|Float32Array} values @param {readonly number[]} [dims] @returns {Value} */
export const floats = (values, dims = [values.length]) => {
  const data = values instanceof Float32Array ? values : Float32Array.from(values);
  return { dtype: "float32", dims, data };
};

/** @param {number[]} values @param {readonly number[]} [dims] @returns {Value} */
export const ints = (values, dims = [values.length]) => ({ dtype: "int64", dims, data: values });

/** A loaded graph. */
export class Session {
  #ort;
  #session;

  /** @param {Ort} ort @param {any} session @param {string} where */
  constructor(ort, session, where) {
    this.#ort = ort;
    this.#session = session;
    this.where = where;
  }

  /**
   * @param {Ort} ort @param {Uint8Array} graph
   * @param {{path: string, data: Uint8Array}[]} weights Under the paths that the graph has for them.
   * @param {{provider: string, where: string, foldsWeights: boolean}} options Whether INT8 weights become floats once.
   */
  static async open(ort, graph, weights, { provider, where, foldsWeights }) {
    try {
      const session = await ort.InferenceSession.create(graph, {
        executionProviders: [provider],
        graphOptimizationLevel: "all",
        logSeverityLevel: 3,
        externalData: weights,
        extra: { session: { qdq_matmulnbits_accuracy_level: "4", disable_quant_qdq: foldsWeights ? "1" : "0" } },
      });
      return new Session(ort, session, where);
    } catch (error) {
      throw new RFError(
        `${where} cannot be loaded by onnxruntime-web ${versionOf(ort)} (${error.message}). Export the bundle ` +
          "again, or take another precision.",
        "mismatch",
      );
    }
  }

  /** Inputs and outputs as the library tells them. @returns {import("./signature.js").Signature} */
  get signature() {
    const specs = (/** @type {{name: string, type: string, shape: (number|string)[]}[]} */ all) =>
      all.map(({ name, type, shape }) => ({ name, dtype: type, shape: shape.map((size) => size || "?") }));
    return { inputs: specs(this.#session.inputMetadata), outputs: specs(this.#session.outputMetadata) };
  }

  /** @param {Values} inputs @param {string[]} names Of the outputs that are wanted. @returns {Promise<Values>} */
  async run(inputs, names) {
    const feeds = Object.fromEntries(
      Object.entries(inputs).map(([name, { dtype, dims, data }]) => [
        name,
        new this.#ort.Tensor(dtype, dtype === "int64" ? BigInt64Array.from(/** @type {number[]} */ (data), BigInt) : data, dims),
      ]),
    );
    const outputs = await this.#session.run(feeds, names, { logSeverityLevel: 3 });
    return Object.fromEntries(names.map((name) => [name, valueOf(outputs[name])]));
  }

  close() {
    return this.#session.release();
  }
}

/** @param {any} tensor @returns {Value} */
function valueOf({ type, dims, data }) {
  if (type === "int64") return { dtype: type, dims, data: Array.from(data, Number) };
  const Kind = type === "float16" ? Uint16Array : Float32Array;
  return { dtype: type, dims, data: data instanceof Kind ? data : new Kind(data.buffer, data.byteOffset, data.length) };
}

/** Whether all numbers of a tensor are finite. @param {Value} value */
export const isFinite = ({ dtype, data }) =>
  dtype === "float16" ? data.every((/** @type {number} */ bits) => (bits & 0x7c00) !== 0x7c00) : data.every(Number.isFinite);
