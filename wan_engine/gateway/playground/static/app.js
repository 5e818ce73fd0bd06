// Puts the parts of the page together.

import { Gateway, Refused } from "./api.js";
import { byId, chosen, megabytes } from "./dom.js";
import { Form, Unusable } from "./form.js";
import { History } from "./history.js";
import { Jobs } from "./jobs.js";
import { filesMaxBytes } from "./media.js";
import { Result } from "./result.js";
import { snippet } from "./snippets.js";

const NOT_READY_MS = 3000;
const READY_MS = 30000;
const COPIED_MS = 1500;

const limits = JSON.parse(document.querySelector('meta[name="limits"]').content);
const base = new URL(".", location.href).href;
const gateway = new Gateway(base, limits.endpoint);
const form = new Form(limits);
const jobs = new Jobs(gateway);
const result = new Result(jobs);
const history = new History(jobs, { show, use });

// --- the key -------------------------------------------------------------------------------------

function askForKey(sentence) {
  byId("key-card").hidden = false;
  byId("key-forget").hidden = !gateway.key;
  const note = byId("key-note");
  note.textContent = sentence;
  note.classList.toggle("bad", Boolean(gateway.key));
}

let unreached = false;

/** The first question, which also says whether this gateway asks for a key. */
async function connect() {
  if (limits.asksForKey && !gateway.key) {
    askForKey("This server asks for a key. It stays in this tab, and goes with it.");
    form.setPrices(null, "the price is shown with a key");
    return false;
  }
  unreached = false;
  try {
    form.setPrices(await gateway.prices());
    if (gateway.key) {
      askForKey("The key is used in this tab, and goes with it.");
      byId("key-note").classList.remove("bad");
    }
    jobs.resume();
    return true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) {
      askForKey("This key is not valid.");
      form.setPrices(null, "the price is shown with a key");
    } else {
      unreached = true;
      form.setPrices(null, error.message);
      jobs.resume();
    }
    return false;
  }
}

async function useKey() {
  gateway.key = byId("key").value.trim() || gateway.key;
  byId("key").value = "";
  if (await connect()) {
    result.show(result.id);
    byId("form-error").textContent = "";
  } else byId("key").focus();
}

byId("key-use").addEventListener("click", useKey);
byId("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault(); // it would send the form
  useKey();
});
byId("key-forget").addEventListener("click", () => {
  gateway.key = "";
  byId("key").focus();
  connect();
});
jobs.addEventListener("key", connect);

// --- sending -------------------------------------------------------------------------------------

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = byId("send");
  if (button.getAttribute("aria-disabled") === "true" || !form.check()) return;
  byId("form-error").textContent = "";
  button.setAttribute("aria-disabled", "true");
  button.textContent = "Sending …";
  try {
    show(await jobs.send(await form.input(), about()));
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Unusable)) throw error;
    const wait = error.retryAfterSeconds ? `. Try again in ${error.retryAfterSeconds} s` : "";
    byId("form-error").textContent = error.message + wait;
    if (error.status === 401) {
      await connect();
      byId("key").focus();
    }
  } finally {
    button.removeAttribute("aria-disabled");
    button.textContent = "Generate";
  }
});

/** What the history keeps of a request: no file, and no key. */
function about() {
  const { image, audio, references } = form;
  const kept = ({ url, file, thumb }) => (url ? { url } : { name: file.name, thumb });
  const sound = audio.value ? kept(audio.value) : null;
  if (!references.shown) return { options: form.options, picture: kept(image.value), sound };
  return { options: form.options, references: references.values.map(kept), sound };
}

// --- the result and the history ------------------------------------------------------------------

function show(id) {
  result.show(id);
  history.draw(id);
  const card = byId("result");
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  card.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  card.focus({ preventScroll: true });
}

function use({ options, picture, references, sound }) {
  form.options = options;
  form.begin(references ? "references" : "picture");
  form.references.clear();
  for (const one of references ?? []) if (one.url) form.references.useUrl(one.url);
  if (picture?.url) form.image.useUrl(picture.url);
  if (sound?.url) form.audio.useUrl(sound.url);
  else if (!sound) form.audio.clear();
  byId("prompt").focus();
  const missing = [picture, ...(references ?? []), sound].filter((media) => media?.name).map(({ name }) => name);
  byId("form-error").textContent = "";
  const note = references ? byId("references-error") : byId("image-note");
  if (missing.length) note.textContent ||= `Choose ${missing.join(" and ")} again: files are not kept.`;
}

byId("cancel").addEventListener("click", async () => {
  try {
    await jobs.cancel(result.id);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    byId("away").textContent = error.message;
  }
});
byId("again").addEventListener("click", () => {
  const { options, seed } = jobs.entry(result.id);
  form.options = { ...options, seed };
  byId("seed").focus();
});
jobs.addEventListener("change", ({ detail }) => {
  if (detail === null || detail === result.id) result.draw();
  history.draw(result.id);
});

// --- the code ------------------------------------------------------------------------------------

function drawCode() {
  const { image, audio, references } = form;
  const media = { audio: audio.value, ...(references.shown ? { references: references.values } : { image: image.value }) };
  const wish = { endpoint: limits.endpoint, options: form.options, ...media };
  const here = base.replace(/\/$/, "");
  byId("code").textContent = snippet(chosen("api"), chosen("language"), { ...wish, base: here });
  byId("code-note").textContent = codeNotes(wish).join(" ");
}

function codeNotes({ image, audio, references, options }) {
  const api = chosen("api");
  const notes = ["Put a key in place of YOUR_API_KEY."];
  const files = [image, audio, ...(references ?? [])].filter((media) => media?.file);
  const bytes = files.reduce((sum, { file }) => sum + file.size, 0);
  const most = filesMaxBytes(limits.requestMaxBytes);
  if (files.length) notes.push("It reads the file from the folder where it runs.");
  if (bytes > most) notes.push(`The file as it is does not fit in a request (${megabytes(most)}): make it smaller, or give a URL.`);
  if (files.some(({ changed }) => changed)) notes.push("The page converts the file for itself; this code sends it as it is.");
  if (api === "aiml" && references && (references.length < 1 || references.length > 3)) notes.push("The AI/ML API wants one to three references.");
  if (api === "aiml" && !options.enable_safety_checker) notes.push("The AI/ML API always checks.");
  if (api === "aiml" && chosen("language") === "curl") notes.push("It needs jq.");
  return notes;
}

byId("copy").addEventListener("click", async () => {
  const text = byId("code").textContent;
  const copied = await copy(text);
  byId("copy").textContent = copied ? "Copied" : "Press Ctrl+C";
  setTimeout(() => (byId("copy").textContent = "Copy"), COPIED_MS);
});

/** The clipboard is there on https and localhost only; elsewhere the text is at least selected. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(byId("code"));
    return false;
  }
}

form.addEventListener("change", drawCode);
for (const input of document.querySelectorAll('input[name="api"], input[name="language"]')) {
  input.addEventListener("change", drawCode);
}

// --- whether the server can render ---------------------------------------------------------------

async function watchReadiness() {
  const badge = byId("ready");
  let state = "ready";
  let text = "Ready";
  try {
    const { reasons, models } = await gateway.readiness();
    form.offer(models);
    if (reasons.length) [state, text] = ["waiting", `Not ready: ${reasons.join(", ")}`];
  } catch (error) {
    [state, text] = ["away", error instanceof Refused ? error.message : "The server does not answer"];
  }
  if (badge.textContent !== text) badge.textContent = text;
  badge.dataset.state = state;
  if (unreached && state !== "away") await connect();
  setTimeout(watchReadiness, state === "ready" ? READY_MS : NOT_READY_MS);
}

watchReadiness();
drawCode();
const [newest] = jobs.entries;
await connect();
if (newest) result.show(newest.id);
history.draw(result.id);
