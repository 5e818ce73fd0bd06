// The browser's storages of texts. Where one is off or full, this page remembers for itself.

/** A browser may refuse to give `name`, which is "localStorage" or "sessionStorage". */
class Texts {
  #name;
  #remembered = new Map();

  constructor(name) {
    this.#name = name;
  }

  /** Null if there is none. */
  get(key) {
    if (this.#remembered.has(key)) return this.#remembered.get(key);
    try {
      return window[this.#name].getItem(key);
    } catch {
      return null;
    }
  }

  /** @returns whether the browser has stored it. */
  store(key, text) {
    try {
      window[this.#name].setItem(key, text);
    } catch {
      return false;
    }
    this.#remembered.delete(key);
    return true;
  }

  /** Stores it, or remembers it in this page. */
  set(key, text) {
    if (!this.store(key, text)) this.#remembered.set(key, text);
  }

  remove(key) {
    this.#remembered.delete(key);
    try {
      window[this.#name].removeItem(key);
    } catch {
      // There is nothing to remove.
    }
  }

  /** The value of a JSON text; null if it is none. */
  parsed(key) {
    try {
      return JSON.parse(this.get(key));
    } catch {
      return null;
    }
  }
}

export const ofBrowser = new Texts("localStorage");
export const ofTab = new Texts("sessionStorage");
