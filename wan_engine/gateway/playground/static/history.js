// The gallery of the clips that this browser has generated.

import { byId, dollars, element, keepingFocus, sizeName } from "./dom.js";
import { isFinal } from "./jobs.js";

const STATES = {
  IN_QUEUE: "in the queue",
  IN_PROGRESS: "working",
  COMPLETED: "finished",
  FAILED: "failed",
  CANCELLED: "cancelled",
  TIMED_OUT: "expired",
  GONE: "no longer kept",
};

/** `show(id)`, `use(entry)` and `compare(id)` are called by the buttons of an entry. */
export class History {
  #jobs;
  #stills;
  #acts;
  #drawn = "";
  #priced = false;

  constructor(jobs, stills, acts) {
    this.#jobs = jobs;
    this.#stills = stills;
    this.#acts = acts;
    byId("clear").addEventListener("click", () => {
      const finals = this.#jobs.entries.filter(isFinal);
      keepingFocus(() => finals.forEach(({ id }) => this.#jobs.remove(id)), byId("history-title"));
      byId("history-title").scrollIntoView({ block: "nearest" });
    });
  }

  set priced(priced) {
    this.#priced = priced;
  }

  draw(current, compared = []) {
    const entries = this.#jobs.entries;
    const drawn = JSON.stringify([current, compared, this.#priced, entries]);
    if (drawn === this.#drawn) return; // a poll must not take the focus from a button
    this.#drawn = drawn;
    const focused = focusedButton();
    byId("history-empty").hidden = entries.length > 0;
    byId("clear").hidden = !entries.some(isFinal);
    byId("history").replaceChildren(
      ...entries.map((entry) => this.#item(entry, current, compared)),
    );
    if (focused) refocus(focused);
  }

  #item(entry, current, compared) {
    const { options } = entry;
    const facts = [
      when(entry.at),
      `${options.duration} s`,
      entry.pixels?.join(" × ") ?? sizeName(options.size),
    ];
    if (entry.state === "COMPLETED") {
      facts.push(...(this.#priced ? [dollars(entry.cost)] : []), `seed ${entry.seed}`);
    }
    const text = element(
      "div",
      { className: "history-text" },
      element("p", { className: "history-prompt", textContent: options.prompt }),
      element(
        "p",
        { className: "note" },
        badge(entry),
        ...facts.flatMap((fact, place) => {
          const textContent = place < facts.length - 1 ? `${fact} ·` : fact;
          return [" ", element("span", { className: "fact", textContent })];
        }),
      ),
    );
    if (entry.error) text.append(element("p", { className: "note bad", textContent: entry.error }));
    const actions = element(
      "div",
      { className: "history-actions" },
      button("Show", entry, () => this.#acts.show(entry.id)),
      button("Use again", entry, () => this.#acts.use(entry)),
      ...(entry.state === "COMPLETED" ? [this.#compareButton(entry, compared)] : []),
      button(isFinal(entry) ? "Remove" : "Cancel", entry, () => this.#end(entry)),
    );
    const item = element("li", {}, this.#picture(entry), text, actions);
    if (entry.id === current) item.setAttribute("aria-current", "true");
    return item;
  }

  #compareButton(entry, compared) {
    const made = button("Compare", entry, () => this.#acts.compare(entry.id));
    made.ariaPressed = String(compared.includes(entry.id));
    return made;
  }

  /** The first frame of the clip, or the chosen picture until that is loaded. */
  #picture(entry) {
    const holder = element("div", { className: "still" });
    // The button "Show" for a mouse.
    holder.addEventListener("click", () => this.#acts.show(entry.id));
    holder.append(thumb(entry));
    if (entry.state === "COMPLETED") this.#fill(holder, entry.id);
    return holder;
  }

  async #fill(holder, id) {
    const src = await this.#stills.of(id);
    if (src) holder.replaceChildren(element("img", { src, alt: "", className: "thumb clip" }));
  }

  async #end(entry) {
    if (isFinal(entry)) this.#jobs.remove(entry.id);
    else if (!(await this.#jobs.cancel(entry.id))) this.#acts.show(entry.id); // it says why
  }
}

function button(text, entry, act) {
  const made = element("button", { type: "button", className: "quiet small", textContent: text });
  made.ariaLabel = `${text}: ${entry.options.prompt.slice(0, 80)}`;
  made.dataset.of = `${text} ${entry.id}`;
  made.addEventListener("click", act);
  return made;
}

const badge = ({ state }) =>
  element("span", {
    className: `state ${state.toLowerCase()}`,
    textContent: STATES[state] ?? state,
  });

function thumb({ media = {} }) {
  const pictures = [media.image, ...(media.references ?? []), media.last_image];
  const found = pictures.find((one) => one?.thumb);
  if (found) return element("img", { src: found.thumb, alt: "", className: "thumb" });
  const text = media.first_clip ? "Clip" : pictures.some(Boolean) ? "URL" : "Text";
  return element("span", { className: "thumb", ariaHidden: "true", textContent: text });
}

const when = (milliseconds) =>
  new Date(milliseconds).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

/** The focused button and its place, to restore the focus when the list is drawn again. */
function focusedButton() {
  const held = document.activeElement?.closest?.("#history button");
  if (!held) return null;
  return { of: held.dataset.of, place: [...byId("history").children].indexOf(held.closest("li")) };
}

function refocus({ of, place }) {
  const same = [...byId("history").querySelectorAll("button")].find((one) => one.dataset.of === of);
  const beside = byId("history").children[Math.min(place, byId("history").children.length - 1)];
  (same ?? beside?.querySelector("button:last-child") ?? byId("send")).focus({
    preventScroll: true,
  });
}
