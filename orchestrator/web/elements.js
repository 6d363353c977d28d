/**
 * Short forms for the page's elements.
 *
 * @module elements
 */

/** @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

/**
 * Calls `forget` when a dialog has been closed. The event comes with the next frame, which on a busy machine is late: what was opened
 * again meanwhile is not forgotten, so who opens it does that first.
 * @param {HTMLDialogElement} dialog @param {() => void} forget
 */
export function onClosed(dialog, forget) {
  dialog.addEventListener("close", () => dialog.open || forget());
}

/** Sets an element's text where it differs, so that screen readers do not announce the same text again. @param {Element} element @param {string} text */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * @param {string} tag
 * @param {string} text
 * @param {string} [className]
 */
export function make(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}
