// Puts the parts of the page together.

import { Gateway, Refused } from "./api.js";
import { Code, copyInto } from "./code.js";
import { Comparison } from "./compare.js";
import { byId } from "./dom.js";
import { fillExample, showExample } from "./example.js";
import { Form } from "./form.js";
import { History } from "./history.js";
import { Jobs } from "./jobs.js";
import { Kept } from "./kept.js";
import { Unusable } from "./media.js";
import { Ready } from "./ready.js";
import { Keeper, about, bringBack, packedAll } from "./restore.js";
import { Result } from "./result.js";
import { SentFiles, Shared } from "./shared.js";
import { Stills } from "./stills.js";

const meta = (name) => document.querySelector(`meta[name="${name}"]`).content;
const limits = JSON.parse(meta("limits"));
const base = new URL(".", location.href).href;
const gateway = new Gateway(base, limits);
const kept = new Kept();
const form = new Form(limits, gateway);
const jobs = new Jobs(gateway);
const result = new Result(jobs);
const sent = new SentFiles(gateway);
const shared = new Shared(jobs, sent, use);
const comparison = new Comparison(jobs);
const gallery = new History(jobs, new Stills(gateway, kept), {
  show,
  use,
  compare: (id) => comparison.toggle(id),
});
const ready = new Ready(gateway);

// --- the key and the server ----------------------------------------------------------------------

const AGAIN_SECONDS = 5;
let models = {};
let takes = null;
let loras = {};
let unreached = false;
let again = 0; // the timer of the next try
let unsent = false; // as the server did not answer

function askForKey(sentence) {
  byId("key-card").hidden = false;
  byId("key-forget").hidden = !gateway.key;
  const note = byId("key-note");
  note.textContent = sentence;
  note.classList.toggle("bad", Boolean(gateway.key));
  byId("key").ariaInvalid = gateway.key ? "true" : null;
}

/** The first request, which also shows whether the key is valid. */
async function connect() {
  if (!gateway.isOpen) {
    askForKey("This server asks for a key. It is kept in this tab until you close it.");
    form.tell({});
    return false;
  }
  unreached = false;
  try {
    await learn();
    if (limits.asksForKey) {
      askForKey("The key is used, and kept in this tab until you close it.");
      byId("key-note").classList.remove("bad");
      byId("key").ariaInvalid = null;
    }
    jobs.resume();
    return true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) askForKey("This key is not valid.");
    else {
      unreached = true;
      jobs.resume();
      // "back" comes only after a silence of the server; this is for its refusal.
      clearTimeout(again);
      if (error.status) again = setTimeout(() => unreached && connect(), waitMs(error));
    }
    form.tell({}, error.status === 401 ? "" : error.message);
    return false;
  }
}

const waitMs = ({ retryAfterSeconds }) => (retryAfterSeconds ?? AGAIN_SECONDS) * 1000;

/** Load what the server makes, and the prices. */
async function learn() {
  const server = await gateway.server();
  ({ takes, loras } = server);
  if (Object.keys(server.models).length) models = server.models;
  form.offer(models, takes, loras);
  form.tell(server);
  result.priced = gallery.priced = Boolean(server.prices);
  draw();
}

async function useKey() {
  gateway.key = byId("key").value.trim() || gateway.key;
  byId("key").value = "";
  if (await connect()) {
    showAgain();
    byId("form-error").textContent = "";
  } else byId("key").focus();
}

byId("key-use").addEventListener("click", useKey);
byId("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault(); // otherwise it submits the form
  event.stopPropagation();
  useKey();
});
byId("key-forget").addEventListener("click", () => {
  gateway.key = "";
  byId("key").focus();
  connect();
});
jobs.addEventListener("key", connect);
ready.addEventListener("models", ({ detail }) => {
  // A server that starts again does not know them yet.
  if (Object.keys(detail).length) models = detail;
  form.offer(models, takes, loras);
  if (gateway.isOpen) learn().catch(() => {}); // the badge shows an outage
});
ready.addEventListener("back", () => {
  if (unsent) byId("form-error").textContent = "";
  if (unreached) connect();
});

// --- sending -------------------------------------------------------------------------------------

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  byId("form").requestSubmit();
});

async function send() {
  const button = byId("send");
  if (button.getAttribute("aria-disabled") === "true") return;
  byId("form-error").textContent = "";
  unsent = false;
  button.setAttribute("aria-disabled", "true");
  button.textContent = "Sending …";
  try {
    await form.settle();
    if (!form.check()) return;
    const told = about(form);
    const media = packedAll(form.media);
    const id = await jobs.send(await form.input(), told);
    await kept.keepRequest(id, media);
    show(id);
  } catch (error) {
    tell(error);
    unsent = error.status === 0;
    if (error.status === 401) {
      await connect();
      byId("key").focus();
    }
  } finally {
    button.removeAttribute("aria-disabled");
    button.textContent = "Generate";
  }
}

/** Shows the sentence of an error below the button. Throws errors of other kinds. */
function tell(error) {
  if (!(error instanceof Refused || error instanceof Unusable)) throw error;
  const wait = error.retryAfterSeconds ? ` (in ${error.retryAfterSeconds} s)` : "";
  byId("form-error").textContent = error.message + wait;
}

byId("example-use").addEventListener("click", async () => {
  try {
    await fillExample(form, meta("assets"));
    byId("prompt").focus();
  } catch (error) {
    tell(error);
  }
});
byId("example-make").addEventListener("click", async () => {
  try {
    await fillExample(form, meta("assets"));
    byId("send").focus({ preventScroll: true }); // the example is gone
    send();
  } catch (error) {
    tell(error);
  }
});

// --- the result and the history ------------------------------------------------------------------

const asked = () => new URLSearchParams(location.search).get("job");

/** The page's address for a job. */
function addressOf(id) {
  const address = new URL(location.href);
  address.search = new URLSearchParams({ job: id });
  address.hash = "";
  return address.href;
}

function draw() {
  result.draw();
  shared.draw(result.id);
  gallery.draw(result.id, comparison.ids);
}

function show(id) {
  if (asked() !== id) window.history.pushState(null, "", addressOf(id));
  if (gateway.isOpen) jobs.visit(id);
  result.show(id);
  draw();
  toResult();
  byId("result").focus({ preventScroll: true });
}

/** In a narrow window it is below the form. */
function toResult() {
  const card = byId("result");
  const below = card.getBoundingClientRect().top >= byId("form").getBoundingClientRect().bottom;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  card.scrollIntoView({ block: below ? "start" : "nearest", behavior: calm ? "auto" : "smooth" });
}

/** The job of the address, or the newest. */
function showAgain() {
  const id = asked() ?? jobs.entries[0]?.id;
  if (id && gateway.isOpen) jobs.visit(id);
  if (id) result.show(id);
  draw();
}

async function use(entry) {
  await bringBack(entry, form, kept, sent);
  byId("form-error").textContent = "";
  byId("prompt").focus();
}

byId("retry").addEventListener("click", () => use(jobs.entry(result.id)));
addEventListener("popstate", showAgain);
byId("cancel").addEventListener("click", () => jobs.cancel(result.id));
byId("again").addEventListener("click", async () => {
  const entry = jobs.entry(result.id);
  await bringBack(entry, form, kept, sent, { seed: entry.seed });
  byId("form-error").textContent = "";
  byId("seed").focus();
});
byId("share").addEventListener("click", () => copyInto(byId("share"), addressOf(result.id)));
comparison.addEventListener("change", draw);
jobs.addEventListener("change", ({ detail }) => {
  if (detail === null || detail === result.id) {
    result.draw();
    shared.draw(result.id);
  }
  comparison.check();
  gallery.draw(result.id, comparison.ids);
});
// Its time is an estimate for the next one.
jobs.addEventListener("ended", () => learn().catch(() => {}));
jobs.addEventListener("removed", forget);

/** Removes the files of jobs that are no longer in the history. */
function forget() {
  kept.only(() => new Set(jobs.entries.map(({ id }) => id)));
}

// --- the start -----------------------------------------------------------------------------------

new Code(form, limits, base);
showExample(meta("assets"));
ready.look();
await new Keeper(form, kept).start();
document.body.dataset.restored = "true";
await connect();
showAgain();
if (asked()) toResult(); // a shared clip is below the form of a phone
forget();
