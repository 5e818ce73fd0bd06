// Helpers for elements of the page.

/** @returns {HTMLElement} the element with this id, which must exist. */
export const byId = (id) => document.getElementById(id);

/** Creates an element. `properties` are assigned to it. Text is added as text, never as HTML. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** The value of the selected radio button. */
export const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

export function choose(name, value) {
  const inputs = [...document.querySelectorAll(`input[name="${name}"]`)];
  const wanted = inputs.find((input) => input.value === String(value));
  if (wanted) wanted.checked = true;
}

/** Sets the text of an element that screen readers announce; an equal text not once more. */
export function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

/** Calls `act`. If it hides or removes the element with the focus, `fallback` gets the focus. */
export function keepingFocus(act, fallback) {
  const held = document.activeElement;
  const was = held !== null && held !== document.body;
  act();
  if (was && !held.checkVisibility()) fallback.focus({ preventScroll: true });
}

/** Shows `sentence` below a field and marks the field as invalid. An empty one clears it. */
export function fault(field, place, sentence) {
  say(place, sentence);
  if (sentence) field.setAttribute("aria-invalid", "true");
  else field.removeAttribute("aria-invalid");
}

/** Announces a text to screen readers, politely. */
export function announce(sentence) {
  say(byId("live"), sentence);
}

export const megabytes = (bytes) =>
  bytes < 1e5
    ? `${Math.max(1, Math.round(bytes / 1024))} KB`
    : `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 1)} MB`;

export const dollars = (amount) => `$${amount.toFixed(2)}`;

export const sizeName = (size) => `${Math.min(...size.split("*"))}p`;

/** Seconds in words, rounded to what is known. */
export function roughly(seconds) {
  if (seconds < 10) return "under 10 s";
  if (seconds < 90) return `about ${Math.round(seconds / 10) * 10} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${(seconds / 3600).toFixed(1)} h`;
}

export function clock(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
