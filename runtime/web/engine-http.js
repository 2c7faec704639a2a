/** The engine of a server: OpenAI's API of `rf-export serve`, read as streams. Knows nothing of the page. */

import { EngineError } from "./engine.js";

const KEY = "rf-export-key"; // of the session's storage
const KINDS = { 400: "input", 401: "key", 413: "input", 429: "busy", 503: "busy" };

/** @returns {import("./engine.js").Engine} */
export function createEngine(base = "v1") {
  async function call(path, body, signal) {
    const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? "none"}` };
    if (body) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(`${base}/${path}`, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw unreachable();
    }
    if (answer.ok) return answer;
    const told = await answer.json().catch(() => ({}));
    throw new EngineError(told.error?.message ?? `The server answered with status ${answer.status}.`, KINDS[answer.status] ?? "failed");
  }

  async function info() {
    const { data } = await (await call("models")).json();
    const model = data[0];
    return {
      about: `${count(model.num_parameters)} parameters, ${model.precision}`,
      cell: model.cell,
      maxGrid: model.max_grid,
      maxTokens: model.max_tokens,
      width: model.width,
      height: model.height,
      maxSteps: model.max_steps,
      plans: model.plans,
      answers: model.answers,
      words: model.words,
    };
  }

  async function* draw(request, signal) {
    const { prompt, seed, plan, steps, guidance, width, height, tokens, edits } = request;
    const body = { prompt, seed, plan, steps, guidance, stream: true, progress: true, partial_images: request.previews };
    if (width && height) body.size = `${width}x${height}`;
    if (tokens) Object.assign(body, { rep_tokens: tokens, edit: edits ?? [] });
    for await (const event of events(await call(tokens ? "images/edits" : "images/generations", body, signal))) {
      if (event.type === "rf.progress") {
        yield { type: "progress", stage: event.stage, step: event.step, steps: event.num_steps, code: event.rep_id };
      } else if (event.type.endsWith(".partial_image")) {
        yield { type: "preview", step: event.step, image: decode(event.b64_json) };
      } else if (event.type.endsWith(".completed")) {
        yield { type: "picture", image: decode(event.b64_json), tokens: event.rep_tokens, seed: event.seed };
      }
    }
  }

  async function* ask(image, question, signal) {
    const content = [{ type: "image_url", image_url: { url: await dataUrl(image) } }];
    if (question) content.push({ type: "text", text: question });
    const body = { messages: [{ role: "user", content }], stream: true };
    for await (const event of events(await call("chat/completions", body, signal))) {
      const text = event.choices[0]?.delta.content;
      if (text) yield { type: "word", text };
    }
  }

  return { info, draw, ask, useKey: (key) => sessionStorage.setItem(KEY, key) };
}

const count = (number) => (number < 1e9 ? `${+(number / 1e6).toPrecision(2)} M` : `${+(number / 1e9).toPrecision(2)} B`);

const unreachable = () =>
  new EngineError("The server cannot be reached. Start it again: rf-export serve BUNDLE.", "unreachable");

/** The data of server-sent events; an error among them is thrown. */
async function* events(answer) {
  let text = "";
  try {
    for await (const chunk of parts(answer.body)) {
      const blocks = (text + chunk).split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
        if (!data || data === "[DONE]") continue;
        const event = JSON.parse(data);
        if (event.error) throw new EngineError(event.error.message, "failed");
        yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof EngineError) throw error;
    throw unreachable();
  }
}

/** The text of a body, as it comes; not every browser iterates over one. */
async function* parts(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

function decode(base64) {
  return new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))], { type: "image/png" });
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new EngineError("The picture cannot be read. Choose another file.", "input"));
    reader.readAsDataURL(blob);
  });
}
