// The form: the options of a request, their errors, and the price.

import { byId, choose, chosen, dollars, fault, roughly, say, sizeName } from "./dom.js";
import { Loras } from "./loras.js";
import { Part } from "./part.js";
import { Picker, receive } from "./picker.js";
import { readers, requestInput } from "./request.js";
import { References } from "./references.js";
import { Sizes } from "./sizes.js";
import { Beginning } from "./takes.js";

/** Sizes of text-to-video that the form has as a size and a shape. */
const PORTRAITS = { "720*1280": "1280*720", "1080*1920": "1920*1080" };
/** The pickers by their field of a request. */
const FIELDS = {
  image: "image",
  last: "last_image",
  clip: "first_clip",
  audio: "audio",
  references: "references",
};

/** The pickers by the beginning of a clip. */
const BEGINNINGS = { picture: "image", clip: "clip", references: "references" };

/** Dispatches "change" when anything in it changes, and "media" when a file or a URL does. */
export class Form extends EventTarget {
  #limits;
  #sizes;
  #part;
  #prices = null;
  #seconds = {};

  constructor(limits, gateway) {
    super();
    this.#limits = limits;
    const { read, describe } = readers(limits, () => this.media);
    for (const name of ["image", "last", "clip", "audio"]) {
      this[name] = new Picker(name, { read: read[name], describe: describe[name] });
    }
    this.references = new References({ read: read.references, most: limits.referencesMax });
    // In the order of the page, so that the first error gets the focus.
    this.pickers = {
      references: this.references,
      image: this.image,
      clip: this.clip,
      last: this.last,
      audio: this.audio,
    };
    this.beginning = new Beginning(this.pickers);
    this.loras = new Loras(limits);
    this.#sizes = new Sizes(limits, gateway, this);
    this.#part = new Part(this.audio, limits);
    receive(this.pickers, () => this.pickers[BEGINNINGS[this.beginning.now]]);
    byId("seed").max = limits.seedMax;
    for (const picker of Object.values(this.pickers)) {
      picker.addEventListener("change", () => {
        this.#changed();
        this.dispatchEvent(new Event("media"));
      });
      picker.addEventListener("seen", () => this.#sizes.draw());
    }
    this.#sizes.addEventListener("change", () => this.#cost());
    byId("form").addEventListener("input", (event) => {
      if (event.target.id === "prompt" || event.target.id === "seed") this.#clear(event.target);
      if (event.target.name === "begin") this.begin(chosen("begin"));
      this.#changed();
    });
    this.#changed();
  }

  /** Offers the inputs and the LoRA files that the models accept. */
  offer(models, takes, loras) {
    this.beginning.offer(models, takes, loras);
    this.#changed();
  }

  /** The beginning: "picture", "clip" or "references". */
  begin(what) {
    this.beginning.choose(what);
    this.#changed();
  }

  /** All options except the media, with the contract's names and order. */
  get options() {
    return {
      prompt: byId("prompt").value,
      negative_prompt: byId("negative-prompt").value,
      size: chosen("size"),
      ...(this.beginning.now === "references" ? { aspect_ratio: chosen("aspect_ratio") } : {}),
      ...(this.beginning.now === "clip" ? { keep_first_clip: byId("keep-clip").checked } : {}),
      duration: Number(chosen("duration")),
      shot_type: chosen("shot_type"),
      seed: byId("seed").value.trim() === "" ? -1 : Number(byId("seed").value),
      enable_prompt_expansion: byId("expansion").checked,
      enable_safety_checker: byId("safety").checked,
      generate_audio: byId("generate-audio").checked ? undefined : false,
      loras: this.loras.values,
    };
  }

  /** Sets the options of an earlier request. */
  set options(wanted) {
    byId("prompt").value = wanted.prompt;
    byId("negative-prompt").value = wanted.negative_prompt ?? "";
    for (const name of ["duration", "shot_type"]) choose(name, wanted[name] ?? chosen(name));
    const portrait = PORTRAITS[wanted.size];
    choose("size", portrait ?? wanted.size ?? chosen("size"));
    choose("aspect_ratio", wanted.aspect_ratio ?? (portrait ? "9:16" : "16:9"));
    byId("keep-clip").checked = wanted.keep_first_clip !== false;
    byId("seed").value = wanted.seed ?? -1;
    byId("expansion").checked = wanted.enable_prompt_expansion ?? false;
    byId("safety").checked = wanted.enable_safety_checker ?? true;
    byId("generate-audio").checked = wanted.generate_audio !== false;
    this.loras.restore(wanted.loras);
    this.#clear(byId("prompt"));
    this.#clear(byId("seed"));
    this.#changed();
  }

  /** The media that would be sent, by field. */
  get media() {
    return this.#media((picker) => picker.shown);
  }

  /** The media that are chosen, also where another beginning hides them. */
  get allMedia() {
    return this.#media(() => true);
  }

  #media(isWanted) {
    const found = Object.entries(this.pickers).filter(([, one]) => one.media && isWanted(one));
    return Object.fromEntries(found.map(([name, { media }]) => [FIELDS[name], media]));
  }

  /** Restores the whole form. Media that are not in `media` are cleared. */
  restore({ begin, options, media }) {
    this.options = options;
    this.begin(begin);
    // All are empty before the first is read, because a file has the room that others leave.
    for (const picker of Object.values(this.pickers)) picker.clear();
    for (const [name, picker] of Object.entries(this.pickers)) {
      picker.restore(media[FIELDS[name]] ?? null);
    }
  }

  /** Uses what is typed and moved, and waits until all files are read. */
  async settle() {
    const all = Object.values(this.pickers);
    for (const picker of all) if (picker.shown) picker.useTyped();
    this.#part.release();
    await Promise.all(all.map((picker) => picker.settled));
  }

  /** Shows below a picker which file of an earlier request `who` no longer has. */
  missing(names, who) {
    for (const [name, picker] of Object.entries(this.pickers)) {
      const gone = names[FIELDS[name]];
      if (gone?.length) {
        picker.complain(`Choose ${gone.join(" and ")} again: ${who} does not have it any longer`);
      }
    }
  }

  /** Sets prices and times from the server, or `why` there are none. */
  tell({ prices = null, seconds = {} }, why = "") {
    this.#prices = prices;
    this.#seconds = seconds;
    this.#cost(why);
  }

  /** Whether it can be sent. If not, shows the error and focuses its field. */
  check() {
    const { prompt, seed } = this.options;
    const { seedMax } = this.#limits;
    const wrong = [];
    const needed = {
      picture: [this.image, "A picture is needed: choose a file or give a URL"],
      clip: [this.clip, "A clip is needed: choose a file or give a URL"],
    };
    const [picker, sentence] = needed[this.beginning.now] ?? [];
    if (picker && !picker.value && !picker.error) picker.need(sentence);
    for (const one of Object.values(this.pickers)) {
      if (one.shown && one.error) wrong.push(one.field);
    }
    if (!prompt.trim()) {
      fault(byId("prompt"), byId("prompt-error"), "A prompt is needed");
      wrong.push(byId("prompt"));
    }
    if (byId("seed").validity.badInput || !Number.isInteger(seed) || seed < -1 || seed > seedMax) {
      fault(byId("seed"), byId("seed-error"), `An integer from -1 to ${seedMax}`);
      wrong.push(byId("seed"));
    }
    wrong.push(...[this.loras.check()].filter(Boolean));
    wrong[0]?.focus();
    return wrong.length === 0;
  }

  /** The contract's `input`, with files as data URIs. */
  input() {
    return requestInput(this.options, this.media, this.#limits);
  }

  /** Width and height of the clip in pixels, or null if unknown. */
  get pixels() {
    return this.#sizes.of(chosen("size"));
  }

  /** The names of the chosen media, as of an earlier request, that no model here takes. */
  get #unused() {
    const { image, clip, references, last } = this.pickers;
    const { beginning } = this;
    return [
      image.value && !beginning.offers("picture") && "the picture",
      clip.value && !beginning.offers("clip") && "the clip",
      references.values.length > 0 && !beginning.offers("references") && "the references",
      last.value &&
        !["picture", "clip", "references"].some(
          (what) => beginning.offers(what) && beginning.takesLast(what),
        ) &&
        "the last picture",
    ].filter(Boolean);
  }

  // --- texts about the request -----------------------------------------------------------------

  #clear(field) {
    fault(field, byId(`${field.id}-error`), "");
  }

  #changed() {
    this.#count("prompt", this.#limits.promptMaxCharacters);
    this.#count("negative-prompt", this.#limits.negativePromptMaxCharacters);
    const idle = chosen("shot_type") === "multi" && !byId("expansion").checked;
    say(byId("shots-note"), idle ? "Several shots are only made with “Expand the prompt”." : "");
    const unused = this.#unused;
    say(
      byId("left-out"),
      unused.length ? `Left out, as no model of this server takes it: ${unused.join(", ")}.` : "",
    );
    // The example is offered for an empty form only, so that nothing is lost.
    const blank = !byId("prompt").value.trim() && !Object.values(this.allMedia).flat().length;
    byId("example").hidden = byId("example-use").hidden = !(blank && this.beginning.takesPicture);
    this.loras.offer(this.beginning.loras);
    this.#part.draw();
    this.#sizes.draw();
    this.#cost();
    this.dispatchEvent(new Event("change"));
  }

  /** The contract counts characters, not UTF-16 units, and cuts longer texts. */
  #count(id, most) {
    const length = [...byId(id).value].length;
    const count = byId(`${id}-count`);
    const over = length - most;
    count.textContent =
      over > 0
        ? `${length} / ${most}, the last ${over === 1 ? "is" : `${over} are`} cut`
        : `${length} / ${most}`;
    count.classList.toggle("over", over > 0);
  }

  /** The price if the operator has set one, otherwise the size and the expected time. */
  #cost(why = "") {
    const { size, duration, shot_type, enable_prompt_expansion } = this.options;
    const task = this.beginning.now === "references" ? "reference-to-video" : "image-to-video";
    const price = this.#prices?.[task]?.[size];
    const several = shot_type === "multi" && enable_prompt_expansion;
    // The same text as the gateway's `kind_of`.
    const kind = [
      task,
      size,
      `${duration} s`,
      several ? "several shots" : "one shot",
      this.audio.value ? "a sound" : "no sound",
    ];
    const seconds = this.#seconds[kind.join(", ")];
    const notes = [`${duration} s at ${this.pixels?.join(" × ") ?? sizeName(size)}`];
    if (price !== undefined) notes.push(`${dollars(price)} a second`);
    if (seconds !== undefined) notes.push(`the last one took ${roughly(seconds)}`);
    say(byId("price"), price === undefined ? "" : dollars(price * duration));
    byId("price-note").textContent = why || notes.join(", ");
  }
}
