// From a pair to what is on the screen. Elements stay where they are; only their contents change.

import { imageURL } from "./outbox.js";

export const byId = (id) => document.getElementById(id);
const WORD = { keep: "kept", rematch: "rematched", drop: "dropped" };
const SIGN = { keep: "✓", rematch: "→", drop: "✕" };
const AROUND = { before: 2, after: 8 };
const ahead = new Map();
let pixels = true;

export function setPixels(any) {
  pixels = any;
}

export function percent(share) {
  if (share === null) return "unknown";
  if (share > 0 && share < 0.01) return "< 1 %";
  if (share > 0.99 && share < 1) return "> 99 %";
  return `${Math.round(100 * share)} %`;
}

export function thousands(number) {
  return number.toLocaleString("en");
}

export function decidedWord(pair) {
  if (pair.decision === "rematch") return pair.new_caption ? "new caption" : "rematched";
  return WORD[pair.decision] ?? "undecided";
}

// Fetch and decode what comes next, so that it is there at once.
export function preload(pairs) {
  if (!pixels) return;
  for (const pair of pairs) {
    for (const image of [pair.given, pair.suggested]) {
      if (!image || ahead.has(image.image)) continue;
      const picture = new Image();
      picture.src = imageURL(image.image, "large");
      picture.decode().catch(() => {});
      ahead.set(image.image, picture);
    }
  }
  for (const number of ahead.keys()) {
    if (ahead.size <= 40) break;
    ahead.delete(number);
  }
}

export function showPair(pair) {
  byId("pair-id").textContent = pair.pair_id;
  byId("pair-id").parentElement.title = `pair ${pair.pair_id}`;
  byId("match").textContent = percent(pair.probability);
  byId("match-meter").firstElementChild.style.transform = `scaleX(${pair.probability ?? 0})`;
  byId("audit-says").textContent = pair.said;
  const caption = byId("caption");
  if (caption.textContent !== pair.caption) caption.scrollTop = 0;
  caption.textContent = pair.caption;
  showImage("given", pair.given, "Given image");
  const partner = pair.new_image ?? pair.suggested;
  byId("suggested").hidden = !partner;
  byId("suggested-role").textContent = pair.new_image && pair.new_image.image !== pair.suggested?.image ? "Chosen" : "Suggested";
  if (partner) showImage("suggested", partner, `${byId("suggested-role").textContent} image`);
  byId("confidence").textContent = partner && partner.image === pair.suggested?.image ? `${percent(pair.confidence)} sure` : "";
  byId("suggested-caption").textContent = pair.suggested_caption;
  byId("suggested-caption-label").hidden = !pair.suggested_caption;
  const its = partner ? partner.captions : [];
  byId("its-label").textContent = its.length ? "its captions so far" : "it has no caption so far";
  byId("its").replaceChildren(...its.map((text) => element("li", { textContent: text, dir: "auto" })));
  showVerdict(pair);
}

function showVerdict(pair) {
  const badge = byId("verdict");
  badge.hidden = !pair.decision;
  badge.className = `badge ${pair.decision}`;
  badge.textContent = decidedWord(pair);
  const onCaption = Boolean(pair.new_caption);
  for (const button of document.querySelectorAll(".choice")) {
    const { verdict, partner } = button.dataset;
    const same = pair.decision === verdict && (verdict !== "rematch" || onCaption === (partner === "caption"));
    button.setAttribute("aria-pressed", String(same));
    button.classList.toggle("audits", pair.said === verdict && partner !== "caption");
    button.disabled = verdict === "rematch" && !(partner === "caption" ? pair.suggested_caption : pair.suggested);
  }
}

function showImage(side, image, role) {
  const figure = byId(side);
  figure.querySelector(".name").textContent = image.name;
  figure.querySelector(".name").title = image.name;
  const picture = byId(`${side}-image`);
  const missing = figure.querySelector(".noimage");
  const source = imageURL(image.image, "large");
  picture.alt = `${role}: ${image.name}`;
  const fail = (why) => {
    picture.hidden = true;
    missing.hidden = false;
    const small = element("small", { textContent: why });
    missing.replaceChildren(element("span", { textContent: image.name }), small);
  };
  if (!pixels) return fail("this audit has no pixels");
  if (picture.getAttribute("src") === source && missing.hidden) return undefined;
  missing.hidden = true;
  picture.hidden = false;
  picture.onload = () => picture.classList.remove("loading");
  picture.onerror = () => fail("the image cannot be shown");
  picture.src = source;
  picture.classList.toggle("loading", !picture.complete);
  return undefined;
}

export function showQueue(pairs, at, go) {
  const first = Math.max(0, at - AROUND.before);
  const rows = pairs.slice(first, first + AROUND.before + AROUND.after + 1).map((pair, place) => {
    const mark = element("span", { className: `mark ${pair.decision}`, textContent: SIGN[pair.decision] ?? "" });
    const text = element("span", { className: "text", textContent: pair.caption, dir: "auto" });
    const thumb = pixels
      ? element("img", { className: "thumb", alt: "", src: imageURL(pair.given.image, "small") })
      : element("span", { className: "thumb" });
    const button = element("button", { type: "button" });
    button.setAttribute("aria-label", `pair ${pair.pair_id}, ${decidedWord(pair)}: ${pair.caption}`);
    if (first + place === at) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => go(first + place));
    button.append(thumb, text, mark);
    const item = element("li", {});
    item.append(button);
    return item;
  });
  byId("queue").replaceChildren(...rows);
}

export function showProgress(progress, pace) {
  const whole = progress.suspects || progress.pairs;
  const part = progress.suspects ? progress.suspects_decided : progress.decided;
  const share = whole ? part / whole : 0;
  byId("bar-fill").style.transform = `scaleX(${share})`;
  byId("bar").setAttribute("aria-valuenow", String(Math.floor(100 * share)));
  const what = progress.suspects ? "suspicious pairs decided" : "pairs decided";
  const all = progress.suspects ? ` · ${thousands(progress.decided)} of all ${thousands(progress.pairs)}` : "";
  byId("progress-text").textContent = `${thousands(part)} of ${thousands(whole)} ${what}${all}`;
  byId("pace").textContent = pace ? `${pace.toFixed(1)} s a pair · ${duration(pace * (whole - part))} left` : "";
  byId("undo").disabled = progress.undoable === 0;
}

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (minutes < 1) return "under a minute";
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function say(text, verdict = "") {
  byId("status").textContent = text;
  byId("status").className = `status ${verdict}`;
}

// What went wrong, with buttons [label, action]; nothing hides it.
export function trouble(text, buttons = []) {
  byId("trouble").hidden = !text;
  byId("trouble-text").textContent = text;
  byId("trouble-buttons").replaceChildren(
    ...buttons.map(([label, action]) => {
      const button = element("button", { type: "button", className: "plain", textContent: label });
      button.addEventListener("click", action);
      return button;
    }),
  );
}

export function element(name, properties) {
  return Object.assign(document.createElement(name), properties);
}
