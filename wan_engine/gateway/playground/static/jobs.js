// The jobs of this browser: submitted, polled to their end, and stored without any key.

import { Refused } from "./api.js";
import { ofBrowser } from "./texts.js";

const STORED = "wan-playground-history";
const MOST = 50;
const FINAL = ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT", "GONE"];
const ASK_MS = 700;
const FIRST_MS = [100, 200, 400]; // many jobs fail or finish at once
const HIDDEN_MS = 4000;
const AWAY_MS = [1000, 2000, 4000, 8000, 15000];

export const isFinal = (entry) => FINAL.includes(entry.state);

/** Whether it can be drawn. Another release, or another page of this host, may have written it. */
const isEntry = (one) =>
  typeof one?.id === "string" &&
  typeof one.state === "string" &&
  Number.isFinite(one.at) &&
  typeof one.options?.prompt === "string" &&
  typeof one.options.size === "string";

/** The history in localStorage, newest first. Other tabs write it too, so it is read each time. */
class Store {
  all() {
    const found = ofBrowser.parsed(STORED);
    return Array.isArray(found) ? found.filter(isEntry) : [];
  }

  put(entry) {
    this.#write([entry, ...this.all().filter(({ id }) => id !== entry.id)]);
  }

  /** Does nothing if the entry was removed meanwhile. */
  update(id, changes) {
    this.#write(this.all().map((entry) => (entry.id === id ? { ...entry, ...changes } : entry)));
  }

  remove(id) {
    this.#write(this.all().filter((entry) => entry.id !== id));
  }

  #write(entries) {
    entries.sort((one, other) => other.at - one.at);
    const kept = entries.slice(0, MOST);
    for (let count = kept.length; count > 0; count--) {
      if (ofBrowser.store(STORED, JSON.stringify(kept.slice(0, count)))) return;
    }
    ofBrowser.set(STORED, JSON.stringify(kept));
  }
}

/**
 * Dispatches "change" with the job's id, "ended" after a job's end, "removed", and "key" when the
 * gateway refuses the key.
 */
export class Jobs extends EventTarget {
  #gateway;
  #store = new Store();
  #live = new Map();
  #visited = new Map(); // jobs of other browsers
  #following = new Set();
  /** The id of the shown job, for which previews are made. */
  watched = null;

  constructor(gateway) {
    super();
    this.#gateway = gateway;
    addEventListener("storage", (event) => {
      if (event.key !== STORED && event.key !== null) return;
      if (gateway.isOpen) this.resume(); // the tab that sent a job may be closed
      this.#tell(null);
    });
  }

  get entries() {
    return this.#store.all();
  }

  entry(id) {
    return this.entries.find((entry) => entry.id === id) ?? this.#visited.get(id);
  }

  /** Whether another browser submitted it. */
  isVisited(id) {
    return this.#visited.has(id) && !this.entries.some((entry) => entry.id === id);
  }

  /** Follows a job by its id, also one that is not in the history. */
  visit(id) {
    if (!this.entry(id) || (this.isVisited(id) && this.entry(id).state === "GONE")) {
      this.#visited.set(id, { id, at: Date.now(), state: "IN_QUEUE", options: null });
    }
    if (!isFinal(this.entry(id))) this.follow(id);
  }

  /** The state of a job in this tab: progress, times, the link, whether the server is away. */
  live(id) {
    return this.#live.get(id) ?? {};
  }

  /** Submits `input`; the history stores `about`. Throws `Refused`. @returns the id. */
  async send(input, about) {
    const { endpoint } = this.#gateway;
    const id = await this.#gateway.run(input);
    this.#store.put({ id, endpoint, at: Date.now(), state: "IN_QUEUE", ...about });
    this.#visited.delete(id);
    this.#tell(id);
    this.follow(id);
    return id;
  }

  /** Polls every job of the history that has not ended. */
  resume() {
    for (const entry of this.entries) if (!isFinal(entry)) this.follow(entry.id);
  }

  /** Cancels a job. @returns whether it did; if not, its card says why. */
  async cancel(id) {
    try {
      await this.#gateway.cancel(this.entry(id).endpoint ?? this.#gateway.endpoint, id);
      await this.#ask(id);
      return true;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      const refusal = `It was not cancelled: ${error.message}`;
      this.#live.set(id, { ...this.live(id), refusal });
      this.#tell(id);
      if (error.status === 401) this.#refused(id, error);
      if (error.status === 404) await this.refresh(id);
      return false;
    }
  }

  /** Polls an ended job once, because its link is not stored here. */
  async refresh(id) {
    try {
      await this.#ask(id);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.#refused(id, error, "");
    }
  }

  /** Stores the actual width and height of a clip in pixels. */
  measured(id, pixels) {
    if (`${this.entry(id)?.pixels}` === `${pixels}`) return;
    this.#update(id, { pixels });
    this.#tell(id);
  }

  remove(id) {
    this.#store.remove(id);
    this.#live.delete(id);
    this.#visited.delete(id);
    this.#tell(id);
    this.dispatchEvent(new Event("removed"));
  }

  async follow(id) {
    if (this.#following.has(id)) return;
    this.#following.add(id);
    try {
      for (let missed = 0, asked = 0; this.#goesOn(id); asked++) {
        const error = await this.#ask(id).catch((thrown) => thrown);
        if (error && !(error instanceof Refused)) throw error;
        if (error && !this.#refused(id, error)) break;
        missed = error ? missed + 1 : 0;
        if (this.#goesOn(id)) await pause(missed, asked);
      }
    } finally {
      this.#following.delete(id);
    }
  }

  #goesOn(id) {
    const entry = this.entry(id);
    if (entry === undefined) return false;
    return !isFinal(entry) || (this.isVisited(id) && entry.learnt !== entry.state);
  }

  async #ask(id) {
    if (!this.entry(id)) return;
    const looks = id === this.watched && !document.hidden && !isFinal(this.entry(id));
    this.#note(id, await this.#gateway.job(id, looks ? (this.live(id).preview_step ?? -1) : null));
    const { state, learnt } = this.entry(id) ?? {};
    if (this.isVisited(id) && learnt !== state) await this.#learn(id, state);
  }

  /** What a job of another browser was made from. Its files go when it ends. */
  async #learn(id, state) {
    const { options, media } = await this.#gateway.madeFrom(id);
    const begin = media.references ? "references" : media.first_clip ? "clip" : "picture";
    this.#update(id, { begin, options: options.prompt ? options : null, media, learnt: state });
    this.#tell(id);
  }

  #note(id, told) {
    const { status, output, error, endpoint, created, finished, started } = told;
    const changes = { state: status, endpoint, at: created };
    const wasFinal = isFinal(this.entry(id) ?? {});
    const { url, preview, preview_step, refusal } = this.live(id);
    const before = status === "IN_PROGRESS" ? { preview, preview_step } : {};
    const live = { ...before, ...told, url, refusal, aheadMs: Date.now() - told.now, away: "" };
    if (status === "COMPLETED") {
      Object.assign(changes, {
        cost: output.cost,
        seed: output.seed,
        warnings: output.warnings ?? [],
      });
      changes.milliseconds = finished - started;
      live.url = output.video_url;
    } else if (isFinal({ state: status }) && error) changes.error = error;
    this.#live.set(id, live);
    this.#update(id, changes);
    this.#tell(id);
    if (started && finished && !wasFinal) this.dispatchEvent(new Event("ended"));
  }

  #update(id, changes) {
    const before = this.entry(id);
    const news = Object.keys(changes).filter(
      (key) => JSON.stringify(before?.[key]) !== JSON.stringify(changes[key]),
    );
    if (!before || news.length === 0) return;
    if (this.isVisited(id)) this.#visited.set(id, { ...before, ...changes });
    else this.#store.update(id, changes);
  }

  /** Whether to poll again. */
  #refused(id, error, next = "; trying again") {
    if (error.status === 401) {
      this.#live.set(id, { ...this.live(id), away: "The server asks for the key of this job" });
      this.#tell(id);
      this.dispatchEvent(new Event("key"));
      return false;
    }
    if (error.status === 404) {
      this.#update(id, { state: "GONE" });
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
