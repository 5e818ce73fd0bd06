// What the pickers of one file and of several files have in common: fields, URLs and the error.

import { byId, fault } from "./dom.js";
import { fileOf, Unusable } from "./media.js";

/** A subclass has `useFiles`, `useAddress` and `useTyped`. */
export class Chooser extends EventTarget {
  #error;
  /** Resolves when no file is read any longer. */
  settled = Promise.resolve();

  constructor(name) {
    super();
    this.name = name;
    this.root = byId(name);
    this.file = byId(`${name}-file`);
    this.url = byId(`${name}-url`);
    this.#error = byId(`${name}-error`);
  }

  get shown() {
    return !this.root.hidden;
  }

  set shown(shown) {
    this.root.hidden = !shown;
  }

  /** The sentence that is shown below it. */
  get error() {
    return this.#error.textContent;
  }

  /** The element that gets the focus after an error. */
  get field() {
    return this.url.getAttribute("aria-invalid") ? this.url : this.file;
  }

  /** Shows that a field is wrong. An empty sentence clears that. */
  complain(sentence, field = this.file) {
    for (const one of [this.file, this.url]) fault(one, this.#error, "");
    if (sentence) fault(field, this.#error, sentence);
  }

  /** Uses a URL, or a data URI, which counts as a file. @returns whether it is one of them. */
  useUrl(text) {
    if (/^data:/i.test(text)) {
      const file = fileOf(text, this.name);
      if (file) this.useFiles([file]);
      else this.complain("This data URI is not in base64", this.url);
      return file !== null;
    }
    const parsed = URL.canParse(text) ? new URL(text) : null;
    const known = ["http:", "https:"].includes(parsed?.protocol);
    if (known) this.useAddress(text);
    else this.complain("It must start with http:// or https://", this.url);
    return known;
  }

  /** Waits for `work`, which reads files, in `settled`. */
  busy(work) {
    this.settled = Promise.allSettled([this.settled, work]);
    return work;
  }
}

/** The sentence for an error of reading a file. Throws errors of other kinds. */
export function sentenceOf(error) {
  if (error instanceof Unusable) return error.message;
  // The file was deleted or changed, or it is a folder.
  if (error instanceof DOMException) return "The file cannot be read: choose it again";
  throw error;
}
