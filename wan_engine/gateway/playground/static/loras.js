// The LoRA files of a request: those that the server has for the model, each with a scale.

import { byId, element, fault, say } from "./dom.js";

/** Up to so many as a request may have; the next row is there once the one before it is used. */
export class Loras {
  #rows;
  #most;
  #names = []; // null: the server cannot tell them

  constructor({ lorasMax, loraScaleMax }) {
    this.#most = loraScaleMax;
    this.#rows = Array.from({ length: lorasMax }, (_, index) => new Row(index, loraScaleMax));
    byId("loras-list").append(...this.#rows.map((row) => row.root));
    byId("loras").addEventListener("input", () => this.#draw());
  }

  /** The names that the model takes which makes the clip. */
  offer(names) {
    if (JSON.stringify(names) !== JSON.stringify(this.#names)) {
      this.#names = names;
      for (const row of this.#rows) row.offer(names);
    }
    this.#draw();
  }

  /** As a request has them; undefined where there are none. */
  get values() {
    const found = this.#rows.map((row) => row.value).filter(Boolean);
    return found.length ? found : undefined;
  }

  restore(values) {
    this.#rows.forEach((row, index) => row.restore(values?.[index] ?? null, this.#names));
    this.#draw();
  }

  /** The first field that is wrong; undefined where all can be sent. */
  check() {
    const fields = this.#rows.map((row) => row.wrong(this.#names, this.#most));
    const said = this.#rows.map((row) => row.sentence).find(Boolean) ?? this.#twice();
    say(byId("loras-error"), said ?? "");
    return said ? (fields.find(Boolean) ?? this.#rows[0].field) : undefined;
  }

  #twice() {
    const found = (this.values ?? []).map(({ name, expert }) => `${name} ${expert ?? ""}`);
    return new Set(found).size < found.length ? "The same LoRA is chosen twice" : undefined;
  }

  #draw() {
    const used = this.#rows.findLastIndex((row) => row.value);
    byId("loras").hidden = this.#names?.length === 0 && used < 0;
    this.#rows.forEach((row, index) => row.draw(index <= used + 1));
    if (byId("loras-error").textContent) this.check();
  }
}

class Row {
  #expert; // of a request from elsewhere: which of the model's two experts gets it
  #select;
  #text;
  #scale;
  sentence = "";

  constructor(index, most) {
    this.#select = element("select", { ariaLabel: `LoRA ${index + 1}` });
    this.#text = element("input", {
      type: "text",
      ariaLabel: `LoRA ${index + 1}`,
      placeholder: "its name on the server",
    });
    this.#text.autocomplete = "off";
    this.#text.spellcheck = false;
    this.#scale = element("input", {
      type: "number",
      min: -most,
      max: most,
      step: 0.05,
      value: "1",
    });
    this.#scale.ariaLabel = `Scale of LoRA ${index + 1}`;
    for (const one of [this.#select, this.#text, this.#scale]) {
      one.setAttribute("aria-describedby", "loras-error");
    }
    this.root = element("li", { className: "lora" }, this.#select, this.#text, this.#scale);
    this.offer([]);
  }

  get field() {
    return this.#select.hidden ? this.#text : this.#select;
  }

  get value() {
    const name = this.field.value.trim();
    if (!name) return null;
    const value = { name, scale: this.#scale.valueAsNumber };
    return this.#expert?.of === name ? { ...value, expert: this.#expert.is } : value;
  }

  offer(names) {
    this.restore(this.value, names);
  }

  restore(value, names) {
    this.#expert = value?.expert
      ? { of: value.name.replace(/\.safetensors$/, ""), is: value.expert }
      : null;
    const name = (value?.name ?? "").replace(/\.safetensors$/, "");
    const known = [...(names ?? [])];
    const others = name && !known.includes(name) ? [name] : [];
    this.#select.replaceChildren(
      element("option", { value: "", textContent: "None" }),
      ...[...others, ...known].map((one) => element("option", { value: one, textContent: one })),
    );
    this.#select.hidden = names === null;
    this.#text.hidden = names !== null;
    this.#select.value = this.#text.value = name;
    this.#scale.value = value?.scale ?? 1;
  }

  draw(shown) {
    this.root.hidden = !shown;
    this.#scale.hidden = !this.field.value.trim();
  }

  /** Its field that cannot be sent as it is; `sentence` says why. */
  wrong(names, most) {
    const { name, scale } = this.value ?? {};
    const unknown = name && names && !names.includes(name);
    const range = name && !(Math.abs(scale) <= most);
    this.sentence = "";
    if (range) this.sentence = `The scale is a number from -${most} to ${most}`;
    if (unknown) {
      const missing = `The server has no LoRA “${name}” for this kind of clip`;
      this.sentence = `${missing}: choose another or none`;
    }
    fault(this.field, byId("loras-error"), unknown ? this.sentence : "");
    fault(this.#scale, byId("loras-error"), range ? this.sentence : "");
    return unknown ? this.field : range ? this.#scale : undefined;
  }
}
