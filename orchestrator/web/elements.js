/**
 * Short forms for the page's elements.
 *
 * @module elements
 */

/** @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

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
