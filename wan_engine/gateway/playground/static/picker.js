// A picker for a picture, a sound or a clip, by file, drop, paste or URL. It shows errors below.

import { Chooser, sentenceOf } from "./chooser.js";
import { byId } from "./dom.js";

/**
 * `value` is null, `{url}`, or the result of `read` for a file. Dispatches "change" when it
 * changes, and "seen" when the preview knows its size.
 */
export class Picker extends Chooser {
  #note;
  #preview;
  #remove;
  #turn = 0;

  constructor(name, { read, describe }) {
    super(name);
    this.value = null;
    this.read = read;
    this.describe = describe;
    this.#note = byId(`${name}-note`);
    this.#preview = this.root.querySelector(".preview");
    this.#remove = this.root.querySelector(".remove");
    this.#listen();
  }

  #listen() {
    this.file.addEventListener("change", () => this.useFiles(this.file.files));
    this.url.addEventListener("change", () => this.useTyped());
    this.#remove.addEventListener("click", () => {
      this.clear();
      this.file.focus();
    });
    for (const event of ["load", "loadedmetadata"]) {
      this.#preview.addEventListener(event, () => this.dispatchEvent(new Event("seen")));
    }
    this.#preview.addEventListener("error", () => {
      if (this.value?.url) this.#show("", "No preview here; the server fetches it by itself.");
    });
  }

  get media() {
    return this.value;
  }

  /** Width and height of the sent picture in pixels, or null if unknown. */
  get pixels() {
    if (this.value?.width) return [this.value.width, this.value.height];
    const { naturalWidth, naturalHeight, videoWidth, videoHeight } = this.#preview;
    const [width, height] = [naturalWidth ?? videoWidth, naturalHeight ?? videoHeight];
    return this.value && width ? [width, height] : null;
  }

  /** Uses the first of `files`. `options` go to `read`. */
  useFiles([file], options) {
    return file && this.busy(this.#useFile(file, options));
  }

  async #useFile(file, options) {
    const turn = ++this.#turn;
    this.complain("");
    this.#note.textContent = "Reading …";
    try {
      const value = await this.read(file, options);
      if (turn === this.#turn) this.#use(value);
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#set(null, "", "");
      this.complain(sentenceOf(error));
    }
  }

  /** Restores an earlier value, or reads a file. It must be empty. */
  restore(value) {
    if (value instanceof File) this.useFiles([value]);
    else if (value?.url) this.useUrl(value.url);
    else if (value) this.#use(value);
  }

  #use(value) {
    this.url.value = "";
    this.#set(value, URL.createObjectURL(value.heard ?? value.file), this.describe(value));
  }

  /** Uses the text in the field of the URL, if that is new. */
  useTyped() {
    const text = this.url.value.trim();
    if (text === (this.value?.url ?? "")) return;
    this.#turn++;
    this.complain("");
    if (text && this.useUrl(text)) return;
    this.#set(null, "", "");
  }

  useAddress(url) {
    this.#turn++;
    this.complain("");
    this.url.value = url;
    this.#set({ url }, url, "The server fetches it from there.");
  }

  clear() {
    this.#turn++;
    this.url.value = "";
    this.complain("");
    this.#set(null, "", "");
  }

  /** What is wrong stays until another file is chosen, or it is removed. */
  complain(sentence, field) {
    super.complain(sentence, field);
    this.#remove.hidden = this.value === null && !sentence;
  }

  /** Shows that a file is needed. */
  need(sentence) {
    this.complain(sentence);
    this.#remove.hidden = true;
  }

  #set(value, source, note) {
    this.value = value;
    if (!value?.file) this.file.value = ""; // otherwise choosing the same file again is no change
    this.#remove.hidden = value === null && !this.error;
    this.#show(source, note);
    this.dispatchEvent(new Event("change"));
  }

  #show(source, note) {
    const before = this.#preview.getAttribute("src") ?? "";
    if (before.startsWith("blob:") && before !== source) URL.revokeObjectURL(before);
    this.#preview.hidden = !source;
    if (source) this.#preview.setAttribute("src", source);
    else this.#preview.removeAttribute("src");
    this.root.classList.toggle("has-preview", Boolean(source));
    this.#note.textContent = note;
  }
}

/**
 * Passes dropped files and URLs, and pasted files, to a picker: the one under the pointer,
 * otherwise the sound's for a sound, or the one of `first()`. Texts stay with their field.
 */
export function receive(pickers, first) {
  const pickerAt = (event) => event.target.closest?.(".picker");
  const give = (files, below) => {
    const own = (file) => below ?? (file.type.startsWith("audio/") ? pickers.audio : first());
    for (const one of new Set(files.map(own))) {
      one.useFiles(files.filter((file) => own(file) === one));
    }
  };
  const isOurs = (event) => {
    const { types } = event.dataTransfer;
    const written = !pickerAt(event) && event.target.closest?.("textarea, input");
    return types.includes("Files") || (types.includes("text/uri-list") && !written);
  };
  const mark = (event, on) => pickerAt(event)?.classList.toggle("over", on);
  addEventListener("dragover", (event) => {
    if (!isOurs(event)) return;
    event.preventDefault();
    mark(event, true);
  });
  addEventListener("dragleave", (event) => mark(event, false));
  addEventListener("drop", (event) => {
    if (!isOurs(event)) return;
    event.preventDefault();
    mark(event, false);
    const below = pickers[pickerAt(event)?.id];
    const files = Array.from(event.dataTransfer.files);
    const url = event.dataTransfer.getData("text/uri-list").split("\n")[0].trim();
    if (files.length) give(files, below);
    else if (url) (below ?? first()).useUrl(url);
  });
  addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData;
    // Some programs copy a picture of a text with it.
    if (event.target.closest?.("textarea, input") && types.includes("text/plain")) return;
    const media = Array.from(files).filter((one) => /^(image|audio|video)\//.test(one.type));
    if (!media.length) return;
    event.preventDefault();
    give(media);
  });
}
