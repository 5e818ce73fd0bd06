// Calls of the gateway: Runpod's API to submit and cancel jobs, and the page's own routes for what
// no public API tells: place in the queue, real size, first frame.

import { ofTab } from "./texts.js";

const KEY = "wan-playground-key";
const OWN = "playground/api";
const SILENT_MS = 15000; // after this, a server counts as away
const SENT_MS = 600000; // a request has megabytes, and a connection may be slow
const TURN_MS = 120000; // stills of clips are made, and files of requests sent, one at a time

/** An answer of 400 or more, with the API's own sentence. Status 0 means no answer. */
export class Refused extends Error {
  constructor(status, sentence, retryAfterSeconds = null) {
    super(sentence);
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** Dispatches "away" when there is no answer. */
export class Gateway extends EventTarget {
  #asksForKey;

  /** `base` is the URL of the page, with a slash at its end. */
  constructor(base, { endpoint, asksForKey }) {
    super();
    this.base = base;
    this.endpoint = endpoint;
    this.#asksForKey = asksForKey;
  }

  /** Empty if the server needs no key. */
  get key() {
    return this.#asksForKey ? (ofTab.get(KEY) ?? "") : "";
  }

  /** Whether a key is present, or none is needed. */
  get isOpen() {
    return !this.#asksForKey || this.key !== "";
  }

  set key(key) {
    if (key) ofTab.set(KEY, key);
    else ofTab.remove(KEY);
  }

  /** The inputs of the models, the prices, and the times of earlier jobs. */
  server() {
    return this.#ask("GET", `${OWN}/server`);
  }

  /** The clip sizes for a picture of these pixels, by the contract's sizes. */
  sizes(width, height, task) {
    return this.#ask("GET", `${OWN}/sizes?width=${width}&height=${height}&task=${task}`);
  }

  /** What rendering waits for (empty if it can begin), and the models by task. */
  async readiness() {
    const { waiting_for: reasons, models } = await (await this.#fetch("GET", "readyz")).json();
    return { reasons, models: models ?? {} };
  }

  /** @returns the id of the new job. */
  async run(input) {
    const path = `v2/${encodeURIComponent(this.endpoint)}/run`;
    return (await this.#ask("POST", path, { input }, SENT_MS)).id;
  }

  /**
   * A job of this key, from any browser. With `preview`, the step of the present preview (-1:
   * none), the server makes previews and returns newer ones.
   */
  job(id, preview = null) {
    const wanted = preview === null ? "" : `?preview=${preview}`;
    return this.#ask("GET", `${OWN}/jobs/${encodeURIComponent(id)}${wanted}`);
  }

  /** The first frame of a clip as a blob, or null. */
  async still(id) {
    const answer = await this.#fetch(
      "GET",
      `${OWN}/jobs/${encodeURIComponent(id)}/still`,
      undefined,
      TURN_MS,
    );
    return answer.ok ? answer.blob() : null;
  }

  /** The options and media of a job's request, as far as they are kept. */
  madeFrom(id) {
    return this.#ask("GET", `${OWN}/jobs/${encodeURIComponent(id)}/request`);
  }

  /** A file of a job's request as a data URI; null where it is not kept. */
  async file(id, field, at) {
    const path = `${OWN}/jobs/${encodeURIComponent(id)}/request/${field}?at=${at}`;
    const answer = await this.#fetch("GET", path, undefined, TURN_MS);
    return answer.ok ? answer.text() : null;
  }

  async cancel(endpoint, id) {
    const path = `v2/${encodeURIComponent(endpoint)}/cancel/${encodeURIComponent(id)}`;
    return this.#ask("POST", path);
  }

  async #ask(method, path, body, silentMs) {
    const answer = await this.#fetch(method, path, body, silentMs);
    let told = null;
    try {
      told = await answer.json();
    } catch {
      // A proxy may answer with its own page.
    }
    if (answer.ok && told !== null) return told;
    const wait = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
    throw new Refused(answer.status, sentenceOf(told, answer), Number.isNaN(wait) ? null : wait);
  }

  async #fetch(method, path, body, silentMs = SILENT_MS) {
    // A header has no other letters.
    if (!/^[\x21-\x7e]*$/.test(this.key)) throw new Refused(401, "The API key is not valid");
    const headers = new Headers();
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    const signal = AbortSignal.timeout(silentMs);
    const options = { method, headers, signal, cache: "no-store" };
    if (body !== undefined) {
      headers.set("Content-Type", "application/json");
      options.body = JSON.stringify(body);
    }
    try {
      return await fetch(new URL(path, this.base), options);
    } catch {
      this.dispatchEvent(new Event("away"));
      throw new Refused(0, "The server does not answer");
    }
  }
}

function sentenceOf(told, answer) {
  const error = told?.error;
  const sentence =
    typeof error === "string" ? error : (error?.detail ?? error?.title ?? error?.message);
  return sentence ?? `The server answered ${answer.status} ${answer.statusText}`.trim();
}
