/** The page: draws with an engine, shows each step, edits tokens, asks, and remembers the session. Knows no server. */

import { EngineError } from "./engine.js";
import { TokenGrid, regionText } from "./grid.js";

const $ = (id) => document.getElementById(id);
const EXAMPLES = ["a red car", "two blue fish", "a green cat left of a blue mushroom", "three red balloons", "a yellow tree and a purple cup"];
const QUESTIONS = ["what colour is the car ?", "how many fish are there ?", "what is this ?"];
const PLANS = { paper: "full", tuned: "tuned" };
const SMALL = 200; // pixels; a smaller picture is shown with its pixels

const { createEngine } = await import(document.querySelector("meta[name=engine]").content);
/** @type {import("./engine.js").Engine} */
const engine = createEngine();
const grid = new TokenGrid($("grid"), regionChosen);
const session = []; // {id, image, url, prompt, seed, settings, tokens, edits, seconds, said}
let info = null;
let current = null; // of the session
let running = null; // AbortController
let copied = null; // the region that waits for its place
let shownUrl = null; // of a preview
let loadingSince = null; // [time, bytes]

// ---- Drawing

/** @returns {Promise<boolean>} whether the work came to its end */
async function run(work) {
  running?.abort();
  const mine = (running = new AbortController());
  fail(null);
  setBusy(true);
  try {
    await work(mine.signal);
    return true;
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else {
      say("");
      await explain(error);
    }
    return false;
  } finally {
    if (running === mine) {
      running = null;
      setBusy(false);
    }
  }
}

async function draw(base = null, edits = []) {
  const settings = { plan: $("plan").value, steps: Number($("steps").value), guidance: Number($("guidance").value) };
  const size = base ? { width: base.tokens.width, height: base.tokens.height } : { width: Number($("width").value), height: Number($("height").value) };
  const prompt = $("prompt").value.trim();
  const own = { steps: unlessPlanned("steps"), guidance: unlessPlanned("guidance"), previews: settings.steps };
  const request = { ...settings, ...own, ...size, prompt, seed: base ? base.seed : seed(), tokens: base?.tokens, edits };
  const before = current;
  const isDone = await run(async (signal) => {
    const started = performance.now();
    beginPicture(size);
    for await (const event of engine.draw(request, signal)) {
      if (event.type === "progress") progress(event);
      else if (event.type === "preview") preview(event.image);
      else {
        const seconds = (performance.now() - started) / 1000;
        remember({ image: event.image, prompt, seed: event.seed, settings: { ...settings, ...size }, tokens: event.tokens, edits, seconds, said: [] });
      }
    }
  });
  if (!isDone && !running) before ? open(before) : clearStage();
}

/** A value that the plan does not have anyway. */
function unlessPlanned(id) {
  const value = Number($(id).value);
  return value === info.plans[$("plan").value][id] ? undefined : value;
}

function takePlan() {
  const { steps, guidance } = info.plans[$("plan").value];
  $("steps").value = steps;
  $("guidance").value = guidance;
  showRanges();
}

function beginPicture({ width, height }) {
  open(null);
  say("Waiting for a place …");
  $("stage").classList.remove("empty");
  $("hint").hidden = true;
  setShape(width, height);
  grid.reset(height / info.cell, width / info.cell);
  grid.activate(false);
  $("grid").hidden = false;
  $("grid").classList.add("drawing");
}

function progress({ stage, step, steps, code }) {
  if (stage === "tokens") {
    if (code !== undefined) grid.add(code);
    say(`Token ${step} of ${steps}: what goes where`);
    $("bar").value = (0.3 * step) / steps;
  } else {
    say(`Step ${step} of ${steps}`);
    $("bar").value = 0.3 + (0.7 * step) / steps;
  }
}

/** The first preview takes the place of the tokens. */
function preview(image) {
  showImage(image);
  $("grid").classList.remove("drawing");
  $("grid").hidden = !$("show-tokens").checked;
}

// ---- The stage

function setShape(width, height) {
  $("stage").style.setProperty("--width", width);
  $("stage").style.setProperty("--height", height);
  $("picture").classList.toggle("pixels", Math.max(width, height) < SMALL);
}

function showImage(blob) {
  const url = URL.createObjectURL(blob);
  $("picture").src = url;
  $("picture").hidden = false;
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = url;
}

function clearStage() {
  open(null);
  $("stage").classList.add("empty");
  $("hint").hidden = false;
  setShape(1, 1);
}

/** Show a picture of the session with all that belongs to it; null shows none. */
function open(entry) {
  current = entry;
  copied = null;
  $("copy").setAttribute("aria-pressed", "false");
  $("picture").hidden = !entry;
  $("save").hidden = !entry;
  $("bar").value = entry ? 1 : 0;
  $("grid").classList.remove("drawing");
  tellSaid();
  for (const item of $("history").children) item.firstChild.setAttribute("aria-current", String(item.dataset.id === String(entry?.id)));
  if (!entry) {
    grid.activate(false);
    $("grid").hidden = true;
    $("picture").removeAttribute("src");
    return;
  }
  const { image, url, prompt, tokens, settings } = entry;
  $("stage").classList.remove("empty");
  $("hint").hidden = true;
  setShape(settings.width, settings.height);
  showImage(image);
  $("picture").alt = prompt || "a picture";
  $("save").href = url;
  $("save").download = `${(prompt || "picture").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}.png`;
  if (tokens) grid.fill(tokens.rep_ids);
  showTokens();
  say(describe(entry));
}

function describe({ tokens, settings, seed: used, seconds, edits }) {
  if (!tokens) return "Your picture: it has no tokens to edit.";
  const how = edits.length ? `edited: ${edits.join("  ")}` : `seed ${used}`;
  return `${settings.steps} steps in ${seconds.toFixed(seconds < 10 ? 1 : 0)} s, ${how}`;
}

function showTokens() {
  const isShown = Boolean(current?.tokens) && $("show-tokens").checked;
  $("grid").hidden = !isShown;
  grid.activate(isShown);
}

// ---- Edits

function regionChosen(region) {
  if (copied && region) {
    const height = copied.bottom - copied.top, width = copied.right - copied.left;
    const top = Math.min(region.top, grid.rows - height), left = Math.min(region.left, grid.columns - width);
    const source = copied;
    copied = null;
    return void draw(current, [`${regionText({ top, left, bottom: top + height, right: left + width })}=${regionText(source)}`]);
  }
  $("tools").hidden = !grid.isActive || !current;
  for (const id of ["redraw", "erase", "copy", "clear"]) $(id).hidden = !region;
  $("chosen").textContent = !region
    ? "Choose a region: click a token, or drag over several."
    : `Rows ${region.top} to ${region.bottom - 1}, columns ${region.left} to ${region.right - 1}`;
}

function edit(source) {
  if (grid.region && current) draw(current, [`${regionText(grid.region)}=${source}`]);
}

function beginCopy() {
  copied = copied ? null : grid.region;
  $("copy").setAttribute("aria-pressed", String(Boolean(copied)));
  if (copied) $("chosen").textContent = "Click where its top left corner shall go.";
}

// ---- Questions

async function ask() {
  const entry = current;
  if (!entry) return fail("There is no picture to ask about. Draw one first, or open one of yours.");
  const said = { question: $("question").value.trim() || "caption", answer: "" };
  entry.said.unshift(said);
  tellSaid();
  const isDone = await run(async (signal) => {
    for await (const event of engine.ask(entry.image, $("question").value.trim(), signal)) {
      said.answer += event.text;
      tellSaid();
    }
    say(entry === current ? describe(entry) : "");
  });
  if (!isDone) entry.said.splice(entry.said.indexOf(said), 1);
  else $("question").select();
  tellSaid();
}

function tellSaid() {
  const rows = (current?.said ?? []).map(({ question, answer }) => {
    const row = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = question;
    text.textContent = answer.trim() || "…";
    row.append(term, text);
    return row;
  });
  $("said").replaceChildren(...rows);
}

// ---- The session

function remember(entry) {
  entry.id = session.length;
  entry.url = URL.createObjectURL(entry.image);
  session.push(entry);
  $("none").hidden = true;
  const item = document.createElement("li"), button = document.createElement("button"), image = document.createElement("img"), text = document.createElement("span");
  item.dataset.id = entry.id;
  image.src = entry.url;
  image.alt = "";
  image.className = Math.max(entry.settings.width, entry.settings.height) < SMALL ? "pixels" : "";
  text.textContent = entry.prompt || "(no text)";
  button.type = "button";
  button.title = entry.tokens ? `seed ${entry.seed}${entry.edits.map((each) => `, ${each}`).join("")}` : "your picture";
  button.append(image, text);
  button.onclick = () => {
    running?.abort();
    restore(entry);
  };
  item.append(button);
  $("history").prepend(item);
  open(entry);
}

function restore(entry) {
  fail(null);
  if (entry.tokens) {
    $("prompt").value = entry.prompt;
    $("seed").value = entry.seed;
    for (const name of ["width", "height", "plan", "steps", "guidance"]) $(name).value = entry.settings[name];
    showRanges();
  }
  open(entry);
}

async function openFile(file) {
  if (!file) return;
  fail(null);
  try {
    const { width, height } = await createImageBitmap(file);
    remember({ image: file, prompt: file.name, seed: 0, settings: { width, height }, tokens: null, edits: [], seconds: 0, said: [] });
  } catch {
    fail(`${file.name} is no picture that this browser shows. Choose a PNG or JPEG file.`);
  }
}

// ---- Small things

const say = (text) => ($("status").textContent = text || "\u00a0");

function fail(text) {
  $("error").textContent = text ?? "";
  $("error").hidden = !text;
  if (text) $("error").scrollIntoView({ block: "nearest" });
}

async function explain(error) {
  if (error instanceof EngineError && error.kind === "key" && engine.useKey) {
    if (await askForKey()) return start();
  }
  if (!(error instanceof EngineError)) console.error(error);
  if (error.message.includes("vocabulary")) $("words").open = true;
  fail(error instanceof EngineError ? told(error.message) : "Something in this page went wrong. Load it again.");
}

/** An engine in the browser names a command; the page has the words itself. */
function told(message) {
  const known = message.replace(/ All of them: rf-export .*$/, "");
  return info?.words && known.includes("vocabulary") ? `${known} All of them are listed below the form.` : known;
}

function askForKey() {
  const dialog = $("key-dialog");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const key = dialog.returnValue === "use" ? $("key").value : "";
      if (key) engine.useKey(key);
      $("key").value = "";
      resolve(Boolean(key));
    };
  });
}

function setBusy(isBusy) {
  document.body.classList.toggle("busy", isBusy);
  for (const id of ["go", "another"]) $(id).hidden = isBusy;
  for (const id of ["ask-go", "redraw", "erase", "copy"]) $(id).disabled = isBusy;
  $("stop").hidden = !isBusy;
}

function seed() {
  const value = Math.floor(Number($("seed").value));
  const known = Number.isSafeInteger(value) && value >= 0 ? value : 0;
  $("seed").value = known;
  return known;
}

function chip(text, onClick) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: text, onclick: onClick });
  return button;
}

function showRanges() {
  for (const id of ["steps", "guidance"]) $(`${id}-shown`).textContent = $(id).value;
}

function setUp() {
  $("model").textContent = info.about;
  const sizes = Array.from({ length: info.maxGrid }, (_, index) => (index + 1) * info.cell);
  for (const side of ["width", "height"]) {
    $(side).replaceChildren(...sizes.map((size) => new Option(size, size)));
    $(side).value = info[side];
  }
  $("steps").max = Math.min(info.maxSteps, Math.max(50, info.plans.paper.steps));
  const plans = Object.keys(info.plans);
  $("plan").replaceChildren(...plans.map((name) => new Option(PLANS[name], name)));
  $("plan").parentElement.hidden = plans.length === 1;
  takePlan();
  const knows = (text) => !info.words || text.split(" ").every((word) => info.words.includes(word));
  const examples = EXAMPLES.filter(knows);
  $("examples").replaceChildren(...examples.map((text) => chip(text, () => { $("prompt").value = text; draw(); })));
  $("prompt").placeholder = examples[0] ?? "a picture of …";
  if (!$("prompt").value) $("prompt").value = examples[0] ?? "";
  $("question").placeholder = QUESTIONS.find(knows) ?? "what is this?";
  document.querySelector(".talk").hidden = !info.answers;
  $("words").hidden = !info.words;
  if (info.words) {
    $("words").firstElementChild.textContent = `This small model knows ${info.words.length} words`;
    const add = (word) => () => { $("prompt").value = `${$("prompt").value.trim()} ${word}`.trim(); $("prompt").focus(); };
    $("words").lastElementChild.replaceChildren(...info.words.map((word) => chip(word, add(word))));
  }
}

async function start() {
  try {
    info = await engine.info(showLoading);
  } catch (error) {
    $("hint").textContent = "Nothing can be drawn.";
    return explain(error);
  }
  fail(null);
  setUp();
  $("hint").textContent = "The picture appears here, step by step.";
  document.body.classList.add("ready");
  for (const each of document.querySelectorAll("[inert]")) each.inert = false;
}

/** Bytes that were loaded, of how many, and the time that is left. */
function showLoading(loaded, total) {
  const now = performance.now() / 1000, mib = (bytes) => (bytes / 2 ** 20).toFixed(1);
  loadingSince ??= [now, loaded];
  const gone = now - loadingSince[0], left = ((total - loaded) * gone) / (loaded - loadingSince[1]);
  const told = gone > 1 && left > 0.5 && left < Infinity ? `, about ${Math.ceil(left)} s left` : "";
  $("hint").textContent = loaded < total ? `Loading the model: ${mib(loaded)} of ${mib(total)} MiB${told}` : "Getting ready …";
  $("bar").value = loaded / total;
}

$("draw").onsubmit = (event) => { event.preventDefault(); draw(); };
$("ask").onsubmit = (event) => { event.preventDefault(); ask(); };
$("prompt").onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); draw(); } };
$("another").onclick = () => { $("seed").value = Math.floor(Math.random() * 100000); draw(); };
$("stop").onclick = () => running?.abort();
document.onkeydown = (event) => { if (event.key === "Escape") running?.abort(); };
$("show-tokens").onchange = showTokens;
$("redraw").onclick = () => edit(`redraw:${Math.floor(Math.random() * 100000)}`);
$("erase").onclick = () => edit(grid.commonest);
$("copy").onclick = beginCopy;
$("clear").onclick = () => { copied = null; $("copy").setAttribute("aria-pressed", "false"); grid.choose(null); };
$("file").onchange = () => { openFile($("file").files[0]); $("file").value = ""; };
for (const id of ["steps", "guidance"]) $(id).oninput = showRanges;
$("plan").onchange = takePlan;
await start();
