// The size of the clip in pixels, and the part of the picture that it shows, before a request is
// sent. The gateway computes them as for a plan; nothing of that is repeated here.

import { byId, chosen, say } from "./dom.js";

const SEEN_CUT = 0.995; // a smaller crop is not visible

/** Dispatches "change" when the gateway has answered. */
export class Sizes extends EventTarget {
  #limits;
  #gateway;
  #form;
  #known = new Map();

  constructor(limits, gateway, form) {
    super();
    this.#limits = limits;
    this.#gateway = gateway;
    this.#form = form;
  }

  /** Width and height of a clip of `size`, or null if unknown. */
  of(size) {
    const { beginning } = this.#form;
    if (beginning.now === "references") {
      return this.#limits.namedSizes[size][chosen("aspect_ratio")];
    }
    const told = this.#told?.[size];
    return told ? [told.width, told.height] : null;
  }

  draw() {
    const { beginning } = this.#form;
    this.#ask();
    for (const input of document.querySelectorAll('input[name="size"]')) {
      input.nextElementSibling.dataset.pixels = this.of(input.value)?.join("×") ?? "";
    }
    const told = beginning.now === "references" ? null : this.#told?.[chosen("size")];
    say(byId("size-note"), this.#note(told));
    this.#frame(beginning.now === "picture" ? told : null);
  }

  get #source() {
    const { beginning, image, clip } = this.#form;
    return { picture: image, clip }[beginning.now]?.pixels ?? null;
  }

  get #key() {
    return JSON.stringify([this.#source, this.#form.beginning.task]);
  }

  get #told() {
    return this.#source && this.#known.get(this.#key);
  }

  async #ask() {
    const source = this.#source;
    const key = this.#key;
    if (!source || !this.#gateway.isOpen || this.#known.has(key)) return;
    this.#known.set(key, null);
    try {
      this.#known.set(key, await this.#gateway.sizes(...source, this.#form.beginning.task));
    } catch {
      this.#known.delete(key); // no answer, or an invalid key: ask again after the next change
      return;
    }
    this.draw();
    this.dispatchEvent(new Event("change"));
  }

  #note(told) {
    const { now } = this.#form.beginning;
    if (now === "references") return "";
    if (!told) return `The video has the shape of the ${now}; the size says how many pixels.`;
    const cut = told.shown.map((share) => Math.round((1 - share) * 100));
    const parts = [
      cut[0] && `${cut[0]} % of its width`,
      cut[1] && `${cut[1]} % of its height`,
    ].filter(Boolean);
    const sentence = `The video has ${told.width} × ${told.height} pixels.`;
    return parts.length
      ? `${sentence} ${parts.join(" and ")} is cut off.`
      : `${sentence} The whole ${now} is seen.`;
  }

  /** Draws the kept part over the preview, if the picture is cropped. */
  #frame(told) {
    const mark = byId("kept-part");
    mark.hidden = !told || Math.min(...told.shown) > SEEN_CUT;
    if (mark.hidden) return;
    const [across, down] = told.shown.map((share) => `${(50 * (1 - share)).toFixed(2)}%`);
    mark.style.inset = `${down} ${across}`;
  }
}
