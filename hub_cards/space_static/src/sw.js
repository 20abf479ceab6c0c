// Keeps the page for the next visit, with or without a connection.

const FILES = __FILES__;
const KEPT = "scmmgpt-page-__VERSION__";

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(KEPT).then((kept) => kept.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const others = caches.keys().then((names) => Promise.all(names.filter((name) => name !== KEPT).map((name) => caches.delete(name))));
  event.waitUntil(others.then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET" || new URL(event.request.url).origin !== self.location.origin) return;
  event.respondWith(answerTo(event.request));
});

async function answerTo(request) {
  const kept = await caches.open(KEPT), found = await kept.match(request, { ignoreSearch: true });
  if (found) return found;
  const response = await fetch(request);
  if (response.ok && response.status === 200) await kept.put(request, response.clone());
  return response;
}
