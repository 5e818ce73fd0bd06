// The card of one job: how far it is, then the video, or the sentence of its failure.

import { announce, byId, clock, dollars, element, sizeName } from "./dom.js";
import { isFinal } from "./jobs.js";
import { Bar, STAGES, titleOf } from "./progress.js";

const PARTS = ["idle", "running", "done", "failed"];
const TITLE = document.title;

export class Result {
  #jobs;
  #id = null;
  #bar = new Bar();
  #source = "";
  #asked = false;

  constructor(jobs) {
    this.#jobs = jobs;
    byId("stages").append(...STAGES.map(({ title }) => element("li", { textContent: title })));
    byId("video").addEventListener("error", () => this.#lost());
    setInterval(() => this.#elapsed(), 500);
  }

  get id() {
    return this.#id;
  }

  show(id) {
    this.#asked = false;
    if (id !== this.#id) {
      this.#id = id;
      this.#bar = new Bar();
      this.#source = "";
      byId("video").removeAttribute("src");
    }
    this.draw();
  }

  draw() {
    const entry = this.#jobs.entry(this.#id);
    const live = this.#jobs.live(this.#id);
    document.title = TITLE;
    byId("shown").textContent = entry ? `“${short(entry.options.prompt)}”` : "";
    if (!entry) this.#part("idle");
    else if (!isFinal(entry)) this.#drawRunning(live);
    else if (entry.state === "COMPLETED") this.#drawDone(entry, live);
    else this.#drawFailed(entry);
  }

  #part(shown) {
    for (const name of PARTS) byId(name).hidden = name !== shown;
    if (shown !== "done") byId("video").pause();
  }

  #drawRunning({ progress, away }) {
    this.#part("running");
    const bar = byId("bar");
    const title = progress ? titleOf(progress.stage) : "In the queue";
    const steps = progress?.steps > 1 ? `, ${progress.step} of ${progress.steps}` : "";
    byId("stage").textContent = title + steps;
    byId("away").textContent = away ?? "";
    if (progress) {
      bar.value = this.#bar.at(progress);
      document.title = `${Math.round(bar.value * 100)} % · ${TITLE}`;
    } else bar.removeAttribute("value");
    const index = STAGES.findIndex(({ name }) => name === progress?.stage);
    [...byId("stages").children].forEach((item, place) => {
      item.className = place < index ? "past" : place === index ? "now" : "";
    });
    announce(title);
    this.#elapsed();
  }

  #elapsed() {
    const entry = this.#jobs.entry(this.#id);
    if (!entry || isFinal(entry)) return;
    const { since } = this.#jobs.live(this.#id);
    byId("elapsed").textContent = clock(Date.now() - (since ?? entry.at));
  }

  #drawDone(entry, { url, away }) {
    this.#part("done");
    byId("actions").hidden = !url;
    if (!url) {
      this.#askForLink(entry, away);
      return;
    }
    if (url === this.#source) return;
    this.#source = url;
    byId("video").src = url;
    byId("download").href = url;
    byId("warnings").replaceChildren(...(entry.warnings ?? []).map((text) => element("li", { textContent: text })));
    byId("facts").replaceChildren(...facts(entry));
    announce("The video is finished");
  }

  /** The link is not kept, and asked for once each time that the job is shown. */
  #askForLink(entry, away) {
    byId("facts").replaceChildren(...facts(entry));
    byId("warnings").replaceChildren(...(away ? [element("li", { textContent: away })] : []));
    if (this.#asked) return;
    this.#asked = true;
    this.#jobs.refresh(entry.id);
  }

  #drawFailed(entry) {
    const [title, sentence] = WORDS[entry.state] ?? WORDS.FAILED;
    byId("failed-title").textContent = title;
    byId("failure").textContent = entry.error ?? sentence;
    this.#part("failed");
  }

  #lost() {
    if (!this.#source) return;
    byId("warnings").replaceChildren(
      element("li", { textContent: "The video cannot be played here: its link may have ended, or its place is not reached." }),
    );
  }
}

const WORDS = {
  FAILED: ["It did not work", "The server gave no reason."],
  CANCELLED: ["Cancelled", "Nothing was charged."],
  TIMED_OUT: ["Too late", "It was not begun in time."],
  GONE: ["No longer there", "The server does not keep this job any more."],
};

function facts({ options, seed, cost, milliseconds }) {
  const rows = [
    ["Size", sizeName(options.size)],
    ["Length", `${options.duration} s`],
    ["Seed", String(seed)],
    ["Cost", dollars(cost)],
  ];
  if (milliseconds !== undefined) rows.push(["Made in", clock(milliseconds)]);
  return rows.map(([name, value]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })),
  );
}

const short = (text) => (text.length > 160 ? `${text.slice(0, 160)}…` : text);
