// The part of a sound that is sent: its start and its length.

import { byId } from "./dom.js";

const LEAST_SECONDS = 0.5;
const STILL_MS = 300; // a slider that rests for so long counts as released

export class Part {
  #audio;
  #most;
  #start = byId("part-start");
  #seconds = byId("part-seconds");
  #moved = false;
  #timer = 0;

  constructor(audio, limits) {
    this.#audio = audio;
    this.#most = limits.audioMaxSeconds;
    for (const field of [this.#start, this.#seconds]) {
      field.addEventListener("input", (event) => {
        event.stopPropagation(); // the form does not change before the slider is released
        this.#moved = true;
        this.#tell();
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => this.#cut(), STILL_MS);
      });
    }
  }

  /** Shows the chosen part. */
  draw() {
    const { value } = this.#audio;
    const whole = value?.file ? (value.from ?? value.seconds) : 0;
    byId("part").hidden = whole < 2 * LEAST_SECONDS;
    if (byId("part").hidden || this.#moved) return;
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
    for (const field of [this.#start, this.#seconds]) {
      field.ariaValueText = `${Number(field.value).toFixed(1)} s`;
      byId(`${field.id}-told`).textContent = field.ariaValueText;
    }
  }

  /** Uses sliders that were moved just now. */
  release() {
    if (!this.#moved) return;
    clearTimeout(this.#timer);
    this.#cut();
  }

  #cut() {
    this.#moved = false;
    const { value } = this.#audio;
    if (!value?.file) return;
    const whole = value.from ?? value.seconds;
    const start = Math.min(Number(this.#start.value), whole - LEAST_SECONDS);
    const seconds = Math.min(Number(this.#seconds.value), this.#most, whole - start);
    this.#audio.useFiles([value.file], { start, seconds });
  }
}
