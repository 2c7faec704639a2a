// rf-export site
/**
 * Keeps the files of an exported site by their content: a visit loads what is new, and the site works without a network.
 *
 * `rf-export export-web` fills in the table of files. Another table is another service worker: the browser installs it
 * beside this one, it loads what changed, and takes over when the page is opened next. Nothing is kept that has not the
 * hash of the table. Where a file has a packed twin it is that one which travels, whatever the server knows of
 * compression. The headers isolate the page (so that it may use threads), and hold its workers to the site.
 *
 * What is kept is answered as it lies there, and under the address that it is asked by where that names the hash: then
 * the browser keeps machine code of WebAssembly beside it. A request to reload goes past what is kept, which it mends.
 */
/** @type {Object<string, {sha256: string, packed: boolean}>} By path; packed: PATH.gz is there too. */
const FILES = {};

const ROOT = new URL(registration.scope).pathname;
const TYPES = {
  css: "text/css",
  html: "text/html; charset=utf-8",
  js: "text/javascript",
  json: "application/json",
  mjs: "text/javascript",
  svg: "image/svg+xml",
  wasm: "application/wasm",
};
const HEADERS = {
  "Content-Security-Policy": "POLICY",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Opener-Policy": "same-origin",
  "X-Content-Type-Options": "nosniff",
};
const STORES = `rf-export ${ROOT}`;
const STORE = `${STORES} ${JSON.stringify([HEADERS, TYPES])}`; // files are kept with their headers: other ones are kept elsewhere

self.addEventListener("install", (event) => {
  if (registration.active) event.waitUntil(keepAll()); // an update; a first visit keeps what the page asks for
});

self.addEventListener("activate", (event) => event.waitUntil(Promise.all([forgetOthers(), self.clients.claim()])));

self.addEventListener("message", (event) => {
  if (event.data === "take over") event.waitUntil(takeOver());
  if (event.data === "keep all") event.waitUntil(keepAll());
  if (event.data === "mend") event.waitUntil(mend());
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const path = url.pathname === ROOT ? "index.html" : decodeURIComponent(url.pathname.slice(ROOT.length));
  if (url.origin === location.origin && Object.hasOwn(FILES, path)) event.respondWith(answer(path, event));
});

const placeOf = (path) => `${ROOT}${path}?${FILES[path].sha256}`;

async function answer(path, event) {
  const isReload = event.request.cache === "reload" && event.request.mode !== "navigate";
  const kept = !isReload && (await caches.match(placeOf(path), { cacheName: STORE }).catch(() => null)); // where nothing can be kept
  if (kept) return kept;
  const loaded = await load(path, isReload ? "reload" : "no-cache");
  if (!loaded.ok) return loaded;
  const [now, later] = loaded.body.tee();
  event.waitUntil(keep(path, new Response(later)));
  return respond(path, now);
}

function respond(path, body) {
  return new Response(body, { headers: { ...HEADERS, "Content-Type": TYPES[path.split(".").pop()] ?? "application/octet-stream" } });
}

/** A file as it is on the server, unpacked. */
async function load(path, cache = "no-cache") {
  if (FILES[path].packed) {
    const packed = await fetch(`${ROOT}${path}.gz`, { cache });
    if (packed.ok) return new Response(await unpacked(packed.body));
  }
  return fetch(ROOT + path, { cache });
}

/** Some servers say what a .gz is packed with, and the browser has unpacked it already. */
async function unpacked(stream) {
  const [start, whole] = stream.tee();
  const reader = start.getReader();
  const { value } = await reader.read();
  reader.cancel();
  return value?.[0] === 0x1f && value[1] === 0x8b ? whole.pipeThrough(new DecompressionStream("gzip")) : whole;
}

async function keep(path, loaded) {
  const content = await loaded.arrayBuffer();
  if (await isRight(path, content)) await (await caches.open(STORE)).put(placeOf(path), respond(path, content));
}

async function isRight(path, content) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === FILES[path].sha256;
}

async function keepAll() {
  const kept = new Set((await (await caches.open(STORE)).keys()).map(({ url }) => url));
  for (const path of Object.keys(FILES)) {
    if (kept.has(new URL(placeOf(path), location).href)) continue;
    const loaded = await load(path);
    if (loaded.ok) await keep(path, loaded);
  }
}

async function forgetOthers() {
  for (const name of await caches.keys()) {
    if (name !== STORE && (name === STORES || name.startsWith(`${STORES} `))) await caches.delete(name);
  }
  const store = await caches.open(STORE);
  const known = new Set(Object.keys(FILES).map((path) => new URL(placeOf(path), location).href));
  for (const each of await store.keys()) if (!known.has(each.url)) await store.delete(each);
}

/** Forgets what was damaged since it was kept. */
async function mend() {
  const store = await caches.open(STORE);
  for (const path of Object.keys(FILES)) {
    const content = await (await store.match(placeOf(path)))?.arrayBuffer().catch(() => new ArrayBuffer(0));
    if (content && !(await isRight(path, content))) await store.delete(placeOf(path));
  }
}

/** Of a page that is under no service worker: it is opened for the first time, after an update, or past what is kept. */
async function takeOver() {
  await mend();
  await self.skipWaiting();
  if (registration.active?.scriptURL === location.href) await self.clients.claim().catch(() => {}); // not active yet
}
