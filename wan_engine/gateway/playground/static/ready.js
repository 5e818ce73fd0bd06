// The badge that says whether the server can render now.

import { Refused } from "./api.js";
import { byId } from "./dom.js";

const LOOK_MS = 3000;
const HIDDEN_MS = 30000;

/** Dispatches "models" when the server's models change, and "back" when it answers again. */
export class Ready extends EventTarget {
  #gateway;
  #models = "";
  #timer = 0;
  #away = false;

  constructor(gateway) {
    super();
    this.#gateway = gateway;
    gateway.addEventListener("away", () => this.#show("away", "The server does not answer"));
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
  }

  /** Polls from now on. */
  async look() {
    clearTimeout(this.#timer);
    const turn = (this.#timer = setTimeout(() => {}, 0));
    try {
      const { reasons, models } = await this.#gateway.readiness();
      if (reasons.length) this.#show("waiting", `Not ready: ${reasons.join(", ")}`);
      else this.#show("ready", "Ready");
      this.#tell(models);
    } catch (error) {
      this.#show("away", error instanceof Refused ? error.message : "The server does not answer");
    }
    if (turn !== this.#timer) return; // polled again meanwhile
    this.#timer = setTimeout(() => this.look(), document.hidden ? HIDDEN_MS : LOOK_MS);
  }

  #tell(models) {
    const told = JSON.stringify(models);
    if (this.#away) this.dispatchEvent(new Event("back"));
    if (told !== this.#models) this.dispatchEvent(new CustomEvent("models", { detail: models }));
    this.#models = told;
    this.#away = false;
  }

  #show(state, text) {
    const badge = byId("ready");
    if (badge.textContent !== text) badge.textContent = text;
    badge.dataset.state = state;
    this.#away ||= state === "away";
  }
}
