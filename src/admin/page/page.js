// The status page: follows /events and shows what they say.

import { make, say } from "./elements.js";
import { endedRow } from "./ended.js";
import { HandCard } from "./hand.js";
import { ENDING, STATE, bytes, moment, plural, uptime } from "./words.js";

const LAST_JOBS = 50;
/** A worker speaks every 5 s. */
const SILENT_AFTER = 16_000;
const RETRY_FIRST = 1_000;
const RETRY_MOST = 10_000;

const at = (id) => document.getElementById(id);

/** What is known. */
const known = { worker: null, commands: false, jobs: new Map(), inHand: [], ended: [], offset: 0 };
const cards = new Map();
const rows = new Map();

// --- the line to the worker ---------------------------------------------------------------------

const line = { source: null, tried: 0, heard: 0, lost: null, pause: RETRY_FIRST, timer: 0 };

function connect() {
  line.source?.close();
  clearTimeout(line.timer);
  // By hand: the browser gives up after an answer that is no stream.
  const source = new EventSource("events");
  line.source = source;
  line.tried = Date.now();
  source.addEventListener("message", ({ data }) => {
    heard();
    take(JSON.parse(data));
  });
  source.addEventListener("alive", heard);
  source.addEventListener("error", () => {
    if (source !== line.source) return;
    lose();
    source.close();
    line.timer = setTimeout(connect, line.pause);
    line.pause = Math.min(line.pause * 1.5, RETRY_MOST);
  });
}

function heard() {
  line.heard = Date.now();
  line.lost = null;
  line.pause = RETRY_FIRST;
  showLine();
}

function lose() {
  line.lost ??= line.heard || Date.now();
  showLine();
}

function showLine() {
  const stale = at("stale");
  document.body.classList.toggle("out-of-date", line.lost !== null);
  if (line.lost === null) {
    stale.hidden = true;
    return;
  }
  say(
    stale,
    known.worker
      ? `Out of date: the worker has not answered since ${moment(line.lost)}. What is below was true then. Trying again.`
      : "The worker does not answer. Trying again.",
  );
  stale.hidden = false;
}

// --- what it says -------------------------------------------------------------------------------

function take(news) {
  if (news.reset) {
    known.jobs.clear();
    known.ended = [];
    // Back on the line to the same worker: what somebody has opened stays open.
    const same = news.worker.id === known.worker?.id && news.worker.started_at === known.worker.started_at;
    if (!same) for (const elements of [cards, rows]) forget(elements, () => true);
  }
  known.offset = news.now - Date.now();
  known.commands = news.commands;
  if (news.worker) known.worker = news.worker;
  for (const job of news.jobs) known.jobs.set(job.key, job);
  known.inHand = news.in_hand;
  for (const job of news.ended) {
    known.jobs.delete(job.key);
    known.ended.unshift(job);
    if (rows.has(job.key)) continue;
    const element = endedRow(job);
    rows.set(job.key, { element });
    at("ended").prepend(element);
    if (!news.reset) announce(job);
  }
  known.ended.length = Math.min(known.ended.length, LAST_JOBS);
  const kept = new Set(known.ended.map((job) => job.key));
  forget(rows, (key) => !kept.has(key));
  showHand();
  showWorker();
  showPast();
  tick();
}

/** Removes elements that show what is no longer known. */
function forget(elements, which) {
  for (const [key, { element }] of elements) {
    if (!which(key)) continue;
    element.remove();
    elements.delete(key);
  }
}

/** Told aloud: only what somebody should look at. */
function announce(job) {
  if (job.outcome.status === "failed") say(at("announce"), `Job ${job.id} failed`);
}

function showHand() {
  const list = at("in-hand");
  forget(cards, (key) => !known.inHand.includes(key));
  known.inHand.forEach((key, index) => {
    const job = known.jobs.get(key);
    if (!job) return;
    let card = cards.get(key);
    if (!card) {
      card = new HandCard(job, cancel);
      cards.set(key, card);
    }
    card.update(job);
    job.node_list = [];
    card.button.hidden = !known.commands || job.outcome !== null;
    if (list.children[index] !== card.element) list.insertBefore(card.element, list.children[index] ?? null);
  });
  const { state } = known.worker;
  const idle = {
    booting: "ComfyUI and Chromium are starting.",
    ready: "Nothing. The worker waits for jobs.",
    store_away: "Nothing. The store is away: the worker waits for it.",
    disk_full: "Nothing. The disk is full: the worker waits for space.",
    draining: "Nothing. The worker ends.",
  };
  at("idle").hidden = known.inHand.length > 0;
  say(at("idle"), idle[state] ?? "Nothing.");
}

function showWorker() {
  const { worker } = known;
  const trouble = worker.state === "ready" && worker.unready !== null;
  const word = trouble ? `not ready: ${worker.unready}` : (STATE[worker.state] ?? worker.state);
  say(at("worker"), worker.id);
  say(at("state-word"), word);
  at("state").dataset.state = trouble ? "trouble" : worker.state;
  document.title = `${trouble ? "not ready" : word} · ${worker.id}`;
  const { versions } = worker;
  const facts = [
    ["up", ""],
    ["worker", versions.worker],
    ["ComfyUI", versions.comfyui],
    ["frontend", versions.frontend],
    ["Chromium", versions.chromium?.replace(/^.*\//, "")],
  ].filter(([, value]) => value !== null && value !== undefined);
  const list = at("facts");
  while (list.children.length > facts.length) list.lastChild.remove();
  facts.forEach(([key, value], index) => {
    const fact = list.children[index] ?? list.appendChild(make("div", {}, make("dt"), make("dd")));
    say(fact.firstChild, key);
    if (index > 0) say(fact.lastChild, value);
  });
  at("drain").hidden = !known.commands || worker.state === "draining";
  showResources(worker.resources);
}

function showResources(resources) {
  const rows = [...(resources?.memory ?? []), ...(resources?.devices ?? [])];
  at("machine").hidden = rows.length === 0;
  const list = at("resources");
  while (list.children.length > rows.length) list.lastChild.remove();
  rows.forEach(({ name, used, total }, index) => {
    const row =
      list.children[index] ??
      list.appendChild(
        make(
          "li",
          {},
          make("bdi", { class: "name" }),
          make("span", { class: "amount" }),
          make("div", { class: "meter", role: "meter", "aria-valuemin": "0" }, make("span")),
        ),
      );
    const [label, amount, meter] = row.children;
    say(label, name);
    say(amount, total === null ? bytes(used) : `${bytes(used)} of ${bytes(total)}`);
    meter.hidden = total === null;
    if (total === null) return;
    meter.setAttribute("aria-label", `memory of ${name}`);
    meter.setAttribute("aria-valuemax", String(total));
    meter.setAttribute("aria-valuenow", String(used));
    const share = total > 0 ? Math.min(1, used / total) : 0;
    meter.classList.toggle("high", share > 0.92);
    meter.firstChild.style.width = `${share * 100}%`;
  });
}

function showPast() {
  const { jobs } = known.worker;
  const counts = Object.entries(ENDING)
    .filter(([key]) => jobs[key] > 0)
    .map(([key, word]) => `${jobs[key]} ${word}`);
  const all = jobs.succeeded + jobs.failed + jobs.cancelled + jobs.handed_back;
  say(
    at("counts"),
    counts.join(" · ") + (all > known.ended.length ? ` · the last ${known.ended.length}` : ""),
  );
  const failures = at("only-failed").getAttribute("aria-pressed") === "true";
  at("ended").classList.toggle("only-failed", failures);
  at("only-failed").hidden = known.ended.length === 0;
  const left = known.ended.filter((job) => !failures || job.outcome.status === "failed").length;
  at("none-ended").hidden = left > 0;
  say(
    at("none-ended"),
    failures
      ? `No failure among the last ${plural(known.ended.length, "job", "jobs")}.`
      : "No job has ended since the worker started.",
  );
}

function tick() {
  if (!known.worker) return;
  const now = (line.lost ?? Date.now()) + known.offset;
  say(at("facts").firstChild.lastChild, uptime(now - known.worker.started_at));
  for (const card of cards.values()) card.tick(now);
}

// --- commands -------------------------------------------------------------------------------------

const TOKEN = "comfy-worker token";

async function cancel(job, button) {
  button.disabled = true;
  const done = await command(
    `jobs/${encodeURIComponent(job.id)}/cancel`,
    `Cancel ${job.id}?`,
    "The job ends as cancelled; its publisher is told.",
    "Cancel the job",
  );
  if (done) say(button, "Cancelling …");
  else button.disabled = false;
}

async function drain() {
  const what = "The worker takes no more jobs, finishes the one that runs within its grace, and ends.";
  await command("drain", `Drain ${known.worker.id}?`, what, "Drain");
}

/** Sends a command after a question; whether it was taken. */
async function command(path, title, what, yes) {
  if (!(await sure(title, what, yes))) return false;
  let refused = false;
  for (;;) {
    const token = sessionStorage.getItem(TOKEN) ?? (await askToken(refused));
    if (token === null) return false;
    try {
      const answer = await fetch(path, { method: "POST", headers: { Authorization: `Bearer ${token}` } });
      if (answer.status !== 401) {
        if (!answer.ok) await tell("The worker refused", (await answer.text()).trim());
        return answer.ok;
      }
    } catch {
      await tell("The worker does not answer", "The command was not taken.");
      return false;
    }
    sessionStorage.removeItem(TOKEN);
    refused = true;
  }
}

/** Opens a dialog until one of its buttons is pressed; `null` is a way out. */
function open(dialog, buttons) {
  return new Promise((resolve) => {
    const listening = new AbortController();
    const close = (value) => {
      listening.abort();
      dialog.close();
      resolve(value);
    };
    const { signal } = listening;
    for (const [id, value] of buttons) at(id).addEventListener("click", () => close(value()), { signal });
    dialog.addEventListener("cancel", () => close(null), { signal });
    dialog.addEventListener(
      "keydown",
      (event) => {
        if (event.key === "Enter" && event.target.tagName === "INPUT") close(buttons.at(-1)[1]());
      },
      { signal },
    );
    dialog.showModal();
  });
}

async function sure(title, what, yes) {
  say(at("ask-sure-title"), title);
  say(at("ask-sure-what"), what);
  say(at("sure-yes"), yes);
  at("sure-no").hidden = false;
  return (
    (await open(at("ask-sure"), [
      ["sure-no", () => null],
      ["sure-yes", () => true],
    ])) === true
  );
}

async function tell(title, what) {
  say(at("ask-sure-title"), title);
  say(at("ask-sure-what"), what);
  say(at("sure-yes"), "Close");
  at("sure-no").hidden = true;
  await open(at("ask-sure"), [["sure-yes", () => true]]);
}

async function askToken(refused) {
  const field = at("token");
  field.value = "";
  say(at("ask-token-title"), refused ? "That token was refused" : "Token");
  const token = await open(at("ask-token"), [
    ["token-cancel", () => null],
    ["token-ok", () => field.value.trim()],
  ]);
  field.value = "";
  if (!token) return null;
  sessionStorage.setItem(TOKEN, token);
  return token;
}

// --- beginning ----------------------------------------------------------------------------------

at("drain").addEventListener("click", drain);
at("only-failed").addEventListener("click", ({ currentTarget }) => {
  currentTarget.setAttribute("aria-pressed", String(currentTarget.getAttribute("aria-pressed") !== "true"));
  showPast();
});
setInterval(() => {
  // A machine that slept, or a line that is dead without a word; also one that was tried.
  if (Date.now() - Math.max(line.heard, line.tried) > SILENT_AFTER) {
    lose();
    connect();
  }
  tick();
}, 1000);
connect();
