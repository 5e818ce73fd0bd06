// The first frames of clips, requested one at a time and stored: each is work for the server.

export class Stills {
  #gateway;
  #kept;
  #urls = new Map();
  #turn = Promise.resolve();

  constructor(gateway, kept) {
    this.#gateway = gateway;
    this.#kept = kept;
  }

  /** Its URL in this page, or null. */
  of(id) {
    if (!this.#urls.has(id)) {
      this.#turn = this.#turn.then(() => this.#find(id));
      this.#urls.set(id, this.#turn);
    }
    return this.#urls.get(id);
  }

  async #find(id) {
    const known = await this.#kept.still(id);
    if (known) return URL.createObjectURL(known);
    try {
      const made = await this.#gateway.still(id);
      if (!made) return null;
      this.#kept.keepStill(id, made);
      return URL.createObjectURL(made);
    } catch {
      this.#urls.delete(id); // no answer: ask again when the list is drawn again
      return null;
    }
  }
}
