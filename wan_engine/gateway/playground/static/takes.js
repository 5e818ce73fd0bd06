// The inputs of the server's models, which decide the parts of the form.

import { byId, choose, chosen } from "./dom.js";

const PICTURE_TASKS = ["image-to-video", "image-to-video-with-sound", "speech-to-video"];

const ALL = ["picture", "clip", "references"];

/** The beginning of the clip: "picture", "clip" or "references". */
export class Beginning {
  #pickers;
  #takes = null; // not known yet
  #tasks = null; // so are they
  #loras = {};
  takesPicture = true;

  constructor(pickers) {
    this.#pickers = pickers;
  }

  get now() {
    return chosen("begin");
  }

  /** The task of the model that begins the clip. */
  get task() {
    if (this.now === "references") return "reference-to-video";
    return PICTURE_TASKS.find((task) => this.#tasks?.includes(task)) ?? PICTURE_TASKS[0];
  }

  /** `models`, `takes` (the inputs; null: not known) and `loras` are by task. */
  offer(models, takes, loras) {
    this.#tasks = Object.keys(models);
    this.#takes = takes;
    this.#loras = loras;
    this.choose(this.now);
    // A clip that may not be taken is only shown in a form that has it.
    const shown = this.#offered.filter(
      (one) => one !== "clip" || takes !== null || this.now === "clip",
    );
    byId("begin").hidden = shown.length < 2;
    byId("begin-clip").hidden = !shown.includes("clip");
    byId("begin-references").hidden = !shown.includes("references");
    this.takesPicture = shown.includes("picture");
    byId("audio-why").textContent = this.#some("driving_sound")
      ? "optional; the lips move to it"
      : "optional";
  }

  /** Whether a model of this server begins a clip with this. */
  offers(what) {
    return this.#offered.includes(what);
  }

  /** The LoRA files of the model that would make the clip; null where the server cannot tell. */
  get loras() {
    if (this.#loras === null) return null;
    const sound = byId("generate-audio").checked ? ["image-to-video-with-sound"] : [];
    const picture = this.#pickers.audio.value ? ["speech-to-video"] : sound;
    const tasks =
      this.now === "references"
        ? ["reference-to-video"]
        : [...picture, ...PICTURE_TASKS.slice(0, 2)];
    return this.#loras[tasks.find((task) => task in this.#loras)] ?? [];
  }

  /** Shows the fields of one beginning that is offered, and hides the others. */
  choose(wanted) {
    const usual = this.offers("picture") ? "picture" : "references";
    const what = this.offers(wanted) ? wanted : usual;
    choose("begin", what);
    const { image, last, clip, references } = this.#pickers;
    image.shown = what === "picture";
    clip.shown = what === "clip";
    references.shown = what === "references";
    byId("shape").hidden = what !== "references";
    last.shown = this.takesLast(what);
  }

  /** Whether a clip that begins with this may end on a picture. */
  takesLast(what) {
    if (what === "references") {
      return this.#takes?.["reference-to-video"]?.includes("last_picture") ?? false;
    }
    const wanted = what === "clip" ? ["first_clip", "last_picture"] : ["last_picture"];
    return PICTURE_TASKS.some((task) =>
      wanted.every((input) => this.#takes?.[task]?.includes(input)),
    );
  }

  get #offered() {
    if (this.#tasks === null) return ALL;
    const references = this.#tasks.includes("reference-to-video");
    const clip = this.#takes === null || this.#some("first_clip"); // or a form would lose its clip
    const picture = PICTURE_TASKS.some((task) => this.#tasks.includes(task)) || !references;
    return [picture && "picture", clip && "clip", references && "references"].filter(Boolean);
  }

  #some(input) {
    return Object.values(this.#takes ?? {}).some((inputs) => inputs.includes(input));
  }
}
