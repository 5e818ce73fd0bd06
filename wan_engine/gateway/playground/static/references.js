// The references of a clip without a first picture: pictures and videos, named by their order.

import { byId, element, fault, megabytes } from "./dom.js";
import { Unusable, filesMaxBytes, readPicture } from "./media.js";

/** `values` are `{url}`, or the result of reading a file. Dispatches "change" when they change. */
export class References extends EventTarget {
  #limits;
  #url = byId("references-url");
  #file = byId("references-file");

  constructor(limits) {
    super();
    this.#limits = limits;
    this.values = [];
    this.#file.addEventListener("change", async () => {
      for (const file of Array.from(this.#file.files)) await this.useFile(file);
      this.#file.value = "";
    });
    byId("references-add").addEventListener("click", () => this.useUrl(this.#url.value.trim()));
    this.#url.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // otherwise it submits the form
      this.useUrl(this.#url.value.trim());
    });
  }

  get shown() {
    return !byId("references").hidden;
  }

  set shown(shown) {
    byId("references").hidden = !shown;
  }

  /** Values of earlier, as they were, or files. */
  async restore(values) {
    const files = (values ?? []).some((one) => one instanceof File);
    this.#set(files ? [] : (values ?? []));
    if (!files) return;
    try {
      this.#set(
        await Promise.all(values.map((one) => (one instanceof File ? this.#read(one) : one))),
      );
    } catch (error) {
      if (!(error instanceof Unusable)) throw error;
      this.#fail(error.message, this.#file);
    }
  }

  /** Shows an error. */
  fail(sentence) {
    this.#fail(sentence, this.#file);
  }

  get field() {
    return this.#url.getAttribute("aria-invalid") ? this.#url : this.#file;
  }

  async useFile(file) {
    try {
      this.#add(await this.#read(file));
    } catch (error) {
      if (!(error instanceof Unusable)) throw error;
      this.#fail(error.message, this.#file);
    }
  }

  async #read(file) {
    const room = this.#room();
    const value = file.type.startsWith("video/")
      ? video(file, room)
      : await readPicture(file, room, this.#limits);
    return { ...value, file };
  }

  useUrl(text) {
    const parsed = URL.canParse(text) ? new URL(text) : null;
    if (!["http:", "https:"].includes(parsed?.protocol)) {
      this.#fail("It must start with http:// or https://", this.#url);
      return;
    }
    this.#url.value = "";
    this.#add({ url: text });
  }

  clear() {
    this.#set([]);
  }

  /** The bytes left in a request beside the present references. */
  #room() {
    const taken = this.values.reduce((sum, { blob }) => sum + (blob?.size ?? 0), 0);
    return Math.min(
      filesMaxBytes(this.#limits.requestMaxBytes) - taken,
      this.#limits.imageMaxBytes,
    );
  }

  #add(value) {
    const most = this.#limits.referencesMax;
    if (this.values.length >= most) this.#fail(`At most ${most} are taken`, this.#file);
    else this.#set([...this.values, value]);
  }

  #fail(sentence, field) {
    for (const one of [this.#file, this.#url]) fault(one, byId("references-error"), "");
    if (sentence) fault(field, byId("references-error"), sentence);
  }

  #set(values) {
    this.values = values;
    this.#fail("");
    byId("references-list").replaceChildren(
      ...values.map((value, index) => this.#item(value, index)),
    );
    this.dispatchEvent(new Event("change"));
  }

  #item(value, index) {
    const name = value.url ?? `${value.file.name}, ${megabytes(value.blob.size)}`;
    const remove = element("button", {
      type: "button",
      className: "quiet small",
      textContent: "Remove",
    });
    remove.ariaLabel = `Remove character${index + 1}`;
    remove.addEventListener("click", () => {
      this.#set(this.values.filter((one) => one !== value));
      this.#file.focus();
    });
    const text = element(
      "span",
      { className: "grow" },
      element("b", { textContent: `character${index + 1}` }),
      ` ${name}`,
    );
    return element("li", {}, tile(value), text, remove);
  }
}

/** A small picture of it, or what it is. */
function tile({ thumb, url }) {
  if (thumb) return element("img", { className: "tile", src: thumb, alt: "" });
  return element("span", {
    className: "tile",
    ariaHidden: "true",
    textContent: url ? "URL" : "Video",
  });
}

function video(file, room) {
  if (file.size > room) {
    throw new Unusable(
      `This video has ${megabytes(file.size)}; ${megabytes(room)} are left: give its URL`,
    );
  }
  return { blob: file, type: file.type };
}
