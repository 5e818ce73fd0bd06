// Storage in IndexedDB: the files of submitted requests, the files of the form, and the first
// frames of clips. From the server are only these frames, and the files of a shared job that is
// used again.
//
// Storage may be off or full. Then nothing is stored, and the page says what is missing.

import { ofTab } from "./texts.js";

const NAME = "wan-playground";
const STORES = ["requests", "forms", "stills"];
const FORMS = 4; // of the newest tabs
const TAB = "wan-playground-tab";

export class Kept {
  #opened = null;
  #tab = tabName();

  /** The media of a job, as `packed` made them, or null. */
  request(id) {
    return this.#do("requests", "readonly", (store) => store.get(id));
  }

  keepRequest(id, media) {
    return this.#do("requests", "readwrite", (store) => store.put(media, id));
  }

  still(id) {
    return this.#do("stills", "readonly", (store) => store.get(id));
  }

  keepStill(id, blob) {
    return this.#do("stills", "readwrite", (store) => store.put(blob, id));
  }

  /** The form of this tab, or of the newest tab if this one is new. */
  async form() {
    const own = await this.#do("forms", "readonly", (store) => store.get(this.#tab));
    if (own) return own;
    const all = (await this.#do("forms", "readonly", (store) => store.getAll())) ?? [];
    return all.sort((one, other) => other.at - one.at)[0] ?? null;
  }

  async keepForm(content) {
    await this.#do("forms", "readwrite", (store) =>
      store.put({ ...content, at: Date.now(), tab: this.#tab }, this.#tab),
    );
    const all = (await this.#do("forms", "readonly", (store) => store.getAll())) ?? [];
    const old = all.sort((one, other) => other.at - one.at).slice(FORMS);
    for (const { tab } of old) await this.#do("forms", "readwrite", (store) => store.delete(tab));
  }

  /** Removes jobs whose id is not in `ids()`. */
  async only(ids) {
    for (const name of ["requests", "stills"]) {
      const keys = (await this.#do(name, "readonly", (store) => store.getAllKeys())) ?? [];
      const there = ids(); // after the keys, because another tab may send a request meanwhile
      for (const key of keys) {
        if (!there.has(key)) await this.#do(name, "readwrite", (store) => store.delete(key));
      }
    }
  }

  /** @returns the result of the request once the transaction is complete, or null if it fails. */
  async #do(name, mode, act) {
    try {
      this.#opened ??= open();
      const database = await this.#opened;
      const transaction = database.transaction(name, mode);
      const request = act(transaction.objectStore(name));
      return await new Promise((resolve, reject) => {
        transaction.oncomplete = () => resolve(request.result ?? null);
        transaction.onabort = transaction.onerror = () => reject(transaction.error);
      });
    } catch {
      return null;
    }
  }
}

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () =>
      STORES.forEach((name) => request.result.createObjectStore(name));
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
}

/** A reload is the same tab. So is a copy of a tab until it is closed. */
function tabName() {
  const found = ofTab.get(TAB) ?? Math.random().toString(36).slice(2);
  ofTab.set(TAB, found);
  return found;
}

/** The storable form of a picker's value: the bytes that are sent, with their description. */
export function packed(value) {
  if (!value?.file) return value;
  const { file, blob, heard, ...known } = value;
  // Of a cut sound only the part is stored, which then counts as the whole.
  const whole = heard ? { from: known.seconds, start: 0 } : {};
  return { ...known, ...whole, name: file.name, bytes: known.bytes ?? file.size, blob };
}

/** The picker's value, or null if there was none. */
export function unpacked(value) {
  if (!value?.blob) return value ?? null;
  const { name, ...known } = value;
  return { ...known, file: new File([value.blob], name, { type: value.type }) };
}
