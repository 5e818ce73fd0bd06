// What the page asks of the gateway: Runpod's API for the videos, Oxen's for the prices, and
// whether it is ready. Nothing that another client could not ask.

const KEY = "wan-playground-key";

/** An answer of 400 or more, with the API's own sentence. Status 0: no answer at all. */
export class Refused extends Error {
  constructor(status, sentence, retryAfterSeconds = null) {
    super(sentence);
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

export class Gateway {
  /** `base` is where the page is, with a slash at its end. */
  constructor(base, endpoint) {
    this.base = base;
    this.endpoint = endpoint;
  }

  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  }

  set key(key) {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  }

  /** USD a second by size. Refused with 401 where a key is asked for. */
  async prices() {
    const { data } = await this.#ask("GET", "api/ai/models");
    const { pricing } = data[0]; // all of them cost the same here
    return { "1280*720": pricing.cost_per_second, "1920*1080": pricing.cost_per_second_high_res };
  }

  /** What rendering waits for, empty when it can begin, and the models by what they do. */
  async readiness() {
    const { waiting_for: reasons, models } = await (await this.#fetch("GET", "readyz")).json();
    return { reasons, models: models ?? {} };
  }

  /** @returns the id of the new job. */
  async run(input) {
    return (await this.#ask("POST", `v2/${this.endpoint}/run`, { input })).id;
  }

  /** A job as Runpod's `status` has it. */
  async status(endpoint, id) {
    return this.#ask("GET", `v2/${endpoint}/status/${encodeURIComponent(id)}`);
  }

  async cancel(endpoint, id) {
    return this.#ask("POST", `v2/${endpoint}/cancel/${encodeURIComponent(id)}`);
  }

  async #ask(method, path, body) {
    const answer = await this.#fetch(method, path, body);
    let told = null;
    try {
      told = await answer.json();
    } catch {
      // A proxy in between may answer with a page of its own.
    }
    if (answer.ok && told !== null) return told;
    const wait = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
    throw new Refused(answer.status, sentenceOf(told, answer), Number.isNaN(wait) ? null : wait);
  }

  async #fetch(method, path, body) {
    const headers = new Headers();
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    if (body !== undefined) headers.set("Content-Type", "application/json");
    try {
      return await fetch(new URL(path, this.base), {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: "no-store",
      });
    } catch {
      throw new Refused(0, "The server does not answer");
    }
  }
}

function sentenceOf(told, answer) {
  const error = told?.error;
  const sentence = typeof error === "string" ? error : error?.detail ?? error?.title ?? error?.message;
  return sentence ?? `The server answered ${answer.status} ${answer.statusText}`.trim();
}
