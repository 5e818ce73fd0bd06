// The references of a clip without a first picture: pictures and videos, named by their order.

import { Chooser, sentenceOf } from "./chooser.js";
import { byId, element, megabytes } from "./dom.js";
import { Unusable } from "./media.js";

/** `values` are `{url}`, or the results of `read`. Dispatches "change" when they change. */
export class References extends Chooser {
  #most;
  #leaveOut;
  #turn = 0;

  constructor({ read, most }) {
    super("references");
    this.values = [];
    this.read = read;
    this.#most = most;
    this.#leaveOut = this.root.querySelector(".remove");
    this.file.addEventListener("change", () => {
      this.useFiles(Array.from(this.file.files));
      this.file.value = "";
    });
    byId("references-add").addEventListener("click", () => this.useUrl(this.url.value.trim()));
    this.url.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
      event.preventDefault(); // otherwise it submits the form
      this.useUrl(this.url.value.trim());
    });
    this.#leaveOut.addEventListener("click", () => {
      this.url.value = "";
      this.complain("");
      this.file.focus();
    });
  }

  get media() {
    return this.values;
  }

  useFiles(files) {
    return this.busy(this.#useFiles(files));
  }

  async #useFiles(files) {
    const turn = this.#turn;
    const wrong = [];
    for (const file of files) {
      try {
        const value = await this.read(file);
        if (turn !== this.#turn) return;
        this.#add(value);
      } catch (error) {
        wrong.push(sentenceOf(error));
      }
    }
    if (wrong.length) this.complain([...new Set(wrong)].join(". "));
  }

  /** Values of earlier, as they were, or files. */
  restore(values) {
    this.clear();
    if (values?.some((one) => one instanceof File)) this.busy(this.#restore(values));
    else if (values) this.#set(values);
  }

  async #restore(values) {
    const turn = this.#turn;
    const found = [];
    const wrong = [];
    for (const one of values) {
      try {
        found.push(one instanceof File ? await this.read(one) : one);
      } catch (error) {
        wrong.push(sentenceOf(error));
      }
    }
    if (turn !== this.#turn) return;
    this.#set(found);
    this.complain([...new Set(wrong)].join(". "));
  }

  /** Uses the text in the field of the URL, which was not added yet. */
  useTyped() {
    const text = this.url.value.trim();
    if (text) this.useUrl(text);
  }

  useAddress(url) {
    try {
      this.#add({ url });
      this.url.value = "";
    } catch (error) {
      this.complain(sentenceOf(error), this.url);
    }
  }

  clear() {
    this.#turn++;
    this.url.value = "";
    this.#set([]);
  }

  complain(sentence, field) {
    super.complain(sentence, field);
    this.#leaveOut.hidden = !sentence;
  }

  #add(value) {
    if (this.values.length >= this.#most) throw new Unusable(`At most ${this.#most} are taken`);
    this.#set([...this.values, value]);
  }

  #set(values) {
    this.values = values;
    this.complain("");
    byId("references-list").replaceChildren(
      ...values.map((value, index) => this.#item(value, index)),
    );
    this.dispatchEvent(new Event("change"));
  }

  #item(value, index) {
    const called = `character${index + 1}`;
    const told = value.url ?? `${value.file.name}, ${megabytes(value.blob.size)}`;
    const remove = element("button", {
      type: "button",
      className: "quiet small",
      textContent: "Remove",
      ariaLabel: `Remove ${called}`,
    });
    remove.addEventListener("click", () => {
      this.#set(this.values.filter((one) => one !== value));
      this.file.focus();
    });
    const name = element("b", { textContent: called });
    const text = element("span", { className: "grow" }, name, ` ${told}`);
    return element("li", {}, tile(value), text, remove);
  }
}

/** A small picture of it, or what it is. */
function tile({ thumb, url }) {
  if (thumb) return element("img", { className: "tile", src: thumb, alt: "" });
  const textContent = url ? "URL" : "Video";
  return element("span", { className: "tile", ariaHidden: "true", textContent });
}
