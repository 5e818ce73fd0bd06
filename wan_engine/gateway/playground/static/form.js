// The form: what is wanted, what is wrong with it, and what it costs.

import { byId, choose, chosen, dollars, fault, megabytes, sizeName } from "./dom.js";
import { Unusable, dataUri, filesMaxBytes, readPicture } from "./media.js";
import { Picker, receive } from "./picker.js";
import { References } from "./references.js";
import { readSound } from "./sound.js";

const LEAST_PICTURE_BYTES = 256 * 1024; // what a sound leaves to the picture at least

export class Form extends EventTarget {
  #limits;
  #prices = null;

  constructor(limits) {
    super();
    this.#limits = limits;
    const room = filesMaxBytes(limits.requestMaxBytes);
    this.image = new Picker("image", {
      read: (file) => readPicture(file, this.#pictureMaxBytes(), limits),
      describe: describePicture,
    });
    this.audio = new Picker("audio", {
      read: (file) => readSound(file, room - LEAST_PICTURE_BYTES, limits),
      describe: describeSound,
    });
    this.references = new References(limits);
    receive(this.image, this.audio, this.references);
    byId("seed").max = limits.seedMax;
    for (const picker of [this.image, this.audio, this.references]) picker.addEventListener("change", () => this.#changed());
    byId("form").addEventListener("input", (event) => {
      if (event.target.id === "prompt" || event.target.id === "seed") this.#clear(event.target);
      if (event.target.name === "begin") this.begin(chosen("begin"));
      this.#changed();
    });
    this.#changed();
  }

  /** Lets the user choose between the tasks that have a model: `models` are their names by task. */
  offer(models) {
    const references = "reference-to-video" in models;
    const picture = "image-to-video" in models || !references;
    byId("begin").hidden = !(references && picture);
    if (this.references.shown ? !references : !picture) this.begin(picture ? "picture" : "references");
  }

  /** With a picture, or of references. */
  begin(what) {
    choose("begin", what);
    const references = what === "references";
    byId("references").hidden = byId("shape").hidden = !references;
    byId("image").hidden = byId("size-note").hidden = references;
    this.#changed();
  }

  #pictureMaxBytes() {
    const sound = this.audio.value?.blob?.size ?? 0;
    const room = filesMaxBytes(this.#limits.requestMaxBytes) - sound;
    return Math.min(room, this.#limits.imageMaxBytes);
  }

  /** All options, in the contract's names and order, without the media. */
  get options() {
    return {
      prompt: byId("prompt").value,
      negative_prompt: byId("negative-prompt").value,
      size: chosen("size"),
      ...(this.references.shown ? { aspect_ratio: chosen("aspect_ratio") } : {}),
      duration: Number(chosen("duration")),
      shot_type: chosen("shot_type"),
      seed: byId("seed").value.trim() === "" ? -1 : Number(byId("seed").value),
      enable_prompt_expansion: byId("expansion").checked,
      enable_safety_checker: byId("safety").checked,
      generate_audio: byId("generate-audio").checked ? undefined : false,
    };
  }

  /** Options as an earlier request had them. */
  set options(wanted) {
    byId("prompt").value = wanted.prompt;
    byId("negative-prompt").value = wanted.negative_prompt;
    for (const name of ["size", "duration", "shot_type"]) choose(name, wanted[name]);
    choose("aspect_ratio", wanted.aspect_ratio ?? "16:9");
    byId("seed").value = wanted.seed;
    byId("expansion").checked = wanted.enable_prompt_expansion;
    byId("safety").checked = wanted.enable_safety_checker;
    byId("generate-audio").checked = wanted.generate_audio !== false;
    this.#clear(byId("prompt"));
    this.#clear(byId("seed"));
    this.#changed();
  }

  /** USD a second by size; null while they are not known, for which `why` is the reason. */
  setPrices(prices, why = "") {
    this.#prices = prices;
    this.#price(why);
  }

  /** Whether it can be sent; else it says what is wrong and goes there. */
  check() {
    const { prompt, seed } = this.options;
    const { seedMax } = this.#limits;
    const wrong = [];
    const { shown } = this.references;
    if (!shown && !this.image.value) {
      this.image.fail("A picture is needed: choose a file or give a URL");
    }
    const first = shown ? this.references : this.image;
    if (byId(shown ? "references-error" : "image-error").textContent) wrong.push(first.field);
    if (byId("audio-error").textContent) wrong.push(this.audio.field);
    if (!prompt.trim()) {
      fault(byId("prompt"), byId("prompt-error"), "A prompt is needed");
      wrong.push(byId("prompt"));
    }
    if (byId("seed").validity.badInput || !Number.isInteger(seed) || seed < -1 || seed > seedMax) {
      fault(byId("seed"), byId("seed-error"), `An integer from -1 to ${seedMax}`);
      wrong.push(byId("seed"));
    }
    wrong[0]?.focus();
    return wrong.length === 0;
  }

  /** The contract's `input`, with files as data URIs. */
  async input() {
    const { prompt, negative_prompt, ...others } = this.options;
    const input = { prompt };
    if (this.references.shown) {
      const sources = this.references.values.map((one) => one.url ?? dataUri(one));
      input.references = await Promise.all(sources);
    } else input.image = await this.#imageSource();
    if (this.audio.value) input.audio = this.audio.value.url ?? (await dataUri(this.audio.value));
    if (negative_prompt.trim()) input.negative_prompt = negative_prompt;
    return { ...input, ...others };
  }

  async #imageSource() {
    const picture = this.image.value;
    if (picture.url) return picture.url;
    const room = this.#pictureMaxBytes();
    if (picture.blob.size <= room) return dataUri(picture);
    // The sound came after it, and has taken its room.
    return dataUri(await readPicture(picture.file, room, this.#limits));
  }

  // --- what is said of it ----------------------------------------------------------------------

  #clear(field) {
    fault(field, byId(`${field.id}-error`), "");
  }

  #changed() {
    this.#count("prompt", this.#limits.promptMaxCharacters);
    this.#count("negative-prompt", this.#limits.negativePromptMaxCharacters);
    const idle = chosen("shot_type") === "multi" && !byId("expansion").checked;
    byId("shots-note").textContent = idle ? "Several shots are only made with prompt expansion." : "";
    this.#price();
    this.dispatchEvent(new Event("change"));
  }

  /** The contract counts characters, not UTF-16 units, and cuts what is too long. */
  #count(id, most) {
    const length = [...byId(id).value].length;
    const count = byId(`${id}-count`);
    const over = length - most;
    count.textContent = over > 0 ? `${length} / ${most}, the last ${over} are cut` : `${length} / ${most}`;
    count.classList.toggle("over", over > 0);
  }

  #price(why = "") {
    const { size, duration } = this.options;
    const known = this.#prices?.[size];
    byId("price").textContent = known === undefined ? "–" : dollars(known * duration);
    const what = `${duration} s at ${sizeName(size)}`;
    byId("price-note").textContent = why || (known === undefined ? what : `${what}, ${dollars(known)} a second`);
  }
}

function describePicture({ file, blob, changed, width, height, from }) {
  const before = `${file.name || "picture"}, ${from.width} × ${from.height}, ${megabytes(file.size)}`;
  return changed ? `${before}; sent as a JPEG of ${width} × ${height}, ${megabytes(blob.size)}` : before;
}

function describeSound({ file, blob, changed, seconds, from }) {
  const before = `${file.name || "sound"}, ${(from ?? seconds).toFixed(1)} s, ${megabytes(file.size)}`;
  if (!changed) return before;
  const part = seconds < from ? `its first ${seconds.toFixed(0)} s are sent` : "sent";
  return `${before}; ${part} as a WAV file, ${megabytes(blob.size)}`;
}

export { Unusable };
