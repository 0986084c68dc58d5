// The review: which pairs are loaded, which one is shown, what is decided.

import { get, makeOutbox, tab } from "./outbox.js";
import { makeDialogs } from "./dialogs.js";
import { byId, decidedWord, preload, say, setPixels, showPair, showProgress, showQueue, thousands, trouble } from "./view.js";

const PAGE = 40;
const AHEAD = 20;
const POLL = 2500;
const PAUSE = 60; // seconds; more than that was no thinking but a coffee

const pairs = []; // in order of suspicion, as far as loaded
let at = 0;
let filter = { show: "undecided", said: "anything", words: "" };
let total = 0;
let ended = false;
let loading = null;
let version = 0;
let progress = null;
let turn = 0; // of the filter; answers to an older one are not for us
let last = performance.now();
const paces = [];
let dialogs;

const outbox = makeOutbox({ done: settled, refused, waiting });

// ------------------------------------------------------------------------------------------------------- loading

async function start() {
  try {
    const summary = await (await get("summary", { tab })).json();
    version = summary.version;
    progress = summary.progress;
    setPixels(summary.has_images);
    dialogs = makeDialogs(summary, choose);
    listen();
    outbox.flush();
    tell();
    await restart();
    if (!summary.has_images) say("This audit has no pixels: judge by captions and image names.");
    if (progress.strays) trouble(`${thousands(progress.strays)} earlier decisions are about pairs or images not in this audit; they are kept but not counted.`, [["OK", () => trouble("")]]);
    setInterval(poll, POLL);
  } catch (error) {
    byId("loading").hidden = true;
    trouble(`The review cannot be loaded: ${error.message}`, [["Try again", () => location.reload()]]);
  }
}

async function restart() {
  const mine = (turn += 1);
  pairs.length = 0;
  at = 0;
  total = 0;
  ended = false;
  loading = null;
  byId("pair").hidden = true;
  byId("empty").hidden = true;
  byId("loading").hidden = false;
  await outbox.arrived(); // the server's list must know what was decided a moment ago
  if (mine !== turn) return;
  await more();
  if (mine === turn) render();
}

// Load the next page, once at a time.
function more() {
  if (ended) return Promise.resolve();
  if (!loading) {
    const mine = fetchPage(turn).finally(() => {
      if (loading === mine) loading = null;
    });
    loading = mine;
  }
  return loading;
}

async function fetchPage(mine) {
  const after = pairs.length ? pairs[pairs.length - 1].rank : -1;
  const page = await (await get("pairs", { ...filter, after, limit: PAGE })).json();
  if (mine !== turn) return;
  pairs.push(...page.pairs);
  ended = page.pairs.length < PAGE;
  total = page.total;
}

function loadAhead() {
  if (ended || loading || pairs.length - at > AHEAD) return;
  const mine = turn;
  more()
    .then(() => mine === turn && render())
    .catch((error) => trouble(`No further pairs: ${error.message}`, [["Try again", () => { trouble(""); loadAhead(); }]]));
}

// ------------------------------------------------------------------------------------------------------ the screen

function render() {
  const pair = pairs[at];
  byId("loading").hidden = Boolean(pair) || ended;
  byId("pair").hidden = !pair;
  byId("empty").hidden = Boolean(pair) || !ended;
  for (const button of document.querySelectorAll(".choice, #other, #next")) button.disabled = !pair;
  byId("previous").disabled = at === 0;
  byId("count").textContent = filter.show === "all" || total ? `${thousands(total)} pair${total === 1 ? "" : "s"}` : "none";
  if (pair) {
    showPair(pair);
    preload(pairs.slice(at + 1, at + 5));
  } else if (ended) {
    showEmpty();
  }
  showQueue(pairs, at, go);
  loadAhead();
}

function showEmpty() {
  const filtered = filter.words || filter.said !== "anything" || filter.show !== "undecided";
  const finished = !filtered && progress.decided === progress.pairs;
  byId("empty-title").textContent = finished ? "Every pair is decided" : pairs.length ? "That was the last one" : "No pair fits";
  byId("empty-text").textContent = finished
    ? "Export the decisions, or train with them: l2rm train DATA --decisions decisions.sqlite."
    : pairs.length
      ? "Go back with ←, choose other pairs above, or export."
      : "No pair fits this filter and search. Choose others above, or show all.";
}

function tell() {
  const sorted = [...paces].sort((one, other) => one - other);
  showProgress(progress, paces.length >= 3 ? sorted[Math.floor(sorted.length / 2)] : 0);
}

function go(place) {
  at = Math.max(0, Math.min(place, pairs.length));
  last = performance.now();
  render();
}

function next() {
  let place = at + 1;
  while (filter.show === "undecided" && pairs[place]?.elsewhere) place += 1; // somebody else was quicker
  go(place);
}

// -------------------------------------------------------------------------------------------------------- deciding

function decide(verdict, partner = "image", image = null) {
  const pair = pairs[at];
  if (!pair || (verdict === "rematch" && !image && !(partner === "caption" ? pair.suggested_caption : pair.suggested))) return;
  if (!verdict && !pair.decision) return;
  const seen = pair.version;
  count(pair.decision, verdict);
  pair.decision = verdict;
  pair.new_image = verdict === "rematch" && partner === "image" ? (image ?? pair.suggested) : null;
  pair.new_caption = verdict === "rematch" && partner === "caption" ? pair.suggested_caption : "";
  pair.elsewhere = false;
  outbox.add("decisions", { row: pair.row, verdict, partner, image: image?.image ?? null, seen });
  byId("undo").disabled = false;
  const seconds = (performance.now() - last) / 1000;
  if (verdict && seconds < PAUSE) paces.push(seconds);
  if (paces.length > 20) paces.shift();
  say(`Pair ${pair.pair_id}: ${decidedWord(pair)}.`, verdict);
  if (verdict) next();
  else render();
}

function choose(pair, image) {
  at = pairs.indexOf(pair);
  decide("rematch", "image", image);
}

function undo() {
  if (!byId("undo").disabled) outbox.add("undo", {});
}

// Keep the number of pairs left in step without asking for it.
function count(before, after) {
  if (filter.show !== "undecided" || Boolean(before) === Boolean(after)) return;
  total += after ? -1 : 1;
}

function settled(entry, outcome) {
  progress = outcome.progress;
  tell();
  if (!outcome.pair) {
    if (entry.path === "undo") say("Nothing is left to undo.");
    return;
  }
  const before = pairs.find((pair) => pair.row === outcome.pair.row);
  if (entry.path === "undo") {
    undone(outcome);
  } else if (outcome.conflict) {
    take(outcome.pair);
    disagree(outcome.pair, entry);
    render();
  } else if (!outbox.holds(outcome.pair.row)) {
    take(outcome.pair);
    if (pairs[at]?.row === outcome.pair.row) render();
  } else if (before) {
    before.version = outcome.pair.version;
  }
}

function undone({ pair, conflict }) {
  if (conflict) {
    take(pair);
    render();
    say(`Pair ${pair.pair_id} was decided elsewhere since (${decidedWord(pair)}); that stands.`);
    return;
  }
  let place = pairs.findIndex((one) => one.row === pair.row);
  if (place < 0) {
    place = pairs.findIndex((one) => one.rank > pair.rank);
    if (place < 0) place = pairs.length;
    pairs.splice(place, 0, pair);
    if (!pair.decision && filter.show === "undecided") total += 1;
  } else {
    count(pairs[place].decision, pair.decision);
    pairs[place] = pair;
  }
  go(place);
  say(`Taken back: pair ${pair.pair_id} is ${decidedWord(pair)} again.`);
}

function disagree(pair, entry) {
  const { verdict, partner, image, row } = entry.body;
  trouble(`Pair ${pair.pair_id} was decided in another tab: ${decidedWord(pair)}. Yours is not saved.`, [
    ["Look at it", () => { trouble(""); go(pairs.findIndex((one) => one.row === row)); }],
    [`Mine counts (${verdict || "undecided"})`, () => {
      trouble("");
      const now = pairs.find((one) => one.row === row) ?? pair;
      outbox.add("decisions", { row, verdict, partner, image, seen: now.version });
    }],
    ["Leave it", () => trouble("")],
  ]);
}

function take(pair, elsewhere = false) {
  const place = pairs.findIndex((one) => one.row === pair.row);
  if (place < 0) return false;
  count(pairs[place].decision, pair.decision);
  pairs[place] = { ...pair, elsewhere };
  return true;
}

function refused(entry, reason) {
  trouble(`Not saved: ${reason}`, [["Load again", () => location.reload()]]);
}

function waiting(number, reason) {
  if (reason) trouble(`${thousands(number)} decision${number === 1 ? "" : "s"} not saved yet (${reason}). Trying again; leave this page open.`);
  else if (byId("trouble-text").textContent.includes("Trying again")) trouble("");
}

async function poll() {
  if (document.hidden || outbox.size) return;
  try {
    const news = await (await get("changes", { since: version, tab })).json();
    version = news.version;
    progress = news.progress;
    let visible = false;
    for (const pair of news.pairs) {
      const known = pairs.find((one) => one.row === pair.row);
      if (!known || known.version >= pair.version || outbox.holds(pair.row)) continue;
      take(pair, Boolean(pair.decision));
      visible = true;
      if (pairs[at]?.row === pair.row) say(`Pair ${pair.pair_id} was decided in another tab: ${decidedWord(pair)}.`, pair.decision);
    }
    if (visible) render();
    tell();
    if (byId("trouble-text").textContent.startsWith("The server is not there")) trouble("");
  } catch (error) {
    trouble(`The server is not there (${error.message}). Decisions made now are kept and sent when it is back.`);
  }
}

// ------------------------------------------------------------------------------------------------------ keys, clicks

const KEYS = {
  k: () => decide("keep"),
  r: () => decide("rematch"),
  c: () => decide("rematch", "caption"),
  d: () => decide("drop"),
  x: () => decide(""),
  u: undo,
  o: () => pairs[at] && dialogs.pick(pairs[at]),
  ArrowRight: () => pairs[at] && next(),
  ArrowLeft: () => go(at - 1),
  "/": () => { openFilter(true); byId("words").focus(); },
  "?": () => dialogs.help(),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || dialogs.open()) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "words")) event.target.blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = KEYS[key];
  if (!action || (event.repeat && !key.startsWith("Arrow"))) return;
  if (key.length === 1 && key !== "?" && !byId("keys-on").checked) return;
  event.preventDefault();
  action();
}

function openFilter(open) {
  byId("tools").classList.toggle("open", open);
  byId("open-filter").setAttribute("aria-expanded", String(open));
}

function listen() {
  document.addEventListener("keydown", onKey);
  for (const button of document.querySelectorAll(".choice")) {
    button.addEventListener("click", () => decide(button.dataset.verdict, button.dataset.partner));
  }
  byId("previous").addEventListener("click", KEYS.ArrowLeft);
  byId("next").addEventListener("click", KEYS.ArrowRight);
  byId("undo").addEventListener("click", undo);
  byId("other").addEventListener("click", KEYS.o);
  byId("open-help").addEventListener("click", KEYS["?"]);
  for (const id of ["open-export", "empty-export"]) byId(id).addEventListener("click", dialogs.openExport);
  byId("open-filter").addEventListener("click", () => openFilter(!byId("tools").classList.contains("open")));
  byId("empty-all").addEventListener("click", () => {
    byId("show").value = "all";
    byId("said").value = "anything";
    byId("words").value = "";
    refilter();
  });
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  let timer;
  for (const id of ["show", "said"]) byId(id).addEventListener("change", refilter);
  byId("words").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(refilter, 200);
  });
  byId("keys-on").checked = localStorage.getItem("l2rm-keys") !== "off";
  byId("keys-on").addEventListener("change", () => localStorage.setItem("l2rm-keys", byId("keys-on").checked ? "on" : "off"));
}

function refilter() {
  filter = { show: byId("show").value, said: byId("said").value, words: byId("words").value.trim() };
  restart().catch((error) => trouble(`Not loaded: ${error.message}`, [["Try again", () => { trouble(""); refilter(); }]]));
}

start();
