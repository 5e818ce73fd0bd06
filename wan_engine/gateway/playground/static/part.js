// The part of a sound that is sent: where it begins, and how long it is.

import { byId } from "./dom.js";

const LEAST_SECONDS = 0.5;

export class Part {
  #audio;
  #most;
  #start = byId("part-start");
  #seconds = byId("part-seconds");

  constructor(audio, limits) {
    this.#audio = audio;
    this.#most = limits.audioMaxSeconds;
    for (const field of [this.#start, this.#seconds]) {
      field.addEventListener("input", (event) => {
        event.stopPropagation(); // nothing of the form is another until the slider is let go
        this.#tell();
      });
      field.addEventListener("change", () => this.#cut());
    }
  }

  /** Shows the part that is chosen now. */
  draw() {
    const { value } = this.#audio;
    const whole = value?.file ? value.from ?? value.seconds : 0;
    byId("part").hidden = whole < 2 * LEAST_SECONDS;
    if (byId("part").hidden) return;
    this.#range(whole, value.start ?? 0, value.seconds);
  }

  #range(whole, start, seconds) {
    this.#start.max = Math.max(0, whole - LEAST_SECONDS).toFixed(1);
    this.#seconds.max = Math.min(this.#most, whole - start).toFixed(1);
    this.#start.value = start;
    this.#seconds.value = seconds;
    this.#tell();
  }

  #tell() {
    byId("part-start-told").textContent = `${Number(this.#start.value).toFixed(1)} s`;
    byId("part-seconds-told").textContent = `${Number(this.#seconds.value).toFixed(1)} s`;
  }

  async #cut() {
    const { value } = this.#audio;
    if (!value?.file) return;
    const whole = value.from ?? value.seconds;
    const start = Math.min(Number(this.#start.value), whole - LEAST_SECONDS);
    const seconds = Math.min(Number(this.#seconds.value), this.#most, whole - start);
    await this.#audio.useFile(value.file, { start, seconds });
    const { value: cut } = this.#audio;
    if (cut?.file) this.#range(cut.from ?? cut.seconds, cut.start ?? 0, cut.seconds);
  }
}
