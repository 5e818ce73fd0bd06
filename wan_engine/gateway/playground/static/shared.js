// What a job of another browser was made from: shown with it, as far as the server still has it.

import { byId, element, sizeName } from "./dom.js";
import { fileOf } from "./media.js";

const NAMES = { image: "picture", last_image: "last picture", first_clip: "clip", audio: "sound" };
const KEPT = "The server keeps files only until a clip is finished";

/** The files of requests that the server keeps, fetched once. "Use again" stores them too. */
export class SentFiles {
  #gateway;
  #found = new Map();

  constructor(gateway) {
    this.#gateway = gateway;
  }

  /** A file of a job's request; null where the server does not keep it any longer. */
  of(id, field, at = 0) {
    const key = `${id} ${field} ${at}`;
    if (!this.#found.has(key)) {
      const found = this.#fetch(id, field, at).catch(() => null);
      this.#found.set(key, found);
      found.then((file) => file ?? this.#found.delete(key));
    }
    return this.#found.get(key);
  }

  has(id, field, at = 0) {
    return this.#found.has(`${id} ${field} ${at}`);
  }

  async #fetch(id, field, at) {
    const uri = await this.#gateway.file(id, field, at);
    return uri && fileOf(uri, nameOf(field, at));
  }
}

/** What it is called: by its place, where it is one of several. */
export const nameOf = (field, at = 0) => NAMES[field] ?? `character${at + 1}`;

export class Shared {
  #jobs;
  #files;
  #drawn = "";

  /** `use(entry)` is what its button does. */
  constructor(jobs, files, use) {
    this.#jobs = jobs;
    this.#files = files;
    this.id = null;
    byId("shared-use").addEventListener("click", () => use(this.#jobs.entry(this.id)));
  }

  draw(id) {
    const entry = this.#jobs.entry(id);
    const shown = Boolean(entry) && entry.state !== "GONE" && this.#jobs.isVisited(id);
    byId("shared").hidden = !shown;
    if (shown) byId("shown").textContent = ""; // the prompt is here
    const drawn = JSON.stringify([id, shown, entry?.options, entry?.media]);
    if (!shown || drawn === this.#drawn) return;
    this.#drawn = drawn;
    this.id = id;
    this.#fill(entry);
  }

  #fill({ id, options, media = {} }) {
    byId("shared-prompt").textContent = options?.prompt ?? "";
    byId("shared-options").textContent = options ? inWords(options) : "";
    byId("shared-use").hidden = !options;
    const all = flat(media);
    const gone = all
      .filter((one) => !this.#isThere(id, one))
      .map(({ field, at }) => `its ${nameOf(field, at)}`);
    byId("shared-missing").textContent = gone.length
      ? `${KEPT}, so ${inList(gone)} must be chosen again.`
      : "";
    byId("shared-pictures").replaceChildren();
    for (const one of all) {
      if (one.field !== "audio" && one.field !== "first_clip") this.#show(id, one);
    }
  }

  #isThere(id, { field, at, known }) {
    return known.url || known.kept || this.#files.has(id, field, at);
  }

  async #show(id, one) {
    const { field, at, known } = one;
    if (!this.#isThere(id, one) || known.type?.startsWith("video/")) return;
    const picture = element("img", { alt: `Its ${nameOf(field, at)}` });
    // It is a video, or an address that has ended.
    picture.addEventListener("error", () => picture.remove());
    byId("shared-pictures").append(picture);
    if (known.url) {
      if (/^https?:/i.test(known.url)) picture.src = known.url;
      else picture.remove();
      return;
    }
    const file = await this.#files.of(id, field, at);
    if (file) picture.src = URL.createObjectURL(file);
    else picture.remove();
  }
}

/** The media of a request one by one, with the field and the place of each. */
const flat = (media) =>
  Object.entries(media).flatMap(([field, value]) =>
    [value].flat().map((known, at) => ({ field, at, known })),
  );

function inWords(options) {
  const { negative_prompt, size, duration, shot_type, seed, aspect_ratio, loras } = options;
  const parts = [
    sizeName(size ?? "1280*720"),
    aspect_ratio,
    `${duration ?? 5} s`,
    shot_type === "multi" ? "several shots" : "one shot",
    seed >= 0 ? `seed ${seed}` : "a random seed",
    options.enable_prompt_expansion && "the prompt expanded",
    options.generate_audio === false && "no sound track",
    loras && `LoRA ${loras.map(({ name, scale }) => `${name} at ${scale ?? 1}`).join(" and ")}`,
    negative_prompt && `negative prompt: ${negative_prompt}`,
  ];
  return parts.filter(Boolean).join(", ");
}

const inList = (words) =>
  words.length < 2 ? words.join() : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
