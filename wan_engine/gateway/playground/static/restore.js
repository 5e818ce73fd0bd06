// Saves the form, and restores earlier forms and requests.

import { packed, unpacked } from "./kept.js";
import { nameOf } from "./shared.js";
import { ofTab } from "./texts.js";

const OPTIONS = "wan-playground-form";
const LATER_MS = 300;
const OVER = ["COMPLETED", "CANCELLED", "GONE"]; // the server keeps no file of these

/** Saves the form for a reload and for the next tab. Starts after `restored`. */
export class Keeper {
  #form;
  #kept;
  #timer = 0;

  constructor(form, kept) {
    this.#form = form;
    this.#kept = kept;
  }

  /** Restores the saved form, and saves every change from now on. */
  async start() {
    const before = await this.#kept.form();
    const { begin, options } = ofTab.parsed(OPTIONS) ?? before ?? {};
    if (typeof options?.prompt === "string") {
      this.#form.restore({ begin, options, media: unpackedAll(before?.media ?? {}) });
    }
    this.#form.addEventListener("media", () => this.#keep());
    this.#form.addEventListener("change", () => {
      const { beginning, options: now } = this.#form;
      ofTab.set(OPTIONS, JSON.stringify({ begin: beginning.now, options: now }));
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#keep(), LATER_MS);
    });
  }

  #keep() {
    clearTimeout(this.#timer);
    const { beginning, options, allMedia } = this.#form;
    this.#kept.keepForm({ begin: beginning.now, options, media: packedAll(allMedia) });
  }
}

/** The part of the form's request for the history, without files and key. */
export function about({ beginning, options, media, pixels }) {
  return { begin: beginning.now, options, media: each(media, described), pixels };
}

let turns = 0;

/**
 * Puts a job's whole request into the form, and nothing else. Files that this browser no longer has
 * are fetched from the server (`sent`), if it still has them. Shows what is missing.
 */
export async function bringBack(entry, form, kept, sent, options = {}) {
  const turn = ++turns;
  const files = (await kept.request(entry.id)) ?? {};
  const media = {};
  const missing = {};
  for (const [field, known] of Object.entries(entry.media ?? {})) {
    const own = unpackedOne(files[field]);
    const all = own
      ? [own].flat()
      : await Promise.all([known].flat().map((one, at) => found(entry, one, field, at, sent)));
    media[field] = Array.isArray(known) ? all.filter(Boolean) : all[0];
    missing[field] = [known]
      .flat()
      .map(({ name }, at) => (own || all[at] ? "" : (name ?? `the ${nameOf(field, at)}`)))
      .filter(Boolean);
  }
  if (turn !== turns) return; // another one was asked for meanwhile
  form.restore({ begin: entry.begin, options: { ...entry.options, ...options }, media });
  await form.settle();
  form.missing(missing, "learnt" in entry ? "the server" : "this browser");
}

/** An address, or a file that the server keeps; null for one that it does not. */
async function found({ id, state }, known, field, at, sent) {
  if (known.url) return known;
  const kept = known.kept ?? !OVER.includes(state);
  return kept || sent.has(id, field, at) ? sent.of(id, field, at) : null;
}

export const packedAll = (media) => each(media, packed);

const unpackedAll = (media) => each(media, unpacked);
const unpackedOne = (value) => (Array.isArray(value) ? value.map(unpacked) : unpacked(value));

const each = (media, act) =>
  Object.fromEntries(
    Object.entries(media).map(([field, value]) => [
      field,
      Array.isArray(value) ? value.map(act) : act(value),
    ]),
  );

const described = ({ url, file, thumb }) => (url ? { url } : { name: file.name, thumb });
