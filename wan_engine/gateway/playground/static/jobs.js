// The jobs of this browser: sent, followed to their end, and remembered without any key.

import { Refused } from "./api.js";

const STORED = "wan-playground-history";
const MOST = 50;
const FINAL = ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT", "GONE"];
const ASK_MS = 700;
const FIRST_MS = [100, 200, 400]; // many jobs fail at once, or are done
const HIDDEN_MS = 4000;
const AWAY_MS = [1000, 2000, 4000, 8000, 15000];

export const isFinal = (entry) => FINAL.includes(entry.state);

const isEntry = (one) => typeof one?.id === "string" && typeof one.options?.prompt === "string";

/** What is kept in localStorage, the newest first. Other tabs write it too, so it is read each time. */
class Store {
  all() {
    try {
      const found = JSON.parse(localStorage.getItem(STORED) ?? "[]");
      return Array.isArray(found) ? found.filter(isEntry) : [];
    } catch {
      return [];
    }
  }

  put(entry) {
    this.#write([entry, ...this.all().filter(({ id }) => id !== entry.id)]);
  }

  /** No effect where the entry was removed meanwhile. */
  update(id, changes) {
    this.#write(this.all().map((entry) => (entry.id === id ? { ...entry, ...changes } : entry)));
  }

  remove(id) {
    this.#write(this.all().filter((entry) => entry.id !== id));
  }

  #write(entries) {
    entries.sort((one, other) => other.at - one.at);
    for (let count = Math.min(entries.length, MOST); ; count--) {
      try {
        localStorage.setItem(STORED, JSON.stringify(entries.slice(0, count)));
        return;
      } catch {
        if (count === 0) return; // storage is off: the page works, it only does not remember
      }
    }
  }
}

/** Tells "change" with the job's id, and "key" when the gateway refuses the key. */
export class Jobs extends EventTarget {
  #gateway;
  #store = new Store();
  #live = new Map();
  #following = new Set();

  constructor(gateway) {
    super();
    this.#gateway = gateway;
    addEventListener("storage", (event) => {
      if (event.key === STORED || event.key === null) this.#tell(null);
    });
  }

  get entries() {
    return this.#store.all();
  }

  entry(id) {
    return this.entries.find((entry) => entry.id === id);
  }

  /** What is known of a job in this tab only: progress, the link, whether the server is away. */
  live(id) {
    return this.#live.get(id) ?? {};
  }

  /** Sends `input`; `about` is what the history keeps of it. Refused. @returns the id. */
  async send(input, about) {
    const { endpoint } = this.#gateway;
    const id = await this.#gateway.run(input);
    this.#store.put({ id, endpoint, at: Date.now(), state: "IN_QUEUE", ...about });
    this.#tell(id);
    this.follow(id);
    return id;
  }

  /** Follows every job of the history that has not ended. */
  resume() {
    for (const entry of this.entries) if (!isFinal(entry)) this.follow(entry.id);
  }

  async cancel(id) {
    const entry = this.entry(id);
    const { status } = await this.#gateway.cancel(entry.endpoint, id);
    this.#note(id, { status });
  }

  /** Asks once, for a job that has ended: its link is not kept here. */
  async refresh(id) {
    try {
      await this.#ask(id);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.#refused(id, error, "");
    }
  }

  remove(id) {
    this.#store.remove(id);
    this.#live.delete(id);
    this.#tell(id);
  }

  async follow(id) {
    if (this.#following.has(id)) return;
    this.#following.add(id);
    for (let missed = 0, asked = 0; this.#goesOn(id); asked++) {
      try {
        await this.#ask(id);
        missed = 0;
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        if (!this.#refused(id, error)) break;
        missed++;
      }
      if (this.#goesOn(id)) await pause(missed, asked);
    }
    this.#following.delete(id);
  }

  #goesOn(id) {
    const entry = this.entry(id);
    return entry !== undefined && !isFinal(entry);
  }

  async #ask(id) {
    const entry = this.entry(id);
    if (entry) this.#note(id, await this.#gateway.status(entry.endpoint, id));
  }

  #note(id, told) {
    const { status, output } = told;
    const changes = { state: status };
    const live = { ...this.live(id), away: "" };
    if (status === "COMPLETED") {
      Object.assign(changes, { cost: output.cost, seed: output.seed, warnings: output.warnings ?? [] });
      changes.milliseconds = told.executionTime;
      live.url = output.video_url;
    } else if (status === "IN_PROGRESS") {
      live.progress = output;
      live.since ??= Date.now();
    } else if (status === "IN_QUEUE") {
      // Its engine may have died: it begins again.
      delete live.progress;
      delete live.since;
    } else if (told.error) changes.error = told.error;
    this.#live.set(id, live);
    const before = this.entry(id);
    if (before && Object.keys(changes).some((key) => before[key] !== changes[key])) {
      this.#store.update(id, changes);
    }
    this.#tell(id);
  }

  /** Whether it makes sense to ask again. */
  #refused(id, error, next = "; trying again") {
    if (error.status === 401) {
      this.dispatchEvent(new Event("key"));
      return false;
    }
    if (error.status === 404) {
      this.#store.update(id, { state: "GONE" });
      this.#tell(id);
      return false;
    }
    this.#live.set(id, { ...this.live(id), away: error.message + next });
    this.#tell(id);
    return true;
  }

  #tell(id) {
    this.dispatchEvent(new CustomEvent("change", { detail: id }));
  }
}

const pause = (missed, asked) =>
  new Promise((done) => {
    const usual = document.hidden ? HIDDEN_MS : (FIRST_MS[asked] ?? ASK_MS);
    setTimeout(done, missed ? AWAY_MS[Math.min(missed, AWAY_MS.length) - 1] : usual);
  });
