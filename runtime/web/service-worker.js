// rf-export site
/**
 * Keeps the files of an exported site by their content: a visit loads what is new, and the site works without a network.
 *
 * `rf-export export-web` fills in the table of files. Another table is another service worker: the browser installs it
 * beside this one, it loads what changed, and takes over when the page is opened next. Nothing is kept that has not the
 * hash of the table. Where a file has a packed twin it is that one which travels, whatever the server knows of
 * compression. The headers isolate the page (so that it may use threads), and hold its workers to the site.
 */
/** @type {Object<string, {sha256: string, packed: boolean}>} By path; packed: PATH.gz is there too. */
const FILES = {};

const ROOT = new URL(registration.scope).pathname;
const STORE = `rf-export ${ROOT}`;
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

self.addEventListener("install", (event) => {
  if (registration.active) event.waitUntil(keepAll()); // an update; a first visit keeps what the page asks for
});

self.addEventListener("activate", (event) => event.waitUntil(Promise.all([forgetOthers(), self.clients.claim()])));

self.addEventListener("message", (event) => {
  if (event.data === "take over") event.waitUntil(takeOver());
  if (event.data === "keep all") event.waitUntil(keepAll());
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const path = url.pathname === ROOT ? "index.html" : decodeURIComponent(url.pathname.slice(ROOT.length));
  if (url.origin === location.origin && Object.hasOwn(FILES, path)) event.respondWith(answer(path, event));
});

async function answer(path, event) {
  const store = await caches.open(STORE);
  const kept = await store.match(FILES[path].sha256);
  if (kept) return respond(path, kept.body);
  const loaded = await load(path);
  if (!loaded.ok) return loaded;
  const [now, later] = loaded.body.tee();
  event.waitUntil(keep(store, path, new Response(later)));
  return respond(path, now);
}

function respond(path, body) {
  return new Response(body, { headers: { ...HEADERS, "Content-Type": TYPES[path.split(".").pop()] ?? "application/octet-stream" } });
}

/** A file as it is on the server, unpacked. */
async function load(path) {
  const fresh = { cache: "no-cache" };
  if (FILES[path].packed) {
    const packed = await fetch(`${ROOT}${path}.gz`, fresh);
    if (packed.ok) return new Response(await unpacked(packed.body));
  }
  return fetch(ROOT + path, fresh);
}

/** Some servers say what a .gz is packed with, and the browser has unpacked it already. */
async function unpacked(stream) {
  const [start, whole] = stream.tee();
  const reader = start.getReader();
  const { value } = await reader.read();
  reader.cancel();
  return value?.[0] === 0x1f && value[1] === 0x8b ? whole.pipeThrough(new DecompressionStream("gzip")) : whole;
}

async function keep(store, path, loaded) {
  const content = await loaded.arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const sha256 = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (sha256 === FILES[path].sha256) await store.put(sha256, new Response(content));
}

async function keepAll() {
  const store = await caches.open(STORE);
  for (const [path, { sha256 }] of Object.entries(FILES)) {
    if (await store.match(sha256)) continue;
    const loaded = await load(path);
    if (loaded.ok) await keep(store, path, loaded);
  }
}

async function forgetOthers() {
  const store = await caches.open(STORE);
  const known = new Set(Object.values(FILES).map(({ sha256 }) => new URL(sha256, location).href));
  for (const each of await store.keys()) if (!known.has(each.url)) await store.delete(each);
}

async function takeOver() {
  await self.skipWaiting();
  if (registration.active?.scriptURL === location.href) await self.clients.claim().catch(() => {}); // not active yet
}
