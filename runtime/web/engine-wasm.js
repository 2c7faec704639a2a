/** The engine of the browser itself: a bundle beside the page, which a worker draws with. Knows nothing of the page. */

import { EngineError } from "./engine.js";
import { openBundle } from "./host/client.js";

const RELOADED = "rf-export reloaded"; // of the entry in the history: an isolated page has another session's storage
const PATIENCE = 60_000; // milliseconds for a service worker to take over

/** @returns {import("./engine.js").Engine} */
export function createEngine() {
  const { content, dataset } = document.querySelector("meta[name=bundle]");
  const base = new URL(content, document.baseURI), library = new URL(dataset.library, document.baseURI).href;
  let pipeline;

  async function info(onLoading) {
    await useServiceWorker();
    const others = Number(dataset.libraryBytes), all = Number(dataset.bytes) + others;
    try {
      await loadLibrary(library, (loaded) => onLoading(loaded, all));
      pipeline = await openBundle(base, {
        wasmPaths: { wasm: library },
        precision: dataset.precision,
        dialect: dataset.dialect,
        allowUnverified: dataset.unverified !== undefined,
        onProgress: ({ loaded, total }) => onLoading(loaded + others, total + others),
      });
    } catch (error) {
      navigator.serviceWorker?.controller?.postMessage("mend"); // should that be damaged which the page runs
      throw explained(error);
    }
    navigator.serviceWorker?.controller?.postMessage("keep all");
    const { model, sampling, tuned, answers, words, precision } = pipeline.info;
    const plans = {};
    for (const plan of tuned ? ["paper", "tuned"] : ["paper"]) {
      const { numSteps: steps } = await pipeline.measure({ plan });
      plans[plan] = { steps, guidance: (plan === "tuned" ? tuned.pix_guidance_scale : null) ?? sampling.pix_guidance_scale };
    }
    pipeline.warmUp().catch(() => {}); // while a prompt is typed; whatever fails is told when somebody draws
    const parameters = model.num_parameters / 1e6;
    return {
      about: `${+parameters.toPrecision(2)} M parameters, ${precision}, in your browser`,
      cell: 2 * model.patch_size,
      maxGrid: model.max_grid,
      maxTokens: model.max_positions - 2,
      width: model.default_width,
      height: model.default_height,
      maxSteps: 250,
      plans,
      answers,
      words,
    };
  }

  async function* draw(request, signal) {
    const { prompt, seed, plan, steps, guidance, width, height, tokens, edits } = request;
    const options = { plan, numSteps: steps, repGuidanceScale: guidance, pixGuidanceScale: guidance, width, height };
    const drawn = pipeline.draw({ prompt, seed, ...options, repIds: tokens?.rep_ids.flat(), edits }, { signal });
    for await (const event of explaining(drawn)) {
      const { type, step, numSteps } = event;
      if (type === "token") yield { type: "progress", stage: "tokens", step: step + 1, steps: numSteps, code: event.repId };
      else if (type === "step") {
        yield { type: "progress", stage: "pixels", step: step + 1, steps: numSteps };
        if (event.rgba) yield { type: "preview", step: step + 1, image: await png(event.rgba, width) };
      } else {
        const document = tokensOf(event);
        const { bundleId: bundle_id, precision, dialect } = pipeline.info;
        const chosen = { plan: { name: plan }, num_steps: steps, pix_guidance_scale: guidance, edits };
        const image = await png(event.rgba, event.width, { prompt, seed, bundle_id, precision, dialect, ...chosen, tokens: document });
        yield { type: "picture", image, tokens: document, seed: Number(event.seed) };
      }
    }
  }

  /** As runtime/pictures/token_file.py writes it. */
  function tokensOf({ prompt, seed, width, height, repIds }) {
    const { checkpoint, model } = pipeline.info, cell = 2 * model.patch_size, columns = width / cell, rows = height / cell;
    const rep_ids = Array.from({ length: rows }, (_, row) => repIds.slice(row * columns, (row + 1) * columns));
    const head = { format: "rf-export-tokens", format_version: 1, checkpoint: checkpoint.sha256, height, width, rows, columns };
    return { ...head, prompt, seed: Number(seed), rep_ids };
  }

  async function* ask(image, question, signal) {
    const conversation = await pipeline.converse();
    try {
      await conversation.show(await pixelsOf(image));
      for await (const event of conversation.ask(question, {}, { signal })) {
        if (event.type === "word" && event.text) yield { type: "word", text: event.text };
      }
    } catch (error) {
      throw explained(error);
    } finally {
      conversation.close();
    }
  }

  return { info, draw, ask };
}

const explained = (error) => (error.kind ? new EngineError(error.message, error.kind === "input" ? "input" : "failed") : error);

async function* explaining(events) {
  try {
    yield* events;
  } catch (error) {
    throw explained(error);
  }
}

/** Under a service worker of this site, which keeps what is loaded; the page begins anew where another one takes over. */
async function useServiceWorker() {
  const workers = navigator.serviceWorker; // not there where the address is not secure: then nothing is kept
  const registration = await workers?.register("service-worker.js").catch(() => null);
  const isAgain = history.state === RELOADED;
  if (isAgain) history.replaceState(null, "");
  if (!registration || isAgain || (workers.controller && !registration.waiting)) return;
  const worker = registration.waiting ?? registration.active ?? registration.installing;
  const hasChanged = await new Promise((resolve) => {
    workers.addEventListener("controllerchange", () => resolve(true), { once: true });
    worker.addEventListener("statechange", () => worker.state === "redundant" && resolve(false)); // it could not be installed
    setTimeout(resolve, PATIENCE);
    worker.postMessage("take over");
  });
  if (!hasChanged) return;
  history.replaceState(RELOADED, "");
  location.reload();
  await new Promise(() => {});
}

/** The largest file of the library, which hides how far it is, where it is not kept yet; from now on it is. */
async function loadLibrary(url, onLoaded) {
  if (!navigator.serviceWorker?.controller || (await globalThis.caches?.match(url).catch(() => null))) return;
  const reader = (await fetch(url)).body.getReader();
  let loaded = 0;
  for (let next = await reader.read(); !next.done; next = await reader.read()) onLoaded((loaded += next.value.length));
}

// ---- Pictures

/** The bytes of a picture on white, upright, in sRGB. */
async function pixelsOf(image) {
  const bitmap = await createImageBitmap(image);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  canvas.fillStyle = "white";
  canvas.fillRect(0, 0, bitmap.width, bitmap.height);
  canvas.drawImage(bitmap, 0, 0);
  const { data: rgba, width, height } = canvas.getImageData(0, 0, bitmap.width, bitmap.height);
  return { rgba, width, height };
}

/** A PNG file, which tells how it was made as those of `rf-export generate` do. */
async function png(rgba, width, parameters) {
  const picture = new ImageData(rgba, width);
  const canvas = new OffscreenCanvas(width, picture.height);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/png" });
  if (!parameters) return blob;
  const header = 33; // bytes up to the end of the first chunk
  return new Blob([blob.slice(0, header), textChunk(JSON.stringify(parameters)), blob.slice(header)], { type: "image/png" });
}

function textChunk(text) {
  const ascii = text.replace(/[^\x00-\x7f]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const body = new TextEncoder().encode(`tEXtrf-export\0${ascii}`);
  const chunk = new Uint8Array(body.length + 8), view = new DataView(chunk.buffer);
  view.setUint32(0, body.length - 4);
  chunk.set(body, 4);
  view.setUint32(body.length + 4, crc32(body));
  return chunk;
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
