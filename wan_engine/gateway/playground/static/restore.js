// Keeps the form as it is, and brings forms and requests of earlier back.

import { packed, unpacked } from "./kept.js";
import { nameOf } from "./shared.js";

const OPTIONS = "wan-playground-form";
const LATER_MS = 300;
const OVER = ["COMPLETED", "CANCELLED", "GONE"]; // the server keeps no file of these

/** Keeps the form over a reload, and for the next tab. Begins once `restored`. */
export class Keeper {
  #form;
  #kept;
  #timer = 0;

  constructor(form, kept) {
    this.#form = form;
    this.#kept = kept;
  }

  /** The form of before, and from now on every change of it. */
  async start() {
    const before = await this.#kept.form();
    const written = JSON.parse(sessionStorage.getItem(OPTIONS) ?? "null");
    const { begin, options } = written ?? before ?? {};
    if (options) this.#form.restore({ begin, options, media: unpackedAll(before?.media ?? {}) });
    this.#form.addEventListener("media", () => this.#keep());
    this.#form.addEventListener("change", () => {
      sessionStorage.setItem(OPTIONS, JSON.stringify({ begin: this.#form.beginning.now, options: this.#form.options }));
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#keep(), LATER_MS);
    });
  }

  #keep() {
    clearTimeout(this.#timer);
    const { beginning, options, media } = this.#form;
    this.#kept.keepForm({ begin: beginning.now, options, media: packedAll(media) });
  }
}

/** What the history keeps of the form's request: no file, and no key. */
export function about({ beginning, options, media, pixels }) {
  return { begin: beginning.now, options, media: each(media, described), pixels };
}

/**
 * Puts a job's request into the form: all of it, and nothing else. Files that this browser has not,
 * the server may still keep (`sent`). Says what is missing.
 */
export async function bringBack(entry, form, kept, sent, options = {}) {
  const told = toldOf(entry);
  const files = (await kept.request(entry.id)) ?? {};
  const media = {};
  const missing = {};
  for (const [field, known] of Object.entries(told.media)) {
    const own = unpackedOne(files[field]);
    const all = own ? [own].flat() : await Promise.all([known].flat().map((one, at) => found(entry, one, field, at, sent)));
    media[field] = Array.isArray(known) ? all.filter(Boolean) : all[0];
    missing[field] = [known].flat().filter((_, at) => !own && !all[at]).map(({ name }, at) => name ?? `the ${nameOf(field, at)}`);
  }
  form.restore({ begin: told.begin, options: { ...entry.options, ...options }, media });
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
  Object.fromEntries(Object.entries(media).map(([field, value]) => [field, Array.isArray(value) ? value.map(act) : act(value)]));

const described = ({ url, file, thumb }) => (url ? { url } : { name: file.name, thumb });

/** An entry of an earlier release has its media under other names. */
function toldOf({ begin, media, picture, references, sound }) {
  if (media) return { begin, media };
  const found = { image: picture, references, audio: sound };
  const given = Object.entries(found).filter(([, value]) => value);
  return { begin: references ? "references" : "picture", media: Object.fromEntries(given) };
}
