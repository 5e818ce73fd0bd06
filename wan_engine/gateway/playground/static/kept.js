// What this browser keeps in IndexedDB: the files of the requests that it sent, those of the form,
// and the first frames of clips. Nothing of the server's is kept there but these frames.
//
// Storage may be off or full. Then nothing is kept, and the page says what is missing.

const NAME = "wan-playground";
const STORES = ["requests", "forms", "stills"];
const FORMS = 4; // of tabs, the newest
const TAB = "wan-playground-tab";

export class Kept {
  #opened = null;
  #tab = tabName();

  /** The media of a job, as `packed` made them; null where they are not kept. */
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

  /** The form of this tab as it was; of the newest tab where this one is new. */
  async form() {
    const own = await this.#do("forms", "readonly", (store) => store.get(this.#tab));
    if (own) return own;
    const all = (await this.#do("forms", "readonly", (store) => store.getAll())) ?? [];
    return all.sort((one, other) => other.at - one.at)[0] ?? null;
  }

  async keepForm(content) {
    await this.#do("forms", "readwrite", (store) => store.put({ ...content, at: Date.now(), tab: this.#tab }, this.#tab));
    const all = (await this.#do("forms", "readonly", (store) => store.getAll())) ?? [];
    const old = all.sort((one, other) => other.at - one.at).slice(FORMS);
    for (const { tab } of old) await this.#do("forms", "readwrite", (store) => store.delete(tab));
  }

  /** Forgets the jobs that are not among `ids`. */
  async only(ids) {
    for (const name of ["requests", "stills"]) {
      const keys = (await this.#do(name, "readonly", (store) => store.getAllKeys())) ?? [];
      for (const key of keys) if (!ids.has(key)) await this.#do(name, "readwrite", (store) => store.delete(key));
    }
  }

  /** @returns what the request gives, once the transaction is complete; null where it fails. */
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
    request.onupgradeneeded = () => STORES.forEach((name) => request.result.createObjectStore(name));
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
}

/** A reload is the same tab. A copy of a tab is one too until it is closed. */
function tabName() {
  const found = sessionStorage.getItem(TAB) ?? Math.random().toString(36).slice(2);
  sessionStorage.setItem(TAB, found);
  return found;
}

/** What can be kept of a picker's value: the bytes that are sent, and what is known of them. */
export function packed(value) {
  if (!value?.file) return value;
  const { file, blob, heard, ...known } = value;
  // Of a sound that was cut only the part is kept, and is the whole from then on.
  const whole = heard ? { from: known.seconds, start: 0 } : {};
  return { ...known, ...whole, name: file.name, bytes: known.bytes ?? file.size, blob };
}

/** The picker's value again; null where it was none. */
export function unpacked(value) {
  if (!value?.blob) return value ?? null;
  const { name, ...known } = value;
  return { ...known, file: new File([value.blob], name, { type: value.type }) };
}
