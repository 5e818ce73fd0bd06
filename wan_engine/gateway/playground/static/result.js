// The card of one job: its progress, then the video, or the sentence of its failure.

import {
  announce,
  byId,
  clock,
  dollars,
  element,
  keepingFocus,
  roughly,
  say,
  sizeName,
} from "./dom.js";
import { isFinal } from "./jobs.js";
import { Bar, STAGES, titleOf } from "./progress.js";

const PARTS = ["idle", "running", "done", "failed"];
const TITLE = document.title;

export class Result {
  #jobs;
  #priced = false;
  #id = null;
  #bar = new Bar();
  #source = "";
  #asked = false;

  constructor(jobs) {
    this.#jobs = jobs;
    byId("stages").append(...STAGES.map(({ title }) => element("li", { textContent: title })));
    byId("video").addEventListener("error", () => this.#lost());
    byId("video").addEventListener("loadedmetadata", () => this.#measured());
    setInterval(() => this.#elapsed(), 500);
  }

  get id() {
    return this.#id;
  }

  /** Whether costs are shown, because the operator has set prices. */
  set priced(priced) {
    this.#priced = priced;
    if (this.#source) this.#drawFacts();
  }

  show(id) {
    this.#asked = false;
    this.#jobs.watched = id;
    if (id !== this.#id) {
      this.#id = id;
      this.#bar = new Bar();
      this.#source = "";
      byId("video").removeAttribute("src");
    }
    this.draw();
  }

  draw() {
    keepingFocus(() => this.#draw(), byId("result"));
  }

  #draw() {
    const entry = this.#jobs.entry(this.#id);
    const live = this.#jobs.live(this.#id);
    document.title = TITLE;
    byId("shown").textContent = entry?.options ? `“${short(entry.options.prompt)}”` : "";
    byId("again").hidden = !entry?.options;
    byId("retry").hidden = !entry?.options || this.#jobs.isVisited(this.#id);
    if (!entry) this.#part("idle");
    else if (!isFinal(entry)) this.#drawRunning(live);
    else if (entry.state === "COMPLETED") this.#drawDone(entry, live);
    else this.#drawFailed(entry);
  }

  #part(shown) {
    for (const name of PARTS) byId(name).hidden = name !== shown;
    if (shown !== "done") byId("video").pause();
  }

  #drawRunning({ status, progress, preview, preview_step, away, refusal }) {
    this.#part("running");
    const bar = byId("bar");
    const begun = status === "IN_PROGRESS" ? "Beginning" : "In the queue";
    const title = progress ? titleOf(progress.stage) : begun;
    const steps = progress?.steps > 1 ? `, ${progress.step} of ${progress.steps}` : "";
    byId("stage").textContent = title + steps;
    say(byId("away"), [refusal, away].filter(Boolean).join(". "));
    if (progress) {
      bar.value = this.#bar.at(progress);
      document.title = `${Math.round(bar.value * 100)} % · ${TITLE}`;
    } else {
      // Its engine may have died, and the job starts again.
      this.#bar = new Bar();
      bar.removeAttribute("value");
    }
    const index = STAGES.findIndex(({ name }) => name === progress?.stage);
    [...byId("stages").children].forEach((item, place) => {
      item.className = place < index ? "past" : place === index ? "now" : "";
    });
    const picture = byId("live-preview");
    picture.hidden = !isPreview(preview);
    if (!picture.hidden && picture.src !== preview) {
      picture.src = preview;
      picture.alt = `Preview of step ${preview_step} of ${progress?.steps ?? "–"}`;
    }
    announce(title);
    this.#elapsed();
  }

  /** By the server's clock, so that every tab shows the same. */
  #elapsed() {
    const entry = this.#jobs.entry(this.#id);
    if (!entry || isFinal(entry)) return;
    const {
      started,
      queued,
      aheadMs,
      now,
      seconds_left: left,
      ...live
    } = this.#jobs.live(this.#id);
    const here = Date.now() - (aheadMs ?? 0);
    byId("elapsed").textContent = clock(here - (started ?? queued ?? entry.at));
    byId("wait").textContent = waiting(live, left == null ? null : left - (here - now) / 1000);
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
    byId("warnings").replaceChildren(
      ...(entry.warnings ?? []).map((text) => element("li", { textContent: text })),
    );
    this.#drawFacts();
    announce("The video is finished");
  }

  /** The link is not stored. It is requested once each time the job is shown. */
  #askForLink(entry, away) {
    this.#drawFacts();
    byId("warnings").replaceChildren(...(away ? [element("li", { textContent: away })] : []));
    if (this.#asked) return;
    this.#asked = true;
    this.#jobs.refresh(entry.id);
  }

  #measured() {
    const { videoWidth, videoHeight } = byId("video");
    if (this.#source && videoWidth) this.#jobs.measured(this.#id, [videoWidth, videoHeight]);
    this.#drawFacts();
  }

  #drawFacts() {
    const entry = this.#jobs.entry(this.#id);
    if (entry?.state === "COMPLETED") {
      byId("facts").replaceChildren(...facts(entry, byId("video"), this.#priced));
    }
  }

  #drawFailed(entry) {
    const [title, sentence] = WORDS[entry.state] ?? WORDS.FAILED;
    byId("trouble").classList.toggle("calm", entry.state === "CANCELLED");
    this.#part("failed");
    announce(""); // the card says it
    say(byId("failed-title"), title);
    const other = byId("key-card").hidden ? "" : ", or another key sent it";
    say(
      byId("failure"),
      entry.state === "GONE" ? `${sentence}${other}.` : (entry.error ?? sentence),
    );
  }

  #lost() {
    if (!this.#source) return;
    const why = "the server may have deleted it, or this browser does not reach it";
    const sentence = `The video cannot be played: ${why}.`;
    byId("warnings").replaceChildren(element("li", { textContent: sentence }));
    announce(sentence);
  }
}

const WORDS = {
  FAILED: ["It did not work", "The server gave no reason."],
  CANCELLED: ["Cancelled", "No clip was made."],
  TIMED_OUT: ["Expired", "The job did not start in time."],
  GONE: ["Not found", "The server does not keep this job any more"],
};

const isPreview = (preview) =>
  typeof preview === "string" && /^data:image\/(jpeg|webp|png);base64,/.test(preview);

/** Its place and its remaining time. Empty if both are unknown. */
function waiting({ before, waiting_for: reason }, seconds) {
  const place =
    { 0: "Next in the queue", 1: "1 job is before it" }[before] ??
    (before > 1 ? `${before} jobs are before it` : "");
  const soon = before == null ? "nearly done" : "";
  const rest = seconds === null ? "" : seconds > 3 ? `${roughly(seconds)} left` : soon;
  const told = [place, reason, rest].filter(Boolean).join(", ");
  return told.charAt(0).toUpperCase() + told.slice(1);
}

function facts(
  { options, pixels, seed, cost, milliseconds },
  { videoWidth, videoHeight, duration },
  priced,
) {
  const length = options?.duration ?? (Number.isFinite(duration) ? duration.toFixed(1) : "–");
  const rows = [
    [
      "Size",
      (videoWidth ? [videoWidth, videoHeight] : pixels)?.join(" × ") ??
        (options ? sizeName(options.size ?? "1280*720") : "–"),
    ],
    ["Length", `${length} s`],
    ["Seed", String(seed)],
  ];
  if (options?.loras) {
    rows.push([
      "LoRA",
      options.loras.map(({ name, scale = 1 }) => `${name} at ${scale}`).join(", "),
    ]);
  }
  if (priced) rows.push(["Cost", dollars(cost)]);
  if (milliseconds !== undefined) rows.push(["Made in", clock(milliseconds)]);
  return rows.map(([name, value]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })),
  );
}

/** Whole words of a long text. */
const short = (text) =>
  text.length > 160 ? `${text.slice(0, 160).replace(/[^\p{L}\p{N}]+\S*$/u, "")}…` : text;
