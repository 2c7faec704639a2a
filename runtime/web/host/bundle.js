/**
 * A bundle, opened: its manifest is checked in full, and size and SHA-256 of every file that is read.
 *
 * See runtime/bundle/folder.py and verdict.py. Knows nothing of graphs beyond their entries in the manifest. Files that
 * nobody reads are not looked at: over a network that would cost more than it tells.
 */

import { RFError } from "./errors.js";
import { parseJson } from "./json.js";
import { readManifest } from "./manifest.js";
import { sha256, sha256Of } from "./sha256.js";
import { GRAPHS, PRECISIONS, inWords } from "./signature.js";

const MANIFEST = "manifest.json", MAX_MANIFEST_BYTES = 16 << 20, MAX_TOKENIZER_BYTES = 64 << 20;
const LFS_START = "version https://git-lfs.github.com/spec/"; // of the pointer files of git-lfs
const ANYWAY =
  "To use it anyway, generate, understand, tokens, bench and build-engine take --allow-unverified (Pipeline.load: allow_unverified=True).";

/** @typedef {import("./signature.js").Variant} Variant */

/** @typedef {import("./manifest.js").GraphEntry} GraphEntry */

/** @typedef {(progress: {file: string, loaded: number, total: number}) => void} OnProgress */

export class Bundle {
  /** @param {import("./source.js").Source} source @param {import("./manifest.js").Manifest} manifest */
  constructor(source, manifest) {
    this.source = source, this.manifest = manifest;
  }

  /**
   * Raises RFError where it is no bundle, damaged, or needs what nobody knows here.
   *
   * @param {import("./source.js").Source} source @param {AbortSignal} [signal]
   */
  static async open(source, signal) {
    const where = `${source.name}/${MANIFEST}`, manifest = await orAnew(source, async (anew) => {
      const content = await source.read(MANIFEST, MAX_MANIFEST_BYTES, { signal, anew }).catch((error) => {
        if (error.kind !== "damaged") throw error;
        throw new RFError(`${source.name} has no ${MANIFEST}, so it is not a bundle. Make one with: rf-export export`);
      });
      if (content.length > MAX_MANIFEST_BYTES) {
        throw new RFError(
          `${where} has more than ${MAX_MANIFEST_BYTES} bytes, and at most ${MAX_MANIFEST_BYTES} are read. It is no ` +
            "such file.",
          "damaged",
        );
      }
      refuseLfsPointer(content, where);
      return readManifest(parseJson(content, where), where);
    });
    if (manifest.requires.length) {
      throw new RFError(
        `${source.name} requires what this rf-export does not know: ${manifest.requires.join(", ")}. Install a ` +
          "newer one.",
        "mismatch",
      );
    }
    return new Bundle(source, manifest);
  }

  /** The precision to draw with where nobody says one: what is half as large and draws the same tokens, where it is there. */
  get defaultPrecision() {
    const isWhole = (/** @type {string} */ precision) => GRAPHS.every((name) => this.#find(name, { precision, dialect: "classic" }));
    return ["fp16", ...PRECISIONS].find(isWhole) ?? "fp32";
  }

  /** @param {import("./signature.js").GraphName} name @param {Variant} variant */
  #find(name, { precision, dialect }) {
    return this.manifest.graphs.find((graph) => graph.name === name && graph.precision === precision && graph.dialect === dialect);
  }

  /**
   * The entry of a graph; raises RFError saying what there is.
   *
   * @param {import("./signature.js").GraphName} name @param {Variant} variant @returns {GraphEntry}
   */
  graph(name, variant) {
    const graph = this.#find(name, variant);
    if (graph) return graph;
    const there = [...new Set(this.manifest.graphs.filter((each) => each.name === name).map(inWords))].sort().join(", ") || "none";
    const target = variant.precision === "int8" ? "" : " --target tensorrt";
    const remedy = variant.precision.startsWith("int8")
      ? `make the graphs with: rf-export calibrate ${this.source.name} --prompts FILE${target}`
      : "export the bundle again with the precision that you need";
    throw new RFError(
      `${this.source.name} has no ${name} in ${inWords(variant)}; it has ${there}. Choose one of these, or ${remedy}.`,
    );
  }

  /** Raises RFError where the graphs failed a verification or nobody verified them. @param {Variant} variant */
  requireVerified(variant) {
    const [verdict, reason] = this.#verdict(variant), { name } = this.source;
    if (verdict === "passed") return;
    const found = verdict === "failed" ? "failed verification" : "may not be right";
    throw new RFError(
      `The ${inWords(variant)} graphs of ${name} ${found}: ${reason}. Verify with: rf-export verify ${name} ` +
        `--checkpoint CHECKPOINT. ${ANYWAY}`,
    );
  }

  /** @param {Variant} variant @returns {[string, string]} */
  #verdict(variant) {
    const record = this.manifest.verified[variant.dialect === "modern" ? `${variant.precision}.modern` : variant.precision];
    if (!record) return ["unverified", "nobody verified them"];
    const hashes = Object.hasOwn(record, "graphs") ? record.graphs : {};
    if (hashes === null || typeof hashes !== "object" || Array.isArray(hashes)) return ["unverified", "the verdict on them is damaged"];
    for (const name of GRAPHS) {
      const known = hashes[name] ?? null, graph = this.#find(name, variant);
      if (known === null || !graph) continue;
      const lines = [graph.file, ...graph.weights].map((file) => `${this.manifest.files[file].sha256} ${file}\n`);
      if (known !== sha256(lines.join(""))) return ["unverified", `${name} is another one than the one that was verified`];
    }
    const verdict = Object.hasOwn(record, "verdict") ? record.verdict : record.passed ?? true ? "passed" : "failed";
    if (verdict === "passed") return ["passed", ""];
    if (verdict === "failed") return ["failed", String(record.first_failure || "they do not agree with their reference")];
    return ["unverified", String(record.reason || "their reference is not verified")];
  }

  /**
   * The content of files, each checked; raises RFError naming the first that is missing or differs.
   *
   * @param {readonly string[]} names @param {OnProgress} [onProgress] @param {AbortSignal} [signal]
   * @returns {Promise<Map<string, Uint8Array<ArrayBuffer>>>}
   */
  async read(names, onProgress, signal) {
    const { files } = this.manifest, loaded = new Map(names.map((name) => [name, 0]));
    const total = [...loaded.keys()].reduce((sum, name) => sum + files[name].size, 0);
    const read = await Promise.all([...loaded.keys()].map((name) => orAnew(this.source, async (anew) => {
      loaded.set(name, 0);
      const onBytes = (/** @type {number} */ bytes) => {
        loaded.set(name, /** @type {number} */ (loaded.get(name)) + bytes);
        onProgress?.({ file: name, loaded: [...loaded.values()].reduce((sum, each) => sum + each), total });
      };
      return /** @type {[string, Uint8Array<ArrayBuffer>]} */ ([name, await this.#readOne(name, { onBytes, signal, anew })]);
    })));
    return new Map(read);
  }

  /** @param {string} name @param {import("./source.js").How} how */
  async #readOne(name, how) {
    const { files, tokenizer } = this.manifest, { size, sha256: hash } = files[name], path = `${this.source.name}/${name}`;
    if (name === tokenizer.file && size > MAX_TOKENIZER_BYTES) {
      throw new RFError(
        `${path} has ${size} bytes, and at most ${MAX_TOKENIZER_BYTES} are read. It is no such file.`,
        "damaged",
      );
    }
    const content = await this.source.read(name, size, how);
    if (content.length !== size) {
      refuseLfsPointer(content, path);
      const found = content.length > size ? `more than ${size}` : content.length;
      throw new RFError(
        `${path} has ${found} bytes and ${size} are expected: it is damaged or was cut off. Copy it again, or ` +
          "make it again.",
        "damaged",
      );
    }
    if ((await sha256Of(content)) !== hash) {
      throw new RFError(
        `${path} differs from what was written (sha256): it is damaged or was changed. Copy it again, or make it ` +
          "again.",
        "damaged",
      );
    }
    return content;
  }
}

/**
 * What is kept on the way may be damaged: where a reading fails, the place itself is asked once more.
 *
 * @template T @param {import("./source.js").Source} source @param {(anew: boolean) => Promise<T>} read @returns {Promise<T>}
 */
function orAnew(source, read) {
  return read(false).catch((error) => {
    if (!source.isKept || !(error instanceof RFError)) throw error;
    return read(true);
  });
}

/** @param {Uint8Array} content @param {string} path */
function refuseLfsPointer(content, path) {
  if (new TextDecoder().decode(content.subarray(0, LFS_START.length)) === LFS_START) {
    throw new RFError(`${path} is a pointer of git-lfs, not the file itself. Fetch it with: git lfs pull`, "damaged");
  }
}
