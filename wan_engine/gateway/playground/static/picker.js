// A picker for a picture, a sound or a clip, by file, drop, paste or URL. It shows errors below.

import { byId, fault } from "./dom.js";
import { Unusable } from "./media.js";

/**
 * `value` is null, `{url}`, or the result of `read` for a file. Dispatches "change" when it
 * changes, and "seen" when the preview knows its size.
 */
export class Picker extends EventTarget {
  #root;
  #file;
  #url;
  #note;
  #error;
  #preview;
  #remove;
  #turn = 0;

  constructor(name, { read, describe }) {
    super();
    this.name = name;
    this.value = null;
    this.read = read;
    this.describe = describe;
    this.#root = byId(name);
    this.#file = byId(`${name}-file`);
    this.#url = byId(`${name}-url`);
    this.#note = byId(`${name}-note`);
    this.#error = byId(`${name}-error`);
    this.#preview = this.#root.querySelector(".preview");
    this.#remove = this.#root.querySelector(".remove");
    this.#listen();
  }

  #listen() {
    this.#file.addEventListener("change", () => {
      if (this.#file.files.length) this.useFile(this.#file.files[0]);
    });
    this.#url.addEventListener("change", () => this.useUrl(this.#url.value.trim()));
    this.#remove.addEventListener("click", () => {
      this.clear();
      this.#file.focus();
    });
    for (const event of ["load", "loadedmetadata"]) {
      this.#preview.addEventListener(event, () => this.dispatchEvent(new Event("seen")));
    }
    this.#preview.addEventListener("error", () => {
      if (this.value?.url) this.#show("", "No preview here; the server fetches it by itself.");
    });
  }

  get root() {
    return this.#root;
  }

  get shown() {
    return !this.#root.hidden;
  }

  set shown(shown) {
    this.#root.hidden = !shown;
  }

  /** Width and height of the sent picture in pixels, or null if unknown. */
  get pixels() {
    if (this.value?.width) return [this.value.width, this.value.height];
    const { naturalWidth, naturalHeight, videoWidth, videoHeight } = this.#preview;
    const [width, height] = [naturalWidth ?? videoWidth, naturalHeight ?? videoHeight];
    return this.value && width ? [width, height] : null;
  }

  /** The element that gets the focus after an error. */
  get field() {
    return this.#url.getAttribute("aria-invalid") ? this.#url : this.#file;
  }

  /** `options` go to `read`. */
  async useFile(file, options) {
    const turn = ++this.#turn;
    this.#fail("");
    this.#note.textContent = "Reading …";
    try {
      const value = await this.read(file, options);
      if (turn !== this.#turn) return;
      this.#use(value);
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#set(null, "", "");
      if (!(error instanceof Unusable)) throw error;
      this.#fail(error.message);
    }
  }

  /** Restores an earlier value, or reads a file. */
  restore(value) {
    this.#turn++;
    this.#fail("");
    this.#file.value = ""; // otherwise choosing the same file again is no change
    if (value instanceof File) return this.useFile(value);
    if (value?.url) this.useUrl(value.url);
    else if (value) this.#use(value);
    else this.clear();
    return undefined;
  }

  #use(value) {
    this.#url.value = "";
    this.#set(value, URL.createObjectURL(value.heard ?? value.file), this.describe(value));
  }

  /** Sets a URL, or a data URI, which counts as a file. */
  useUrl(text) {
    const turn = ++this.#turn;
    this.#fail("");
    if (!text) {
      if (this.value?.url) this.#set(null, "", "");
      return undefined;
    }
    if (text.startsWith("data:")) return this.#useDataUri(text, turn);
    const parsed = URL.canParse(text) ? new URL(text) : null;
    if (!["http:", "https:"].includes(parsed?.protocol)) {
      this.#set(null, "", "");
      this.#fail("It must start with http:// or https://", this.#url);
      return undefined;
    }
    this.#url.value = text;
    this.#set({ url: text }, text, "The server fetches it from there.");
    return undefined;
  }

  async #useDataUri(text, turn) {
    const [, type, data] = text.match(/^data:([^;,]*)[^,]*;base64,(.*)$/s) ?? [];
    try {
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      await this.useFile(
        new File([bytes], `${this.name}.${type.split("/")[1] ?? "bin"}`, { type }),
      );
    } catch {
      if (turn === this.#turn) this.#fail("This data URI is not in base64", this.#url);
    }
  }

  clear() {
    this.#turn++;
    this.#url.value = "";
    this.#fail("");
    this.#set(null, "", "");
  }

  /** Shows that a file is needed, until one is chosen. */
  need(sentence) {
    this.#fail(sentence);
  }

  /** Shows that the file is wrong, until another is chosen or it is cleared. */
  fail(sentence) {
    this.#fail(sentence);
    this.#remove.hidden = false;
  }

  #fail(sentence, field = this.#file) {
    for (const one of [this.#file, this.#url]) fault(one, this.#error, "");
    if (sentence) fault(field, this.#error, sentence);
  }

  #set(value, source, note) {
    this.value = value;
    if (!value?.file) this.#file.value = "";
    this.#remove.hidden = value === null;
    this.#show(source, note);
    this.dispatchEvent(new Event("change"));
  }

  #show(source, note) {
    const before = this.#preview.getAttribute("src") ?? "";
    if (before.startsWith("blob:") && before !== source) URL.revokeObjectURL(before);
    this.#preview.hidden = !source;
    if (source) this.#preview.setAttribute("src", source);
    else this.#preview.removeAttribute("src");
    this.#root.classList.toggle("has-preview", Boolean(source));
    this.#note.textContent = note;
  }
}

/**
 * Passes dropped files and URLs, and pasted files, to a picker: the one under the pointer,
 * otherwise the sound's for a sound, or the one of `first()`.
 */
export function receive(pickers, first) {
  const { audio } = pickers;
  const target = (event, file) => {
    const below = event.target.closest?.(".picker")?.id;
    if (below in pickers) return pickers[below];
    return file?.type.startsWith("audio/") ? audio : first();
  };
  const mark = (event, on) => event.target.closest?.(".picker")?.classList.toggle("over", on);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    mark(event, true);
  });
  addEventListener("dragleave", (event) => mark(event, false));
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(event, false);
    const [file] = event.dataTransfer.files;
    const url = event.dataTransfer.getData("text/uri-list").split("\n")[0].trim();
    if (file) target(event, file).useFile(file);
    else if (url) target(event).useUrl(url);
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) =>
      /^(image|audio|video)\//.test(one.type),
    );
    if (!file) return;
    event.preventDefault();
    const own = file.type.startsWith("audio/") ? audio : first();
    own.useFile(file);
  });
}
