// Two clips side by side, played together.

import { byId, element, keepingFocus } from "./dom.js";

/** Dispatches "change" when other clips are compared. */
export class Comparison extends EventTarget {
  #jobs;
  #ids = [];

  constructor(jobs) {
    super();
    this.#jobs = jobs;
    byId("compare-end").addEventListener("click", () => this.#set([]));
    byId("compare").addEventListener("keydown", ({ key }) => key === "Escape" && this.#set([]));
    byId("compare-play").addEventListener("click", () => this.#play());
  }

  get ids() {
    return this.#ids;
  }

  /** Adds or removes a clip. A third one replaces the first. */
  toggle(id) {
    this.#set(
      this.#ids.includes(id) ? this.#ids.filter((one) => one !== id) : [...this.#ids, id].slice(-2),
    );
  }

  /** Removes clips that are no longer in the history. */
  check() {
    const there = this.#ids.filter((id) => this.#jobs.entry(id)?.state === "COMPLETED");
    if (there.length < this.#ids.length) this.#set(there);
  }

  async #set(ids) {
    const [before] = this.#ids;
    this.#ids = ids;
    this.dispatchEvent(new Event("change"));
    const opener = document.querySelector(`[data-of="Compare ${before}"]`) ?? byId("history-title");
    keepingFocus(() => (byId("compare").hidden = ids.length < 2), opener);
    if (ids.length < 2) {
      byId("compared").replaceChildren();
      return;
    }
    await Promise.all(ids.map((id) => this.#jobs.live(id).url ?? this.#jobs.refresh(id)));
    if (this.#ids !== ids) return;
    byId("compared").replaceChildren(...ids.map((id) => this.#clip(id)));
    this.#label();
    byId("compare").scrollIntoView({ block: "nearest" });
  }

  #clip(id) {
    const { options, seed } = this.#jobs.entry(id);
    const video = element("video", {
      controls: true,
      playsInline: true,
      loop: true,
      preload: "metadata",
      ariaLabel: options.prompt,
    });
    const told = element("figcaption", {
      className: "note",
      textContent: `${options.prompt} · seed ${seed}`,
    });
    const lost = () => (told.textContent = `It cannot be played. ${told.textContent}`);
    video.addEventListener("error", lost, { once: true });
    for (const event of ["play", "pause"]) video.addEventListener(event, () => this.#label());
    const { url } = this.#jobs.live(id);
    if (url) video.src = url;
    else lost();
    return element("figure", {}, video, told);
  }

  get #videos() {
    return [...byId("compared").querySelectorAll("video")];
  }

  get #playing() {
    return this.#videos.some((video) => !video.paused);
  }

  #label() {
    byId("compare-play").textContent = this.#playing ? "Pause both" : "Play both";
  }

  /** Plays both from the beginning at the same moment, one of them muted. */
  #play() {
    const videos = this.#videos;
    if (this.#playing) {
      for (const video of videos) video.pause();
      return;
    }
    videos.forEach((video, place) => {
      video.currentTime = 0;
      video.muted = place > 0;
    });
    for (const video of videos) video.play().catch(() => {});
  }
}
