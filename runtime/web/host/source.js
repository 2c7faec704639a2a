/**
 * Where the files of a bundle come from: a site, a folder that the user opened, or files that were chosen.
 *
 * Knows nothing of what is in them. A source has a name for messages, and reads a file of at most so many bytes.
 *
 * @typedef {object} Source
 * @property {string} name
 * @property {boolean} isKept Whether something between keeps files, which it may damage: the browser, a service worker.
 * @property {(file: string, most: number, how: How) => Promise<Uint8Array<ArrayBuffer>>} read
 *   One byte more than `most` where the file is larger. Raises RFError where it is missing.
 *
 * @typedef {object} How
 * @property {(bytes: number) => void} [onBytes]
 * @property {AbortSignal} [signal]
 * @property {boolean} [anew] Past all that is kept.
 */

import { RFError } from "./errors.js";

/** @typedef {string|URL|FileSystemDirectoryHandle|FileList|File[]|Map<string, File>} Place */

/** @param {Place} place @returns {Source} */
export function sourceOf(place) {
  if (typeof place === "string" || place instanceof URL) return siteSource(place);
  if ("getDirectoryHandle" in place) return folderSource(place);
  if (place instanceof Map || typeof place.length === "number") return filesSource(place instanceof Map ? place : filesByPath(place));
  throw new RFError("A bundle is opened from the address of its folder, from a folder that the user chose, or from its files.");
}

/** @param {string} path */
const missing = (path) => new RFError(`${path} is missing: the folder is incomplete. Copy it again, or make it again.`, "damaged");

/** @param {string|URL} base @returns {Source} */
function siteSource(base) {
  const url = new URL(base, globalThis.location?.href);
  url.search = url.hash = "";
  const name = url.href.replace(/\/+$/, "");
  return {
    name,
    isKept: true,
    async read(file, most, { onBytes, signal, anew }) {
      const path = `${name}/${file}`, address = `${name}/${file.split("/").map(encodeURIComponent).join("/")}`;
      let answer;
      try {
        answer = await fetch(address, { signal, cache: anew ? "reload" : "no-cache" }); // an older file is a damaged one
      } catch (error) {
        if (signal?.aborted) throw error;
        throw new RFError(`${path} cannot be reached. Open the page again where there is a network.`, "missing");
      }
      if (answer.status === 404) throw missing(path);
      if (!answer.ok) {
        throw new RFError(
          `${path} cannot be read: the site answered with status ${answer.status}. Try it again.`,
          "missing",
        );
      }
      return collect(/** @type {ReadableStream<Uint8Array>} */ (answer.body), most, path, onBytes, signal);
    },
  };
}

/** @param {FileSystemDirectoryHandle} root @returns {Source} */
function folderSource(root) {
  return {
    name: root.name,
    isKept: false,
    async read(file, most, { onBytes, signal }) {
      const parts = file.split("/"), last = /** @type {string} */ (parts.pop());
      let found;
      try {
        let folder = root;
        for (const part of parts) folder = await folder.getDirectoryHandle(part);
        found = await (await folder.getFileHandle(last)).getFile();
      } catch (error) {
        if (!["NotFoundError", "TypeMismatchError", "TypeError"].includes(error.name)) throw error;
        throw missing(`${root.name}/${file}`);
      }
      return collect(found.stream(), most, `${root.name}/${file}`, onBytes, signal);
    },
  };
}

/**
 * Files of an <input webkitdirectory> by their paths in its folder, or others by their names.
 *
 * @param {FileList|File[]} files
 */
export function filesByPath(files) {
  return new Map(Array.from(files, (file) => [file.webkitRelativePath.slice(file.webkitRelativePath.indexOf("/") + 1) || file.name, file]));
}

/** @param {Map<string, File>} files @returns {Source} */
function filesSource(files) {
  const name = "the chosen folder";
  return {
    name,
    isKept: false,
    async read(file, most, { onBytes, signal }) {
      const found = files.get(file);
      if (!found) throw missing(`${name}/${file}`);
      return collect(found.stream(), most, `${name}/${file}`, onBytes, signal);
    },
  };
}

/**
 * @param {ReadableStream<Uint8Array>} stream @param {number} most @param {string} path
 * @param {((bytes: number) => void)=} onBytes @param {AbortSignal=} signal
 */
async function collect(stream, most, path, onBytes, signal) {
  let bytes = new Uint8Array(Math.min(most + 1, 1 << 20)), size = 0;
  const reader = stream.getReader();
  const read = () => reader.read().catch((error) => {
    throw signal?.aborted ? error : new RFError(`${path} cannot be read to its end (${error.message}). Try it again.`, "missing");
  });
  try {
    for (let next = await read(); !next.done && size <= most; next = await read()) {
      signal?.throwIfAborted();
      const piece = next.value.subarray(0, most + 1 - size);
      if (size + piece.length > bytes.length) { // grows with what comes, not with what a manifest says
        const larger = new Uint8Array(Math.min(most + 1, Math.max(2 * bytes.length, size + piece.length)));
        larger.set(bytes);
        bytes = larger;
      }
      bytes.set(piece, size);
      size += piece.length;
      onBytes?.(piece.length);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  return bytes.subarray(0, size);
}
