// Decisions on their way to the server: one at a time, in order, again until they arrive. They outlive a reload of the
// page. A request keeps its name when it is sent again, so that the server counts it once.

const STORED = "l2rm-outbox";
const WAITS = [500, 1000, 2000, 4000];

export const base = document.documentElement.dataset.base;
export const tab = ownName();

export function imageURL(number, size) {
  return `${base}/api/images/${number}?size=${size}&audit=${document.documentElement.dataset.audit}`;
}

export async function get(path, parameters = {}) {
  const response = await fetch(`${base}/api/${path}?${new URLSearchParams(parameters)}`, { cache: "no-store" });
  if (!response.ok) throw new Error(await told(response));
  return response;
}

export async function told(response) {
  const answer = await response.json().catch(() => ({}));
  return typeof answer.detail === "string" ? answer.detail : `the server answers ${response.status}`;
}

// `handlers`: done(entry, outcome), refused(entry, reason), waiting(count, reason) with reason null when all is well.
export function makeOutbox(handlers) {
  const entries = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
  let busy = false;
  let arrivals = [];

  function keep() {
    sessionStorage.setItem(STORED, JSON.stringify(entries));
  }

  async function flush() {
    if (busy) return;
    busy = true;
    for (let tries = 0; entries.length; ) {
      const entry = entries[0];
      const failure = await send(entry);
      if (failure === null) {
        tries = 0;
        continue;
      }
      handlers.waiting(entries.length, failure);
      tellArrived();
      await new Promise((resolve) => setTimeout(resolve, WAITS[Math.min(tries++, WAITS.length - 1)]));
    }
    busy = false;
    handlers.waiting(0, null);
    tellArrived();
  }

  function tellArrived() {
    for (const arrived of arrivals) arrived();
    arrivals = [];
  }

  // null when the server has answered, whatever it said; else why it has not.
  async function send(entry) {
    let response;
    try {
      response = await fetch(`${base}/api/${entry.path}`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...entry.body, tab }),
        signal: AbortSignal.timeout(15000),
      });
      if (response.status >= 500 || response.status === 429) return await told(response);
      const outcome = response.ok ? await response.json() : null;
      const reason = response.ok ? null : await told(response);
      entries.shift();
      if (outcome) settle(entry, outcome);
      keep();
      if (outcome) handlers.done(entry, outcome);
      else handlers.refused(entry, reason);
      return null;
    } catch {
      return "the server does not answer";
    }
  }

  // What was decided here before the answer came has seen this answer; what it conflicts with was not seen by anybody.
  function settle(entry, { pair, conflict }) {
    if (!pair) return;
    for (let place = entries.length - 1; place >= 0; place--) {
      const later = entries[place];
      if (later.body.row !== pair.row) continue;
      if (conflict && entry.path === "decisions") entries.splice(place, 1);
      else later.body.seen = pair.version;
    }
  }

  window.addEventListener("beforeunload", (event) => {
    if (entries.length) event.preventDefault();
  });

  return {
    add(path, body) {
      entries.push({ path, body: { ...body, request: name() } });
      keep();
      flush();
    },
    // Resolved when everything has arrived, or as soon as the server does not answer.
    arrived: () => (entries.length ? new Promise((resolve) => arrivals.push(resolve)) : Promise.resolve()),
    holds: (row) => entries.some((entry) => entry.body.row === row),
    get size() {
      return entries.length;
    },
    flush,
  };
}

function name() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function ownName() {
  const kept = sessionStorage.getItem("l2rm-tab");
  if (kept) return kept;
  const made = name();
  sessionStorage.setItem("l2rm-tab", made);
  return made;
}
