// The list of what this browser has generated.

import { byId, dollars, element, sizeName } from "./dom.js";
import { isFinal } from "./jobs.js";

const STATES = {
  IN_QUEUE: "in the queue",
  IN_PROGRESS: "working",
  COMPLETED: "finished",
  FAILED: "failed",
  CANCELLED: "cancelled",
  TIMED_OUT: "too late",
  GONE: "no longer kept",
};

/** `show(id)` and `use(entry)` are what the buttons of an entry do. */
export class History {
  #jobs;
  #show;
  #use;
  #drawn = "";

  constructor(jobs, { show, use }) {
    this.#jobs = jobs;
    this.#show = show;
    this.#use = use;
    byId("clear").addEventListener("click", () => {
      for (const entry of this.#jobs.entries) if (isFinal(entry)) this.#jobs.remove(entry.id);
      byId("history-title").scrollIntoView({ block: "nearest" });
    });
  }

  draw(current) {
    const entries = this.#jobs.entries;
    const drawn = JSON.stringify([current, entries]);
    if (drawn === this.#drawn) return; // a poll must not take the focus off a button
    this.#drawn = drawn;
    const focused = focusedButton();
    byId("history-empty").hidden = entries.length > 0;
    byId("clear").hidden = !entries.some(isFinal);
    byId("history").replaceChildren(...entries.map((entry) => this.#item(entry, entry.id === current)));
    if (focused) refocus(focused);
  }

  #item(entry, current) {
    const { options } = entry;
    const facts = [when(entry.at), `${options.duration} s`, sizeName(options.size)];
    if (entry.state === "COMPLETED") facts.push(dollars(entry.cost), `seed ${entry.seed}`);
    const text = element(
      "div",
      { className: "grow" },
      element("p", { className: "history-prompt", textContent: options.prompt }),
      element("p", { className: "note" }, badge(entry), ` ${facts.join(" · ")}`),
    );
    if (entry.error) text.append(element("p", { className: "note bad", textContent: entry.error }));
    const actions = element(
      "div",
      { className: "history-actions" },
      button("Show", entry, () => this.#show(entry.id)),
      button("Use again", entry, () => this.#use(entry)),
      button(isFinal(entry) ? "Remove" : "Cancel", entry, () => this.#end(entry)),
    );
    const item = element("li", {}, thumb(entry), text, actions);
    if (current) item.setAttribute("aria-current", "true");
    return item;
  }

  #end(entry) {
    if (isFinal(entry)) this.#jobs.remove(entry.id);
    else this.#jobs.cancel(entry.id).catch(() => this.#jobs.remove(entry.id));
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
  element("span", { className: `state ${state.toLowerCase()}`, textContent: STATES[state] ?? state });

function thumb({ picture, references }) {
  picture ??= references?.find((one) => one.thumb);
  if (picture?.thumb) return element("img", { src: picture.thumb, alt: "", width: 64, height: 64, className: "thumb" });
  return element("span", { className: "thumb", ariaHidden: "true", textContent: references?.length === 0 ? "Text" : "URL" });
}

const when = (milliseconds) =>
  new Date(milliseconds).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

/** The button that has the focus and its place in the list, for when the list is made anew. */
function focusedButton() {
  const held = document.activeElement?.closest?.("#history button");
  if (!held) return null;
  return { of: held.dataset.of, place: [...byId("history").children].indexOf(held.closest("li")) };
}

function refocus({ of, place }) {
  const same = [...byId("history").querySelectorAll("button")].find((one) => one.dataset.of === of);
  const beside = byId("history").children[Math.min(place, byId("history").children.length - 1)];
  (same ?? beside?.querySelector("button:last-child") ?? byId("send")).focus({ preventScroll: true });
}
