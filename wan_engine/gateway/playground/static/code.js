// The card that shows the form's request as code.

import { announce, byId, chosen, element, megabytes } from "./dom.js";
import { filesMaxBytes } from "./media.js";
import { snippet } from "./snippets.js";

const COPIED_MS = 1500;
const NAMES = { aiml: "The AI/ML API", oxen: "Oxen", dashscope: "DashScope", openai: "OpenAI" };
const JQ = ["aiml", "dashscope", "openai"];

export class Code {
  #form;
  #limits;
  #base;

  constructor(form, limits, base) {
    this.#form = form;
    this.#limits = limits;
    this.#base = base.replace(/\/$/, "");
    form.addEventListener("change", () => this.draw());
    for (const input of document.querySelectorAll('input[name="api"], input[name="language"]')) {
      input.addEventListener("change", () => this.draw());
    }
    byId("copy").addEventListener("click", () =>
      copyInto(byId("copy"), byId("code").textContent, byId("code")),
    );
    this.draw();
  }

  draw() {
    const { endpoint, asksForKey, namedSizes } = this.#limits;
    const { options, media } = this.#form;
    const shape = namedSizes[options.size][options.aspect_ratio ?? "16:9"];
    const wish = { base: this.#base, endpoint, keyed: asksForKey, options, media, shape };
    byId("code").textContent = snippet(chosen("api"), chosen("language"), wish);
    byId("code-note").textContent = this.#notes(wish).join(" ");
  }

  #notes({ media, options, keyed }) {
    const api = chosen("api");
    const { references } = media;
    const notes = keyed ? ["Put a key in place of YOUR_API_KEY."] : [];
    const files = Object.values(media)
      .flat()
      .filter((one) => one?.file);
    const bytes = files.reduce((sum, { file }) => sum + file.size, 0);
    const most = filesMaxBytes(this.#limits.requestMaxBytes);
    if (files.length) notes.push("It reads the file from the folder where it runs.");
    if (bytes > most) {
      const large = `The file as it is does not fit in a request (${megabytes(most)})`;
      notes.push(`${large}: make it smaller, or give a URL.`);
    }
    if (files.some(({ changed }) => changed)) {
      notes.push("The page converts the file for itself; this code sends it as it is.");
    }
    if (api === "aiml" && references && (references.length < 1 || references.length > 3)) {
      notes.push("The AI/ML API wants one to three references.");
    }
    if (["aiml", "oxen", "dashscope"].includes(api) && options.loras) {
      notes.push(`${NAMES[api]} takes no LoRA.`);
    }
    if (["aiml", "oxen"].includes(api) && media.first_clip) {
      notes.push(`${NAMES[api]} takes no clip to continue.`);
    }
    if (api === "dashscope" && options.keep_first_clip === false) {
      notes.push("DashScope always begins with the clip.");
    }
    if (["dashscope", "openai"].includes(api) && references && media.last_image) {
      notes.push(`${NAMES[api]} takes no last picture with references.`);
    }
    if (["aiml", "dashscope"].includes(api) && !options.enable_safety_checker) {
      notes.push(`${NAMES[api]} always checks.`);
    }
    if (JQ.includes(api) && chosen("language") === "curl") notes.push("It needs jq.");
    return notes;
  }
}

/** Copies, and says so on the button. Where the browser refuses, it selects `shown`. */
export async function copyInto(button, text, shown = null) {
  const before = button.dataset.label ?? button.textContent;
  button.dataset.label = before;
  const refused = shown ? "Press Ctrl+C" : "Copy the address";
  button.textContent = (await copy(text)) ? "Copied" : refused;
  if (button.textContent === refused && shown) getSelection().selectAllChildren(shown);
  announce(button.textContent);
  setTimeout(() => {
    button.textContent = before;
    announce("");
  }, COPIED_MS);
}

/** @returns whether the text is copied. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyOld(text);
  }
}

/** Browsers have a clipboard on https and localhost only. Elsewhere, the old command works. */
function copyOld(text) {
  const held = document.activeElement;
  const field = element("textarea", { className: "visually-hidden", value: text });
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  held?.focus({ preventScroll: true });
  return copied;
}
