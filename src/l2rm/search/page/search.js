// The search page: what is asked stands in the address, so that back, forward and links work.
"use strict";

const SHOWN = 24;
const byId = (id) => document.getElementById(id);
const [form, words, results, heading, status_, problem] = ["form", "words", "results", "heading", "status", "problem"].map(byId);
const chip = byId("chip"), file = byId("file"), drop = byId("drop");
const start = { nodes: [...results.childNodes], heading: heading.textContent };
let picture = null; // an uploaded picture: { blob, name, url }
let asking = null; // cancels the request under way

function make(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

const target = () => form.elements.in.value;
const setTarget = (value) => { form.elements.in.value = value; };

function asked() {
  const address = new URLSearchParams(location.search);
  const [, kind, id] = /^(image|caption):(\d{1,18})$/.exec(address.get("like") ?? "") ?? [];
  return {
    words: (address.get("q") ?? "").trim(),
    like: kind ? { kind, id: Number(id) } : null,
    picture: address.has("picture") ? picture : null,
    among: address.get("in") === "captions" ? "captions" : "images",
  };
}

function go(parameters) {
  const address = new URLSearchParams(parameters);
  history.pushState(null, "", address.size ? `?${address}` : location.pathname);
  return show();
}

// ------------------------------------------------------------------------------------------------------- asking

async function fetched(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer. Is it still running?");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.detail ?? `The service answered ${answer.status}.`);
  return content;
}

function request(query, signal) {
  const among = `target=${query.among}&k=${SHOWN}`;
  if (query.picture) {
    const body = new FormData();
    body.append("file", query.picture.blob, "picture");
    return fetched(`api/search/picture?${among}`, { method: "POST", body, signal });
  }
  if (query.like) {
    const body = JSON.stringify({ [query.like.kind]: query.like.id, target: query.among, k: SHOWN });
    return fetched("api/search", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
  }
  return fetched(`api/search?q=${encodeURIComponent(query.words)}&${among}`, { signal });
}

async function show() {
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  const query = asked();
  const something = Boolean(query.words || query.like || query.picture);
  document.body.classList.toggle("asked", something);
  problem.hidden = true;
  words.value = query.words;
  setTarget(query.among);
  showChip(query);
  if (!something) {
    heading.textContent = start.heading;
    status_.textContent = "";
    results.className = "tiles";
    results.removeAttribute("aria-busy");
    results.replaceChildren(...start.nodes);
    document.title = "Search · l2rm";
    return;
  }
  const told = query.words ? `“${query.words}”` : query.picture ? "your picture" : `this ${query.like.kind === "image" ? "picture" : "caption"}`;
  heading.textContent = query.like ? `More like ${told}` : `${query.among === "images" ? "Pictures" : "Captions"} for ${told}`;
  document.title = `${query.words || heading.textContent} · l2rm`;
  status_.textContent = "Searching…";
  results.setAttribute("aria-busy", "true");
  const waiting = setTimeout(() => skeleton(query.among), 150); // a quick answer needs none
  const began = performance.now();
  try {
    const found = await request(query, signal);
    clearTimeout(waiting);
    fill(found.results, query.among);
    const count = found.results.length;
    const noun = query.among === "images" ? "picture" : "caption";
    status_.textContent = `${count} ${noun}${count === 1 ? "" : "s"} in ${Math.max(1, Math.round(performance.now() - began))} ms`;
  } catch (error) {
    clearTimeout(waiting);
    if (error.name === "AbortError") return;
    results.replaceChildren();
    status_.textContent = "";
    byId("problem-text").textContent = error.message;
    problem.hidden = false;
  }
  results.removeAttribute("aria-busy");
}

// ------------------------------------------------------------------------------------------------------ showing

const link = (kind, id, among) => `?like=${kind}:${id}${among === "captions" ? "&in=captions" : ""}`;

function frame(hit, size, alt) {
  const box = make("span", { className: "frame" });
  const image = make("img", { src: `api/images/${hit.image}/picture?size=${size}`, alt, width: size, height: size });
  image.addEventListener("error", () => {
    box.classList.add("bare");
    box.replaceChildren(hit.name);
  });
  box.append(image);
  return box;
}

function score(hit) {
  const meter = make("progress", { className: "meter", max: 1, value: Math.min(1, Math.max(0, hit.score)) });
  meter.setAttribute("aria-hidden", "true");
  const number = make("span", { textContent: hit.score.toFixed(3) });
  return make("span", { className: "score", title: "score: how well it fits" }, make("span", { className: "unseen", textContent: "score " }), number, meter);
}

function tile(hit) {
  const [first = hit.name, ...others] = hit.captions;
  const inside = [frame(hit, 320, first), make("span", { className: "label", textContent: first, dir: "auto", title: first })];
  inside.push(make("span", { className: "others", textContent: others.slice(0, 3).join(" · "), dir: "auto" }), score(hit));
  const anchor = make("a", { href: link("image", hit.id) }, ...inside);
  anchor.setAttribute("aria-label", `More like ${first}, score ${hit.score.toFixed(3)}`);
  return make("li", { className: "tile" }, anchor);
}

function row(hit) {
  const [text] = hit.captions;
  const shown = make("a", { href: link("image", hit.image) }, frame(hit, 160, `The picture captioned ${text}`));
  const caption = make("a", { className: "text", href: link("caption", hit.id, "images"), textContent: text, dir: "auto" });
  return make("li", { className: "row" }, shown, caption, score(hit));
}

function fill(hits, among) {
  const grid = among === "images" && hits.length > 0;
  results.className = grid ? "tiles" : "rows";
  if (hits.length) results.replaceChildren(...hits.map(grid ? tile : row));
  else results.replaceChildren(make("li", { className: "notice", textContent: "Nothing found. Try other words, or look among the other kind." }));
}

function skeleton(among) {
  results.className = "tiles";
  const blank = () => make("li", { className: "waiting" }, make("div", {}, make("span", { className: "frame" }), make("i"), make("i")));
  results.replaceChildren(...Array.from({ length: among === "images" ? 12 : 6 }, blank));
}

async function showChip({ like, picture: given }) {
  chip.hidden = !(like || given);
  if (chip.hidden) return;
  const [image, text] = [byId("chip-image"), byId("chip-text")];
  image.hidden = Boolean(like && like.kind === "caption");
  if (given) {
    image.src = given.url;
    text.textContent = given.name;
  } else if (like.kind === "image") {
    image.src = `api/images/${like.id}/picture?size=160`;
    text.textContent = "";
    const facts = await fetched(`api/images/${like.id}`).catch(() => null);
    text.textContent = facts ? (facts.captions[0] ?? facts.name) : `image ${like.id}`;
  } else {
    text.textContent = `caption ${like.id}`;
  }
}

// ------------------------------------------------------------------------------------------------------- events

function upload(blob) {
  const limit = Number(document.body.dataset.maxBytes);
  if (!blob || !file) return;
  if (picture) URL.revokeObjectURL(picture.url);
  picture = { blob, name: blob.name ?? "pasted picture", url: URL.createObjectURL(blob) };
  if (blob.size > limit) {
    byId("problem-text").textContent = `This file has ${(blob.size / 2 ** 20).toFixed(1)} MB; at most ${(limit / 2 ** 20).toFixed(0)} MB can be sent.`;
    problem.hidden = false;
    return;
  }
  go({ picture: "1", in: "captions" });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = words.value.trim();
  const query = asked();
  if (text) go({ q: text, ...(target() === "captions" && { in: "captions" }) });
  else if (query.like || query.picture) show();
  else words.focus();
});

form.addEventListener("change", (event) => {
  if (event.target.name !== "in") return;
  const address = new URLSearchParams(location.search);
  address.set("in", target());
  if (words.value.trim() && !address.has("picture") && !address.has("like")) address.set("q", words.value.trim());
  if (["q", "like", "picture"].some((name) => address.has(name))) go(address);
});

byId("again").addEventListener("click", show);
byId("chip-remove").addEventListener("click", () => { go({}); words.focus(); });
byId("choose")?.addEventListener("click", () => file.click());
file?.addEventListener("change", () => { upload(file.files[0]); file.value = ""; });
addEventListener("popstate", show);

document.addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href]");
  const href = anchor?.getAttribute("href") ?? "";
  if (!(href.startsWith("?") || href === "./") || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(href === "./" ? {} : href.slice(1));
  scrollTo({ top: 0 });
  if (href.includes("like=")) heading.focus({ preventScroll: true });
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    words.focus();
  }
});

const pictureOf = (transfer) => [...(transfer?.files ?? [])].find((one) => one.type.startsWith("image/"));
let depth = 0;
addEventListener("dragenter", (event) => { if (file && event.dataTransfer?.types.includes("Files")) { depth += 1; drop.hidden = false; } });
addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); if (!depth) drop.hidden = true; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); depth = 0; drop.hidden = true; upload(pictureOf(event.dataTransfer)); });
addEventListener("paste", (event) => upload(pictureOf(event.clipboardData)));

for (const image of results.querySelectorAll("img")) {
  image.addEventListener("error", () => { image.parentElement.classList.add("bare"); image.replaceWith(image.alt); });
}
if (location.search) show();
