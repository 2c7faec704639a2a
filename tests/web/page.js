/** What the tests of tests/web call: opens bundles in the page and in a worker, and sends results as texts and base64. */

import * as client from "/host/client.js";
import { parseJson } from "/host/json.js";
import { readManifest } from "/host/manifest.js";
import { gumbel, normal } from "/host/noise.js";
import { loadPixels } from "/host/pictures.js";
import * as here from "/host/rf.js";
import { timesteps } from "/host/schedule.js";
import { Tokenizer } from "/host/tokenizer.js";

const ORT = "/ort/ort.wasm.min.mjs", pipelines = {};

const base64 = (array) => {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
};
const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const picture = ({ rgb, height, width }) => ({ rgb: bytesOf(rgb), height, width });

/** The sentence of what is refused, and its kind; null where nothing is. */
const refusal = async (work) => {
  try {
    await work();
  } catch (error) {
    return error.kind ? [error.message, error.kind] : [`${error.name}: ${error.message}`, null];
  }
  return null;
};

const drawn = async (pipeline, request, how) => {
  const steps = [];
  for await (const event of pipeline.draw(request, how)) {
    if (event.type !== "picture") steps.push(event);
    else return { steps, picture: event };
  }
};

const rf = {
  async open(name, place, options = {}) {
    pipelines[name] = await (options.isHere ? here : client).openBundle(place, { ort: ORT, numThreads: 1, ...options.open });
    return pipelines[name].info;
  },

  draw: async (name, requests) => {
    const pictures = [];
    for (const request of requests) {
      const { picture: found } = await drawn(pipelines[name], request, { previews: false });
      pictures.push({ repIds: found.repIds, rgba: base64(found.rgba), pixels: base64(found.pixels), seed: String(found.seed) });
    }
    return pictures;
  },

  events: async (name, request, how) => {
    const { steps } = await drawn(pipelines[name], request, how);
    return steps.map((each) => ({
      ...each, logits: each.logits && base64(each.logits), rgba: each.rgba && base64(each.rgba),
    }));
  },

  /** Each item of a talk is [method, ...arguments]. */
  converse: async (name, talk) => {
    const conversation = await pipelines[name].converse(), said = [];
    for (const [method, ...args] of talk) {
      if (method === "show") await conversation.show(picture(args[0]), args[1]);
      else if (method !== "ask") await conversation[method](...args);
      else {
        const words = [];
        for await (const event of conversation.ask(...args)) words.push(event);
        const { seed, ...answer } = words.pop();
        said.push({ ...answer, words, length: await conversation.length, numRead: await conversation.numRead });
      }
    }
    await conversation.close?.();
    return said;
  },

  refusedOpening: (place, open = {}) => refusal(() => client.openBundle(place, { ort: ORT, numThreads: 1, ...open })),
  refusedDrawings: async (name, requests) => {
    const found = [];
    for (const request of requests) found.push(await refusal(() => drawn(pipelines[name], request)));
    return found;
  },
  refusedTalks: async (name, talks) => {
    const found = [];
    for (const talk of talks) found.push(await refusal(() => rf.converse(name, talk)));
    return found;
  },
  manifests: (texts) => Promise.all(texts.map((text) => refusal(async () => readManifest(parseJson(bytesOf(text), "manifest.json"), "manifest.json")))),

  /** Gives a drawing up after so many events: by its signal, or by leaving the loop. */
  cancel: async (name, request, numEvents, byLeaving) => {
    const controller = new AbortController();
    let seen = 0;
    try {
      for await (const _ of pipelines[name].draw(request, { signal: controller.signal })) {
        if (++seen < numEvents) continue;
        if (byLeaving) break;
        controller.abort();
      }
    } catch (error) {
      return [seen, error.name];
    }
    return [seen, null];
  },

  warmUp: (name) => pipelines[name].warmUp(),

  words: async (name, ids) => {
    let text;
    return (await refusal(async () => (text = await pipelines[name].detokenize(ids)))) ?? text;
  },
  tokenize: (content, vocabSize, texts) => {
    const tokenizer = new Tokenizer(bytesOf(content), "tokenizer.json", vocabSize, []);
    return texts.map((text) => {
      try {
        const ids = tokenizer.encode(text, 1 << 20, "text");
        return [ids, tokenizer.decode(ids)];
      } catch (error) {
        return [error.message];
      }
    });
  },
  refusedTokenizer: (content) => refusal(async () => new Tokenizer(bytesOf(content), "tokenizer.json", 10, [])),

  pixels: (pictures, height, width) => pictures.map((each) => base64(loadPixels(picture(each), height, width))),

  /** A folder of the browser's own, with what an address has. */
  folder: async (base, names) => {
    const root = await (await navigator.storage.getDirectory()).getDirectoryHandle("bundle", { create: true });
    for (const name of names) {
      const parts = name.split("/"), last = parts.pop();
      let folder = root;
      for (const part of parts) folder = await folder.getDirectoryHandle(part, { create: true });
      const out = await (await folder.getFileHandle(last, { create: true })).createWritable();
      await out.write(await (await fetch(`${base}/${name}`)).arrayBuffer());
      await out.close();
    }
    return root;
  },
  files: async (base, names) => Promise.all(names.map(async (name) => {
    const file = new File([await (await fetch(`${base}/${name}`)).arrayBuffer()], name.split("/").pop());
    Object.defineProperty(file, "webkitRelativePath", { value: `bundle/${name}` });
    return file;
  })),

  /** What golden vectors say of noise, times and texts, come to here. */
  golden: async ({ noise, times, texts }) => ({
    noise: noise.map(({ seed, stage, step }) => [...(stage === 1 ? normal(BigInt(seed), 7) : gumbel(BigInt(seed), step, 7, stage))]),
    times: times.map((each) => [...timesteps(each.num_steps, each.num_patches, each.shift, each.shift_base_patches)]),
    texts: await Promise.all(texts.map(({ text }) => pipelines.fp32.tokenize(text).catch(() => null))),
  }),

  pipelines,
};

window.rf = rf;
window.isReady = true;
